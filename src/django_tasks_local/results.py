"""The handle: a Django `TaskResult` that can also be waited for and awaited."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast, override

import anyio
from django.core.exceptions import SynchronousOnlyOperation
from django.tasks import task_backends
from django.tasks.base import Task, TaskError, TaskResult
from django.tasks.exceptions import TaskResultDoesNotExist

from .async_bridge import Completion, RemoteCompletion, is_in_event_loop
from .context import is_running_here, lending_slot, parent_link
from .errors import TaskCancelled, TaskFailed, path_of
from .foreign_results import aget_result, get_result, record_of
from .identity import is_of_this_process
from .interruption import out_of_reach
from .json_text import decode_arguments, decode_value
from .poller import PolledResult
from .progress import METADATA_KEY, Progress, as_progress
from .protocols import Waitable
from .records import ErrorRecord, Record, Timestamp
from .task_registry import find_checked_task, stand_in
from .times import to_datetime

if TYPE_CHECKING:
    # Generic for type checkers only: subscripting it fails at run time. A handle says
    # what its task returns and leaves the parameters open; mypy, unlike pyright, wants
    # them repeated where a method returns a handle instead of a Django result.
    class _TaskResult[R](TaskResult[..., R]):
        pass
else:

    class _TaskResult[R](TaskResult):
        __slots__ = ()


__all__ = [
    "LocalTaskResult",
    "handle_of",
    "is_cancelled",
    "refuse_to_block",
    "to_handle",
    "wait",
]


class LocalTaskResult[R](_TaskResult[R]):
    """What an enqueue returns: a snapshot of a task's result that can be waited for.

    `wait` and ``await`` give the task's return value, `join` and `ajoin` only wait;
    all of them, and `refresh` and `arefresh`, bring the snapshot up to date. A handle
    keeps the outcome it has seen, or was waiting for, even when the store has
    forgotten it. Handles of one task are equal and hash alike; they can be pickled.
    """

    __slots__ = ("_record", "_waitable")

    _record: Record
    _waitable: Waitable | None

    @property
    def record(self) -> Record:
        """The plain data that this handle shows."""
        return self._record

    @property
    def metadata(self) -> dict[str, Any]:
        """What the task was given besides its arguments, and has told of itself.

        A fresh copy at each access.
        """
        metadata: dict[str, Any] = decode_value(self._record.metadata)
        return metadata

    @property
    def progress(self) -> Progress | None:
        """How far the task had got, if it has said so in its metadata.

        With `LocalTaskContext.report_progress`; what is no such report is None.
        """
        return as_progress(self.metadata.get(METADATA_KEY))

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LocalTaskResult):
            return NotImplemented
        # An instance's class says nothing of its type argument.
        return self.id == cast("LocalTaskResult[object]", other).id

    @override
    def __hash__(self) -> int:
        return hash(self.id)

    def __copy__(self) -> "LocalTaskResult[R]":
        return handle_of(self._record, waitable=self._waitable, task=self.task)

    def __deepcopy__(self, memo: object) -> "LocalTaskResult[R]":
        return self.__copy__()

    @override
    def __reduce__(self) -> tuple[object, ...]:
        return handle_of, (self._record,)

    def wait(self, timeout: float | None = None) -> R:
        """Block until the task is finished and return what it returned.

        `timeout` is in seconds, None for no limit. Raises TaskFailed where the task
        FAILED; TimeoutError when the time is over, which changes nothing about the
        task; SynchronousOnlyOperation on an event loop's thread, where ``await`` is
        the way. A task that waits in this way lends its slot meanwhile.
        """
        self.join(timeout)
        return self._return_value_or_raise()

    def join(self, timeout: float | None = None) -> None:
        """Block until the task is finished, however it ends.

        Raises as `wait` does, but never TaskFailed.
        """
        refuse_to_block("use 'await result' or 'await result.ajoin()'")
        if self.is_finished:
            return
        waitable = self.open_waitable()
        if not waitable.record.is_finished:
            with lending_slot() as reclaim_slot:
                is_in_time = waitable.wait(timeout, at_end=reclaim_slot)
            if not is_in_time:
                self.see(waitable.record)
                raise self._timed_out(timeout)
        self.see(waitable.record)

    def __await__(self) -> Generator[object, object, R]:
        """``await handle``: as `wait`, without blocking, under asyncio and trio.

        Time limits are the caller's: `asyncio.timeout`, `anyio.fail_after` and their
        like. A waiter that is cancelled leaves the task alone.
        """
        # What a coroutine is sent and yields is its event loop's affair.
        return cast("Generator[object, object, R]", self._await().__await__())

    async def _await(self) -> R:
        await self.ajoin()
        return self._return_value_or_raise()

    async def ajoin(self, timeout: float | None = None) -> None:
        """As `join`, without blocking, under asyncio and trio."""
        if self.is_finished:
            return
        waitable = await self.aopen_waitable()
        try:
            if timeout is None:
                with lending_slot() as reclaim_slot:
                    await waitable.wait_async(at_end=reclaim_slot)
            else:
                with anyio.move_on_after(timeout), lending_slot() as reclaim_slot:
                    await waitable.wait_async(at_end=reclaim_slot)
        finally:
            self.see(waitable.record)
        if not self.is_finished:
            raise self._timed_out(timeout)

    def watch_sync(self) -> "Generator[LocalTaskResult[R]]":
        """Give a fresh handle at each change of the result, the finished one last.

        A change is one of its status or its metadata; changes that come close upon
        each other may be seen as one. Begins with what has changed since this snapshot.
        Blocks in between, and nothing polls for a task of this process; raises
        SynchronousOnlyOperation on an event loop's thread.
        """
        refuse_to_block("use 'async for … in result.watch()'")
        if self.is_finished:
            yield self.__copy__()
            return
        waitable = self.__copy__().open_waitable()
        seen = self._record.revision
        while True:
            if not waitable.record.is_past(seen):
                with lending_slot() as reclaim_slot:
                    waitable.wait(None, at_end=reclaim_slot, revision=seen)
            record = waitable.record
            seen = record.revision
            yield handle_of(record, waitable=waitable, task=self.task)
            if record.is_finished:
                return

    async def watch(self) -> "AsyncGenerator[LocalTaskResult[R]]":
        """As `watch_sync`, without blocking, under asyncio and trio.

        Who leaves it early under trio closes it (`contextlib.aclosing`).
        """
        if self.is_finished:
            yield self.__copy__()
            return
        waitable = await self.__copy__().aopen_waitable()
        seen = self._record.revision
        while True:
            if not waitable.record.is_past(seen):
                with lending_slot() as reclaim_slot:
                    await waitable.wait_async(at_end=reclaim_slot, revision=seen)
            record = waitable.record
            seen = record.revision
            yield handle_of(record, waitable=waitable, task=self.task)
            if record.is_finished:
                return

    def cancel(self, *, wait: bool = False) -> bool:
        """Cancel the task; True where that was in time.

        One that waits, or is not due yet, never runs, and is FAILED with TaskCancelled.
        One that runs in a worker process is killed with it, a coroutine is cancelled,
        and a function on a thread is asked to stop: its context's `checkpoint`,
        `save_metadata` and `report_progress` raise TaskCancelled then, and where it
        returns all the same the task is SUCCESSFUL. A cancelled task is not tried
        again. False where it is finished, which changes nothing.

        With `wait`, blocks until the task is finished, and True means that it did end
        as cancelled. In any case the handle is brought up to date. Raises RuntimeError
        where a task waits so for itself, SynchronousOnlyOperation where it would wait
        on an event loop's thread, NotImplementedError where its backend cannot cancel.
        """
        if wait:
            refuse_to_block("use 'await result.acancel(wait=True)'")
        if self.is_finished:
            return False
        cancel = self._backend_method("cancel", wait)
        try:
            is_in_time: bool = cancel(self.id)
        except TaskResultDoesNotExist:
            self.refresh()  # raises as well, unless it has ended and was forgotten
            return False
        if wait and is_in_time:
            self.join()
            return is_cancelled(self._record)
        with suppress(TaskResultDoesNotExist):  # it may have been forgotten already
            self.refresh()
        return is_in_time

    async def acancel(self, *, wait: bool = False) -> bool:
        """As `cancel`, for coroutines."""
        if self.is_finished:
            return False
        acancel = self._backend_method("acancel", wait)
        try:
            is_in_time: bool = await acancel(self.id)
        except TaskResultDoesNotExist:
            await self.arefresh()  # as above
            return False
        if wait and is_in_time:
            await self.ajoin()
            return is_cancelled(self._record)
        with suppress(TaskResultDoesNotExist):  # as above
            await self.arefresh()
        return is_in_time

    def _backend_method(self, name: str, wait: bool) -> Callable[[str], Any]:
        if wait and is_running_here(self.id):
            raise RuntimeError(f"Task {self.id} cannot wait for its own end.")
        with out_of_reach:  # Django's look-up takes a lock that all threads need
            backend = task_backends[self.backend]
        method: Callable[[str], Any] | None = getattr(backend, name, None)
        if method is None:
            raise NotImplementedError(
                f"TASKS[{self.backend!r}] is a {type(backend).__name__}, which cannot "
                "cancel tasks."
            )
        return method

    @override
    def refresh(self) -> None:
        """Bring the snapshot up to date.

        A finished one looks nothing up. Raises TaskResultDoesNotExist where the
        result is another process's and the store of this one does not have it.
        """
        if self.is_finished:
            return
        waitable = self._get_waitable()
        if waitable is not None:
            self.see(waitable.latest())
        else:
            with out_of_reach:  # as above
                backend = task_backends[self.backend]
            self._adopt(get_result(backend, self.id))

    @override
    async def arefresh(self) -> None:
        """As `refresh`."""
        if self.is_finished:
            return
        waitable = self._get_waitable()
        if waitable is not None:
            self.see(await waitable.alatest())
        else:
            backend = task_backends[self.backend]
            self._adopt(await aget_result(backend, self.id))

    def open_waitable(self) -> Waitable:
        """What to wait with, looked up where that is needed.

        Raises RuntimeError where there is nothing to wait for.
        """
        if self._has_to_be_looked_up():
            self.refresh()
        return self._waitable_after_look_up()

    async def aopen_waitable(self) -> Waitable:
        """As `open_waitable`, without blocking."""
        if self._has_to_be_looked_up():
            await self.arefresh()
        return self._waitable_after_look_up()

    def _has_to_be_looked_up(self) -> bool:
        waitable = self._get_waitable()
        if isinstance(waitable, PolledResult):
            waitable.check_that_it_ever_runs()
            return True
        return waitable is None

    def _get_waitable(self) -> Waitable | None:
        """What to wait with; None where the backend has yet to be asked for it."""
        record = self._record
        waitable = self._waitable
        if (
            waitable is not None
            # Not what was made before a fork: nothing here ever finishes it.
            and (
                isinstance(waitable, RemoteCompletion)
                or is_of_this_process(record.owner)
            )
            and (not isinstance(waitable, Completion) or waitable.is_usable)
        ):
            return waitable
        link = parent_link()
        if not record.owner:  # another library's
            waitable = PolledResult(record)
        elif link is not None:
            waitable = link.waitable(record)
        else:
            return None
        _set_waitable(self, waitable)
        return waitable

    def _waitable_after_look_up(self) -> Waitable:
        if self._waitable is None and self._record.is_finished:
            _set_waitable(self, Completion(self._record))
        if self._waitable is None:
            raise RuntimeError(
                f"Task {self.id} is {self.status.value} in its store, but nothing in "
                f"this process runs it: there is nothing to wait for."
            )
        return self._waitable

    def _adopt(self, found: "TaskResult[..., Any]") -> None:
        self.see(record_of(found))
        waitable = None
        if isinstance(found, LocalTaskResult):
            # As in `__eq__`.
            waitable = cast("LocalTaskResult[R]", found)._waitable
        _set_waitable(self, waitable)

    def see(self, record: Record, /) -> None:
        """Show a record of this result, unless a later one is shown already."""
        if record.revision >= self._record.revision:
            _set_record(self, record)

    def _timed_out(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"Task {self.id} is still {self.status.value} after {timeout} seconds."
        )

    def _return_value_or_raise(self) -> R:
        record = self._record
        if record.value is not None:
            return self.return_value
        # Another library's backend may keep no error of a task that it has given up.
        error = record.errors[-1] if record.errors else _NO_ERROR
        raise TaskFailed(
            result_id=record.id,
            exception_class_path=error.exception_class_path,
            traceback=error.traceback,
        )

    if not TYPE_CHECKING:
        # To type checkers these are the attributes that the base class declares. Here
        # they are read from the record, so that one assignment brings all of them up
        # to date at once, and what nobody asks for is never decoded.
        id = property(lambda self: self._record.id)
        status = property(lambda self: self._record.status)
        backend = property(lambda self: self._record.alias)
        # 0.0: another library's backend does not say.
        enqueued_at = property(lambda self: _datetime(self._record.enqueued_at or None))
        started_at = property(lambda self: _datetime(self._record.started_at))
        finished_at = property(lambda self: _datetime(self._record.finished_at))
        last_attempted_at = property(
            lambda self: _datetime(self._record.last_attempted_at)
        )
        worker_ids = property(lambda self: list(self._record.worker_ids))
        is_finished = property(lambda self: self._record.is_finished)

        @property
        def errors(self):
            return [
                TaskError(exception_class_path=path, traceback=traceback)
                for path, traceback in self._record.errors
            ]

        @property
        def task(self):
            try:
                return _task_slot.__get__(self)
            except AttributeError:
                record = self._record
                try:
                    task = find_checked_task(record.task, run_after=record.run_after)
                except Exception:  # its module's, or it is not there any more
                    task = stand_in(record.task, record.alias)
                _task_slot.__set__(self, task)
                return task

        @property
        def args(self):
            return self._arguments()[0]

        @property
        def kwargs(self):
            return self._arguments()[1]

        def _arguments(self):
            try:
                return _args_slot.__get__(self)
            except AttributeError:
                arguments = decode_arguments(self._record.arguments)
                _args_slot.__set__(self, arguments)
                return arguments

        @property
        def _return_value(self):
            value = self._record.value
            if value is None:
                return None
            try:
                return _return_value_slot.__get__(self)
            except AttributeError:
                return_value = decode_value(value)
                _return_value_slot.__set__(self, return_value)
                return return_value


# The base class's slots, which the properties above hide, keep what was decoded.
_task_slot = TaskResult.__dict__["task"]
_args_slot = TaskResult.__dict__["args"]
_return_value_slot = TaskResult.__dict__["_return_value"]

_NO_ERROR = ErrorRecord("builtins.Exception", "Its backend says no more.")

_new = object.__new__
_Handle = cast("type[LocalTaskResult[Any]]", LocalTaskResult)  # subscripting is slow
_set_record = LocalTaskResult.__dict__["_record"].__set__
_set_waitable = LocalTaskResult.__dict__["_waitable"].__set__


def refuse_to_block(instead: str, /) -> None:
    """Raise SynchronousOnlyOperation on an event loop's thread, and say what to do."""
    if is_in_event_loop():
        raise SynchronousOnlyOperation(
            f"A result cannot be waited for on an event loop's thread: {instead}."
        )


def handle_of(
    record: Record,
    /,
    *,
    waitable: Waitable | None = None,
    task: "Task[..., Any] | None" = None,
) -> LocalTaskResult[Any]:
    """A handle of a record.

    Without a `task` or a `waitable` these are looked up when they are needed.
    """
    # Not through `__init__`, which would want, and copy, what the record has.
    handle: LocalTaskResult[Any] = _new(_Handle)
    _set_record(handle, record)
    _set_waitable(handle, waitable)
    if task is not None:
        _task_slot.__set__(handle, task)
    return handle


def _datetime(at: Timestamp | None) -> datetime | None:
    return None if at is None else to_datetime(at)


def to_handle[R](result: "TaskResult[..., R]", /) -> LocalTaskResult[R]:
    """A handle of any backend's result; one of ours is its own."""
    if isinstance(result, LocalTaskResult):
        return result
    return handle_of(record_of(result), task=result.task)


async def wait[R](result: "TaskResult[..., R]", timeout: float | None = None) -> R:
    """Wait for any backend's result, under asyncio or trio, and return its value.

    `timeout` is in seconds, None for no limit. Raises TaskFailed where the task
    FAILED; TimeoutError when the time is over. A result of this library's backends
    that belongs to this process wakes the waiter; any other is looked up again and
    again, after 10 ms at first and every 500 ms in the end, which raises
    NotImplementedError where its backend keeps no results. On a DummyBackend, where
    nothing ever runs, RuntimeError.
    """
    handle = to_handle(result)
    await handle.ajoin(timeout)
    return await handle


def is_cancelled(record: Record, /) -> bool:
    """Whether a finished task ended because it was cancelled."""
    return bool(record.errors) and (
        record.errors[-1].exception_class_path == path_of(TaskCancelled)
    )
