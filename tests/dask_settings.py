"""The tests' project as a Dask worker has it: with the alias whose tasks it runs."""

from . import settings as _settings
from .settings import *  # noqa: F403

_settings.TASKS["dask"] = {"BACKEND": "django_tasks_local.DaskBackend"}
