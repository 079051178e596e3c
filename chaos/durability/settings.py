"""The project, of the run itself and of the servers that are killed."""

import json
import os
from pathlib import Path
from typing import Any

from .project import ENVIRON

_given: dict[str, str] = json.loads(os.environ[ENVIRON])
_directory = Path(_given["directory"])

LEDGER = _directory / "ledger"
"""Where each attempt of a task leaves its lines."""
LONGEST_LIFE_S = 2.0 if _given["backend"] == "processes" else 0.5
"""After how many seconds a server is killed: worker processes take long to begin."""
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

_BACKENDS = {
    "threads": "django_tasks_local.ThreadPoolBackend",
    "processes": "django_tasks_local.ProcessPoolBackend",
    "loop": "django_tasks_local.EventLoopBackend",
}
TASKS: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": _BACKENDS[_given["backend"]],
        "OPTIONS": {
            "MAX_WORKERS": 2 if _given["backend"] == "processes" else 6,
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
