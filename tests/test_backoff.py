"""How long a task that failed waits for its next attempt."""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.tasks.base import TaskResult
from hypothesis import given, settings
from hypothesis import strategies as st

from django_tasks_local.backoff import Backoff, exponential, fixed, linear, only
from django_tasks_local.errors import QueueFull, WorkerLost
from django_tasks_local.records import Record, TaskSpec
from django_tasks_local.results import LocalTaskResult, handle_of

ERROR = ConnectionError("refused")
MANY = 100_000  # doublings far beyond what a float holds

SECONDS = st.floats(0, 1e300, exclude_min=True)
ATTEMPTS = st.integers(1, 3000)


def failed(attempts: int) -> LocalTaskResult[Any]:
    """The result of a task that failed so many times."""
    spec = TaskSpec("tests.tasks.fail", 0, "default", "default", False)
    return handle_of(
        Record(
            "id",
            spec,
            "default",
            "[[], {}]",
            None,
            "",
            0.0,
            worker_ids=("worker",) * attempts,
        )
    )


def answers(backoff: Backoff, *, attempts: int = 6) -> list[float | None]:
    """What it answers after the first attempt, the second, and so on."""
    return [backoff(ERROR, failed(attempt)) for attempt in range(1, attempts + 1)]


def seconds(backoff: Backoff, attempts: int) -> float:
    answer = backoff(ERROR, failed(attempts))
    assert answer is not None
    return answer


def named(error: BaseException, _: "TaskResult[..., Any]", /) -> float | None:
    """A backoff of a user's own, which looks at the exception."""
    return 7.0 if "refused" in str(error) else None


BACKOFFS = [
    exponential(),
    exponential(base=0.5, cap=30, jitter=False),
    linear(2),
    linear(2, cap=9),
    fixed(3),
    only(ConnectionError),
    only(OSError, WorkerLost, then=fixed(3)),
    only(OSError, then=named),
]


def test_exponential_doubles_up_to_its_cap() -> None:
    backoff = exponential(base=3, cap=40, jitter=False)

    assert answers(backoff) == [3, 6, 12, 24, 40, 40]


def test_exponential_begins_at_a_second_and_ends_at_ten_minutes() -> None:
    backoff = exponential(jitter=False)

    assert answers(backoff, attempts=11)[:3] == [1, 2, 4]
    assert answers(backoff, attempts=11)[-2:] == [512, 600]


def test_jitter_differs_from_call_to_call() -> None:
    backoff = exponential(base=60)
    result = failed(1)
    drawn = [backoff(ERROR, result) for _ in range(100)]

    assert len(set(drawn)) > 90


@settings(deadline=None)
@given(base=SECONDS, cap=SECONDS, attempts=ATTEMPTS)
def test_jitter_takes_at_most_half(base: float, cap: float, attempts: int) -> None:
    base, cap = sorted([base, cap])
    whole = seconds(exponential(base=base, cap=cap, jitter=False), attempts)
    with_jitter = seconds(exponential(base=base, cap=cap), attempts)

    assert whole / 2 <= with_jitter <= whole <= cap


@settings(deadline=None)
@given(base=SECONDS, cap=SECONDS, attempts=ATTEMPTS)
def test_exponential_without_jitter_never_falls(
    base: float, cap: float, attempts: int
) -> None:
    base, cap = sorted([base, cap])
    backoff = exponential(base=base, cap=cap, jitter=False)

    assert base <= seconds(backoff, attempts) <= seconds(backoff, attempts + 1) <= cap


@settings(deadline=None)
@given(step=SECONDS, cap=SECONDS, attempts=ATTEMPTS)
def test_linear_never_falls(step: float, cap: float, attempts: int) -> None:
    step, cap = sorted([step, cap])
    backoff = linear(step, cap=cap)

    assert step <= seconds(backoff, attempts) <= seconds(backoff, attempts + 1) <= cap


def test_huge_numbers_of_attempts_wait_for_the_cap() -> None:
    assert seconds(exponential(jitter=False), MANY) == 600
    assert 300 <= seconds(exponential(), MANY) <= 600
    assert seconds(linear(2, cap=100), MANY) == 100


def test_linear_grows_by_its_step() -> None:
    assert answers(linear(2.5)) == [2.5, 5, 7.5, 10, 12.5, 15]
    assert answers(linear(2, cap=9)) == [2, 4, 6, 8, 9, 9]
    assert seconds(linear(2), MANY) == 2 * MANY


def test_fixed_is_the_same_each_time() -> None:
    assert answers(fixed(3)) == [3] * 6
    assert answers(fixed(0)) == [0] * 6


@pytest.mark.parametrize(
    "error, answer",
    [
        (ConnectionError(), 3),
        (ConnectionRefusedError(), 3),  # a subclass
        (WorkerLost("killed by SIGKILL"), 3),
        (OSError(), None),  # a superclass
        (ValueError(), None),
        (KeyboardInterrupt(), None),
    ],
    ids=repr,
)
def test_only_tries_its_classes_again(
    error: BaseException, answer: float | None
) -> None:
    backoff = only(ConnectionError, WorkerLost, then=fixed(3))

    assert backoff(error, failed(1)) == answer


def test_only_takes_any_exception_class() -> None:
    assert only(BaseException, then=fixed(3))(SystemExit(), failed(1)) == 3
    assert only(QueueFull, then=fixed(3))(QueueFull(), failed(1)) == 3


def test_only_is_exponential_unless_told() -> None:
    assert only(ConnectionError) == only(ConnectionError, then=exponential())


def test_only_asks_what_it_was_given() -> None:
    backoff = only(OSError, then=named)

    assert backoff(ConnectionError("refused"), failed(1)) == 7
    assert backoff(ConnectionError("reset"), failed(1)) is None


def test_only_can_be_asked_by_only() -> None:
    backoff = only(OSError, then=only(ConnectionError, then=fixed(3)))

    assert backoff(ConnectionError(), failed(1)) == 3
    assert backoff(FileNotFoundError(), failed(1)) is None


def test_alike_are_equal() -> None:
    assert exponential(base=1, cap=600) == exponential()
    assert hash(exponential(base=1, cap=600)) == hash(exponential())
    assert linear(2, cap=9) == linear(2.0, cap=9.0)
    assert len({*BACKOFFS, *BACKOFFS}) == len(BACKOFFS)


@pytest.mark.parametrize(
    "backoff", BACKOFFS, ids=lambda backoff: repr(backoff).partition(" at 0x")[0]
)
def test_backoffs_are_plain_data(backoff: Backoff) -> None:
    copied = pickle.loads(pickle.dumps(backoff))

    assert copied == backoff
    assert hash(copied) == hash(backoff)
    assert repr(copied) == repr(backoff)


@pytest.mark.parametrize(
    "backoff, text",
    [
        (exponential(), "exponential(base=1.0, cap=600.0, jitter=True)"),
        (linear(2), "linear(step=2.0, cap=None)"),
        (linear(2, cap=9), "linear(step=2.0, cap=9.0)"),
        (fixed(3), "fixed(seconds=3.0)"),
        (
            only(OSError, WorkerLost, then=fixed(3)),
            "only(OSError, WorkerLost, then=fixed(seconds=3.0))",
        ),
    ],
)
def test_backoffs_show_how_they_are_made(backoff: Backoff, text: str) -> None:
    assert repr(backoff) == text
    assert eval(text) == backoff


# What no type checker would let pass.
make_exponential: Callable[..., Backoff] = exponential
make_linear: Callable[..., Backoff] = linear
make_fixed: Callable[..., Backoff] = fixed
make_only: Callable[..., Backoff] = only

EACH_DURATION = pytest.mark.parametrize(
    "make, name",
    [
        (lambda value: make_exponential(base=value), "base of exponential()"),
        (lambda value: make_exponential(cap=value), "cap of exponential()"),
        (lambda value: make_linear(value), "step of linear()"),
        (lambda value: make_linear(1, cap=value), "cap of linear()"),
        (lambda value: make_fixed(value), "seconds of fixed()"),
    ],
    ids=["base", "exponential cap", "step", "linear cap", "seconds"],
)


def about(name: str, accepted: str, value: object) -> str:
    """The message about a duration, to be matched."""
    return (
        f"^The {re.escape(name)} must be a finite number of seconds {accepted}, "
        f"not {re.escape(repr(value))}$"
    )


@EACH_DURATION
@pytest.mark.parametrize(
    "value",
    [-1, -0.5, math.nan, math.inf, -math.inf, 10**400],
    ids=["-1", "-0.5", "nan", "inf", "-inf", "huge"],
)
def test_durations_are_finite_and_not_below_zero(
    make: Callable[[object], Backoff], name: str, value: float
) -> None:
    with pytest.raises(ValueError, match=about(name, ".+", value)):
        make(value)


@EACH_DURATION
@pytest.mark.parametrize("value", [True, "5", b"5", 1j, [1]], ids=repr)
def test_durations_are_numbers(
    make: Callable[[object], Backoff], name: str, value: object
) -> None:
    with pytest.raises(TypeError, match=about(name, ".+", value)):
        make(value)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: exponential(base=0),
            about("base of exponential()", "above 0", 0),
        ),
        (
            lambda: linear(0),
            about("step of linear()", "above 0", 0),
        ),
        (
            lambda: exponential(base=1000),
            about("cap of exponential()", "of at least 1000.0", 600.0),
        ),
        (
            lambda: linear(2, cap=1.5),
            about("cap of linear()", "of at least 2.0", 1.5),
        ),
    ],
    ids=["base", "step", "default cap", "cap"],
)
def test_growth_begins_above_zero_and_not_above_its_cap(
    make: Callable[[], Backoff], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", [None, 0, 1, "yes"])
def test_jitter_is_true_or_false(value: object) -> None:
    with pytest.raises(TypeError, match=f"must be True or False, not {value!r}$"):
        make_exponential(jitter=value)


def test_only_needs_a_class() -> None:
    with pytest.raises(TypeError, match="at least one exception class"):
        only()


@pytest.mark.parametrize("value", [None, int, "OSError", ERROR, (OSError,)], ids=repr)
def test_only_takes_nothing_but_exception_classes(value: object) -> None:
    with pytest.raises(
        TypeError, match=f"takes exception classes, not {re.escape(repr(value))}$"
    ):
        make_only(OSError, value)


@pytest.mark.parametrize("value", [None, 5, "fixed"])
def test_only_asks_nothing_but_functions(value: object) -> None:
    with pytest.raises(TypeError, match=f"must be a backoff, .*not {value!r}$"):
        make_only(OSError, then=value)
