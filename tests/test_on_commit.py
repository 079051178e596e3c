"""Tasks that are enqueued once a transaction has been committed."""

import asyncio
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connections, transaction
from django.tasks.exceptions import InvalidTask
from django.tasks.signals import task_enqueued
from django.test import TestCase, override_settings

from django_tasks_local import LocalTaskResult, QueueFull
from django_tasks_local.state import get_executor_state

from .conftest import Configure
from .gates import LONG_S, Gate
from .metadata_tasks import see_metadata
from .on_commit_tasks import (
    RolledBack,
    echo_named,
    enqueue_after_commit,
    enqueue_and_roll_back,
)
from .tasks import add, append_to, colour, count_sessions, hold, see_colour

pytestmark = pytest.mark.usefixtures("database")


class Enqueued:
    """The handles of what has been enqueued, in order."""

    def __init__(self) -> None:
        self.handles: list[LocalTaskResult[Any]] = []

    def receive(self, *, task_result: LocalTaskResult[Any], **_: Any) -> None:
        self.handles.append(task_result)

    def values(self) -> list[object]:
        return [handle.wait(LONG_S) for handle in self.handles]


@pytest.fixture
def enqueued(nothing_left_behind: None) -> Iterator[Enqueued]:
    enqueued = Enqueued()
    task_enqueued.connect(enqueued.receive)
    yield enqueued
    task_enqueued.disconnect(enqueued.receive)


@contextmanager
def rolled_back() -> Generator[None]:
    """A transaction that comes to nothing."""
    with suppress(RolledBack), transaction.atomic():
        yield
        raise RolledBack


@pytest.fixture
def other_database(tmp_path: Path) -> Iterator[str]:
    """The alias of a second database."""
    alias = "other"
    databases: dict[str, Any] = connections.settings
    databases[alias] = {**databases["default"], "NAME": str(tmp_path / "other.sqlite3")}
    yield alias
    connections[alias].close()
    del connections[alias], databases[alias]


class TestCommit:
    def test_the_task_is_enqueued_after_it(
        self, alias: str, enqueued: Enqueued
    ) -> None:
        with transaction.atomic():
            add.using(backend=alias).enqueue_on_commit(1, b=2)
            assert enqueued.handles == []
            assert get_executor_state(alias).unfinished_ids() == []
        assert enqueued.values() == [3]

    def test_of_the_outermost_transaction(self, enqueued: Enqueued) -> None:
        with transaction.atomic():
            with transaction.atomic():
                add.enqueue_on_commit(1, 2)
                with transaction.atomic():
                    add.enqueue_on_commit(3, 4)
            assert enqueued.handles == []
        assert enqueued.values() == [3, 7]

    def test_without_a_transaction_it_is_enqueued_at_once(
        self, alias: str, enqueued: Enqueued
    ) -> None:
        add.using(backend=alias).enqueue_on_commit(1, 2)
        assert enqueued.values() == [3]

    def test_nothing_is_returned(self) -> None:
        call: Any = add.enqueue_on_commit
        with rolled_back():
            assert call(1, 2) is None
        assert call(1, 2) is None

    def test_what_the_transaction_has_stored_is_there(
        self, alias: str, enqueued: Enqueued
    ) -> None:
        with transaction.atomic(), connections["default"].cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_session VALUES ('key', '', '2100-01-01')"
            )
            count_sessions.using(backend=alias).enqueue_on_commit()
        assert enqueued.values() == [1]


class TestRollback:
    def test_nothing_is_stored_and_nothing_runs(
        self, alias: str, enqueued: Enqueued
    ) -> None:
        with rolled_back():
            add.using(backend=alias).enqueue_on_commit(1, 2)
        assert enqueued.handles == []
        assert get_executor_state(alias).unfinished_ids() == []

    def test_of_an_inner_transaction_takes_back_what_it_did(
        self, enqueued: Enqueued
    ) -> None:
        with transaction.atomic():
            add.enqueue_on_commit(1, 1)
            with rolled_back():
                add.enqueue_on_commit(2, 2)
            add.enqueue_on_commit(3, 3)
        assert enqueued.values() == [2, 6]

    def test_of_the_outer_one_takes_back_all(self, enqueued: Enqueued) -> None:
        with rolled_back():
            with transaction.atomic():
                add.enqueue_on_commit(1, 1)
            add.enqueue_on_commit(2, 2)
        assert enqueued.handles == []


class TestUsing:
    def test_another_database_has_transactions_of_its_own(
        self, other_database: str, enqueued: Enqueued
    ) -> None:
        with transaction.atomic():
            add.enqueue_on_commit(1, 1, using=other_database)  # at once
            assert enqueued.values() == [2]
            with transaction.atomic(other_database):
                add.enqueue_on_commit(2, 2, using=other_database)
                add.enqueue_on_commit(3, 3)
            assert enqueued.values() == [2, 4]
        assert enqueued.values() == [2, 4, 6]

    def test_none_is_the_default_one(self, enqueued: Enqueued) -> None:
        with transaction.atomic():
            add.enqueue_on_commit(1, 1, using=None)
            assert enqueued.handles == []
        assert enqueued.values() == [2]

    def test_it_is_no_argument_of_the_tasks(self, enqueued: Enqueued) -> None:
        echo_named.enqueue_on_commit(using="default", other=1)
        assert enqueued.values() == [{"other": 1}]

    def test_an_unknown_database_is_refused_at_once(self, enqueued: Enqueued) -> None:
        with pytest.raises(Exception, match="no such database"):
            add.enqueue_on_commit(1, 1, using="no such database")
        assert enqueued.handles == []


class TestCall:
    def test_arguments_are_checked_by_it(self, alias: str, enqueued: Enqueued) -> None:
        with (
            transaction.atomic(),
            pytest.raises(TypeError, match=r"arguments of task tests\.tasks\.hold"),
        ):
            hold.using(backend=alias).enqueue_on_commit(1, {2})
        assert enqueued.handles == []

    def test_tasks_are_checked_by_it(self, enqueued: Enqueued) -> None:
        task = add.using(priority=1)
        object.__setattr__(task, "priority", 1000)  # past its own check
        with transaction.atomic(), pytest.raises(InvalidTask):
            task.enqueue_on_commit(1, 2)
        assert enqueued.handles == []

    def test_later_changes_of_its_arguments_change_nothing(
        self, alias: str, enqueued: Enqueued
    ) -> None:
        values = [1]
        with transaction.atomic():
            append_to.using(backend=alias).enqueue_on_commit(values)
            values.append(2)
        values.append(3)
        assert enqueued.values() == [[1, 99]]

    def test_the_task_has_its_context_variables(self, enqueued: Enqueued) -> None:
        token = colour.set("of the call")
        try:
            with transaction.atomic():
                see_colour.enqueue_on_commit()
                see_colour.enqueue_on_commit()
                colour.set("of the commit")
        finally:
            colour.reset(token)
        assert enqueued.values() == ["of the call"] * 2

    def test_the_task_has_its_metadata_and_options(self, enqueued: Enqueued) -> None:
        task = see_metadata.using(metadata={"a": 1}, priority=7)
        with transaction.atomic():
            task.enqueue_on_commit()
        assert enqueued.values() == [{"a": 1}]
        assert enqueued.handles[0].task == task

    def test_coroutines_make_it_where_their_transactions_are(
        self, enqueued: Enqueued
    ) -> None:
        def in_transaction() -> None:
            with transaction.atomic():
                add.enqueue_on_commit(1, 2)
                assert enqueued.handles == []
            connections.close_all()  # this thread's

        asyncio.run(sync_to_async(in_transaction)())
        assert enqueued.values() == [3]


class TestFullQueue:
    def test_it_comes_out_of_the_outermost_transaction(
        self, alias: str, configure: Configure, gate: Gate, enqueued: Enqueued
    ) -> None:
        configure(alias, MAX_WORKERS=1, MAX_PENDING=1)
        task = hold.using(backend=alias)
        task.enqueue(gate.port, "running")
        gate.next_visitor()
        with ExitStack() as stack:
            stack.enter_context(pytest.raises(QueueFull, match="1 tasks are waiting"))
            with transaction.atomic():
                with transaction.atomic():
                    task.enqueue_on_commit(gate.port, "waiting")
                    task.enqueue_on_commit(gate.port, "refused")
                assert len(enqueued.handles) == 1
        assert not transaction.get_connection().in_atomic_block
        gate.open()
        assert enqueued.values() == ["running", "waiting"]


class TestInTasks:
    def test_the_transaction_is_the_tasks(self, alias: str, gate: Gate) -> None:
        outer = enqueue_after_commit.using(backend=alias).enqueue("default", gate.port)
        visitor = gate.next_visitor()
        assert visitor.name == "outer"
        assert gate.is_deserted()
        visitor.let_go()
        visitor = gate.next_visitor()
        assert visitor.name == "inner"
        visitor.let_go()
        outer.join(LONG_S)

    def test_after_a_rollback_nothing_runs(
        self, alias: str, enqueued: Enqueued
    ) -> None:
        outer = enqueue_and_roll_back.using(backend=alias).enqueue("default")
        assert outer.wait(LONG_S) == "rolled back"
        assert [handle.id for handle in enqueued.handles] == [outer.id]


class TestTests:
    """What a project's own tests do with it."""

    def test_django_captures_what_is_due_on_commit(self, enqueued: Enqueued) -> None:
        with rolled_back():  # as Django's TestCase does with each test
            with TestCase.captureOnCommitCallbacks() as callbacks:
                add.enqueue_on_commit(1, 2)
            assert len(callbacks) == 1
            assert enqueued.handles == []
            with TestCase.captureOnCommitCallbacks(execute=True):
                add.enqueue_on_commit(3, 4)
                assert enqueued.handles == []
            assert enqueued.values() == [7]
        assert enqueued.values() == [7]

    def test_it_works_on_djangos_immediate_backend(self, enqueued: Enqueued) -> None:
        backend = "django.tasks.backends.immediate.ImmediateBackend"
        tasks = {**settings.TASKS, "default": {"BACKEND": backend}}
        with override_settings(TASKS=tasks):
            with rolled_back():
                add.enqueue_on_commit(1, 1)
            with transaction.atomic():
                add.enqueue_on_commit(1, 2)
                assert enqueued.handles == []
            (result,) = enqueued.handles
            assert result.return_value == 3
