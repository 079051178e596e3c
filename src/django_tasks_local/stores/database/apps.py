"""The Django app of the database store."""

from typing import TYPE_CHECKING

from django.apps import AppConfig

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["DatabaseStoreConfig"]


class DatabaseStoreConfig(AppConfig):
    """``"django_tasks_local.stores.database"`` in INSTALLED_APPS."""

    name: str = "django_tasks_local.stores.database"
    label: str = "django_tasks_local_database"
    verbose_name: "StrOrPromise" = "Background tasks"
