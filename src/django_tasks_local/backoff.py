"""How long a task that failed waits for its next attempt.

What these functions give is asked after each failed attempt. It is plain data: equal
where it was made alike, and hashable and picklable where what it was made of is.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, override

if TYPE_CHECKING:
    from .results import LocalTaskResult

__all__ = ["Backoff", "exponential", "fixed", "linear", "only"]

type Backoff = Callable[[BaseException, "LocalTaskResult[Any]"], float | None]
"""From a failed attempt to the seconds until the next, or None for no further one.

Called with the exception and with the task's result as it is after that attempt: its
``attempts`` is 1 after the first.
"""


# The checks take any object: who calls from untyped code is told at once what is wrong,
# and not by a task that fails at some later time.


def _checked_s(
    value: object, name: str, accepted: str, is_right: Callable[[float], bool]
) -> float:
    message = f"The {name} must be a finite number of seconds {accepted}, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(message)
    try:
        seconds = float(value)
    except OverflowError as err:  # an integer beyond all floats
        raise ValueError(message) from err
    if not math.isfinite(seconds) or not is_right(seconds):
        raise ValueError(message)
    return seconds


def _over_zero_s(value: object, name: str) -> float:
    return _checked_s(value, name, "above 0", lambda seconds: seconds > 0)


def _at_least_s(value: object, name: str, least_s: float) -> float:
    return _checked_s(
        value, name, f"of at least {least_s}", lambda seconds: seconds >= least_s
    )


def _check_jitter(value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(
            f"The jitter of exponential() must be True or False, not {value!r}"
        )


def _check_error_class(value: object) -> None:
    if not isinstance(value, type) or not issubclass(value, BaseException):
        raise TypeError(f"only() takes exception classes, not {value!r}")


def _check_then(value: object) -> None:
    if not callable(value):
        raise TypeError(
            f"The then of only() must be a backoff, such as fixed(5), not {value!r}"
        )


def exponential(
    *, base: float = 1.0, cap: float = 600.0, jitter: bool = True
) -> Backoff:
    """Twice as long after each attempt: `base` seconds, 2 * `base`, up to `cap`.

    With `jitter`, a random share of that between one half and all, so that tasks which
    failed together do not all come back together: the "equal jitter" of "Exponential
    Backoff And Jitter" in the AWS Architecture Blog. `base` is above 0, and `cap` is at
    least `base`.
    """
    base_s = _over_zero_s(base, "base of exponential()")
    cap_s = _at_least_s(cap, "cap of exponential()", base_s)
    _check_jitter(jitter)
    return _Exponential(base_s, cap_s, jitter)


@dataclass(frozen=True, slots=True)
class _Exponential:
    base_s: float
    cap_s: float
    has_jitter: bool

    def __call__(
        self, error: BaseException, task_result: "LocalTaskResult[Any]", /
    ) -> float:
        try:
            uncapped_s = math.ldexp(self.base_s, task_result.attempts - 1)
        except OverflowError:
            uncapped_s = math.inf
        seconds = min(uncapped_s, self.cap_s)
        return random.uniform(seconds / 2, seconds) if self.has_jitter else seconds

    @override
    def __repr__(self) -> str:
        return (
            f"exponential(base={self.base_s}, cap={self.cap_s}, "
            f"jitter={self.has_jitter})"
        )


def linear(step: float, *, cap: float | None = None) -> Backoff:
    """Longer by `step` seconds after each attempt: `step`, 2 * `step`, up to `cap`.

    `step` is above 0, and `cap` is at least `step`, or None for no limit.
    """
    step_s = _over_zero_s(step, "step of linear()")
    cap_s = None if cap is None else _at_least_s(cap, "cap of linear()", step_s)
    return _Linear(step_s, cap_s)


@dataclass(frozen=True, slots=True)
class _Linear:
    step_s: float
    cap_s: float | None

    def __call__(
        self, error: BaseException, task_result: "LocalTaskResult[Any]", /
    ) -> float:
        uncapped_s = self.step_s * task_result.attempts
        return uncapped_s if self.cap_s is None else min(uncapped_s, self.cap_s)

    @override
    def __repr__(self) -> str:
        return f"linear(step={self.step_s}, cap={self.cap_s})"


def fixed(seconds: float) -> Backoff:
    """The same `seconds`, 0 or more, after each attempt."""
    return _Fixed(_at_least_s(seconds, "seconds of fixed()", 0.0))


@dataclass(frozen=True, slots=True)
class _Fixed:
    seconds: float

    def __call__(
        self, error: BaseException, task_result: "LocalTaskResult[Any]", /
    ) -> float:
        return self.seconds

    @override
    def __repr__(self) -> str:
        return f"fixed(seconds={self.seconds})"


_EXPONENTIAL = exponential()


def only(*error_classes: type[BaseException], then: Backoff = _EXPONENTIAL) -> Backoff:
    """What `then` answers to exceptions of these classes; None to any other.

    A subclass counts as its class, as in an ``except``. ``only(WorkerLost)`` is for
    tasks whose worker died.
    """
    if not error_classes:
        raise TypeError("only() takes at least one exception class, and was given none")
    for error_class in error_classes:
        _check_error_class(error_class)
    _check_then(then)
    return _Only(error_classes, then)


@dataclass(frozen=True, slots=True)
class _Only:
    error_classes: tuple[type[BaseException], ...]
    then: Backoff

    def __call__(
        self, error: BaseException, task_result: "LocalTaskResult[Any]", /
    ) -> float | None:
        if isinstance(error, self.error_classes):
            return self.then(error, task_result)
        return None

    @override
    def __repr__(self) -> str:
        names = ", ".join(
            error_class.__qualname__ for error_class in self.error_classes
        )
        return f"only({names}, then={self.then!r})"
