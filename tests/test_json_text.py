"""JSON text is what a JSON round trip of Django's normalised value gives."""

import enum
import json
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from django.utils.json import normalize_json
from hypothesis import given, settings
from hypothesis import strategies as st

from django_tasks_local.json_text import (
    decode_arguments,
    decode_value,
    encode_arguments,
    encode_foreign,
    encode_value,
)


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "eins"


class Name(str):
    pass


class Point(NamedTuple):
    x: int
    y: float


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters()),  # lone surrogates too
    st.text().map(str.encode),
    st.text().map(Name),
    st.sampled_from([Number.ONE, Word.ONE, 10**100]),
    st.binary(max_size=3).map(bytearray),
    st.builds(range, st.integers(0, 3)),
)
KEYS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.text(max_size=3).map(str.encode),
    st.sampled_from([Number.ONE, Word.ONE]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.lists(inner, max_size=4).map(UserList),
        st.builds(Point, st.integers(), inner),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
        st.dictionaries(KEYS, inner, max_size=4).map(UserDict),
        st.dictionaries(KEYS, inner, max_size=4).map(MappingProxyType),
    ),
    max_leaves=20,
)

REFUSED: dict[str, Callable[[], object]] = {
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "negative infinity": lambda: float("-inf"),
    "undecodable bytes": lambda: b"\xff",
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset([1]),
    "object": object,
    "complex": lambda: 1j,
    "generator": lambda: (number for number in range(3)),
    "exception": lambda: ValueError("no"),
    "function": lambda: len,
    "nan as a key": lambda: {float("nan"): 1},
    "tuple as a key": lambda: {(1, 2): 1},
    "object as a key": lambda: {object(): 1},
    "list that contains itself": lambda: contains_itself([]),
    "dict that contains itself": lambda: contains_itself({}),
    "deque that contains itself": lambda: contains_itself(deque()),
    "endlessly nested": lambda: nested(200_000),
    "number that cannot be written": lambda: 10**5000,
}


def contains_itself(container: Any) -> object:
    if isinstance(container, dict):
        container["self"] = container
    else:
        container.append(container)
    return container


def nested(depth: int) -> object:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def round_trip(value: object) -> Any:
    return json.loads(json.dumps(normalize_json(value), allow_nan=False))


def exactly(value: Any) -> Any:
    """Tells 1, 1.0 and True apart, and a dict's order."""
    match value:
        case dict():
            return "dict", [(key, exactly(item)) for key, item in value.items()]
        case list():
            return "list", [exactly(item) for item in value]
        case _:
            return type(value), repr(value)


@settings(deadline=None)
@given(VALUES)
def test_value_comes_back_as_from_django_and_json(value: object) -> None:
    text = encode_value(value)

    assert exactly(decode_value(text)) == exactly(round_trip(value))
    assert text.isascii()


@settings(deadline=None)
@given(VALUES)
def test_what_came_back_stays_as_it_is(value: object) -> None:
    once = decode_value(encode_value(value))

    assert exactly(decode_value(encode_value(once))) == exactly(once)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=3), st.dictionaries(st.text(), VALUES, max_size=3))
def test_arguments_come_back_as_from_django_and_json(
    args: list[Any], kwargs: dict[str, Any]
) -> None:
    text = encode_arguments(args, kwargs)

    decoded_args, decoded_kwargs = decode_arguments(text)
    assert exactly(decoded_args) == exactly(round_trip(args))
    assert exactly(decoded_kwargs) == exactly(round_trip(kwargs))
    assert encode_arguments(tuple(args), MappingProxyType(kwargs)) == text


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_is_not_json_is_refused_wherever_it_is(make: Callable[[], object]) -> None:
    for value in (make(), [1, make()], {"rows": make()}, UserDict(rows=(b"", make()))):
        with pytest.raises(TypeError):
            encode_value(value)
        with pytest.raises(TypeError):
            encode_arguments([value], {})
        with pytest.raises(TypeError):
            encode_arguments([], {"key": value})


def test_numbers_are_refused_that_a_reader_would_not_take() -> None:
    # What is stored has to be readable: a text that cannot be decoded is no result.
    for digits in (4299, 4300):
        value = 10**digits - 1
        assert decode_value(encode_value(value)) == value
    with pytest.raises(TypeError):
        encode_value(10**4300)


def test_keys_become_strings() -> None:
    assert decode_value(encode_value({2: 0, 1.5: 0, None: 0, True: 0, b"b": 0})) == {
        "2": 0,
        "1.5": 0,
        "null": 0,
        "true": 0,
        "b": 0,
    }


def test_decoded_values_are_copies_of_their_own() -> None:
    value = {"rows": [[1], {"key": [2]}]}
    text = encode_value(value)
    first, second = decode_value(text), decode_value(text)
    first["rows"][0].append("changed")
    first["rows"][1]["key"].clear()
    value["rows"].clear()

    assert second == {"rows": [[1], {"key": [2]}]}
    assert decode_value(text) == second


def test_decoded_arguments_are_copies_of_their_own() -> None:
    for text in (encode_arguments([], {}), encode_arguments([[1]], {"key": [2]})):
        before = decode_arguments(text)
        args, kwargs = decode_arguments(text)
        args.append("changed")
        kwargs["changed"] = True

        assert decode_arguments(text) == before


def test_other_backends_results_are_taken_as_they_are() -> None:
    text = encode_foreign([float("inf"), "größe"])

    assert decode_value(text) == [float("inf"), "größe"]
