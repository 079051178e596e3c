"""The project in which everything is measured: DEBUG is off, logging is Django's."""

from typing import Any

SECRET_KEY = "benchmarks"
USE_TZ = True


def _alias(kind: str, workers: int, **options: int) -> dict[str, Any]:
    return {
        "BACKEND": f"django_tasks_local.{kind}PoolBackend",
        "OPTIONS": {"MAX_WORKERS": workers, **options},
    }


TASKS = {
    "default": _alias("Thread", 2),
    "threads-2": _alias("Thread", 2),
    "threads-10": _alias("Thread", 10),
    "processes-1": _alias("Process", 1),
    "processes-2": _alias("Process", 2),
    "keeping": _alias("Thread", 2, MAX_RESULTS=10_000_000),
    "coroutines": {
        "BACKEND": "django_tasks_local.EventLoopBackend",
        "OPTIONS": {"MAX_WORKERS": 10_000},
    },
}
