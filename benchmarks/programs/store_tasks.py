"""Tasks that other processes find by their paths, as stores of any library need it."""

import time
from typing import Any

from django.tasks import task

from . import functions


@task
def no_op() -> None:
    pass


@task
def block() -> None:
    functions.block()


@task
def echo(value: Any, *, note: str = "") -> Any:
    return value


@task
def end_after(seconds: float) -> float:
    """Say when it has ended, by the clock that all processes share."""
    time.sleep(seconds)
    return time.monotonic()
