"""The project whose tasks run on a Dask cluster of the run's own: see `cluster`."""

import os
from typing import Any

from .settings import SECRET_KEY, USE_TZ

__all__ = ["SECRET_KEY", "TASKS", "USE_TZ"]


def _alias(**options: object) -> dict[str, Any]:
    address = os.environ.get("BENCHMARKS_SCHEDULER")  # its workers need not know it
    return {
        "BACKEND": "django_tasks_local.DaskBackend",
        "OPTIONS": {"ADDRESS": address, "SHUTDOWN_TIMEOUT": 1, **options},
    }


TASKS: dict[str, dict[str, Any]] = {
    "default": _alias(),
    "keeping": _alias(MAX_RESULTS=None),
}
