"""The Django app: only needed so that ``manage.py check`` always sees the settings."""

from importlib import import_module
from typing import override

from django.apps import AppConfig

__all__ = ["DjangoTasksLocalConfig"]


class DjangoTasksLocalConfig(AppConfig):
    """``"django_tasks_local"`` in INSTALLED_APPS."""

    name: str = "django_tasks_local"

    @override
    def ready(self) -> None:
        """Have Django's check of the task backends run.

        Django registers it where something imports `django.tasks`.
        """
        import_module("django.tasks")
