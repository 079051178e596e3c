"""What a task sees: its result's id, its context, and the slot it runs on."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, override

from django.tasks.base import TaskContext

from .identity import this_process

if TYPE_CHECKING:
    from .protocols import ParentLink, SlotLender

    # Generic for type checkers only: subscripting it fails at run time.
    class _TaskContext(TaskContext[..., Any]):
        pass
else:
    _TaskContext = TaskContext

__all__ = [
    "LocalTaskContext",
    "ResultIdFilter",
    "RunningTask",
    "current_result_id",
    "enter_task",
    "is_running",
    "lending_slot",
    "parent_link",
    "running_task",
    "set_parent_link",
]

current_result_id: ContextVar[str] = ContextVar("current_result_id")
"""The id of the result of the task that is running here; LookupError outside one."""


class LocalTaskContext(_TaskContext):
    """Given to a task defined with ``takes_context=True`` as its first argument.

    `task_result` is the task's own result as of the start of this attempt, and
    `attempt` that attempt's number, beginning with 1.
    """

    __slots__ = ()


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


def _running_here() -> RunningTask | None:
    running = running_task.get()
    if running is None or running.process != this_process():
        return None
    return running


@contextmanager
def lending_slot() -> Generator[Callable[[], None]]:
    """Lend the slot of the task that is running here, if one is, for a while.

    What it gives takes the slot back before that: any thread may call it, so that who
    ends the wait can do so before anything else is started.
    """
    running = _running_here()
    loans = [] if running is None else [running]

    def reclaim() -> None:
        try:
            lender = loans.pop()  # only one can
        except IndexError:
            return
        lender.host.reclaim_slot(lender.result_id)

    for lender in loans:
        lender.host.lend_slot(lender.result_id)
    try:
        yield reclaim
    finally:
        reclaim()


_parent_link: "ParentLink | None" = None


def parent_link() -> "ParentLink | None":
    """In a worker process, the way to its parent; None anywhere else."""
    return _parent_link


def set_parent_link(link: "ParentLink | None", /) -> None:
    """Called once by a worker process, and in a fork of one."""
    global _parent_link
    _parent_link = link
