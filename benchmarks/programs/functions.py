"""What the tasks do: plain functions, so that bare executors can be sent them too."""

import asyncio
import os
import threading
import time
from typing import Any

blocked = threading.Barrier(3)
"""Passed when two tasks `block` the two slots and the program knows it."""
released = threading.Event()
_holding = threading.Semaphore(0)


def block() -> None:
    blocked.wait()
    released.wait()


def no_op() -> None:
    pass


async def no_op_coroutine() -> None:
    pass


_ANSWER_S = 0.05
"""As long as an answer over the network may take."""


async def sleep() -> None:
    await asyncio.sleep(_ANSWER_S)


def sleep_on_thread() -> None:
    time.sleep(_ANSWER_S)


async def hold() -> None:
    """Until the process ends."""
    _holding.release()
    await asyncio.sleep(3600)


def wait_until_held(count: int) -> None:
    """Block until so many more coroutines `hold`."""
    for _ in range(count):
        _holding.acquire()


def take_long() -> None:
    """Much longer than what stands behind it should have to wait."""
    time.sleep(3.0)


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
