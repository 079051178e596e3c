"""The project of a run: its directory and its database, for as long as it lasts."""

import json
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

__all__ = ["ENVIRON", "project"]

ENVIRON = "CHAOS_DURABILITY"
"""What is told to the settings, those of the servers too."""


@contextmanager
def project(
    *, backend: str, store: str, database: str, durability: str
) -> Generator[Path]:
    """Set Django up, for this process and those that it starts; its directory."""
    is_on_postgresql = store == "database" and database == "postgresql"
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as directory,
        _postgresql() if is_on_postgresql else nullcontext("") as name,
    ):
        given = {
            "directory": directory,
            "backend": backend,
            "store": store,
            "durability": durability,
            "postgresql": name,
        }
        os.environ[ENVIRON] = json.dumps(given)
        os.environ["DJANGO_SETTINGS_MODULE"] = "chaos.durability.settings"
        import django
        from django.core.management import call_command
        from django.db import connections

        django.setup()
        if store == "database":
            call_command("migrate", verbosity=0)
        try:
            yield Path(directory)
        finally:
            connections.close_all()


@contextmanager
def _postgresql() -> Generator[str]:
    """The name of a database, while it is there."""
    import psycopg  # only where it is needed

    name = f"chaos_{secrets.token_hex(6)}"
    address = "host=127.0.0.1 user=postgres dbname=postgres"
    with psycopg.connect(address, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield name
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
