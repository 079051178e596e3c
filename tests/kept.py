"""An alias whose results outlive the process, and who shares them."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.signals import request_started
from django.tasks import task_backends
from django.test import override_settings

from django_tasks_local import LocalTaskResult
from django_tasks_local.results import to_handle
from django_tasks_local.state import shutdown_executor

ALIAS = "kept"
THREADS = "django_tasks_local.ThreadPoolBackend"
BACKENDS = {
    "threads": THREADS,
    "processes": "django_tasks_local.ProcessPoolBackend",
    "loop": "django_tasks_local.EventLoopBackend",
}
DASK = "django_tasks_local.DaskBackend"


def setting_of(path: Path, kind: str = "threads", **options: Any) -> dict[str, Any]:
    """``TASKS`` of an alias whose results are in a file."""
    return {
        ALIAS: {
            "BACKEND": BACKENDS.get(kind, kind),
            "OPTIONS": {
                "STORE": "sqlite",
                "STORE_OPTIONS": {"PATH": str(path)},
                "MAX_WORKERS": 2,
                "SHUTDOWN_TIMEOUT": 10.0,
                **options,
            },
        }
    }


@contextmanager
def sharing(path: Path, kind: str = "threads", **options: Any) -> Generator[None]:
    """This process shares the file."""
    tasks = {**settings.TASKS, **setting_of(path, kind, **options)}
    with override_settings(TASKS=tasks):
        try:
            yield
        finally:
            shutdown_executor(ALIAS)


def find(result_id: str) -> LocalTaskResult[Any]:
    return to_handle(task_backends[ALIAS].get_result(result_id))


def serve() -> None:
    """What the first request does."""
    request_started.send(sender=None)
