"""The site: a request enqueues, and is answered with the ids once that has returned."""

from datetime import timedelta
from typing import Any

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils.timezone import now

from django_tasks_local import LocalTask, LocalTaskResult

from .tasks import TASKS

__all__ = ["application", "urlpatterns"]

application = get_wsgi_application()


def one_by_one(
    request: HttpRequest, name: str, token: str, count: int, pause_ms: int, in_ms: int
) -> JsonResponse:
    task = _task(name, in_ms)
    return _answer(
        [task.enqueue(each, pause_ms / 1000) for each in _tokens(token, count)]
    )


async def on_a_loop(
    request: HttpRequest, name: str, token: str, count: int, pause_ms: int, in_ms: int
) -> JsonResponse:
    task = _task(name, in_ms)
    return _answer(
        [await task.aenqueue(each, pause_ms / 1000) for each in _tokens(token, count)]
    )


def together(
    request: HttpRequest, name: str, token: str, count: int, pause_ms: int, in_ms: int
) -> JsonResponse:
    calls: list[tuple[tuple[str, float], dict[str, Any]]] = [
        ((each, pause_ms / 1000), {}) for each in _tokens(token, count)
    ]
    return _answer(_task(name, in_ms).enqueue_many(calls))


def _task(name: str, in_ms: int) -> LocalTask[Any, str]:
    task = TASKS[name]
    return (
        task.using(run_after=now() + timedelta(milliseconds=in_ms)) if in_ms else task
    )


def _tokens(token: str, count: int) -> list[str]:
    return [f"{token}.{number}" for number in range(count)]


def _answer(handles: list[LocalTaskResult[str]]) -> JsonResponse:
    return JsonResponse({"ids": [handle.id for handle in handles]})


_CALL = "<name>/<token>/<int:count>/<int:pause_ms>/<int:in_ms>"
urlpatterns = [
    path(f"one-by-one/{_CALL}", one_by_one),
    path(f"on-a-loop/{_CALL}", on_a_loop),
    path(f"together/{_CALL}", together),
]
