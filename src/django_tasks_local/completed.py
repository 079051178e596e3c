"""Waiting for several results at once."""

import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Self, overload

import anyio

from .async_bridge import Bell
from .context import lending_slot
from .protocols import Waitable
from .results import (
    LocalTaskResult,
    refuse_to_block,
    to_handle,
)

if TYPE_CHECKING:
    from django.tasks.base import TaskResult

__all__ = ["Completed", "as_completed"]


_groups = count()


class Completed[R]:
    """What `as_completed` gives: for ``for`` and for ``async for``."""

    def __init__(
        self, results: "Iterable[TaskResult[..., R]]", timeout: float | None
    ) -> None:
        # Each once, in the order in which they were given.
        self._handles = list(dict.fromkeys(map(to_handle, results)))
        self._timeout = timeout

    def __iter__(self) -> Generator[LocalTaskResult[R]]:
        refuse_to_block("use 'async for … in as_completed(…)'")
        with _Waits[R](self._timeout) as waits:
            for handle in self._handles:
                waits.add(
                    handle, None if handle.is_finished else handle.open_waitable()
                )
            rung = threading.Event()
            waits.ring = rung.set
            while waits.count:
                rung.clear()
                if not waits.finished:
                    with waits.lending_slot():
                        rung.wait(min(waits.left_s(), threading.TIMEOUT_MAX))
                yield waits.take()

    async def __aiter__(self) -> AsyncGenerator[LocalTaskResult[R]]:
        with _Waits[R](self._timeout) as waits:
            for handle in self._handles:
                waits.add(
                    handle,
                    None if handle.is_finished else await handle.aopen_waitable(),
                )
            while waits.count:
                bell = Bell()
                waits.ring = bell.ring
                if not waits.finished:
                    with waits.lending_slot(), anyio.move_on_after(waits.left_s()):
                        await bell.wait()
                yield waits.take()


class _Waits[R]:
    """What one iteration waits for: all of it at once, in one group."""

    def __init__(self, timeout_s: float | None) -> None:
        self.ring: Callable[[], None] = _nothing
        """Called by any thread, when there is something in `finished`."""
        self.finished: deque[int] = deque()
        """The numbers of those that can be taken."""
        self._timeout_s = timeout_s
        self._deadline_s = (
            math.inf if timeout_s is None else time.monotonic() + timeout_s
        )
        self._group = next(_groups)
        self._reclaim_slot: Callable[[], None] = _nothing
        self._left: dict[int, tuple[LocalTaskResult[R], Waitable | None]] = {}
        self._unsubscribes: dict[int, Callable[[], None]] = {}
        self._total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for unsubscribe in self._unsubscribes.values():
            unsubscribe()

    @property
    def count(self) -> int:
        """How many have not been taken yet."""
        return len(self._left)

    def add(self, handle: LocalTaskResult[R], waitable: Waitable | None) -> None:
        """Wait for one more; without a `waitable` it is finished."""
        number = self._total
        self._total += 1

        def wake() -> None:
            self._reclaim_slot()
            self.finished.append(number)
            self.ring()

        self._left[number] = (handle, waitable)
        unsubscribe = None
        if waitable is not None:
            unsubscribe = waitable.subscribe(wake, group=self._group)
        if unsubscribe is None:
            self.finished.append(number)
        else:
            self._unsubscribes[number] = unsubscribe

    @contextmanager
    def lending_slot(self) -> Generator[None]:
        """To be entered while nothing is finished, until something is."""
        with lending_slot(group=self._group) as self._reclaim_slot:
            yield
        self._reclaim_slot = _nothing

    def left_s(self) -> float:
        """In how many seconds the time is over."""
        return max(0.0, self._deadline_s - time.monotonic())

    def take(self) -> LocalTaskResult[R]:
        """The next one that is finished, up to date."""
        try:
            number = self.finished.popleft()
        except IndexError:
            raise TimeoutError(
                f"{self.count} of {self._total} tasks are unfinished after "
                f"{self._timeout_s} seconds."
            ) from None
        self._unsubscribes.pop(number, None)
        handle, waitable = self._left.pop(number)
        if waitable is not None:
            waitable.wait(0, at_end=_nothing)  # raises what has kept its end from us
            handle.see(waitable.record)
        return handle


def _nothing() -> None:
    pass


@overload
def as_completed[R](
    results: "Iterable[TaskResult[..., R]]", timeout: float | None = None
) -> Completed[R]: ...
@overload
def as_completed(
    results: "Iterable[TaskResult[..., Any]]", timeout: float | None = None
) -> Completed[Any]: ...
def as_completed(
    results: "Iterable[TaskResult[..., Any]]", timeout: float | None = None
) -> Completed[Any]:
    """Give the handles of results as their tasks finish, those that did so first first.

    For ``for`` in sync code and ``async for`` under asyncio and trio. Each comes once,
    however its task ended, and up to date. `timeout` is in seconds from the beginning
    of the iteration, None for no limit; raises TimeoutError when it is over, and
    otherwise as `LocalTaskResult.join`.
    """
    return Completed(results, timeout)
