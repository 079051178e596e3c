"""The database store, on each kind of database."""

import logging
import math
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connections, transaction
from django.db.models import Model
from django.db.models.functions import Now
from django.tasks import TaskResult, TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_enqueued
from django.test import override_settings

from django_tasks_local import QueueFull, TaskCancelled, TaskFailed, WorkerLost
from django_tasks_local.errors import StoreError, path_of
from django_tasks_local.identity import new_owner
from django_tasks_local.options import LocalOptions
from django_tasks_local.stores.database.leases import Leases, leases_of
from django_tasks_local.stores.database.models import (
    OwnerLease,
    StoredResult,
    UnreadableResult,
)
from django_tasks_local.stores.database.store import DatabaseStore
from django_tasks_local.testing import OwnedResultStoreContract

from .conftest import RunScript
from .elsewhere import OtherProcess
from .gates import LONG_S, Gate
from .kept import ALIAS, BACKENDS, find, serve
from .recovering_tasks import hold_twice, hold_until_asked
from .stored_tasks import report_in_transaction
from .tasks import add, hold, own_pid

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED


class TestContract(OwnedResultStoreContract):
    racers = 4  # of which each has a connection of its own

    @pytest.fixture(autouse=True)
    def _each_database(self, using: str) -> None:
        self._using = using

    def make_store(self, options: LocalOptions, /, *, alias: str) -> DatabaseStore:
        options = replace(options, store_options={"USING": self._using})
        return DatabaseStore(options, alias=alias)

    def corrupt(self, result_id: str, column: str, value: str, /) -> bool:
        rows = StoredResult.objects.using(self._using).filter(result_id=result_id)
        assert rows.update(**{column: value}) == 1
        return True


def setting_of(using: str, kind: str = "threads", **options: Any) -> dict[str, Any]:
    """``TASKS`` of an alias whose results are in a database."""
    return {
        ALIAS: {
            "BACKEND": BACKENDS[kind],
            "OPTIONS": {
                "STORE": "database",
                "STORE_OPTIONS": {"USING": using},
                "MAX_WORKERS": 2,
                "SHUTDOWN_TIMEOUT": 10.0,
                **options,
            },
        }
    }


def keeping(using: str, **options: Any) -> AbstractContextManager[object]:
    """The alias `kept` has its results there."""
    tasks = {**settings.TASKS, **setting_of(using, **options)}
    return override_settings(TASKS=tasks)


@pytest.fixture
def kept(using: str) -> Iterator[str]:
    with keeping(using, MAX_WORKERS=1):
        yield using
        task_backends[ALIAS].close()  # type: ignore[attr-defined]  # it is ours


def elsewhere[R](function: Callable[[], R]) -> R:
    """What another thread, on another connection, sees."""

    def call() -> R:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result(LONG_S)


def is_known(result_id: str) -> bool:
    try:
        find(result_id)
    except TaskResultDoesNotExist:
        return False
    return True


@contextmanager
def rolled_back(using: str) -> Generator[None]:
    """A transaction of which nothing stays."""
    with transaction.atomic(using):
        yield
        transaction.set_rollback(True, using)


class HookError(Exception):
    pass


def enqueue_after(hook: Callable[[], None], using: str) -> None:
    """Enqueue in a transaction that has a hook already."""
    with transaction.atomic(using):
        transaction.on_commit(hook, using=using)
        add.using(backend=ALIAS).enqueue(1, 2)


class TestTransactions:
    def test_what_is_enqueued_begins_when_it_is_committed(self, kept: str) -> None:
        with transaction.atomic(kept):
            result = add.using(backend=ALIAS).enqueue(1, 2)
            assert result.status is READY
            assert find(result.id).status is READY
            assert not elsewhere(lambda: is_known(result.id))
        assert result.wait(LONG_S) == 3
        assert elsewhere(lambda: find(result.id).return_value) == 3

    def test_what_is_rolled_back_never_was(self, kept: str, gate: Gate) -> None:
        with rolled_back(kept):
            result = hold.using(backend=ALIAS).enqueue(gate.port)
        assert not is_known(result.id)
        with pytest.raises(TaskResultDoesNotExist):
            result.wait(LONG_S)
        assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
        assert gate.is_deserted()

    def test_a_savepoint_alone_can_be_rolled_back(self, kept: str, gate: Gate) -> None:
        with transaction.atomic(kept):
            first = add.using(backend=ALIAS).enqueue(1, 2)
            with rolled_back(kept):
                second = hold.using(backend=ALIAS).enqueue(gate.port)
        assert first.wait(LONG_S) == 3
        assert not is_known(second.id)
        assert gate.is_deserted()

    def test_many_are_enqueued_together_or_not_at_all(self, kept: str) -> None:
        calls: list[Any] = [((number, 1), {}) for number in range(250)]
        with rolled_back(kept):
            add.using(backend=ALIAS).enqueue_many(calls)
        with transaction.atomic(kept):
            results = add.using(backend=ALIAS).enqueue_many(calls)
        assert [result.wait(LONG_S) for result in results] == [
            number + 1 for number in range(250)
        ]
        assert StoredResult.objects.using(kept).count() == 250

    def test_a_rollback_frees_the_places_in_the_queue(
        self, using: str, gate: Gate
    ) -> None:
        with keeping(using, MAX_WORKERS=1, MAX_PENDING=1):
            held = hold.using(backend=ALIAS).enqueue(gate.port)
            gate.next_visitor()
            for _ in range(3):
                with rolled_back(using):
                    add.using(backend=ALIAS).enqueue(1, 2)
                    with pytest.raises(QueueFull):
                        add.using(backend=ALIAS).enqueue(1, 2)
            result = add.using(backend=ALIAS).enqueue(1, 2)
            gate.open()
            held.wait(LONG_S)
            assert result.wait(LONG_S) == 3

    def test_it_runs_though_an_earlier_hook_of_the_transaction_raises(
        self, kept: str
    ) -> None:
        def fail() -> None:
            raise HookError

        with pytest.raises(HookError):
            enqueue_after(fail, kept)
        (row,) = StoredResult.objects.using(kept).all()
        assert find(row.result_id).wait(LONG_S) == 3

    def test_a_rollback_holds_up_no_end_of_an_alias(self, using: str) -> None:
        # That its threads end is seen to after each test.
        with keeping(using), rolled_back(using):
            add.using(backend=ALIAS).enqueue(1, 2)

    def test_without_autocommit_there_has_to_be_a_transaction(self, kept: str) -> None:
        transaction.set_autocommit(False, kept)
        try:
            with pytest.raises(StoreError, match="has autocommit turned off"):
                add.using(backend=ALIAS).enqueue(1, 2)
        finally:
            transaction.rollback(kept)
            transaction.set_autocommit(True, kept)
        assert not StoredResult.objects.using(kept).exists()

    def test_it_is_told_when_it_is_committed(self, kept: str) -> None:
        told: list[str] = []

        def tell(task_result: "TaskResult[..., Any]", **_: object) -> None:
            told.append(task_result.id)

        task_enqueued.connect(tell)
        try:
            with rolled_back(kept):
                add.using(backend=ALIAS).enqueue(1, 2)
            with transaction.atomic(kept):
                result = add.using(backend=ALIAS).enqueue(1, 2)
                assert told == []
            assert told == [result.id]
        finally:
            task_enqueued.disconnect(tell)
        result.join(LONG_S)

    def test_cancelled_before_the_commit_it_never_runs(
        self, kept: str, gate: Gate
    ) -> None:
        with transaction.atomic(kept):
            result = hold.using(backend=ALIAS).enqueue(gate.port)
            assert result.cancel()
        result.join(LONG_S)
        assert result.errors[0].exception_class_path == path_of(TaskCancelled)
        assert gate.is_deserted()

    def test_cancelled_in_a_transaction_it_ends_after_the_commit(
        self, kept: str, gate: Gate, other_gate: Gate
    ) -> None:
        held = hold.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor()
        result = hold.using(backend=ALIAS).enqueue(other_gate.port)
        with transaction.atomic(kept):
            assert result.cancel()
        result.join(LONG_S)
        assert result.errors[0].exception_class_path == path_of(TaskCancelled)
        gate.open()
        held.join(LONG_S)
        assert other_gate.is_deserted()

    def test_progress_is_seen_while_a_task_is_in_a_transaction(
        self, kept: str, gate: Gate
    ) -> None:
        result = report_in_transaction.using(backend=ALIAS).enqueue(kept, gate.port)
        visitor = gate.next_visitor()
        seen = elsewhere(lambda: find(result.id).metadata)
        # SQLite has one writer: there it is seen when that is committed.
        assert seen == ({} if kept == "default" else {"step": 1})
        visitor.let_go()
        assert result.wait(LONG_S) == 0
        assert find(result.id).metadata == {"step": 1}

    def test_a_first_enqueue_that_is_rolled_back_leaves_its_owner_alive(
        self, kept: str, gate: Gate
    ) -> None:
        with rolled_back(kept):
            add.using(backend=ALIAS).enqueue(1, 2)
        result = hold.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor()
        databases = {"default": settings_of(kept)}
        with OtherProcess(Path(), setting_of("default"), databases=databases) as other:
            other.serve()
            assert other.enqueue(add, 1, 2)
        gate.open()
        assert result.wait(LONG_S) == ""

    @pytest.mark.asyncio
    async def test_coroutines_enqueue_and_await(self, kept: str) -> None:
        result = await add.using(backend=ALIAS).aenqueue(1, 2)
        assert await result == 3
        # This thread that Django uses for them ends with the loop.
        await sync_to_async(connections.close_all)()


def settings_of(using: str) -> dict[str, Any]:
    """As another process has to be told of this test database."""
    connection = connections[using].settings_dict
    names = ("ENGINE", "NAME", "HOST", "USER")
    return {name: str(connection[name]) for name in names}


@pytest.fixture
def other(using: str) -> Iterator[OtherProcess]:
    """Another process with the same database."""
    databases = {"default": settings_of(using)}
    setting = setting_of("default", MAX_WORKERS=1)
    with OtherProcess(Path(), setting, databases=databases) as other:
        yield other


class TestOtherProcesses:
    def test_their_tasks_are_adopted_when_they_have_died(
        self, kept: str, other: OtherProcess, gate: Gate
    ) -> None:
        lost = other.enqueue(hold, gate.port)
        gate.next_visitor()
        again = other.enqueue(hold_twice, gate.port)
        waiting = other.enqueue_many(own_pid, 3)
        later = other.enqueue_many(add, 1, 3, 4, in_s=0.5)
        other.kill()
        serve()
        gate.next_visitor().let_go()
        pids = {find(each).wait(LONG_S) for each in (*waiting, again)}
        assert other.pid not in pids
        assert len(pids) == 1
        assert find(later[0]).wait(LONG_S) == 7
        with pytest.raises(TaskFailed) as caught:
            find(lost).wait(LONG_S)
        assert caught.value.exception_class_path == path_of(WorkerLost)

    def test_living_ones_keep_their_tasks(
        self, kept: str, other: OtherProcess, gate: Gate
    ) -> None:
        held = other.enqueue(hold, gate.port)
        gate.next_visitor()
        waiting = other.enqueue(own_pid)
        mine = own_pid.using(backend=ALIAS).enqueue().wait(LONG_S)
        assert find(held).status is RUNNING
        gate.open()
        assert find(waiting).wait(LONG_S) == other.pid != mine

    def test_their_tasks_can_be_cancelled(
        self, kept: str, other: OtherProcess, gate: Gate
    ) -> None:
        running = find(other.enqueue(hold_until_asked, gate.port))
        gate.next_visitor()
        waiting = find(other.enqueue(hold, gate.port))
        assert waiting.cancel(wait=True)
        assert running.cancel()
        gate.open()
        running.join(LONG_S)
        for result in (running, waiting):
            assert result.errors[-1].exception_class_path == path_of(TaskCancelled)

    def test_what_a_process_leaves_at_its_end_is_adopted(
        self, kept: str, other: OtherProcess, gate: Gate
    ) -> None:
        later = other.enqueue_many(add, 1, 3, 4, in_s=3600.0)
        with other:
            pass  # it ends
        assert find(later[0]).status is READY
        assert find(later[0]).cancel(wait=True)


class TestRows:
    def test_one_that_has_an_end_and_goes_on_is_set_aside(
        self, kept: str, gate: Gate
    ) -> None:
        held = hold.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor()
        waiting = add.using(backend=ALIAS).enqueue(1, 2)
        rows = StoredResult.objects.using(kept).filter(result_id=waiting.id)
        rows.update(finished_at=1.0)
        assert not elsewhere(lambda: is_known(waiting.id))
        (row,) = UnreadableResult.objects.using(kept).all()
        assert "it was finished, and is READY" in row.reason
        gate.open()
        held.join(LONG_S)


class Broken:
    """A database one of whose tables is away for a while."""

    def __init__(self, using: str, model: type[Model] = StoredResult) -> None:
        self._using = using
        self._model = model
        self._table = model._meta.db_table

    def __enter__(self) -> None:
        self._rename(self._table, "away")

    def __exit__(self, *_: object) -> None:
        self._rename("away", self._table)

    def _rename(self, before: str, after: str) -> None:
        with connections[self._using].schema_editor() as editor:
            editor.alter_db_table(self._model, before, after)


class TestFaults:
    def test_an_enqueue_says_what_is_wrong_and_other_aliases_go_on(
        self, kept: str
    ) -> None:
        message = rf"(?s)Database '{kept}' of DATABASES cannot.*manage\.py migrate"
        with Broken(kept):
            with pytest.raises(StoreError, match=message):
                add.using(backend=ALIAS).enqueue(1, 2)
            assert add.enqueue(1, 2).wait(LONG_S) == 3
        assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3

    def test_an_end_that_could_not_be_saved_is_saved_later(
        self, kept: str, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        result = hold.using(backend=ALIAS).enqueue(gate.port, "held")
        visitor = gate.next_visitor()
        with Broken(kept):
            visitor.let_go()
            assert result.wait(LONG_S) == "held"
        assert f"failed to save result {result.id} as SUCCESSFUL" in caplog.text
        assert find(result.id).wait(LONG_S) == "held"

    def test_a_task_whose_start_cannot_be_saved_begins_later(
        self, kept: str, gate: Gate, other_gate: Gate
    ) -> None:
        class Note(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if f"result {result.id} as RUNNING" in record.getMessage():
                    has_been_tried.set()

        held = hold.using(backend=ALIAS).enqueue(gate.port)
        visitor = gate.next_visitor()
        result = hold.using(backend=ALIAS).enqueue(other_gate.port, "later")
        has_been_tried, note = threading.Event(), Note()
        logger = logging.getLogger("django_tasks_local")
        logger.addHandler(note)
        with Broken(kept):
            visitor.let_go()
            held.join(LONG_S)
            assert has_been_tried.wait(LONG_S)
        logger.removeHandler(note)
        other_gate.next_visitor().let_go()
        assert result.wait(LONG_S) == "later"
        assert find(result.id).attempts == 1

    def test_a_change_that_cannot_be_seen_here_is_no_endless_loop(
        self, kept: str, gate: Gate
    ) -> None:
        if kept == "default":
            return  # SQLite has no such levels
        held = hold.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor()
        result = add.using(backend=ALIAS).enqueue(1, 2)
        rows = StoredResult.objects.using(kept).filter(result_id=result.id)
        with connections[kept].cursor() as cursor:
            if kept == "mariadb":  # for the next transaction
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            with transaction.atomic(kept):
                if kept == "postgresql":
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                assert rows.exists()
                elsewhere(lambda: rows.update(revision=1))
                with pytest.raises(StoreError, match="isolation level"):
                    result.cancel()
        assert result.cancel(wait=True)
        gate.open()
        held.join(LONG_S)

    def test_another_database_than_before_is_left_alone(
        self, kept: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
        with monkeypatch.context() as patch:
            patch.setitem(connections[kept].settings_dict, "NAME", "the project's own")
            with pytest.raises(StoreError, match=rf"{kept!r} is another one since"):
                add.using(backend=ALIAS).enqueue(1, 2)

    def test_a_server_that_is_away_is_named(self, run_script: RunScript) -> None:
        run_script(
            """
            from tests.small_project import TASKS, configure
            TASKS["default"]["OPTIONS"]["STORE"] = "database"
            configure(
                INSTALLED_APPS=["django_tasks_local.stores.database"],
                DATABASES={
                    "default": {
                        "ENGINE": "django.db.backends.postgresql", "NAME": "none",
                        "HOST": "127.0.0.1", "PORT": 1,
                    }
                },
            )
            from django_tasks_local.errors import StoreError
            from tests.small_tasks import double
            try:
                double.enqueue(1)
            except StoreError as err:
                assert "Database 'default' of DATABASES cannot keep" in str(err)
                assert "port 1 failed" in str(err)
            else:
                raise AssertionError
            assert double.using(backend="loop").enqueue(2).wait(20) == 4
            """
        )


class TestMigrations:
    @pytest.mark.parametrize("kind", ["AutoField", "BigAutoField"])
    def test_none_is_missing_whatever_a_projects_keys_are(
        self, run_script: RunScript, kind: str
    ) -> None:
        run_script(
            f"""
            from tests.small_project import configure
            configure(
                INSTALLED_APPS=["django_tasks_local.stores.database"],
                DEFAULT_AUTO_FIELD="django.db.models.{kind}",
            )
            from django.core.management import call_command
            call_command("makemigrations", check=True, dry_run=True)
            """
        )


def set_time_zone(using: str, zone: str) -> None:
    """Have the database tell its time so, on this thread's connection."""
    connection = connections[using]
    statement = {"mysql": "SET time_zone = %s", "postgresql": "SET TIME ZONE %s"}.get(
        connection.vendor
    )
    if statement is not None:
        with connection.cursor() as cursor:
            cursor.execute(statement, [zone])


class TestLeases:
    """Owners on machines that cannot see each other's files."""

    @staticmethod
    def make(using: str, directory: Path, lease_s: float = 1.0) -> Leases:
        return Leases(using, directory=directory, has_rows=True, lease_s=lease_s)

    @staticmethod
    def die(leases: Leases) -> None:
        """As when its process ends."""
        leases._timer.end(timeout_s=LONG_S)
        leases._files.forget()

    def test_an_owner_of_another_machine_lives_as_long_as_it_says_so(
        self, using: str, tmp_path: Path
    ) -> None:
        here, there = (self.make(using, tmp_path / name) for name in ("a", "b"))
        me, other = new_owner(), new_owner()
        here.hold(me)
        there.hold(other)
        assert here.is_alive(other)
        assert there.is_alive(me)
        # The other one cannot renew its row; this one does.
        there._timer.end()
        while here.is_alive(other):
            assert here.is_alive(me)
        there._renew()
        assert here.is_alive(other)
        here.bury(other)
        there.release(other)
        here.release(me)

    def test_nobody_is_declared_dead_after_an_outage_of_the_database(
        self, using: str, tmp_path: Path
    ) -> None:
        here, there = (self.make(using, tmp_path / name) for name in ("a", "b"))
        me, other = new_owner(), new_owner()
        there.hold(other)
        here.hold(me)
        there._timer.end()
        while here.is_alive(other):
            assert here.is_alive(me)
        # Now this one cannot renew its own row either.
        here._timer.end(timeout_s=LONG_S)
        while not here.is_alive(other):
            assert here.is_alive(me)
        here._renew()
        assert here.is_alive(other)
        there.release(other)
        assert not here.is_alive(other)
        here.release(me)

    def test_an_owner_of_this_machine_is_seen_to_have_died_at_once(
        self, using: str, tmp_path: Path
    ) -> None:
        here, same = (self.make(using, tmp_path, lease_s=60.0) for _ in "ab")
        owner = new_owner()
        same.hold(owner)
        assert here.is_alive(owner)
        self.die(same)
        assert not here.is_alive(owner)
        here.bury(owner)
        assert not here.is_alive(owner)

    def test_nothing_is_left_of_who_died_with_nothing_unfinished(
        self, using: str, tmp_path: Path
    ) -> None:
        here, same = (self.make(using, tmp_path) for _ in "ab")
        me, owner, ancient = new_owner(), new_owner(), new_owner()
        same.hold(owner)
        self.die(same)
        rows = OwnerLease.objects.using(using)
        rows.create(owner=ancient, renewed_at=Now())
        rows.filter(owner=ancient).update(renewed_at=Now() - timedelta(days=2))
        here.hold(me)
        assert [row.owner for row in rows.all()] == [me]
        assert len(list(tmp_path.iterdir())) == 1
        here.release(me)
        assert not rows.exists()
        assert not tmp_path.exists()

    def test_a_row_that_cannot_be_removed_keeps_nobody_alive(
        self, using: str, tmp_path: Path
    ) -> None:
        here, same = (self.make(using, tmp_path, lease_s=60.0) for _ in "ab")
        owner = new_owner()
        same.hold(owner)
        with Broken(using, OwnerLease), pytest.raises(StoreError):
            same.release(owner)
        assert OwnerLease.objects.using(using).filter(owner=owner).exists()
        assert not here.is_alive(owner)
        here.bury(owner)

    def test_a_servers_summer_time_makes_nobody_old(
        self, using: str, tmp_path: Path
    ) -> None:
        here, there = (
            self.make(using, tmp_path / name, lease_s=60.0) for name in ("a", "b")
        )
        me, other = new_owner(), new_owner()
        set_time_zone(using, "+01:00")
        there.hold(other)
        here.hold(me)
        here._watching_since_s = -math.inf  # long enough to know
        set_time_zone(using, "+02:00")
        assert here.is_alive(other)
        there.release(other)
        here.release(me)
        connections[using].close()

    def test_owners_are_the_same_by_whatever_links_a_file_is_found(
        self, tmp_path: Path
    ) -> None:
        leases: list[Leases] = []
        for name in ("first", "second"):
            link = tmp_path / name
            link.symlink_to(tmp_path / "db.sqlite3")
            database = {**connections.settings["default"], "NAME": link}
            with mock.patch.dict(connections.settings, {name: database}):
                leases.append(leases_of(name))
                del connections[name]
        owner = new_owner()
        leases[0].hold(owner)
        assert leases[1].is_alive(owner)
        leases[0].release(owner)
