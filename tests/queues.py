"""Queues of other libraries, with a real server and a real worker process each."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psycopg
import pytest
import redis
from django.conf import settings
from django.contrib import admin
from django.core.management import call_command
from django.db import connections
from django.db.models import Model
from django.test import override_settings
from psycopg.sql import SQL, Identifier

from .conftest import ROOT
from .databases import SERVERS
from .leftovers import is_gone

_SERVER = {**SERVERS["postgresql"], "TEST": {}}
_CLAIM = "tasks-local-tests"

NOBODYS = "nobodys"
"""The name of a queue that no worker looks at."""


class Queue(NamedTuple):
    """A project's settings for one, and the command of its worker."""

    alias: str
    backend: str
    apps: Sequence[str]
    worker: Sequence[str]
    databases: Mapping[str, Any] = {}
    rq_queues: Mapping[str, Any] = {}

    @property
    def tasks(self) -> dict[str, Any]:
        queues = ["default", NOBODYS]
        return {self.alias: {"BACKEND": self.backend, "QUEUES": queues}}

    @contextmanager
    def in_force(self) -> Generator[None]:
        """This process is a web process of the project."""
        with ExitStack() as stack:
            for alias, values in self.databases.items():
                configured = connections.configure_settings(
                    {"default": {}, alias: {**values}}
                )
                connections.settings[alias] = configured[alias]
                stack.callback(_forget_database, alias)
            stack.callback(_unregister_all_but, set(admin.site._registry))
            stack.enter_context(
                override_settings(
                    INSTALLED_APPS=[*settings.INSTALLED_APPS, *self.apps],
                    TASKS={**settings.TASKS, **self.tasks},
                    RQ_QUEUES=self.rq_queues,
                    DATABASE_ROUTERS=[QueueRouter()],
                )
            )
            yield

    @contextmanager
    def working(self) -> Generator[subprocess.Popen[bytes]]:
        """A worker process works until this ends."""
        with self.manage(*self.worker) as process:
            try:
                yield process
                assert process.poll() is None, "the worker has ended by itself"
            finally:
                process.terminate()
                process.communicate(timeout=20)

    def manage(self, *arguments: str) -> subprocess.Popen[bytes]:
        """As ``manage.py`` does it, in a process of its own."""
        given = {
            "APPS": [*self.apps],
            "DATABASES": {**self.databases, "default": _default(self.databases)},
            "RQ_QUEUES": self.rq_queues,
            "TASKS": self.tasks,
        }
        environ = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.queue_settings",
            "DJANGO_TASKS_LOCAL_QUEUE": json.dumps(given),
            "PYTHONPATH": str(ROOT),
        }
        return start_manage(arguments, cwd=ROOT, env=environ)


_MANAGE = """
import os, sys, threading

def leave_with_the_tests():
    sys.stdin.buffer.read()
    os._exit(1)

threading.Thread(target=leave_with_the_tests, daemon=True).start()
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""


def start_manage(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    first: str = "",
) -> "subprocess.Popen[bytes]":
    """Start what ``manage.py`` does, once it has run the code that comes `first`.

    It ends with the tests, also where these crash.
    """
    return subprocess.Popen(
        [sys.executable, "-c", f"{first}\n{_MANAGE}", *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _unregister_all_but(models: set[type[Model]]) -> None:
    """Have the admin forget the models of apps that are not installed any more."""
    for model in set(admin.site._registry) - models:
        admin.site.unregister(model)


def _forget_database(alias: str) -> None:
    connections[alias].close()
    del connections[alias]
    del connections.settings[alias]


def _default(databases: Mapping[str, Any]) -> Mapping[str, Any]:
    for values in databases.values():
        return {**values}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


class QueueRouter:
    """Has the rows of django-tasks-db in the queue's own database."""

    def db_for_read(self, model: Any, **hints: object) -> str | None:
        is_queue = model._meta.app_label == "django_tasks_database"
        return "queue" if is_queue else None

    db_for_write = db_for_read


@contextmanager
def open_database_queue() -> Generator[Queue]:
    """A queue of django-tasks-db in a database of its own on PostgreSQL."""
    name = f"tasks_local_queue_{os.getpid()}_{secrets.token_hex(4)}"
    server = f"host={_SERVER['HOST']} user={_SERVER['USER']} dbname=postgres"
    try:
        admin = psycopg.connect(server, autocommit=True)
    except psycopg.OperationalError as err:
        _skip("postgresql", err)
    with admin:
        admin.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        try:
            queue = Queue(
                alias="queue",
                backend="django_tasks_db.DatabaseBackend",
                apps=["django_tasks_db"],
                worker=[
                    *("db_worker", "--backend", "queue", "--interval", "0.05"),
                    "--no-startup-delay",
                ],
                databases={"queue": {**_SERVER, "NAME": name}},
            )
            with queue.in_force():
                call_command(
                    "migrate", "django_tasks_database", database="queue", verbosity=0
                )
            yield queue
        finally:
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@contextmanager
def open_redis_queue() -> Generator[Queue]:
    """A queue of django-tasks-rq in a database of its own on Redis."""
    with _claim_redis() as number:
        yield Queue(
            alias="queue",
            backend="django_tasks_rq.RQBackend",
            apps=["django_rq"],
            worker=[
                *("rqworker", "default", "--job-class", "django_tasks_rq.Job"),
                # It forks no process for each task; the example's worker does.
                *("--worker-class", "rq.SimpleWorker"),
            ],
            rq_queues={
                name: {"HOST": "127.0.0.1", "PORT": 6379, "DB": number}
                for name in ("default", NOBODYS)
            },
        )


@contextmanager
def _claim_redis() -> Generator[int]:
    """The number of a database that nobody else uses, emptied afterwards."""
    for number in range(15, 0, -1):
        with redis.Redis("127.0.0.1", 6379, db=number) as client:
            try:
                owner = client.get(_CLAIM)
                if owner is not None and is_gone(int(owner)):
                    client.flushdb()  # it could not do so itself
                is_ours = client.dbsize() == 0 and client.setnx(_CLAIM, os.getpid())
            except redis.ConnectionError as err:
                _skip("redis", err)
            if is_ours:
                try:
                    yield number
                finally:
                    client.flushdb()
                return
    pytest.fail("All databases of the Redis server on 127.0.0.1 are in use.")


def _skip(name: str, error: Exception) -> NoReturn:
    if os.environ.get("DJANGO_TASKS_LOCAL_REQUIRE_SERVICES") == "1":
        raise error
    pytest.skip(f"There is no server for {name} on 127.0.0.1: {error}")
