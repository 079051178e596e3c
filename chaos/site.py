"""The site that the web workers serve: each request waits for a task."""

import faulthandler
import signal
from contextlib import suppress
from typing import Any

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from django_tasks_local import LocalTaskResult

from .tasks import echo

# For the watchdog: tell where all threads stand.
faulthandler.register(signal.SIGUSR2, all_threads=True)

application = get_wsgi_application()


def sync_view(request: HttpRequest, token: str, pause_ms: int) -> JsonResponse:
    handle = echo.enqueue(token, pause_ms / 1000)
    with suppress(TimeoutError):
        handle.join(0.001)
    handle.join()
    return JsonResponse(_as_json(handle))


async def async_view(request: HttpRequest, token: str, pause_ms: int) -> JsonResponse:
    handle = await echo.aenqueue(token, pause_ms / 1000)
    with suppress(TimeoutError):
        await handle.ajoin(0.001)
    await handle.ajoin()
    return JsonResponse(_as_json(handle))


def _as_json(handle: LocalTaskResult[str]) -> dict[str, Any]:
    return {
        "id": handle.id,
        "value": None if handle.errors else handle.return_value,
        "errors": [
            [error.exception_class_path, error.traceback] for error in handle.errors
        ],
        "worker_ids": handle.worker_ids,
    }


urlpatterns = [
    path("sync/<token>/<int:pause_ms>", sync_view),
    path("async/<token>/<int:pause_ms>", async_view),
]
