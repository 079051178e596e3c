"""Tasks for the hard cases; worker processes import them too."""

from typing import Any

from django_tasks_local import task

from .gates import LONG_S
from .tasks import add


class _Metaclass(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]  # what it is for
        raise LookupError


class Unspeakable(Exception, metaclass=_Metaclass):
    """An exception whose class cannot be asked for its name."""


class Interrupting(Exception):
    """An exception that interrupts whoever asks for its cause."""

    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]  # likewise
        raise KeyboardInterrupt


@task
def raise_unspeakable() -> None:
    raise Unspeakable


@task
def raise_interrupting() -> None:
    raise Interrupting


@task
def fan_out(alias: str, count: int) -> int:
    """The sum of what many tasks return, waited for when all are enqueued."""
    handles = [add.using(backend=alias).enqueue(n, 0) for n in range(count)]
    return sum(handle.wait(LONG_S) for handle in handles)


def _twice(number: int) -> int:
    return 2 * number


# The path of its function holds no task.
twice = task(_twice)


@task
def enqueue_twice(alias: str, number: int) -> int:
    value: Any = twice.using(backend=alias).enqueue(number).wait(LONG_S)
    assert isinstance(value, int)
    return value
