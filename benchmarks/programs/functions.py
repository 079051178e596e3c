"""What the tasks do: plain functions, so that bare executors can be sent them too."""

import os
import threading
import time
from typing import Any

blocked = threading.Barrier(3)
"""Passed when two tasks `block` the two slots and the program knows it."""
released = threading.Event()


def block() -> None:
    blocked.wait()
    released.wait()


def no_op() -> None:
    pass


def echo(value: Any, *, note: str = "") -> Any:
    return value


def oversleep() -> None:
    """Longer than any time limit here."""
    time.sleep(60.0)


def nap() -> tuple[float, float]:
    """Long enough for the event loop to be at rest when it ends."""
    began_at = time.perf_counter()
    time.sleep(0.002)
    return began_at, time.perf_counter()


def count_primes(below: int) -> int:
    return sum(
        all(number % divisor for divisor in range(2, int(number**0.5) + 1))
        for number in range(2, below)
    )


def end_process() -> None:
    os._exit(1)
