"""What other backends' results say, as records.

Some of those backends stand on `django_tasks`, the package that Django's own code was
taken from. Its classes are not Django's; what they say is the same.
"""

from typing import Any

from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TaskContext, TaskResult, TaskResultStatus
from django.tasks.exceptions import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
)
from typing_extensions import TypeIs

from .async_bridge import in_thread, is_in_trio
from .connections import close_connections
from .errors import path_of
from .json_text import encode_foreign
from .records import ErrorRecord, Record
from .task_registry import spec_of
from .times import to_timestamp

__all__ = ["aget_result", "get_result", "is_context", "raise_djangos", "record_of"]

_DJANGOS: dict[str, type[Exception]] = {
    "django_tasks.exceptions.InvalidTaskError": InvalidTask,
    "django_tasks.exceptions.TaskResultDoesNotExist": TaskResultDoesNotExist,
    "django_tasks.exceptions.TaskResultMismatch": TaskResultMismatch,
}
_CONTEXT = "django_tasks.base.TaskContext"


def record_of(result: "TaskResult[..., Any]", /) -> Record:
    """What any backend's result holds, as a record."""
    record = getattr(result, "record", None)
    if isinstance(record, Record):  # a handle of this library's
        return record
    status = TaskResultStatus(result.status.value)
    value = None
    if status == TaskResultStatus.SUCCESSFUL:
        try:
            value = encode_foreign(result.return_value)
        except (TypeError, ValueError) as err:  # some keep more than JSON
            raise TypeError(
                f"The return value of task {result.task.module_path} (result "
                f"{result.id}) is not JSON: {err}"
            ) from err
    return Record(
        id=result.id,
        task=spec_of(result.task),
        alias=result.backend,
        arguments=encode_foreign([result.args, result.kwargs]),
        run_after=to_timestamp(result.task.run_after),
        owner="",
        enqueued_at=to_timestamp(result.enqueued_at) or 0.0,
        status=status,
        started_at=to_timestamp(result.started_at),
        last_attempted_at=to_timestamp(result.last_attempted_at),
        finished_at=to_timestamp(result.finished_at),
        value=value,
        errors=tuple(
            ErrorRecord(error.exception_class_path, error.traceback)
            for error in result.errors
        ),
        worker_ids=tuple(result.worker_ids),
    )


def get_result(backend: BaseTaskBackend, result_id: str) -> "TaskResult[..., Any]":
    """Look a result up. What it raises is Django's own, whatever the backend has."""
    try:
        result = backend.get_result(result_id)
        return backend.get_result(result_id) if _is_torn(result) else result
    except Exception as err:
        raise_djangos(err)
        raise


async def aget_result(
    backend: BaseTaskBackend, result_id: str
) -> "TaskResult[..., Any]":
    """The same on an event loop, under asyncio or trio."""
    if is_in_trio():  # most backends know of asyncio alone
        return await in_thread(_get_result_and_close, backend, result_id)
    try:
        result = await backend.aget_result(result_id)
        return await backend.aget_result(result_id) if _is_torn(result) else result
    except Exception as err:
        raise_djangos(err)
        raise


def _is_torn(result: "TaskResult[..., Any]") -> bool:
    """Whether parts of it were read before its end, and others afterwards.

    As django-tasks-rq 0.12 does; its errors may be missing then.
    """
    return result.is_finished and result.finished_at is None


def _get_result_and_close(
    backend: BaseTaskBackend, result_id: str
) -> "TaskResult[..., Any]":
    """As `get_result`, on a thread whose connections nobody else uses."""
    try:
        return get_result(backend, result_id)
    finally:
        close_connections()


def raise_djangos(error: Exception, /) -> None:
    """Raise Django's own exception in the place of one that says the same."""
    djangos = _DJANGOS.get(path_of(type(error)))
    if djangos is not None:
        raise djangos(*error.args) from error


def is_context(value: object, /) -> "TypeIs[TaskContext[..., Any]]":
    """Whether it is what a task with ``takes_context`` is given, of either package."""
    return isinstance(value, TaskContext) or path_of(type(value)) == _CONTEXT
