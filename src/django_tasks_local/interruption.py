"""How a call is stopped that runs on a thread of this process."""

import asyncio
import ctypes
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from asgiref.sync import async_to_sync

from .errors import TaskCancelled, TaskTimeout, WorkerLost
from .records import Interruption

__all__ = [
    "InterruptibleCall",
    "InterruptibleCoroutine",
    "calls_in_reach",
    "out_of_reach",
    "stop_error",
]


def stop_error(reason: Interruption, /, *, timeout_s: float | None) -> BaseException:
    """The exception that stands for the end of a call that was stopped."""
    if reason is Interruption.CANCEL:
        return TaskCancelled("The task was cancelled while it ran.")
    if reason is Interruption.SHUTDOWN:
        return WorkerLost("Its alias was shut down while the task ran.")
    return TaskTimeout(f"The task took longer than its time limit of {timeout_s:g} s.")


class _Stopped(NamedTuple):
    """What a coroutine that was cancelled returns, past asgiref, to its own thread."""

    error: asyncio.CancelledError


class InterruptibleCall:
    """One attempt's call. Of several reasons to stop it the first one counts."""

    __slots__ = (
        "_is_coroutine",
        "_is_overdue",
        "_lock",
        "_loop",
        "_reason",
        "_stop",
        "_task",
        "_timeout_s",
        "_times_out_of_reach",
        "attempt",
        "is_struck",
    )

    def __init__(
        self, *, attempt: int, timeout_s: float | None, is_coroutine: bool
    ) -> None:
        self.attempt: int = attempt
        self._is_coroutine = is_coroutine
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._reason: Interruption | None = None
        self._stop: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._times_out_of_reach = 0
        self._is_overdue = False
        self.is_struck: bool = False
        """An exception was raised into the thread from outside."""

    def interrupt(self, reason: Interruption, /) -> bool:
        """Stop it, now or when it begins. False where it is over, or stopped before.

        A function is only ever stopped because its time is over.
        """
        if reason is not Interruption.TIMEOUT and not self._is_coroutine:
            return False
        with self._lock:  # decides who stops it, and whether it is still within reach
            if self._reason is not None:
                return False
            self._reason = reason
            if self._stop is None:
                return False
            self._stop()
            return True

    # A coroutine is cancelled: it ends at an `await`, and its `finally` blocks run.

    def run_coroutine(
        self,
        function: Callable[..., Coroutine[Any, Any, Any]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run a coroutine function to its end on this thread."""
        value = async_to_sync(self._await)(function, args, kwargs)
        if isinstance(value, _Stopped):
            assert self._reason is not None  # or it would not be there
            raise stop_error(self._reason, timeout_s=self._timeout_s) from value.error
        return value

    async def _await(
        self,
        function: Callable[..., Coroutine[Any, Any, Any]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        task = asyncio.current_task()
        assert task is not None  # it is run in one
        try:
            with self._lock:
                self._loop, self._task = task.get_loop(), task
                self._stop = self._cancel
                if self._reason is not None:
                    raise asyncio.CancelledError
            return await function(*args, **kwargs)
        except asyncio.CancelledError as err:
            if self._reason is None:  # not ours: the function's own
                raise
            return _Stopped(err)
        finally:
            with self._lock:
                self._stop = self._task = None
            if self._reason is not None:
                task.uncancel()  # what comes now is ours

    def _cancel(self) -> None:
        assert self._loop is not None  # as it runs
        with suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._cancel_here)

    def _cancel_here(self) -> None:
        if self._task is not None:  # or it has ended meanwhile
            self._task.cancel()

    # A function can only be struck: an exception is raised in its thread, at whatever
    # bytecode it is. Not one of those that are ours may be it.

    def run_function(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run a function to its end on this thread."""
        thread_id = threading.get_ident()

        def strike() -> None:
            self.is_struck = True
            if self._times_out_of_reach:
                self._is_overdue = True
            else:
                _set_async_exception(thread_id, TaskTimeout)

        calls_in_reach[thread_id] = self
        try:
            self._let_strike(strike)
            try:
                return function(*args, **kwargs)
            finally:
                self._let_strike(None)
                if self.is_struck:
                    # Not delivered yet, although the function has ended: take it back.
                    _set_async_exception(thread_id, None)
        except TaskTimeout as err:
            if self.is_struck and not err.args:
                reason = Interruption.TIMEOUT
                err.args = stop_error(reason, timeout_s=self._timeout_s).args
            raise
        finally:
            calls_in_reach.pop(thread_id, None)

    def leave_reach(self) -> None:
        """From now on it is not struck. What is on its way already comes first."""
        with self._lock:
            self._times_out_of_reach += 1

    def come_back(self) -> None:
        """The other way; raises what should have been raised meanwhile."""
        with self._lock:
            self._times_out_of_reach -= 1
            if not self._is_overdue or self._times_out_of_reach:
                return
            self._is_overdue = False
        raise stop_error(Interruption.TIMEOUT, timeout_s=self._timeout_s)

    def _let_strike(self, strike: Callable[[], None] | None) -> None:
        with self._lock:  # past this an exception is on its way, or none will come
            self._stop = strike
            if strike is not None and self._reason is not None:
                raise stop_error(self._reason, timeout_s=self._timeout_s)


class InterruptibleCoroutine:
    """One attempt's coroutine, in an asyncio task of its own, on a loop for many.

    Between `begin` and `end` there is the `await` of the function and nothing else. As
    with `InterruptibleCall` the first reason counts, so `note` is called by one thread
    at a time; what else there is, by the loop's.
    """

    __slots__ = ("_has_begun", "_is_over", "_reason", "_timeout_s", "attempt", "task")

    def __init__(self, *, attempt: int, timeout_s: float | None) -> None:
        self.attempt: int = attempt
        self.task: asyncio.Task[None] | None = None
        """The loop itself keeps none alive."""
        self._timeout_s = timeout_s
        self._reason: Interruption | None = None
        self._has_begun = False
        self._is_over = False

    def note(self, reason: Interruption, /) -> bool:
        """Have it stop for that reason, when it begins: or now, then `stop` is to come.

        False where it has not begun, or is over, or was stopped before.
        """
        if self._reason is not None or self._is_over:
            return False
        self._reason = reason
        return self._has_begun

    def stop(self) -> None:
        """Cancel it."""
        if self.task is not None and not self._is_over:
            self.task.cancel()

    def begin(self) -> None:
        """It can be cancelled from now on. Raises where it has to stop already."""
        self._has_begun = True
        if self._reason is not None:
            raise stop_error(self._reason, timeout_s=self._timeout_s)

    def end(self, failure: BaseException | None, /) -> BaseException | None:
        """It is over; how it has failed, if at all."""
        self._is_over = True
        if self._reason is None:
            return failure
        if self.task is not None:
            self.task.uncancel()  # what comes now is ours
        if not isinstance(failure, asyncio.CancelledError):
            return failure
        error = stop_error(self._reason, timeout_s=self._timeout_s)
        error.__cause__ = failure
        return error


calls_in_reach: dict[int, InterruptibleCall] = {}
"""Those of the functions that may be struck, by their threads.

Most projects have none, and while it is empty no thread has to be `out_of_reach`: only
a function's own thread puts it in, before it begins.
"""


class _OutOfReach:
    """For ``with``: what an alias shares must not be left half-changed.

    A function that asks the alias for something runs our code on its own thread. An
    exception that should be raised there meanwhile is raised at the end.
    """

    def __enter__(self) -> None:
        call = calls_in_reach.get(threading.get_ident())
        if call is not None:
            call.leave_reach()

    def __exit__(self, *_: object) -> None:
        call = calls_in_reach.get(threading.get_ident())
        if call is not None:
            call.come_back()


out_of_reach: _OutOfReach = _OutOfReach()
"""Has no effect but where a function that may be struck runs."""


def _set_async_exception(thread_id: int, error: type[BaseException] | None) -> None:
    """Raise it in that thread at its next bytecode; None: take it back.

    https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(error) if error else None
    )
