"""What other backends' results say, as records."""

from typing import Any

from django.tasks import task_backends
from django.tasks.base import TaskResult

from .async_bridge import in_thread, is_in_trio
from .json_text import encode_foreign
from .records import ErrorRecord, Record
from .task_registry import spec_of
from .times import to_timestamp

__all__ = ["aget_result", "record_of"]


def record_of(result: "TaskResult[..., Any]", /) -> Record:
    """What any backend's result holds, as a record."""
    record = getattr(result, "record", None)
    if isinstance(record, Record):  # a handle of this library's
        return record
    is_successful = result.status == result.status.SUCCESSFUL
    return Record(
        id=result.id,
        task=spec_of(result.task),
        alias=result.backend,
        arguments=encode_foreign([result.args, result.kwargs]),
        run_after=to_timestamp(result.task.run_after),
        owner="",
        enqueued_at=to_timestamp(result.enqueued_at) or 0.0,
        status=result.status,
        started_at=to_timestamp(result.started_at),
        last_attempted_at=to_timestamp(result.last_attempted_at),
        finished_at=to_timestamp(result.finished_at),
        value=encode_foreign(result.return_value) if is_successful else None,
        errors=tuple(
            ErrorRecord(error.exception_class_path, error.traceback)
            for error in result.errors
        ),
        worker_ids=tuple(result.worker_ids),
    )


async def aget_result(alias: str, result_id: str) -> "TaskResult[..., Any]":
    """Look a result up on an event loop, under asyncio or trio."""
    backend = task_backends[alias]
    if is_in_trio():  # most backends know of asyncio alone
        return await in_thread(backend.get_result, result_id)
    return await backend.aget_result(result_id)
