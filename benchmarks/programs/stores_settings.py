"""The project whose results outlive its processes, on a database of the run's own.

The same for all contenders, each with the library that it is: see `stores`.
"""

import json
import os
from pathlib import Path
from typing import Any

from .settings import SECRET_KEY, USE_TZ

__all__ = [
    "ALLOWED_HOSTS",
    "DATABASES",
    "INSTALLED_APPS",
    "ROOT_URLCONF",
    "SECRET_KEY",
    "TASKS",
    "USE_TZ",
    "WORKERS",
]

WORKERS = 10
"""The threads of an alias of this library."""

_given: dict[str, str] = json.loads(os.environ["BENCHMARKS_STORES"])
_contender, _engine = _given["contender"], _given["engine"]
_directory = Path(_given["directory"])

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "benchmarks.programs.look_ups_site"
INSTALLED_APPS: list[str] = []
DATABASES: dict[str, dict[str, Any]] = {}
TASKS: dict[str, dict[str, Any]] = {}

if _engine == "sqlite":
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": _directory / "db.sqlite3",
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            # As the sqlite store has it.
            "init_command": "PRAGMA page_size = 2048; PRAGMA journal_mode = WAL; "
            "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 8192",
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
        },
    }
elif _engine == "postgresql":
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _given["database"],
        "HOST": "127.0.0.1",
        "USER": "postgres",
        "CONN_MAX_AGE": None,
    }


def _alias(store: str, **options: object) -> dict[str, Any]:
    return {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {
            "MAX_WORKERS": WORKERS,
            "MAX_RESULTS": None,
            "SHUTDOWN_TIMEOUT": 5,
            "STORE": store,
            "STORE_OPTIONS": options,
        },
    }


def _sqlite(durability: str) -> dict[str, Any]:
    path = _directory / f"{durability}.sqlite3"
    return _alias("sqlite", PATH=path, DURABILITY=durability)


match _contender:
    case "3":
        TASKS["memory"] = _alias("memory")
        TASKS["default"] = TASKS["sqlite"] = _sqlite("normal")
        TASKS["sqlite-full"] = _sqlite("full")
        if DATABASES:
            INSTALLED_APPS.extend(
                ["django_tasks_local", "django_tasks_local.stores.database"]
            )
            TASKS["database"] = _alias("database", USING="default")
    case "db":
        INSTALLED_APPS.append("django_tasks_db")
        TASKS["default"] = TASKS["database"] = {
            "BACKEND": "django_tasks_db.DatabaseBackend"
        }
    case _:
        TASKS["default"] = {
            "BACKEND": "django_tasks_local.ThreadPoolBackend",
            "OPTIONS": {"MAX_WORKERS": WORKERS},
        }
