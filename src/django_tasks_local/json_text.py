"""Arguments and return values as JSON text, the form in which they are kept.

Text can be shared by everybody who holds it, takes no part in garbage collection,
and gives a fresh copy to whoever decodes it, so nothing of one task can be changed
through another's hands.
"""

import json
import json.encoder
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any, cast

from django.utils.json import normalize_json

__all__ = [
    "NO_ARGUMENTS",
    "decode_arguments",
    "decode_value",
    "encode_arguments",
    "encode_foreign",
    "encode_metadata",
    "encode_value",
]

NO_ARGUMENTS = "[[],{}]"

# ASCII only, so that any store and any pipe holds any text as it is.
_encoder = json.JSONEncoder(
    allow_nan=False, check_circular=False, separators=(",", ":")
)


def _make_encode() -> Callable[[object], str]:
    """`_encoder.encode`, which makes a C encoder at each call, with one made once."""
    # Typeshed leaves it out; it is None where Python is not CPython.
    make_encoder: Any = getattr(json.encoder, "c_make_encoder", None)
    if make_encoder is None:
        return _encoder.encode
    to_chunks: Callable[[object, int], Iterable[str]] = make_encoder(
        None,  # no record of what is being encoded: a value that contains itself ends
        _encoder.default,  # in a RecursionError
        encode_basestring_ascii,
        None,
        _encoder.key_separator,
        _encoder.item_separator,
        False,
        False,
        _encoder.allow_nan,
    )
    return lambda value: "".join(to_chunks(value, 0))


_encode = _make_encode()
_raw_decode = json.JSONDecoder().raw_decode


def _decode(text: str) -> Any:
    """`json.loads` of a text around which there is no white space."""
    value, end = _raw_decode(text)
    if end != len(text):
        raise ValueError(f"More than JSON: {text[end : end + 80]!r}")
    return value


def encode_value(value: object, /) -> str:
    """The JSON text of a value, by the rules of Django's own backends.

    Mappings, sequences and UTF-8 bytes become objects, arrays and strings
    (`django.utils.json.normalize_json`); then what JSON itself does holds: keys
    become strings, and numbers that JSON does not have are refused.

    Raises TypeError for anything else, never another exception.
    """
    if value is None:
        return "null"
    try:
        try:
            return _encode(value)
        except TypeError:  # something that JSON lacks and Django knows how to turn
            return _encode(normalize_json(value))
    except (ValueError, RecursionError) as err:
        # NaN and infinities, undecodable bytes, values that contain themselves.
        raise TypeError(str(err)) from err


def decode_value(text: str, /) -> Any:
    """A fresh value of a JSON text that `encode_value` made."""
    return _decode(text)


def encode_arguments(args: Sequence[object], kwargs: Mapping[str, object], /) -> str:
    """The JSON text of a call's arguments. Raises TypeError as `encode_value`."""
    if not args and not kwargs:
        return NO_ARGUMENTS
    return encode_value([args, kwargs])


def encode_foreign(value: object, /) -> str:
    """The JSON text of what another backend's result holds, NaN and all."""
    return json.dumps(value)


def encode_metadata(metadata: object, /) -> str:
    """The JSON text of a task's metadata. Raises TypeError for what is no such dict."""
    if not isinstance(metadata, dict):
        raise TypeError(f"A task's metadata must be a dict, got {metadata!r}.")
    # The casts say what `isinstance` cannot: nothing is known of a user's items yet.
    for key in cast("dict[object, object]", metadata):
        if not isinstance(key, str):
            raise TypeError(f"The keys of metadata must be strings, got {key!r}.")
    try:
        return encode_value(cast("dict[object, object]", metadata))
    except TypeError as err:
        raise TypeError(f"A task's metadata must be JSON: {err}") from err


def decode_arguments(text: str, /) -> tuple[list[Any], dict[str, Any]]:
    """Fresh positional and keyword arguments of an `encode_arguments` text."""
    if text == NO_ARGUMENTS:
        return [], {}
    # The text is our own: a pair of an array and an object.
    args, kwargs = cast("tuple[list[Any], dict[str, Any]]", _decode(text))
    return args, kwargs
