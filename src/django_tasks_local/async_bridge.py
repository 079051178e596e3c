"""The only place where a thread's completion crosses into an event loop.

A task's own Future is never wrapped: `asyncio.wrap_future` hands a waiter's
cancellation on to the job, and a Future's callbacks cannot be taken back. Here each
waiter is its own, is removed when it leaves, and cannot touch the task.
"""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import Any, override

import anyio.to_thread
from asgiref.sync import sync_to_async

from .identity import this_process
from .records import Record

__all__ = [
    "Bell",
    "Completion",
    "RemoteCompletion",
    "in_thread",
    "is_in_event_loop",
    "is_in_trio",
]


class Completion:
    """One task's latest record, and those who wait for it to finish.

    Any thread may call any method. Waiters' callables must not block and must not
    raise.
    """

    __slots__ = ("_error", "_lock", "_waiters", "record")

    def __init__(self, record: Record) -> None:
        self.record: Record = record
        """Replaced, never changed, by whoever runs the task."""
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        # Each with the revision that it has seen; None: it waits for the end.
        self._waiters: dict[Callable[[], None], int | None] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it can still be waited for."""
        return self._error is None

    def latest(self) -> Record:
        """The record: here it is always the latest."""
        return self.record

    async def alatest(self) -> Record:
        """As `latest`."""
        return self.record

    def add_waiter(
        self, wake: Callable[[], None], /, *, revision: int | None = None
    ) -> bool:
        """Have `wake` called at the end; False, and it never will be, if it is past.

        With a `revision`: as soon as the record has a later one.
        """
        with self._lock:  # decides whether the change or the waiter came first
            if self._is_past(revision):
                return False
            if self._waiters is None:
                self._waiters = {}
            self._waiters[wake] = revision
            return True

    def remove_waiter(self, wake: Callable[[], None], /) -> None:
        """Forget a waiter, woken or not."""
        with self._lock:
            if self._waiters is not None:
                self._waiters.pop(wake, None)

    def subscribe(
        self, wake: Callable[[], None], /, *, group: int
    ) -> Callable[[], None] | None:
        """As `add_waiter`; what takes it back, or None where the end is past."""
        return partial(self.remove_waiter, wake) if self.add_waiter(wake) else None

    def see(self, record: Record, /) -> None:
        """Take a record that is not finished, if it is a later one; wake for it."""
        wakes: list[Callable[[], None]] = []
        with self._lock:  # of two that come at once the later one stays
            if self.record.is_finished or record.revision <= self.record.revision:
                return
            self.record = record
            if self._waiters:
                wakes = [
                    wake
                    for wake, revision in self._waiters.items()
                    if revision is not None and revision < record.revision
                ]
                for wake in wakes:
                    del self._waiters[wake]
        for wake in wakes:
            wake()

    def finish(self, record: Record, /) -> None:
        """Take the finished record and wake everybody. The first call wins."""
        with self._lock:
            if self.record.is_finished:
                return
            self.record = record
            waiters, self._waiters = self._waiters, None
        for wake in waiters or ():
            wake()

    def fail(self, error: BaseException, /) -> None:
        """Wake everybody, who will raise this: there will be no more news."""
        with self._lock:
            if self._error is None:
                self._error = error
            waiters, self._waiters = self._waiters, None
        for wake in waiters or ():
            wake()

    def _is_past(self, revision: int | None) -> bool:
        return self._error is not None or self.record.is_past(revision)

    def _raise_error(self, revision: int | None) -> None:
        if self._error is not None and not self.record.is_past(revision):
            raise self._error

    def wait(
        self,
        timeout_s: float | None,
        /,
        *,
        at_end: Callable[[], None],
        revision: int | None = None,
    ) -> bool:
        """Block until the end; False when `timeout_s` seconds passed first.

        With a `revision`: until the record has a later one. `at_end` is called by
        whoever finishes or changes the task, before anything else begins. Raises what
        it has failed with.
        """
        is_in_time = self._wait(timeout_s, at_end, revision)
        self._raise_error(revision)
        return is_in_time

    def _wait(
        self,
        timeout_s: float | None,
        at_end: Callable[[], None],
        revision: int | None,
    ) -> bool:
        if self._is_past(revision):
            return True
        if timeout_s is not None and timeout_s <= 0:
            return False
        # A lock, taken now and released at the end, is the lightest thing to wait for.
        ended = threading.Lock()
        ended.acquire()

        def wake() -> None:
            at_end()
            ended.release()

        try:
            if not self.add_waiter(wake, revision=revision):
                return True
            if timeout_s is None:
                return ended.acquire()
            return ended.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX))
        finally:
            self.remove_waiter(wake)

    async def wait_async(
        self, *, at_end: Callable[[], None], revision: int | None = None
    ) -> None:
        """The same, letting other coroutines run, under asyncio or trio."""
        if not self._is_past(revision):
            bell = Bell()

            def wake() -> None:
                at_end()
                bell.ring()

            try:
                if self.add_waiter(wake, revision=revision):
                    await bell.wait()
            finally:
                self.remove_waiter(wake)
        self._raise_error(revision)


class RemoteCompletion(Completion):
    """The same of a result that is brought on elsewhere.

    To be used in the process that has made it; after a fork there has to be another.
    """

    __slots__ = ("_process",)

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self._process = this_process()

    @property
    @override
    def is_usable(self) -> bool:
        """Whether it can be waited for, here and still."""
        return super().is_usable and self._process == this_process()

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)


class Bell:
    """Wakes the one coroutine that waits with it, once, under asyncio or trio.

    To be made and waited with on the loop's thread; any thread may ring it. What rang
    before the wait ends it at once.
    """

    __slots__ = ("_rung", "ring")

    ring: Callable[[], None]
    """Ends the wait. Where the loop is gone there is nobody to be woken."""

    def __init__(self) -> None:
        self._rung, self.ring = _trio_bell() if is_in_trio() else _asyncio_bell()

    async def wait(self) -> None:
        """Until it rings."""
        await self._rung


def _asyncio_bell() -> tuple[Awaitable[None], Callable[[], None]]:
    loop = asyncio.get_running_loop()
    rung: asyncio.Future[None] = loop.create_future()

    def ring() -> None:
        with suppress(RuntimeError):  # the loop is closed, and the waiter gone
            loop.call_soon_threadsafe(_set_done, rung)

    return rung, ring


def _trio_bell() -> tuple[Awaitable[None], Callable[[], None]]:
    import trio

    token = trio.lowlevel.current_trio_token()
    rung = trio.Event()

    def ring() -> None:
        with suppress(trio.RunFinishedError):  # likewise
            token.run_sync_soon(rung.set)

    return _Awaited(rung.wait), ring


class _Awaited:
    """What makes its coroutine only when it is awaited."""

    def __init__(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._function = function

    def __await__(self) -> Generator[Any, Any, None]:
        return self._function().__await__()


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def in_thread[**P, R](
    function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Call what may block on another thread, under asyncio or trio.

    Under asyncio as Django does, so that it meets the caller's database connections.
    """
    if is_in_trio():  # where Django's own crossing does not work
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))
    return await sync_to_async(function)(*args, **kwargs)


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
