"""The only place where a thread's completion crosses into an event loop.

A task's own Future is never wrapped: `asyncio.wrap_future` hands a waiter's
cancellation on to the job, and a Future's callbacks cannot be taken back. Here each
waiter is its own, is removed when it leaves, and cannot touch the task.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from .records import Record

__all__ = ["Completion", "is_in_event_loop", "is_in_trio"]


class Completion:
    """One task's latest record, and those who wait for it to finish.

    Any thread may call any method. Waiters' callables must not block and must not
    raise.
    """

    __slots__ = ("_lock", "_waiters", "record")

    def __init__(self, record: Record) -> None:
        self.record: Record = record
        """Replaced, never changed, by whoever runs the task."""
        self._lock = threading.Lock()
        self._waiters: set[Callable[[], None]] | None = None

    def latest(self) -> Record:
        """The record: here it is always the latest."""
        return self.record

    async def alatest(self) -> Record:
        """As `latest`."""
        return self.record

    def add_waiter(self, wake: Callable[[], None], /) -> bool:
        """Have `wake` called at the end; False, and it never will be, if it is past."""
        with self._lock:  # decides whether `finish` or the waiter came first
            if self.record.is_finished:
                return False
            if self._waiters is None:
                self._waiters = set()
            self._waiters.add(wake)
            return True

    def remove_waiter(self, wake: Callable[[], None], /) -> None:
        """Forget a waiter, woken or not."""
        with self._lock:
            if self._waiters is not None:
                self._waiters.discard(wake)

    def finish(self, record: Record, /) -> None:
        """Take the finished record and wake everybody. The first call wins."""
        with self._lock:
            if self.record.is_finished:
                return
            self.record = record
            waiters, self._waiters = self._waiters, None
        for wake in waiters or ():
            wake()

    def interrupt(self) -> None:
        """Wake everybody although it is not finished: it will not be, here."""
        with self._lock:
            waiters, self._waiters = self._waiters, None
        for wake in waiters or ():
            wake()

    def wait(self, timeout_s: float | None, /, *, at_end: Callable[[], None]) -> bool:
        """Block until the end; False when `timeout_s` seconds passed first.

        `at_end` is called by whoever finishes the task, before anything else begins.
        """
        if self.record.is_finished:
            return True
        if timeout_s is not None and timeout_s <= 0:
            return False
        # A lock, taken now and released at the end, is the lightest thing to wait for.
        ended = threading.Lock()
        ended.acquire()

        def wake() -> None:
            at_end()
            ended.release()

        if not self.add_waiter(wake):
            return True
        try:
            if timeout_s is None:
                return ended.acquire()
            return ended.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX))
        finally:
            self.remove_waiter(wake)

    async def wait_async(self, *, at_end: Callable[[], None]) -> None:
        """The same, letting other coroutines run, under asyncio or trio."""
        if self.record.is_finished:
            return
        if is_in_trio():
            await self._wait_in_trio(at_end)
        else:
            await self._wait_in_asyncio(at_end)

    async def _wait_in_asyncio(self, at_end: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            at_end()
            with suppress(RuntimeError):  # the loop is closed, and the waiter gone
                loop.call_soon_threadsafe(_set_done, ended)

        if not self.add_waiter(wake):
            return
        try:
            await ended
        finally:
            self.remove_waiter(wake)

    async def _wait_in_trio(self, at_end: Callable[[], None]) -> None:
        import trio

        token = trio.lowlevel.current_trio_token()
        ended = trio.Event()

        def wake() -> None:
            at_end()
            with suppress(trio.RunFinishedError):  # likewise
                token.run_sync_soon(ended.set)

        if not self.add_waiter(wake):
            return
        try:
            await ended.wait()
        finally:
            self.remove_waiter(wake)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def is_in_trio() -> bool:
    """Whether a trio task runs on this thread right now."""
    # Asked first, since trio may run as a guest of an asyncio loop. Who has not
    # imported trio does not run it.
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


def is_in_event_loop() -> bool:
    """Whether this thread runs an event loop right now, so that it must not block."""
    if is_in_trio():
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
