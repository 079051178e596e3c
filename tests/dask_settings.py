"""The tests' project as a Dask worker has it: with the alias whose tasks it runs."""

from .settings import *  # noqa: F403
from .settings import TASKS as _TASKS

TASKS = {**_TASKS, "dask": {"BACKEND": "django_tasks_local.DaskBackend"}}
