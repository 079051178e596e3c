"""`EventLoopBackend`: coroutines on one loop, their sync code on a few threads."""

import asyncio
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, override

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.sessions.models import Session
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask
from django.tasks.signals import task_finished, task_started
from django.test import override_settings

from django_tasks_local import (
    EventLoopBackend,
    LocalTaskResult,
    TaskFailed,
    TaskTimeout,
    task,
)
from django_tasks_local.context import current_result_id
from django_tasks_local.state import shutdown_executor

from .conftest import Configure, RunScript
from .gates import LONG_S, Gate
from .leftovers import our_threads
from .loop_tasks import (
    await_function,
    await_function_in_function,
    await_function_in_sync_code,
    block_loop,
    block_loop_in_subtask,
    cancel_all,
    cancel_itself_and_fail,
    change_colour,
    colour,
    count_by_orm_alone,
    here,
    ignore_cancels,
    leave_subtask,
    leave_subtask_that_uses_the_orm,
    no_op,
    raise_in_subtask,
    run_out_of_time,
    stop_loop,
    tell_of_clean_up,
    wait_as_function,
    wait_in_sync_code,
    walk,
    where_after_meeting,
    where_function,
    where_sync_code,
    where_to_thread,
    where_two_calls_run,
)
from .tasks import (
    add,
    async_add,
    async_hold,
    count_sessions,
    count_sessions_and_tell,
    hold,
    store_session,
)

READY, RUNNING, FAILED, SUCCESSFUL = (
    TaskResultStatus.READY,
    TaskResultStatus.RUNNING,
    TaskResultStatus.FAILED,
    TaskResultStatus.SUCCESSFUL,
)


def loop_threads() -> list[str]:
    """The alias's threads, by name."""
    names = [thread.name for thread in our_threads()]
    return [name for name in names if name.startswith("django-tasks-loop")]


class TestCoroutines:
    def test_run_a_thousand_at_once_on_one_thread(self, configure: Configure) -> None:
        configure("loop")
        handles = where_after_meeting.enqueue_many([((1000,), {})] * 1000)
        assert {handle.wait(LONG_S) for handle in handles} == {
            "django-tasks-loop-loop (a loop)"
        }
        assert loop_threads() == ["django-tasks-loop-loop"]

    def test_no_more_run_than_max_workers(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("loop", MAX_WORKERS=3)
        task = async_hold.using(backend="loop")
        handles = [task.enqueue(gate.port, number) for number in range(4)]
        visitors = [gate.next_visitor() for _ in range(3)]
        handles[3].refresh()
        assert handles[3].status is READY
        assert gate.is_deserted()
        visitors[1].let_go()
        assert gate.next_visitor().name == "3"
        gate.open()
        assert [handle.wait(LONG_S) for handle in handles] == [0, 1, 2, 3]

    def test_each_have_a_context_of_their_own(self) -> None:
        token = colour.set("the enqueuer's")
        try:
            handles = [change_colour.enqueue(to, 3) for to in ("red", "green", "blue")]
        finally:
            colour.reset(token)
        assert [handle.wait(LONG_S) for handle in handles] == [
            ["the enqueuer's", to] for to in ("red", "green", "blue")
        ]
        assert colour.get() == "none"

    def test_are_ended_by_a_cancel_and_clean_up(self, gate: Gate) -> None:
        handle = tell_of_clean_up.enqueue(gate.port)
        assert gate.next_visitor().name == "running"
        assert handle.cancel()
        for name in ("finally", "async with"):
            handle.refresh()
            assert handle.status is RUNNING
            visitor = gate.next_visitor()
            assert visitor.name == name
            visitor.let_go()
        handle.join(LONG_S)
        assert handle.status is FAILED
        assert handle.errors[-1].exception_class_path.endswith(".TaskCancelled")

    def test_that_ignore_a_cancel_are_successful(self, gate: Gate) -> None:
        handle = ignore_cancels.enqueue(gate.port)
        assert gate.next_visitor().name == "running"
        assert handle.cancel()
        assert handle.wait(LONG_S) == "done all the same"

    def test_are_ended_when_their_time_is_over_and_clean_up(self, gate: Gate) -> None:
        handle = run_out_of_time.enqueue(gate.port)
        visitor = gate.next_visitor()
        assert visitor.name == "finally"
        visitor.let_go()
        with pytest.raises(TaskFailed) as caught:
            handle.wait(LONG_S)
        assert caught.value.exception_class_path.endswith(TaskTimeout.__qualname__)


class TestWhatATaskDoesToTheLoop:
    """It harms nobody else."""

    @pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt"])
    def test_an_error_that_ends_loops(
        self, error: str, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = async_hold.using(backend="loop").enqueue(gate.port, "other")
        gate.next_visitor()
        assert raise_in_subtask.enqueue(error).wait(LONG_S) == "still here"
        gate.open()
        assert other.wait(LONG_S) == "other"
        assert [
            record.exc_info[0]
            for record in caplog.records
            if record.name == "django_tasks_local" and record.exc_info
        ] == [{"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[error]]

    def test_a_stop(self, gate: Gate) -> None:
        other = async_hold.using(backend="loop").enqueue(gate.port, "other")
        gate.next_visitor()
        assert stop_loop.enqueue().wait(LONG_S) == "still here"
        gate.open()
        assert other.wait(LONG_S) == "other"

    def test_a_cancel_of_all_that_runs_there(self, gate: Gate) -> None:
        others = [
            async_hold.using(backend="loop").enqueue(gate.port, "other")
            for _ in range(3)
        ]
        for _ in others:
            gate.next_visitor()
        handles: list[LocalTaskResult[Any]] = [cancel_all.enqueue(), *others]
        later = async_add.using(backend="loop").enqueue(1, 2)
        for handle in handles:
            handle.join(LONG_S)
        assert {handle.status for handle in others} == {FAILED}
        later.join(LONG_S)
        assert async_add.using(backend="loop").enqueue(1, 2).wait(LONG_S) == 3


def test_what_is_left_running_cleans_up_when_the_alias_ends(gate: Gate) -> None:
    leave_subtask.enqueue(gate.port).wait(LONG_S)
    assert gate.next_visitor().name == "left"
    ending = threading.Thread(target=shutdown_executor, args=("loop",))
    ending.start()
    visitor = gate.next_visitor()
    assert visitor.name == "cleaned up"
    visitor.let_go()
    ending.join(LONG_S)
    assert loop_threads() == []


class TestSyncCode:
    def test_a_function_never_runs_on_the_loop(self) -> None:
        assert where_function.enqueue().wait(LONG_S) == "django-tasks-loop-sync-0"

    def test_of_one_coroutine_stays_on_one_of_the_threads(
        self, configure: Configure
    ) -> None:
        configure("loop", SYNC_THREADS=3)
        handles = where_sync_code.enqueue_many([((30,), {})] * 30)
        threads = [set(handle.wait(LONG_S)) for handle in handles]
        assert {len(each) for each in threads} == {1}
        assert set.union(*threads) == {f"django-tasks-loop-sync-{n}" for n in range(3)}

    def test_to_thread_uses_these_threads(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("loop", SYNC_THREADS=2)
        handles = [where_to_thread.enqueue(gate.port) for _ in range(3)]
        visitors = [gate.next_visitor() for _ in range(2)]
        assert gate.is_deserted()
        for visitor in visitors:
            visitor.let_go()
        gate.next_visitor()
        gate.open()
        assert {handle.wait(LONG_S) for handle in handles} == {
            "django-tasks-loop-sync-0",
            "django-tasks-loop-sync-1",
        }

    def test_functions_are_ready_until_a_thread_is_free(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("loop", SYNC_THREADS=1)
        held = [hold.using(backend="loop").enqueue(gate.port, n) for n in range(2)]
        visitor = gate.next_visitor()
        held[1].refresh()
        assert held[1].status is READY
        visitor.let_go()
        gate.open()
        assert [handle.wait(LONG_S) for handle in held] == [0, 1]

    @pytest.mark.parametrize("threads", [1, 2])
    def test_that_waits_for_tasks_locks_nobody_out(
        self, configure: Configure, threads: int
    ) -> None:
        configure("loop", SYNC_THREADS=threads, MAX_WORKERS=2)
        handles = [
            wait_in_sync_code.enqueue(),
            wait_as_function.enqueue(5),
            await_function.enqueue(5),
            wait_in_sync_code.enqueue(),
        ]
        assert [handle.wait(LONG_S) for handle in handles] == [3, 5, 5, 3]

    @pytest.mark.parametrize("threads", [1, 10])
    def test_that_waits_in_coroutines_locks_nobody_out(
        self, configure: Configure, threads: int
    ) -> None:
        configure("loop", SYNC_THREADS=threads)
        handles = [
            await_function_in_function.enqueue(12),
            await_function_in_sync_code.enqueue(),
        ]
        assert [handle.wait(LONG_S) for handle in handles] == [12, 2]

    @pytest.mark.parametrize("stays", [False, True])
    def test_never_runs_on_an_enqueuers_thread(
        self, configure: Configure, stays: bool
    ) -> None:
        async def view() -> LocalTaskResult[list[str]]:
            await sync_to_async(here)()
            handle = await where_two_calls_run.aenqueue()
            if stays:
                await handle
            return handle

        configure("loop", SYNC_THREADS=1)
        handle = async_to_sync(view)()
        assert handle.wait(LONG_S) == ["django-tasks-loop-sync-0"] * 2

    def test_is_where_a_backoff_is_asked_whoever_cancels_what_runs(self) -> None:
        handle = cancel_itself_and_fail.enqueue()
        handle.join(LONG_S)
        assert [error.exception_class for error in handle.errors] == [ValueError] * 2
        assert handle.attempts == 2

    def test_of_receivers_runs_there_too(self, configure: Configure) -> None:
        seen: list[tuple[str, str]] = []

        def note(**kwargs: Any) -> None:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            seen.append((threading.current_thread().name, current_result_id.get()))

        configure("loop", SYNC_THREADS=1)
        task_started.connect(note)
        task_finished.connect(note)
        try:
            handle = async_add.using(backend="loop").enqueue(1, 2)
            assert handle.wait(LONG_S) == 3
        finally:
            task_started.disconnect(note)
            task_finished.disconnect(note)
        assert seen == [("django-tasks-loop-sync-0", handle.id)] * 2

    def test_a_function_with_a_time_limit_is_refused(self) -> None:
        with pytest.raises(
            InvalidTask, match="EventLoopBackend cannot stop a function"
        ):
            task(backend="loop", timeout=1)(add.func)


class Watch(logging.Handler):
    """What is logged, and when."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.has_come = threading.Event()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.has_come.set()


@contextmanager
def watching() -> Generator[Watch]:
    watch = Watch()
    logger = logging.getLogger("django_tasks_local")
    logger.addHandler(watch)
    try:
        yield watch
    finally:
        logger.removeHandler(watch)


class TestABlockedLoop:
    @pytest.mark.parametrize("task", [block_loop, block_loop_in_subtask])
    def test_is_told_while_it_lasts_with_the_task_and_its_line(
        self, configure: Configure, gate: Gate, task: Any
    ) -> None:
        configure("loop", SLOW_CALLBACK_S=0.05)
        with watching() as watch:
            handle = task.enqueue(gate.port)
            gate.next_visitor()
            assert watch.has_come.wait(LONG_S)
            gate.open()
            assert handle.wait(LONG_S) is None
        (record,) = watch.records
        text = record.getMessage()
        assert handle.id in text
        assert "has blocked the event loop for 0.05 s" in text
        first, *lines = text.splitlines()
        assert "tests/loop_tasks.py" in first
        assert "pass_gate(port)" in "\n".join(lines)

    def test_names_no_task_that_only_runs_among_many(
        self, configure: Configure
    ) -> None:
        configure("loop", SLOW_CALLBACK_S=0.3, MAX_WORKERS=20_000)
        with watching() as watch:
            for handle in no_op.enqueue_many([((), {})] * 12_000):
                handle.wait(LONG_S)
        assert [record.getMessage() for record in watch.records] == []

    @pytest.mark.parametrize("debug", [False, True])
    def test_is_watched_while_a_project_is_developed(
        self, debug: bool, configure: Configure
    ) -> None:
        configure("loop")
        with override_settings(DEBUG=debug):
            assert async_add.using(backend="loop").enqueue(1, 2).wait(LONG_S) == 3
            names = loop_threads()
        assert ("django-tasks-loop-watch" in names) is debug


@pytest.mark.usefixtures("database")
class TestDatabase:
    def test_what_one_task_ends_another_goes_on_with(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("loop", SYNC_THREADS=1)
        for key in ("a", "b", "c"):
            store_session.using(backend="loop").enqueue(key).wait(LONG_S)
        walking = walk.enqueue(gate.port)
        gate.next_visitor()
        assert count_by_orm_alone.enqueue().wait(LONG_S) == 3
        assert count_sessions.using(backend="loop").enqueue().wait(LONG_S) == 3
        gate.open()
        assert walking.wait(LONG_S) == 3

    def test_what_is_left_running_leaves_no_connection(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("loop", SYNC_THREADS=1)
        leave_subtask_that_uses_the_orm.enqueue(gate.port).wait(LONG_S)
        left = gate.next_visitor()
        assert left.name == "left"
        left.let_go()
        assert gate.next_visitor().name == "closed"

    def test_functions_leave_none_to_coroutines_without(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("loop", SYNC_THREADS=1)
        beside = async_hold.using(backend="loop").enqueue(gate.port, "beside")
        held = gate.next_visitor()
        task = count_sessions_and_tell.using(backend="loop")
        task.enqueue(gate.port, is_persistent=True).wait(LONG_S)
        held.let_go()
        assert gate.next_visitor().name == "closed"
        gate.open()
        beside.wait(LONG_S)

    def test_connections_are_closed_when_no_task_is_left(
        self, configure: Configure
    ) -> None:
        """What the thread does next finds none open."""
        configure("loop", SYNC_THREADS=1)
        for _ in range(3):
            assert count_sessions.using(backend="loop").enqueue().wait(LONG_S) == 0
            assert count_and_look.enqueue().wait(LONG_S) == [0, True]


@task(backend="loop")
async def count_and_look() -> list[Any]:
    from django.db import connections

    def is_open() -> bool:
        return connections["default"].connection is not None

    was_open = await sync_to_async(is_open)()
    count = await Session.objects.acount()
    return [count, not was_open and await sync_to_async(is_open)()]


@pytest.mark.usefixtures("postgresql")
def test_two_hundred_coroutines_share_the_connections_of_a_few_threads(
    run_script: RunScript,
) -> None:
    done = run_script(
        """
        import os
        import psycopg
        from tests.small_project import configure
        NAME = f"tasks_local_{os.getpid()}"
        configure(
            INSTALLED_APPS=["django.contrib.sessions"],
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.postgresql",
                    "HOST": "127.0.0.1", "PORT": 5432, "USER": "postgres",
                    "NAME": "tasks_local",
                    "TEST": {"NAME": f"test_{NAME}"},
                    "CONN_MAX_AGE": None,
                    "OPTIONS": {"application_name": NAME},
                }
            },
        )
        OPEN = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"

        def wait_until_none_is_open():
            address = "host=127.0.0.1 user=postgres"
            with psycopg.connect(address, autocommit=True) as observer:
                while observer.execute(OPEN, [NAME]).fetchone() != (0,):
                    pass

        if __name__ == "__main__":
            from django.db import connection
            from django.test.utils import setup_databases, teardown_databases
            from tests.loop_tasks import count_by_orm

            names = setup_databases(verbosity=0, interactive=False)
            connection.close()
            try:
                for _ in range(2):
                    handles = count_by_orm.enqueue_many([((200,), {})] * 200)
                    counts = [handle.wait(30) for handle in handles]
                    print(1 < max(counts) <= 10)
                    wait_until_none_is_open()
            finally:
                teardown_databases(names, verbosity=0)
        """
    )
    assert [done.stdout, done.stderr] == ["True\nTrue\n", ""]


def test_a_stuck_task_cannot_hang_the_exit(run_script: RunScript) -> None:
    done = run_script(
        """
        import asyncio, threading, time
        from tests.small_project import TASKS, configure
        TASKS["loop"]["OPTIONS"]["SHUTDOWN_TIMEOUT"] = 0.1
        configure()
        from django_tasks_local import task
        begun = threading.Semaphore(0)

        def stand():
            begun.release()
            threading.Event().wait()

        @task(backend="loop")
        def function():
            stand()

        @task(backend="loop")
        async def in_thread():
            await asyncio.to_thread(stand)

        @task(backend="loop")
        async def deaf():
            begun.release()
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass

        @task(backend="loop")
        async def good():
            begun.release()
            try:
                await asyncio.Event().wait()
            finally:
                print("cleaned up", flush=True)

        if __name__ == "__main__":
            for each in (function, in_thread, deaf, good):
                each.enqueue()
                begun.acquire()
        """
    )
    assert done.stdout == "cleaned up\n"
    assert "4 tasks did not finish before SHUTDOWN_TIMEOUT" in done.stderr


def test_is_one_of_the_backends_of_this_library() -> None:
    backend = task_backends["loop"]
    assert isinstance(backend, EventLoopBackend)
    assert backend.default_max_workers() == 1000
