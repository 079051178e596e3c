"""A backend of another library, as far as this one can tell."""

import threading
import uuid
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import Task, TaskResult, TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

type Result = TaskResult[..., Any]

_lock = threading.Lock()
_results: dict[str, Result] = {}
_broken: dict[str, BaseException] = {}


class ForeignBackend(BaseTaskBackend):
    """Runs nothing by itself: the test says what becomes of its tasks (`tell`)."""

    supports_get_result = True
    supports_async_task = True

    look_up_hooks: ClassVar[list[Callable[[], None]]] = []
    """Called by each thread that looks."""

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
        for hook in self.look_up_hooks:
            hook()
        with _lock:
            if result_id in _broken:
                raise _broken[result_id]
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


def break_look_up(result: Result, error: BaseException) -> None:
    """Let every look-up of that result raise from now on."""
    with _lock:
        _broken[result.id] = error


class AllDoneBackend(ForeignBackend):
    """Another backend, to which everything is done."""

    def get_result(self, result_id: str) -> Result:
        result = super().get_result(result_id)
        finished = replace(
            result, status=TaskResultStatus.SUCCESSFUL, finished_at=timezone.now()
        )
        object.__setattr__(finished, "_return_value", "done")
        return finished


class TornBackend(ForeignBackend):
    """Reads a result in parts: one that has just ended comes without its end."""

    torn: ClassVar[set[str]] = set()

    def get_result(self, result_id: str) -> Result:
        result = super().get_result(result_id)
        if result.is_finished and result_id not in self.torn:
            self.torn.add(result_id)
            result = replace(result, finished_at=None)
            object.__setattr__(result, "_return_value", None)
        return result


class NoResultsBackend(ForeignBackend):
    """Keeps no results."""

    supports_get_result = False

    def get_result(self, result_id: str) -> Result:
        return BaseTaskBackend.get_result(self, result_id)


def forget(result: Result) -> None:
    """Let nobody find a task's result any more."""
    with _lock:
        del _results[result.id]


if TYPE_CHECKING:
    # Generic for type checkers only.
    class _Task(Task[..., Any]):
        pass
else:
    _Task = Task


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowingTask(_Task):
    timeout: float | None = None


class KnowingBackend(ForeignBackend):
    """Knows one of the options that Django's own do not."""

    task_class = KnowingTask
