"""What becomes of a task's record, where it may: used as `Records.change` wants it."""

import time

from django.tasks.base import TaskResultStatus

from .errors import TaskCancelled, TaskFailed, TaskTimeout, WorkerLost, path_of
from .records import (
    ErrorRecord,
    Outcome,
    Record,
    Timestamp,
    apply_cancel,
    apply_cancel_request,
    apply_outcome,
    apply_start,
)

__all__ = [
    "CANCELLED_PATH",
    "as_exception",
    "cancelled",
    "ended",
    "started",
    "started_after_all",
]

CANCELLED_PATH = path_of(TaskCancelled)
_CANCELLED = ErrorRecord(
    CANCELLED_PATH, f"{CANCELLED_PATH}: The task was cancelled before it ran.\n"
)
_NOT_TRIED_AGAIN = ErrorRecord(
    CANCELLED_PATH,
    f"{CANCELLED_PATH}: The task was cancelled and is not tried again.\n",
)
_TOLD_BY_TEXT = {path_of(kind): kind for kind in (WorkerLost, TaskTimeout)}


def cancelled(record: Record, /) -> Record | None:
    """What cancelling makes of a task."""
    if record.status is TaskResultStatus.READY:
        return apply_cancel(record, _CANCELLED, at=time.time())
    if record.is_finished:
        return None
    return apply_cancel_request(record)


def started(record: Record, worker_id: str, at: Timestamp, /) -> Record | None:
    """What its start makes of it.

    Another process may have asked for its end since it was queued.
    """
    if record.status is not TaskResultStatus.READY or record.is_cancel_requested:
        return None
    return apply_start(record, worker_id=worker_id, at=at)


def started_after_all(
    record: Record, worker_id: str, at: Timestamp, /
) -> Record | None:
    """The same, where the store has failed to save such a start.

    Or has it, and failed to say so: then what is there has never run.
    """
    if record.status is not TaskResultStatus.RUNNING:
        return started(record, worker_id, at)
    if record.is_cancel_requested:
        return None
    return apply_start(
        record._replace(
            started_at=record.started_at if record.worker_ids[1:] else None,
            worker_ids=record.worker_ids[:-1],
        ),
        worker_id=worker_id,
        at=at,
    )


def ended(record: Record, outcome: Outcome, /) -> Record | None:
    """What the end of an attempt makes of it."""
    if record.is_finished:
        return None
    if record.is_cancel_requested and record.status is TaskResultStatus.READY:
        return apply_cancel(record, _CANCELLED, at=time.time())
    if record.is_cancel_requested and outcome.retry_after_s is not None:
        outcome = outcome._replace(
            retry_after_s=None,
            further_errors=(*outcome.further_errors, _NOT_TRIED_AGAIN),
        )
    return apply_outcome(record, outcome)


def as_exception(record: Record, error: ErrorRecord, /) -> BaseException:
    """What a backoff is given where there was no live exception, or it is gone."""
    path, traceback = error
    kind = _TOLD_BY_TEXT.get(path)
    if kind is not None:
        return kind(traceback.removeprefix(f"{path}: ").rstrip())
    return TaskFailed(
        result_id=record.id, exception_class_path=path, traceback=traceback
    )
