"""Waiting for several results at once."""

import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, overload

import anyio
import anyio.to_thread

from .async_bridge import Bell, Completion
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
        deadline_s = self._deadline_s()
        group = next(_groups)
        finished: SimpleQueue[_Waiting[R]] = SimpleQueue()
        reclaim_slot: Callable[[], None] = _nothing
        waiting: set[_Waiting[R]] = set()
        try:
            for handle in self._handles:
                entry = _Waiting(handle)
                waiting.add(entry)

                def wake(entry: _Waiting[R] = entry) -> None:
                    reclaim_slot()
                    finished.put(entry)

                if not handle.is_finished:
                    entry.waitable = handle.open_waitable()
                    entry.unsubscribe = entry.waitable.subscribe(wake, group=group)
                if entry.unsubscribe is None:
                    finished.put(entry)
            while waiting:
                try:
                    entry = finished.get_nowait()
                except Empty:
                    with lending_slot(group=group) as reclaim_slot:
                        entry = self._next(finished, deadline_s, len(waiting))
                    reclaim_slot = _nothing
                waiting.discard(entry)
                yield entry.seen()
        finally:
            _unsubscribe(waiting)

    async def __aiter__(self) -> AsyncGenerator[LocalTaskResult[R]]:
        deadline_s = self._deadline_s()
        group = next(_groups)
        finished: deque[_Waiting[R]] = deque()
        reclaim_slot: Callable[[], None] = _nothing
        bell = Bell()
        waiting: set[_Waiting[R]] = set()
        try:
            for handle in self._handles:
                entry = _Waiting(handle)
                waiting.add(entry)

                def wake(entry: _Waiting[R] = entry) -> None:
                    reclaim_slot()
                    finished.append(entry)
                    bell.ring()

                if not handle.is_finished:
                    entry.waitable = await handle.aopen_waitable()
                    entry.unsubscribe = (
                        entry.waitable.subscribe(wake, group=group)
                        if isinstance(entry.waitable, Completion)
                        else await anyio.to_thread.run_sync(
                            partial(entry.waitable.subscribe, wake, group=group)
                        )
                    )
                if entry.unsubscribe is None:
                    finished.append(entry)
            while waiting:
                bell = Bell()
                if not finished:
                    with lending_slot(group=group) as reclaim_slot:
                        left_s = deadline_s - time.monotonic()
                        with anyio.move_on_after(left_s):
                            await bell.wait()
                    reclaim_slot = _nothing
                    if not finished:
                        raise self._timed_out(len(waiting))
                entry = finished.popleft()
                waiting.discard(entry)
                yield await entry.aseen()
        finally:
            _unsubscribe(waiting)

    def _deadline_s(self) -> float:
        return math.inf if self._timeout is None else time.monotonic() + self._timeout

    def _next(
        self, finished: "SimpleQueue[_Waiting[R]]", deadline_s: float, count: int
    ) -> "_Waiting[R]":
        left_s = min(max(0.0, deadline_s - time.monotonic()), threading.TIMEOUT_MAX)
        try:
            return finished.get(timeout=left_s)
        except Empty:
            raise self._timed_out(count) from None

    def _timed_out(self, count: int) -> TimeoutError:
        return TimeoutError(
            f"{count} of {len(self._handles)} tasks are unfinished after "
            f"{self._timeout} seconds."
        )


class _Waiting[R]:
    """One of the results that `as_completed` waits for."""

    def __init__(self, handle: LocalTaskResult[R]) -> None:
        self._handle = handle
        self.waitable: Waitable | None = None
        self.unsubscribe: Callable[[], None] | None = None

    def seen(self) -> LocalTaskResult[R]:
        """Its handle, brought up to date."""
        if self.waitable is not None:
            record = self.waitable.record
            self._handle.see(record if record.is_finished else self.waitable.latest())
        return self._handle

    async def aseen(self) -> LocalTaskResult[R]:
        """The same on an event loop."""
        if self.waitable is not None:
            record = self.waitable.record
            if not record.is_finished:
                record = await self.waitable.alatest()
            self._handle.see(record)
        return self._handle


def _unsubscribe[R](waiting: "Iterable[_Waiting[R]]") -> None:
    for entry in waiting:
        if entry.unsubscribe is not None:
            entry.unsubscribe()


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
