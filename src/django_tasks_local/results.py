"""The handle: a Django `TaskResult` that can also be waited for and awaited."""

import time
from collections.abc import Callable, Generator, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast, override

import anyio
import anyio.to_thread
from django.core.exceptions import SynchronousOnlyOperation
from django.tasks import task_backends
from django.tasks.backends.dummy import DummyBackend
from django.tasks.base import Task, TaskError, TaskResult

from .async_bridge import Completion, is_in_event_loop, is_in_trio
from .context import lending_slot, parent_link
from .errors import TaskFailed
from .identity import this_process
from .json_text import decode_arguments, decode_value, encode_foreign
from .protocols import Waitable
from .records import ErrorRecord, Record, Timestamp
from .task_registry import find_task, spec_of, to_datetime

if TYPE_CHECKING:
    # Generic for type checkers only: subscripting it fails at run time. A handle says
    # what its task returns and leaves the parameters open; mypy, unlike pyright, wants
    # them repeated where a method returns a handle instead of a Django result.
    class _TaskResult[R](TaskResult[..., R]):
        pass
else:

    class _TaskResult[R](TaskResult):
        __slots__ = ()


__all__ = ["LocalTaskResult", "handle_of", "record_of", "to_handle", "wait"]

_FIRST_POLL_S = 0.01
_LONGEST_POLL_S = 0.5


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
        if is_in_event_loop():
            raise SynchronousOnlyOperation(
                "A result cannot be waited for on an event loop's thread: "
                "use 'await result' or 'await result.ajoin()'."
            )
        if self.is_finished:
            return
        waitable = self._get_waitable()
        if waitable is None:
            self.refresh()
            waitable = self._waitable_after_look_up()
        if not waitable.record.is_finished:
            with lending_slot() as reclaim_slot:
                is_in_time = waitable.wait(timeout, at_end=reclaim_slot)
            if not is_in_time:
                self._see(waitable.record)
                raise self._timed_out(timeout)
        self._see(waitable.record)

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
        waitable = self._get_waitable()
        if waitable is None:
            await self.arefresh()
            waitable = self._waitable_after_look_up()
        try:
            if timeout is None:
                with lending_slot() as reclaim_slot:
                    await waitable.wait_async(at_end=reclaim_slot)
            else:
                with anyio.move_on_after(timeout), lending_slot() as reclaim_slot:
                    await waitable.wait_async(at_end=reclaim_slot)
        finally:
            self._see(waitable.record)
        if not self.is_finished:
            raise self._timed_out(timeout)

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
            self._see(waitable.latest())
        else:
            self._adopt(task_backends[self.backend].get_result(self.id))

    @override
    async def arefresh(self) -> None:
        """As `refresh`."""
        if self.is_finished:
            return
        waitable = self._get_waitable()
        if waitable is not None:
            self._see(await waitable.alatest())
        else:
            self._adopt(await _aget_result(self.backend, self.id))

    def _get_waitable(self) -> Waitable | None:
        """What to wait with; None where the backend has yet to be asked for it."""
        link = parent_link()
        if link is not None and not isinstance(self._waitable, _ForeignResult):
            if self._waitable is None:
                _set_waitable(self, link.waitable(self._record))
        elif self._record.owner not in ("", this_process()):
            # Made before a fork, or unpickled: nothing here ever finishes it.
            return None
        return self._waitable

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
        self._see(record_of(found))
        if isinstance(found, LocalTaskResult):
            # As in `__eq__`.
            _set_waitable(self, cast("LocalTaskResult[R]", found)._waitable)

    def _see(self, record: Record) -> None:
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
        error = record.errors[-1]
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
        enqueued_at = property(lambda self: _datetime(self._record.enqueued_at))
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
                task = find_task(record.task, run_after=record.run_after)
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

_new = object.__new__
_Handle = cast("type[LocalTaskResult[Any]]", LocalTaskResult)  # subscripting is slow
_set_record = LocalTaskResult.__dict__["_record"].__set__
_set_waitable = LocalTaskResult.__dict__["_waitable"].__set__


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


def _timestamp(at: datetime | None) -> Timestamp | None:
    return None if at is None else at.timestamp()


def to_handle[R](result: "TaskResult[..., R]", /) -> LocalTaskResult[R]:
    """A handle of any backend's result; one of ours is its own."""
    if isinstance(result, LocalTaskResult):
        return result
    record = record_of(result)
    return handle_of(record, waitable=_ForeignResult(record), task=result.task)


def record_of(result: "TaskResult[..., Any]", /) -> Record:
    """What any backend's result holds, as a record."""
    if isinstance(result, LocalTaskResult):
        # As in `__eq__`.
        return cast("LocalTaskResult[object]", result).record
    is_successful = result.status == result.status.SUCCESSFUL
    return Record(
        id=result.id,
        task=spec_of(result.task),
        alias=result.backend,
        arguments=encode_foreign([result.args, result.kwargs]),
        run_after=_timestamp(result.task.run_after),
        owner="",
        enqueued_at=_timestamp(result.enqueued_at) or 0.0,
        status=result.status,
        started_at=_timestamp(result.started_at),
        last_attempted_at=_timestamp(result.last_attempted_at),
        finished_at=_timestamp(result.finished_at),
        value=encode_foreign(result.return_value) if is_successful else None,
        errors=tuple(
            ErrorRecord(error.exception_class_path, error.traceback)
            for error in result.errors
        ),
        worker_ids=tuple(result.worker_ids),
    )


async def _aget_result(alias: str, result_id: str) -> "TaskResult[..., Any]":
    backend = task_backends[alias]
    if is_in_trio():  # where Django's own crossing into a thread does not work
        return await anyio.to_thread.run_sync(backend.get_result, result_id)
    return await backend.aget_result(result_id)


class _ForeignResult:
    """A result of another backend, which only looking at it again can bring on."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def latest(self) -> Record:
        backend = task_backends[self.record.alias]
        self.record = record_of(backend.get_result(self.record.id))
        return self.record

    async def alatest(self) -> Record:
        self.record = record_of(await _aget_result(self.record.alias, self.record.id))
        return self.record

    def wait(self, timeout_s: float | None, /, *, at_end: Callable[[], None]) -> bool:
        self._check_that_it_ever_runs()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for pause_s in _pauses():
            if self.latest().is_finished:
                return True
            if deadline is not None:
                pause_s = min(pause_s, deadline - time.monotonic())
                if pause_s <= 0:
                    return False
            time.sleep(pause_s)
        return True

    async def wait_async(self, *, at_end: Callable[[], None]) -> None:
        self._check_that_it_ever_runs()
        for pause_s in _pauses():
            if (await self.alatest()).is_finished:
                return
            await anyio.sleep(pause_s)

    def _check_that_it_ever_runs(self) -> None:
        if isinstance(task_backends[self.record.alias], DummyBackend):
            raise RuntimeError(
                f"Task {self.record.id} never runs: TASKS[{self.record.alias!r}] is a "
                "DummyBackend, which only keeps what was enqueued."
            )


def _pauses() -> Iterator[float]:
    pause_s = _FIRST_POLL_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, _LONGEST_POLL_S)


async def wait[R](result: "TaskResult[..., R]", timeout: float | None = None) -> R:
    """Wait for any backend's result, under asyncio or trio, and return its value.

    `timeout` is in seconds, None for no limit. Raises TaskFailed where the task
    FAILED; TimeoutError when the time is over. A result of this library's backends
    that belongs to this process wakes the waiter; any other is looked up again and
    again, at first every 10 ms and in the end every 500 ms, which raises
    NotImplementedError where its backend keeps no results. On a DummyBackend, where
    nothing ever runs, RuntimeError.
    """
    handle = to_handle(result)
    await handle.ajoin(timeout)
    return await handle
