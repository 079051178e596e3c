"""The project, of the run itself and of the servers that are killed."""

import json
import os
from pathlib import Path
from typing import Any

from django_tasks_local import TasksSetting

from .project import ENVIRON

_given: dict[str, str] = json.loads(os.environ[ENVIRON])
_directory = Path(_given["directory"])

LEDGER = _directory / "ledger"
"""Where each attempt of a task leaves its lines."""
SQLITE_FILES: list[Path] = []
"""What SQLite can be asked about."""

SECRET_KEY = "chaos"
USE_TZ = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "chaos.durability.site"
INSTALLED_APPS = ["django_tasks_local"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES: dict[str, dict[str, Any]] = {}
_store_options: dict[str, object] = {}

if _given["store"] == "sqlite":
    SQLITE_FILES.append(_directory / "tasks.sqlite3")
    _store_options = {"PATH": SQLITE_FILES[0], "DURABILITY": _given["durability"]}
else:
    INSTALLED_APPS.append("django_tasks_local.stores.database")
    _store_options = {"USING": "default"}
    if _given["postgresql"]:
        DATABASES["default"] = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _given["postgresql"],
            "HOST": "127.0.0.1",
            "USER": "postgres",
            "CONN_MAX_AGE": None,
        }
    else:
        SQLITE_FILES.append(_directory / "db.sqlite3")
        DATABASES["default"] = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": SQLITE_FILES[0],
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "init_command": "PRAGMA journal_mode = WAL",
                "transaction_mode": "IMMEDIATE",
                "timeout": 30,
            },
        }

TASKS: TasksSetting = {
    "default": {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {
            "MAX_WORKERS": 6,
            "SHUTDOWN_TIMEOUT": 60.0,
            "STORE": _given["store"],
            "STORE_OPTIONS": _store_options,
        },
    },
}
# Of tasks that fail, Django logs the traceback. What the library logs is shown, with
# its level.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"level": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {
        "null": {"class": "logging.NullHandler"},
        "stderr": {"class": "logging.StreamHandler", "formatter": "level"},
    },
    "loggers": {
        "django.tasks": {"handlers": ["null"], "propagate": False},
        "django_tasks_local": {"handlers": ["stderr"], "level": "WARNING"},
    },
}
