"""What a task sees: its result's id, its context, and the slot it runs on."""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any, NamedTuple, override

import anyio.to_thread
from django.tasks.base import TaskContext

from .errors import TaskCancelled
from .identity import this_process
from .interruption import out_of_reach
from .json_text import decode_value, encode_metadata
from .progress import METADATA_KEY, ProgressWriter, check_progress

if TYPE_CHECKING:
    from django.tasks.base import TaskResult

    from .protocols import ParentLink, SlotLender, TaskHost

    # Generic for type checkers only: subscripting it fails at run time.
    class _TaskContext(TaskContext[..., Any]):
        pass
else:
    _TaskContext = TaskContext

__all__ = [
    "LocalTaskContext",
    "ResultIdFilter",
    "RunningTask",
    "close_context",
    "current_result_id",
    "enter_task",
    "is_running",
    "is_running_here",
    "lending_slot",
    "open_context",
    "parent_link",
    "running_task",
    "set_call_link",
    "set_parent_link",
]

current_result_id: ContextVar[str] = ContextVar("current_result_id")
"""The id of the result of the task that is running here; LookupError outside one."""


class LocalTaskContext(_TaskContext):
    """Given to a task defined with ``takes_context=True`` as its first argument.

    `task_result` is the task's own result as of the start of this attempt, and
    `attempt` that attempt's number, beginning with 1. Any thread may call any method.
    One that a test makes itself, or that another backend's task gets, keeps what it is
    told to itself.
    """

    __slots__ = ("_host", "_metadata", "_order", "_saved", "_writer")

    _host: "TaskHost"
    _order: threading.Lock
    _metadata: dict[str, Any]
    _saved: dict[str, Any]
    _writer: ProgressWriter

    @override
    def __setattr__(self, name: str, value: object) -> None:
        # The frozen base class's own does not work in a subclass with slots.
        if name != "metadata":
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the task was given besides its arguments, and tells of itself.

        Values that are JSON, by string keys. What the task changes is saved when the
        attempt ends, however it does, and by `save_metadata`.
        """
        try:
            return self._metadata
        except AttributeError:
            metadata = self._decode_saved()
            object.__setattr__(self, "_metadata", metadata)
            return metadata

    @metadata.setter
    def metadata(self, metadata: dict[str, Any]) -> None:
        object.__setattr__(self, "_metadata", metadata)

    @property
    def cancel_requested(self) -> bool:
        """Whether the task has been asked to stop (`LocalTaskResult.cancel`)."""
        host = self._find_host()
        return host is not None and host.is_cancel_requested(self.task_result.id)

    def checkpoint(self) -> None:
        """End the task here if it has been asked to stop: raises TaskCancelled."""
        if self.cancel_requested:
            raise TaskCancelled("The task was cancelled while it ran.")

    def save_metadata(self) -> None:
        """Let others see `metadata` as it is now, then do as `checkpoint` does.

        Raises TypeError where it is no dict of JSON, and then saves nothing;
        RuntimeError where the attempt has ended.
        """
        text = encode_metadata(self.metadata)
        self._save(lambda: text)
        self.checkpoint()

    async def asave_metadata(self) -> None:
        """As `save_metadata`, on an event loop."""
        text = encode_metadata(self.metadata)
        await self._without_blocking(self._save, lambda: text)
        self.checkpoint()

    def report_progress(
        self, done: float, total: float | None = None, message: str = ""
    ) -> None:
        """Let others see how far the task has got (`LocalTaskResult.progress`).

        May be called as often as one likes: at most 20 times a second something is
        saved, and the last report always, at the latest when the attempt ends. Then
        does as `checkpoint` does. It becomes part of the metadata, under "progress".
        Raises TypeError or ValueError where `done`, or a `total`, is no finite number.
        """
        progress = self._note_progress(done, total, message)
        with out_of_reach:
            self._find_writer().report(progress)
        self.checkpoint()

    async def areport_progress(
        self, done: float, total: float | None = None, message: str = ""
    ) -> None:
        """As `report_progress`, on an event loop."""
        progress = self._note_progress(done, total, message)
        await self._without_blocking(self._find_writer().report, progress)
        self.checkpoint()

    def _note_progress(
        self, done: float, total: float | None, message: str
    ) -> dict[str, Any]:
        check_progress(done, total, message)
        progress = {"done": done, "total": total, "message": message, "at": time.time()}
        encode_metadata({METADATA_KEY: progress})  # or it would be found out too late
        self.metadata[METADATA_KEY] = progress
        return progress

    def _write_progress(self, progress: dict[str, Any]) -> None:
        # What else the task has changed is saved when it says so.
        self._save(
            lambda: encode_metadata({**self._decode_saved(), METADATA_KEY: progress})
        )

    def _find_writer(self) -> ProgressWriter:
        try:
            return self._writer
        except AttributeError:
            writer = ProgressWriter(self._write_progress)
            object.__setattr__(self, "_writer", writer)
            return writer

    def _save(self, compose: Callable[[], str]) -> None:
        host = self._find_host()
        if host is None:
            self._note_saved(compose())
            return
        with out_of_reach, self._order:  # or an older one could come after a newer
            text = compose()
            host.save_metadata(self.task_result.id, text, attempt=self.attempt)
            self._note_saved(text)

    def _note_saved(self, text: str) -> None:
        object.__setattr__(self, "_saved", decode_value(text))

    def _decode_saved(self) -> dict[str, Any]:
        try:
            return {**self._saved}
        except AttributeError:
            return getattr(self.task_result, "metadata", {})

    async def _without_blocking[*T](
        self, function: Callable[[*T], None], *args: *T
    ) -> None:
        host = self._find_host()
        if host is not None and host.may_block:
            await anyio.to_thread.run_sync(function, *args)
        else:
            function(*args)

    def _find_host(self) -> "TaskHost | None":
        return getattr(self, "_host", None)


def open_context(result: "TaskResult[..., Any]", host: "TaskHost") -> LocalTaskContext:
    """The context of an attempt that is about to run."""
    context = LocalTaskContext(task_result=result)
    object.__setattr__(context, "_host", host)
    object.__setattr__(context, "_order", threading.Lock())
    return context


def close_context(context: LocalTaskContext, /) -> str | None:
    """The metadata that the attempt leaves, as JSON text; None: as it was saved last.

    Nothing is saved any more. Raises TypeError where it is no dict of JSON.
    """
    writer: ProgressWriter | None = getattr(context, "_writer", None)
    if writer is not None:
        writer.close()
    # Whatever the task has put there, None included, has to be looked at.
    return encode_metadata(context.metadata) if hasattr(context, "_metadata") else None


class ResultIdFilter(logging.Filter):
    """Gives each log record a `result_id`: the running task's, or an empty string.

    For ``LOGGING``, on the handlers whose formatters name it.
    """

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record through."""
        vars(record)["result_id"] = current_result_id.get("")
        return True


class RunningTask(NamedTuple):
    """The task that is running here, and who lends its slot while it waits."""

    host: "SlotLender"
    result_id: str
    alias: str
    process: str
    """Where it runs: in a fork that it makes, nothing of this is of use."""


running_task: ContextVar[RunningTask | None] = ContextVar("running_task", default=None)


def enter_task(host: "SlotLender", result_id: str, alias: str, /) -> None:
    """Let what runs in this context from now on be that task."""
    current_result_id.set(result_id)
    running_task.set(RunningTask(host, result_id, alias, this_process()))


def is_running(alias: str, /) -> bool:
    """Whether the code that asks is part of a running task of that alias."""
    running = _running_here()
    return running is not None and running.alias == alias


def is_running_here(result_id: str, /) -> bool:
    """Whether the code that asks is part of that very task."""
    running = _running_here()
    return running is not None and running.result_id == result_id


def _running_here() -> RunningTask | None:
    running = running_task.get()
    if running is None or running.process != this_process():
        return None
    return running


@contextmanager
def lending_slot(*, group: int | None = None) -> Generator[Callable[[], None]]:
    """Lend the slot of the task that is running here, if one is, for a while.

    What it gives takes the slot back before that: any thread may call it, so that who
    ends the wait can do so before anything else is started. For the `group` see
    `SlotLender`.
    """
    running = _running_here()
    loans = [] if running is None else [running]

    def reclaim() -> None:
        try:
            lender = loans.pop()  # only one can
        except IndexError:
            return
        lender.host.reclaim_slot(lender.result_id, group=group)

    try:
        with out_of_reach:
            for lender in loans:
                lender.host.lend_slot(lender.result_id, group=group)
        yield reclaim
    finally:
        with out_of_reach:
            reclaim()


_parent_link: "ParentLink | None" = None


_call_link: "ContextVar[ParentLink | None]" = ContextVar("call_link", default=None)


def parent_link() -> "ParentLink | None":
    """In a worker process, the way to its parent; None anywhere else.

    A worker that has several parents has one for each call.
    """
    return _parent_link or _call_link.get()


def set_parent_link(link: "ParentLink | None", /) -> None:
    """Called once by a worker process, and in a fork of one."""
    global _parent_link
    _parent_link = link


def set_call_link(link: "ParentLink", /) -> None:
    """Called in the context of a call, before its task begins."""
    _call_link.set(link)
