"""A project with results that outlive its processes, made for a run and taken away.

Of django-tasks-db, which runs nothing where it is enqueued, it has the worker too.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import django
from django.core.management import call_command

__all__ = ["project", "worker"]

_SETTINGS = "benchmarks.programs.stores_settings"


@contextmanager
def project(contender: str, engine: str | None) -> Generator[None]:
    """Set Django up, for this process and those it starts, with a migrated database.

    On "sqlite" or "postgresql"; with None there is no database.
    """
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as directory,
        _postgresql() if engine == "postgresql" else nullcontext("") as database,
    ):
        os.environ["BENCHMARKS_STORES"] = json.dumps(
            {
                "contender": contender,
                "engine": engine or "",
                "directory": directory,
                "database": database,
            }
        )
        os.environ["DJANGO_SETTINGS_MODULE"] = _SETTINGS
        django.setup()
        if engine is not None:
            call_command("migrate", verbosity=0)
        try:
            yield
        finally:
            if contender == "3":  # before its files go
                from django_tasks_local.state import drain

                drain()


@contextmanager
def _postgresql() -> Generator[str]:
    """A database's name, while it is there."""
    import psycopg

    name = f"benchmarks_{secrets.token_hex(6)}"
    address = "host=127.0.0.1 user=postgres dbname=postgres"
    with psycopg.connect(address, autocommit=True) as postgresql:
        postgresql.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield name
        finally:
            postgresql.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextmanager
def worker() -> Generator[None]:
    """django-tasks-db's worker.

    Who waits a millisecond before it looks again: without any pause it would keep who
    enqueues from SQLite's lock, and takes longer.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "django", "db_worker", "--backend=database"),
            *("--interval=0.001", "--no-startup-delay"),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()  # on SIGTERM it would tell of the query that it leaves
        process.wait()
