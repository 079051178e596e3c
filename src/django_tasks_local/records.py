"""The plain, frozen, picklable data that crosses the seams between the parts."""

from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

from django.tasks.base import TaskResultStatus

__all__ = [
    "Call",
    "EnqueueRequest",
    "ErrorRecord",
    "GetRequest",
    "Outcome",
    "Record",
    "Refusal",
    "TaskSpec",
    "Timestamp",
    "apply_outcome",
    "apply_start",
]

type Timestamp = float
"""Seconds since the epoch, as `time.time` gives them."""

FINISHED_STATUSES = frozenset({TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED})


class TaskSpec(NamedTuple):
    """What names a task and its options, without its function."""

    path: str
    """The function's dotted path (`Task.module_path`)."""
    priority: int
    queue_name: str
    backend: str
    """The alias that the task names, which need not be the one that runs it."""
    takes_context: bool


class ErrorRecord(NamedTuple):
    """One attempt's exception."""

    exception_class_path: str
    traceback: str


class Record(NamedTuple):
    """A result's data: what a store keeps, and what handles are built from."""

    id: str
    task: TaskSpec
    alias: str
    """The alias that runs the task (`TaskResult.backend`)."""
    arguments: str
    """The call's arguments as JSON text: an array of `args` and `kwargs`."""
    run_after: Timestamp | None
    owner: str
    """The process that has to see to the task: ``host:pid``."""
    enqueued_at: Timestamp
    status: TaskResultStatus = TaskResultStatus.READY
    started_at: Timestamp | None = None
    last_attempted_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    value: str | None = None
    """The return value as JSON text, once the task is SUCCESSFUL."""
    errors: tuple[ErrorRecord, ...] = ()
    worker_ids: tuple[str, ...] = ()
    revision: int = 0
    """Grows by one with each change that is saved."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing about the task changes any more."""
        return self.status in FINISHED_STATUSES


class Call(NamedTuple):
    """What an executor is given to run: a record, and where and how to run it."""

    record: Record
    slot: int
    """The slot that the call takes. One call at a time has a given slot; the next
    one may be submitted as soon as the Future of the last one has its outcome."""
    function: Callable[..., Any] | None = None
    """The live function, for executors of this process. Never pickled."""
    context: Context | None = None
    """A copy of the enqueuer's context, likewise. Nobody else runs in it."""


class Outcome(NamedTuple):
    """What came of one attempt. Exactly one of `value` and `error` is given."""

    result_id: str
    finished_at: Timestamp
    value: str | None = None
    """The return value as JSON text."""
    error: ErrorRecord | None = None


class EnqueueRequest(NamedTuple):
    """A task in a worker process enqueues: its parent does so for it."""

    task: TaskSpec
    alias: str
    arguments: str
    run_after: Timestamp | None


class GetRequest(NamedTuple):
    """A task in a worker process looks a result up."""

    alias: str
    result_id: str


class Refusal(NamedTuple):
    """A request's answer where the parent's code raised an exception."""

    exception_class_path: str
    message: str


def apply_start(record: Record, /, *, worker_id: str, at: Timestamp) -> Record:
    """The record of a task that a worker has begun to run."""
    return Record(
        record.id,
        record.task,
        record.alias,
        record.arguments,
        record.run_after,
        record.owner,
        record.enqueued_at,
        TaskResultStatus.RUNNING,
        at if record.started_at is None else record.started_at,
        at,
        None,
        None,
        record.errors,
        (*record.worker_ids, worker_id),
        record.revision + 1,
    )


def apply_outcome(record: Record, outcome: Outcome, /) -> Record:
    """The record after an attempt. The only place where a task becomes finished."""
    error = outcome.error
    return Record(
        record.id,
        record.task,
        record.alias,
        record.arguments,
        record.run_after,
        record.owner,
        record.enqueued_at,
        TaskResultStatus.SUCCESSFUL if error is None else TaskResultStatus.FAILED,
        record.started_at,
        record.last_attempted_at,
        outcome.finished_at,
        outcome.value if error is None else None,
        record.errors if error is None else (*record.errors, error),
        record.worker_ids,
        record.revision + 1,
    )
