"""The exceptions that users of the library may catch."""

from typing import override

from django.tasks.exceptions import TaskException

__all__ = [
    "ClusterUnreachable",
    "IgnoredOptionsWarning",
    "QueueFull",
    "StoreError",
    "TaskCancelled",
    "TaskFailed",
    "TaskTimeout",
    "WorkerLost",
    "path_of",
]


class QueueFull(TaskException):
    """Raised by an enqueue when ``MAX_PENDING`` tasks of the alias are waiting.

    Nothing was stored, and the task will not run: enqueue it again later.
    """


class ClusterUnreachable(TaskException):
    """Raised by an enqueue once an alias's cluster could not be reached for too long.

    That is ``CONNECT_TIMEOUT`` seconds. Nothing was stored, and the task will not run.
    Tasks that were taken before wait for the cluster's return.
    """


class StoreError(TaskException):
    """Raised by an enqueue or a look-up where the alias's store cannot be used.

    A file that is corrupt, read-only or of a newer version, a disk that is full, a
    database that is away: the message says which and where. Other aliases go on.
    """


class TaskCancelled(BaseException):
    """Recorded as the error of a task that was cancelled.

    Raised within a task on a thread that was asked to stop, by its context's
    `checkpoint`, `save_metadata` and `report_progress`. As `asyncio.CancelledError` it
    is no `Exception`, so that ``except Exception`` in a task lets it through.
    """


class TaskTimeout(TimeoutError):
    """Recorded as the error of an attempt that took longer than its ``timeout``."""


class TaskFailed(Exception):
    """Raised by ``wait()`` and ``await`` when the task ended as FAILED.

    The task's own exception object never leaves the worker that ran it; what was
    recorded of it is here, and is shown when this exception is printed.
    """

    def __init__(
        self, *, result_id: str, exception_class_path: str, traceback: str
    ) -> None:
        super().__init__(result_id, exception_class_path, traceback)
        self.result_id = result_id
        """The id of the task's result."""
        self.exception_class_path = exception_class_path
        """The dotted path of the recorded exception's class."""
        self.traceback = traceback
        """The recorded traceback, as text."""

    @override
    def __str__(self) -> str:
        return (
            f"Task {self.result_id} failed with {self.exception_class_path}\n\n"
            f"{self.traceback.rstrip()}"
        )

    @override
    def __reduce__(self) -> tuple[object, ...]:
        return _task_failed, (
            self.result_id,
            self.exception_class_path,
            self.traceback,
        )


def _task_failed(
    result_id: str, exception_class_path: str, traceback: str
) -> TaskFailed:
    return TaskFailed(
        result_id=result_id,
        exception_class_path=exception_class_path,
        traceback=traceback,
    )


class WorkerLost(Exception):
    """Recorded as a task's error when the worker that ran it died.

    It is never raised: a task that was lost is FAILED, its last error names this
    class, and the error's text names the signal or the exit code.
    """


class IgnoredOptionsWarning(UserWarning):
    """Warns of a task whose backend, of another library, does not know its options.

    It runs without them. Where a warnings filter makes an error of it, the task is
    refused with InvalidTask instead.
    """


def path_of(some_class: type, /) -> str:
    """The dotted path of a class, under which an exception's is recorded."""
    return f"{some_class.__module__}.{some_class.__qualname__}"
