"""A backend of another library, as far as this one can tell."""

import threading
import uuid
from copy import copy
from dataclasses import replace
from typing import Any

from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import Task, TaskResult, TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

type Result = TaskResult[..., Any]

_lock = threading.Lock()
_results: dict[str, Result] = {}


class ForeignBackend(BaseTaskBackend):
    """Runs nothing by itself: the test says what becomes of its tasks (`tell`)."""

    supports_get_result = True
    supports_async_task = True

    def enqueue[**P, R](
        self, task: "Task[P, R]", args: list[Any], kwargs: dict[str, Any]
    ) -> "TaskResult[P, R]":
        self.validate_task(task)
        result: TaskResult[P, R] = TaskResult(
            task=task,
            id=str(uuid.uuid4()),
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        with _lock:
            _results[result.id] = result
        return result

    def get_result(self, result_id: str) -> Result:
        with _lock:
            try:
                return copy(_results[result_id])
            except KeyError:
                raise TaskResultDoesNotExist(result_id) from None


def tell(result: Result, status: TaskResultStatus, value: object = None) -> None:
    """Let a task's result be this from now on."""
    is_finished = status in {TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED}
    with _lock:
        changed = replace(
            _results[result.id],
            status=status,
            finished_at=timezone.now() if is_finished else None,
        )
        object.__setattr__(changed, "_return_value", value)  # past the frozen class
        _results[result.id] = changed
