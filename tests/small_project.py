"""A project without a settings module, for scripts that run in their own process."""

from typing import Any

from django.conf import settings

TASKS = {
    "default": {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 2, "SHUTDOWN_TIMEOUT": 20.0},
    },
    "cpu": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 2, "SHUTDOWN_TIMEOUT": 20.0},
    },
    "loop": {
        "BACKEND": "django_tasks_local.EventLoopBackend",
        "OPTIONS": {"SHUTDOWN_TIMEOUT": 20.0},
    },
}


def configure(**values: Any) -> None:
    """Configure and set up; `values` are further settings."""
    import django

    settings.configure(**{"SECRET_KEY": "tests", "TASKS": TASKS, **values})
    django.setup()
