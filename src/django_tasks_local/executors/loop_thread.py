"""A thread that runs an event loop, and what is handed over to it."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, override

from ..logs import log_exception
from .sync_threads import SyncThreads, with_future

__all__ = ["LoopThread"]

_AT_ONCE = 100  # or those that run would wait for all that begin
_END_S = 1.0

# A fork inherits the loop but not its thread. To close it there would take what it
# listens to away from the parent's own loop (they share an epoll object), so that
# nobody may let go of it.
_open_loops: set[asyncio.AbstractEventLoop] = set()


class LoopThread:
    """An event loop of its own that runs until it is stopped, whatever happens there.

    What it is asked to call is handed over in batches: waking a loop from another
    thread takes longer than all else about a small coroutine. `sync_threads` are for
    what its coroutines do through `asyncio.to_thread` and the like; `on_end` is called
    when the loop has ended, on its thread.
    """

    def __init__(
        self,
        *,
        name: str,
        new_loop: Callable[[], asyncio.AbstractEventLoop],
        sync_threads: SyncThreads,
        on_end: Callable[[], None],
    ) -> None:
        self._on_end = on_end
        self.loop: asyncio.AbstractEventLoop = new_loop()
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_woken = False
        self._is_stopped = False
        self._has_ended = False
        # Nobody's: what is called finds no context of whoever handed it over.
        self._context = Context()
        self.thread: threading.Thread = threading.Thread(
            target=self._work, name=name, daemon=True
        )
        self.loop.set_default_executor(_DefaultExecutor(sync_threads))
        try:
            self.thread.start()
        except RuntimeError:
            self.loop.close()
            raise
        _open_loops.add(self.loop)

    def call_soon[*T](self, function: Callable[[*T], None], /, *args: *T) -> bool:
        """Have a function called on the loop's thread. Any thread may call it.

        False where the loop has ended. Where it ends before the function was called,
        `on_end` is called instead.
        """
        self._inbox.append((function, args))
        if not self._is_woken:
            self._is_woken = True
            wake = (
                self.loop.call_soon
                if self.is_current
                else self.loop.call_soon_threadsafe
            )
            with suppress(RuntimeError):  # it is closed
                wake(self._empty_inbox, context=self._context)
        return not self._has_ended

    @property
    def is_current(self) -> bool:
        """Whether it is this thread that asks."""
        return threading.get_ident() == self.thread.ident

    def stop(self) -> None:
        """End the loop. What still runs on it is cancelled."""

        def stop() -> None:
            if not self._is_stopped:  # or what is left is being cancelled already
                self._is_stopped = True
                self.loop.stop()

        with suppress(RuntimeError):  # as above
            self.loop.call_soon_threadsafe(stop, context=self._context)

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread, on another one."""
        if not self.is_current:
            self.thread.join(timeout_s)

    def _empty_inbox(self) -> None:
        # Before it is looked at: what comes later wakes the loop again.
        self._is_woken = False
        inbox = self._inbox
        for _ in range(min(len(inbox), _AT_ONCE)):
            function, args = inbox.popleft()
            try:
                function(*args)
            except Exception:  # who handed it over should have seen to it
                log_exception("A call on an event loop has failed")
        if inbox and not self._is_woken:
            self._is_woken = True
            self.loop.call_soon(self._empty_inbox, context=self._context)

    def _work(self) -> None:
        while not self._is_stopped:
            try:
                self.loop.run_forever()
            except BaseException:
                # SystemExit or KeyboardInterrupt of an asyncio task that a task has
                # made: it ends the loop, and must not end the others' tasks.
                log_exception("An event loop was interrupted, and goes on")
        try:
            self._cancel_what_is_left()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        except BaseException:  # as above
            log_exception("An event loop did not end as it should")
        finally:
            self.loop.close()
            _open_loops.discard(self.loop)
            self._has_ended = True
            self._on_end()

    def _cancel_what_is_left(self) -> None:
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left, timeout=_END_S))


class _DefaultExecutor(ThreadPoolExecutor):
    """For `asyncio.to_thread`: threads that cannot hold up the process's exit.

    The loop takes nothing that is no ThreadPoolExecutor, whose own threads, of which
    there are none here, are waited for at the exit without limit.
    """

    def __init__(self, sync_threads: SyncThreads) -> None:
        super().__init__(max_workers=1)
        self._sync_threads = sync_threads

    @override
    def submit[**P, R](
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        future, work = with_future(partial(function, *args, **kwargs))
        self._sync_threads.submit(work)
        return future
