"""The care that workers take of their database connections."""

import pytest
from django.db import connection, connections

from .conftest import Configure, RunScript
from .gates import LONG_S, Gate
from .tasks import count_sessions, count_sessions_and_tell, store_session


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


@pytest.mark.usefixtures("postgresql")
def test_a_postgresql_test_database_can_be_dropped(run_script: RunScript) -> None:
    done = run_script(
        """
        import os
        from tests.small_project import TASKS, configure
        for setting in TASKS.values():
            setting["OPTIONS"]["MAX_WORKERS"] = 1
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
                for alias in ("default", "cpu", "loop"):
                    stored = [
                        store_session.using(backend=alias).enqueue(f"{alias} {n}")
                        for n in range(5)
                    ]
                    for handle in stored:
                        handle.wait(30)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT count(*) FROM django_session")
                    print(cursor.fetchone())
                with Gate() as gate:  # where they tell that they have let go
                    for alias in ("default", "cpu", "loop"):
                        task = count_sessions_and_tell.using(backend=alias)
                        assert task.enqueue(gate.port, True).wait(30) == 15
                    print(*(gate.next_visitor().name for _ in range(3)))
            finally:
                teardown_databases(names, verbosity=0)
            print("dropped")
        """
    )
    assert [done.stdout, done.stderr] == ["(15,)\nclosed closed closed\ndropped\n", ""]
