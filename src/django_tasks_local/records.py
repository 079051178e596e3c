"""The plain, frozen, picklable data that crosses the seams between the parts."""

from collections.abc import Callable
from contextvars import Context
from enum import Enum
from typing import Any, NamedTuple

from django.tasks.base import TaskResultStatus

from .backoff import Backoff

__all__ = [
    "NO_METADATA",
    "Answer",
    "Call",
    "CancelRequest",
    "EnqueueRequest",
    "Enqueued",
    "ErrorRecord",
    "GetRequest",
    "Interruption",
    "MetadataRequest",
    "Outcome",
    "Record",
    "Refusal",
    "Request",
    "TaskSpec",
    "Timestamp",
    "apply_cancel",
    "apply_cancel_request",
    "apply_metadata",
    "apply_outcome",
    "apply_start",
]

type Timestamp = float
"""Seconds since the epoch, as `time.time` gives them."""

NO_METADATA = "{}"
"""The metadata of a task that has none."""

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
    """Who has to see to the task: ``host:pid:token``."""
    enqueued_at: Timestamp
    status: TaskResultStatus = TaskResultStatus.READY
    started_at: Timestamp | None = None
    last_attempted_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    value: str | None = None
    """The return value as JSON text, once the task is SUCCESSFUL."""
    errors: tuple[ErrorRecord, ...] = ()
    worker_ids: tuple[str, ...] = ()
    metadata: str = NO_METADATA
    """What the task is given besides its arguments, and tells of itself, as JSON text:
    an object."""
    due_at: Timestamp | None = None
    """When a READY task may begin, by the wall clock; None: at once."""
    is_cancel_requested: bool = False
    """Somebody has asked the task to stop, while it ran."""
    revision: int = 0
    """Grows by one with each change that is saved."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing about the task changes any more."""
        return self.status in FINISHED_STATUSES

    def is_past(self, revision: int | None, /) -> bool:
        """Whether it is finished, or, given a `revision`, has changed since that one.

        Then there is nothing to wait for.
        """
        return self.is_finished or (revision is not None and self.revision > revision)


class Interruption(Enum):
    """Why a running call is to stop."""

    CANCEL = "cancel"
    """Somebody has cancelled the task."""
    TIMEOUT = "timeout"
    """The attempt's time is over."""
    SHUTDOWN = "shutdown"
    """Its executor ends. Only an executor itself says so."""


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
    backoff: Backoff | None = None
    """What to ask about another attempt when this one fails; None: there is none."""
    timeout_s: float | None = None
    """How many seconds the attempt may take: its executor is told when they are over
    (`TaskExecutor.interrupt`)."""


class Outcome(NamedTuple):
    """What came of one attempt. Exactly one of `value` and `error` is given."""

    result_id: str
    finished_at: Timestamp
    value: str | None = None
    """The return value as JSON text."""
    error: ErrorRecord | None = None
    metadata: str | None = None
    """The metadata at the end, where the task may have changed it."""
    is_backoff_asked: bool = False
    """The call's backoff has been asked; otherwise the alias asks it."""
    retry_after_s: float | None = None
    """What it answered."""
    further_errors: tuple[ErrorRecord, ...] = ()
    """What else went wrong, after the function: in a backoff, or with the metadata."""


class EnqueueRequest(NamedTuple):
    """A task in a worker process enqueues: its parent does so for it."""

    task: TaskSpec
    alias: str
    arguments: tuple[str, ...]
    """Those of each call, of which there may be several."""
    run_after: Timestamp | None
    metadata: str


class Enqueued(NamedTuple):
    """The answer to an `EnqueueRequest`: a record for each call."""

    records: tuple[Record, ...]


class GetRequest(NamedTuple):
    """A task in a worker process looks a result up. Answered with the record."""

    alias: str
    result_id: str


class CancelRequest(NamedTuple):
    """A task in a worker process cancels one. Answered with whether in time."""

    alias: str
    result_id: str


class MetadataRequest(NamedTuple):
    """A task in a worker process saves its metadata. Answered with True."""

    result_id: str
    metadata: str
    attempt: int


class Refusal(NamedTuple):
    """A request's answer where the parent's code raised an exception."""

    exception_class_path: str
    message: str


type Request = EnqueueRequest | GetRequest | CancelRequest | MetadataRequest
"""What a task in a worker process may ask of its parent."""

type Answer = Record | Enqueued | bool | Refusal
"""What the parent says to it."""


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
        record.metadata,
        record.due_at,
        record.is_cancel_requested,
        record.revision + 1,
    )


def apply_outcome(record: Record, outcome: Outcome, /) -> Record:
    """The record after an attempt: finished, or READY for another one."""
    error = outcome.error
    retry_after_s = outcome.retry_after_s
    due_at = record.due_at
    finished_at: Timestamp | None = outcome.finished_at
    status = TaskResultStatus.SUCCESSFUL
    errors = record.errors
    if error is not None:
        errors = (*errors, error, *outcome.further_errors)
        if retry_after_s is None:
            status = TaskResultStatus.FAILED
        else:
            status = TaskResultStatus.READY
            due_at = outcome.finished_at + retry_after_s
            finished_at = None
    return Record(
        record.id,
        record.task,
        record.alias,
        record.arguments,
        record.run_after,
        record.owner,
        record.enqueued_at,
        status,
        record.started_at,
        record.last_attempted_at,
        finished_at,
        outcome.value if error is None else None,
        errors,
        record.worker_ids,
        record.metadata if outcome.metadata is None else outcome.metadata,
        due_at,
        record.is_cancel_requested,
        record.revision + 1,
    )


def apply_cancel(record: Record, error: ErrorRecord, /, *, at: Timestamp) -> Record:
    """The record of a waiting task that is not to run any more."""
    return record._replace(
        status=TaskResultStatus.FAILED,
        finished_at=at,
        errors=(*record.errors, error),
        revision=record.revision + 1,
    )


def apply_cancel_request(record: Record, /) -> Record:
    """The record of a running task that is to stop."""
    return record._replace(is_cancel_requested=True, revision=record.revision + 1)


def apply_metadata(record: Record, metadata: str, /) -> Record:
    """The record of a running task with other metadata."""
    return record._replace(metadata=metadata, revision=record.revision + 1)
