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


@task
def spin(us: float) -> None:
    """Keep a CPU busy for so long."""
    ends_at = time.thread_time() + us / 1e6
    while time.thread_time() < ends_at:
        pass


@task
def hold() -> None:
    """Until this process lets go, or ends."""
    functions.released.wait()
