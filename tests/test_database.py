"""The care that workers take of their database connections."""

import os
from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext  # noqa: F401

from .conftest import Configure, RunScript
from .gates import LONG_S, Gate
from .tasks import count_sessions, count_sessions_and_tell, store_session

POSTGRESQL = {"host": "127.0.0.1", "port": 5432, "user": "postgres", "dbname": "postgres"}


@pytest.mark.usefixtures("database")
class TestConnections:
    def test_are_closed_after_a_task_as_after_a_request(
        self, alias: str, gate: Gate
    ) -> None:
        handle = count_sessions_and_tell.using(backend=alias).enqueue(gate.port)
        assert gate.next_visitor().name == "closed"
        gate.open()
        assert handle.wait(LONG_S) == 0

    def test_that_persist_are_closed_when_the_worker_rests(
        self, alias: str, gate: Gate
    ) -> None:
        task = count_sessions_and_tell.using(backend=alias)
        assert task.enqueue(gate.port, is_persistent=True).wait(LONG_S) == 0
        assert gate.next_visitor().name == "closed"
        gate.open()

    def test_work_again_after_that(self, alias: str, configure: Configure) -> None:
        configure(alias, MAX_WORKERS=1)
        for number in range(1, 4):
            key = f"key {number}"
            stored = store_session.using(backend=alias).enqueue(key)
            assert stored.wait(LONG_S) == number
        assert count_sessions.using(backend=alias).enqueue().wait(LONG_S) == 3

    def test_of_the_enqueuer_are_not_touched(self, alias: str) -> None:
        connection.ensure_connection()
        mine = connection.connection
        assert count_sessions.using(backend=alias).enqueue().wait(LONG_S) == 0
        assert connection.connection is mine
        assert connections["default"].is_usable()


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL server that tests may make databases on."""
    try:
        psycopg.connect(**POSTGRESQL, connect_timeout=5).close()  # type: ignore[arg-type]
    except psycopg.OperationalError as err:
        if os.environ.get("DJANGO_TASKS_LOCAL_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"There is no PostgreSQL on 127.0.0.1: {err}")
    yield POSTGRESQL["host"]  # type: ignore[misc]


def test_a_postgresql_test_database_can_be_dropped(
    postgresql: str, run_script: RunScript
) -> None:
    done = run_script(
        """
        import os, sys
        from tests.small_project import configure
        configure(
            INSTALLED_APPS=["django.contrib.sessions"],
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.postgresql",
                    "HOST": "127.0.0.1", "PORT": 5432, "USER": "postgres",
                    "NAME": "tasks_local",
                    "TEST": {"NAME": f"test_tasks_local_{os.getppid()}"},
                    "CONN_MAX_AGE": None,
                }
            },
        )

        if __name__ == "__main__":
            from django.db import connection
            from django.test.utils import setup_databases, teardown_databases
            from tests.gates import Gate
            from tests.tasks import count_sessions_and_tell, store_session

            names = setup_databases(verbosity=0, interactive=False)
            try:
                for alias in ("default", "cpu"):
                    stored = [
                        store_session.using(backend=alias).enqueue(f"{alias} {n}")
                        for n in range(5)
                    ]
                    for handle in stored:
                        handle.wait(30)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT count(*) FROM django_session")
                    print(cursor.fetchone())
                # Idle workers tell when they let go of their connections.
                with Gate() as gate:
                    tasks = [
                        count_sessions_and_tell.using(backend=alias)
                        for alias in ("default", "default", "cpu", "cpu")
                    ]
                    for handle in [task.enqueue(gate.port, True) for task in tasks]:
                        handle.wait(30)
                    for _ in range(int(sys.argv[1])):
                        print(gate.next_visitor().name)
            finally:
                teardown_databases(names, verbosity=0)
            print("dropped")
        """,
        "2",
    )
    assert done.stdout.splitlines()[0] == "(10,)"
    assert done.stdout.splitlines()[-1] == "dropped"
    assert done.stderr == ""
