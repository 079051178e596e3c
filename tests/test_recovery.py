"""Tasks outlive the processes that run them: adopted, cancelled and seen by others."""

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from django.conf import settings
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTask
from django.tasks.signals import task_finished, task_started
from django.test import override_settings

from django_tasks_local import (
    LocalTaskResult,
    TaskCancelled,
    TaskFailed,
    WorkerLost,
    recovery,
)
from django_tasks_local.errors import path_of
from django_tasks_local.records import apply_cancel_request
from django_tasks_local.recovery import Recovery
from django_tasks_local.state import drain, get_executor_state, shutdown_executor

from .conftest import RunScript
from .elsewhere import OtherProcess
from .gates import LONG_S, Gate
from .kept import ALIAS, BACKENDS, find, serve, setting_of
from .recovering_tasks import (
    hold_twice,
    hold_until_asked,
    note,
    sleep_for_ever,
    tell_and_hold,
)
from .shared_store import SlowToAdopt, SlowToLeave, SlowToLook
from .stopping import async_hold_at_the_end
from .tasks import add, async_hold, hold, own_pid

THREADS = {"default": {"BACKEND": "django_tasks_local.ThreadPoolBackend"}}
READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite3"


class Open(Protocol):
    """Has this process share the file, from now on."""

    def __call__(self, setting: Mapping[str, Any], /) -> None: ...


@pytest.fixture
def share(nothing_left_behind: None) -> Iterator[Open]:
    with ExitStack() as stack:

        def share(setting: Mapping[str, Any], /) -> None:
            stack.enter_context(override_settings(TASKS={**settings.TASKS, **setting}))

        yield share
        shutdown_executor(ALIAS)


class TestAdoption:
    def test_what_waits_runs_in_another_process(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path)) as other:
            held = other.enqueue_many(hold, 2, gate.port)
            gate.next_visitor()
            gate.next_visitor()
            waiting = other.enqueue_many(add, 5, 3, 4)
            later = other.enqueue_many(add, 1, 3, 4, in_s=0.5)
            share(setting_of(path))
            assert [find(each).status for each in (*held, *waiting, *later)] == [
                *[RUNNING] * 2,
                *[READY] * 6,
            ]
            other.kill()
            serve()
            assert [find(each).wait(LONG_S) for each in (*waiting, *later)] == [7] * 6
            for result_id in held:
                with pytest.raises(TaskFailed) as caught:
                    find(result_id).wait(LONG_S)
                assert caught.value.exception_class_path == path_of(WorkerLost)
                assert find(result_id).attempts == 1

    def test_what_ran_runs_again_where_it_may(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path)) as other:
            result_id = other.enqueue(hold_twice, gate.port)
            gate.next_visitor()
            share(setting_of(path))
            other.kill()
            serve()
            gate.next_visitor().let_go()
            handle = find(result_id)
            handle.join(LONG_S)
            assert handle.status is SUCCESSFUL
            assert handle.attempts == 2
            first, second = handle.worker_ids
            assert first.split(":")[1] != second.split(":")[1]
            (error,) = handle.errors
            assert error.exception_class_path == path_of(WorkerLost)

    def test_first_enqueue_adopts_and_a_look_up_does_not(
        self, path: Path, share: Open, gate: Gate, other_gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path)) as other:
            other.enqueue_many(hold, 2, gate.port)
            gate.next_visitor()
            gate.next_visitor()
            result_id = other.enqueue(hold, other_gate.port)
            share(setting_of(path))
            other.kill()
            assert find(result_id).status is READY
            assert other_gate.is_deserted()
            assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
            other_gate.next_visitor().let_go()
            find(result_id).join(LONG_S)

    def test_living_processes_keep_their_tasks(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        share(setting_of(path))
        with OtherProcess(path, setting_of(path)) as other:
            held = other.enqueue_many(hold, 2, gate.port)
            gate.next_visitor()
            gate.next_visitor()
            waiting = other.enqueue_many(own_pid, 3)
            mine = own_pid.using(backend=ALIAS).enqueue().wait(LONG_S)
            assert {find(each).status for each in waiting} == {READY}
            gate.open()
            assert mine not in [find(each).wait(LONG_S) for each in waiting]
            assert {find(each).wait(LONG_S) for each in held} == {""}

    def test_its_signals_are_sent_by_who_adopts(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        heard: list[tuple[str, str]] = []

        def hear_start(task_result: LocalTaskResult[Any], **_: object) -> None:
            heard.append((task_result.id, "started"))

        def hear_end(task_result: LocalTaskResult[Any], **_: object) -> None:
            heard.append((task_result.id, task_result.status))

        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            lost = other.enqueue(hold, gate.port)
            gate.next_visitor()
            waiting = other.enqueue(add, 1, 2)
            share(setting_of(path))
            other.kill()
            task_started.connect(hear_start)
            task_finished.connect(hear_end)
            try:
                serve()
                find(waiting).join(LONG_S)
                find(lost).join(LONG_S)
            finally:
                task_started.disconnect(hear_start)
                task_finished.disconnect(hear_end)
        assert sorted(heard) == sorted(
            [(lost, FAILED), (waiting, "started"), (waiting, SUCCESSFUL)]
        )

    @pytest.mark.parametrize("kind", BACKENDS)
    def test_each_backend_adopts(
        self, path: Path, share: Open, gate: Gate, kind: str
    ) -> None:
        with OtherProcess(path, setting_of(path, kind, MAX_WORKERS=1)) as other:
            other.enqueue(hold, gate.port)
            gate.next_visitor()
            result_id = other.enqueue(add, 1, 2)
            share(setting_of(path, kind))
            other.kill()
            serve()
            assert find(result_id).wait(LONG_S) == 3

    def test_what_waits_at_the_exit_runs_in_the_next_process(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        options = {"MAX_WORKERS": 1, "SHUTDOWN_TIMEOUT": 0.0}
        with OtherProcess(path, setting_of(path, "processes", **options)) as other:
            lost = other.enqueue(hold, gate.port)
            gate.next_visitor()
            waiting = other.enqueue_many(add, 3, 1, 2)
            again = other.enqueue(hold_twice, gate.port)
            later = other.enqueue_many(add, 1, 1, 2, in_s=3600.0)
        share(setting_of(path))
        assert [find(each).status for each in waiting] == [READY] * 3
        assert find(again).status is READY
        serve()
        assert [find(each).wait(LONG_S) for each in waiting] == [3, 3, 3]
        gate.next_visitor().let_go()
        find(again).join(LONG_S)
        assert find(lost).errors[0].exception_class_path == path_of(WorkerLost)
        assert find(later[0]).status is READY

    def test_one_whose_task_has_vanished_fails_and_says_so(
        self, path: Path, share: Open, gate: Gate, run_script: RunScript
    ) -> None:
        gone = """
            from django_tasks_local import task

            @task
            def vanish(number):
                pass
        """
        done = run_script(
            f"""
            import os, sys
            sys.path.insert(0, os.getcwd())
            from tests.small_project import configure
            configure(TASKS={ {**THREADS, **setting_of(path, MAX_WORKERS=1)}!r})
            from tests.small_tasks import hold
            import gone_tasks
            hold.using(backend={ALIAS!r}).enqueue({gate.port}, "")
            print(gone_tasks.vanish.using(backend={ALIAS!r}).enqueue(3).id, flush=True)
            os.kill(os.getpid(), 9)
            """,
            files={"gone_tasks.py": gone},
            exit_code=-9,
        )
        share(setting_of(path))
        serve()
        handle = find(done.stdout.strip())
        handle.join(LONG_S)
        assert handle.status is FAILED
        (error,) = handle.errors
        assert error.exception_class_path == path_of(InvalidTask)
        assert "'gone_tasks.vanish', which was enqueued by another" in error.traceback
        assert "No module named 'gone_tasks'" in error.traceback
        assert handle.task.module_path == "gone_tasks.vanish"
        with pytest.raises(InvalidTask, match=r"no task 'gone_tasks\.vanish' any more"):
            handle.task.func(3)

    def test_one_whose_task_has_changed_fails_and_says_so(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            other.enqueue(hold, gate.port)
            gate.next_visitor()
            result_id = other.enqueue(add, 1, 2, 3)  # as if it had taken three
            share(setting_of(path))
            other.kill()
            serve()
            handle = find(result_id)
            handle.join(LONG_S)
            (error,) = handle.errors
            assert error.exception_class_path == path_of(InvalidTask)
            assert "The code of task 'tests.tasks.add' has changed" in error.traceback
            assert handle.attempts == 0

    def test_only_what_is_a_task_ever_runs(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            other.enqueue(hold, gate.port)
            gate.next_visitor()
            ids = other.enqueue_many(add, 5, 1, 2)
            other.kill()
        # Somebody who can write the file would have other things called.
        with closing(sqlite3.connect(path)) as db, db:
            for result_id, column, value in (
                (ids[0], "task_path", "os.getpid"),
                (ids[1], "queue_name", "gone"),
                (ids[2], "priority", 1_000),
                (ids[4], "task_path", "tests.<locals>.gone"),
            ):
                db.execute(
                    f"UPDATE result SET {column} = ? WHERE id = ?", (value, result_id)
                )
        share(setting_of(path))
        serve()
        assert find(ids[3]).wait(LONG_S) == 3
        for result_id in (*ids[:3], ids[4]):
            handle = find(result_id)
            handle.join(LONG_S)
            (error,) = handle.errors
            assert error.exception_class_path == path_of(InvalidTask)
        gone, other_queue, urgent = (find(each).task for each in ids[:3])
        assert gone.module_path == "os.getpid"
        assert other_queue.queue_name == "gone"
        assert urgent.priority == 1_000
        with pytest.raises(InvalidTask, match=r"no task 'os\.getpid' any more"):
            gone.enqueue()


class TestCancellingElsewhere:
    def test_what_waits_never_runs(self, path: Path, share: Open, gate: Gate) -> None:
        share(setting_of(path))
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            held = other.enqueue(hold, gate.port)
            gate.next_visitor()
            noted = path.with_name("noted")
            waiting = other.enqueue(note, str(noted), "never")
            later = other.enqueue_many(note, 1, str(noted), "never", in_s=3600.0)
            for result_id in (waiting, *later):
                handle = find(result_id)
                assert handle.cancel(wait=True)
                assert handle.status is FAILED
                assert handle.errors[-1].exception_class_path == path_of(TaskCancelled)
                assert handle.started_at is None
            gate.open()
            assert find(held).wait(LONG_S) == ""
            assert not noted.exists()
            assert not find(waiting).cancel()

    @pytest.mark.parametrize(
        "kind, task",
        [
            ("threads", hold_until_asked),
            ("processes", hold),
            ("loop", sleep_for_ever),
        ],
        ids=["threads", "processes", "loop"],
    )
    def test_what_runs_is_stopped_by_its_owner(
        self, path: Path, share: Open, gate: Gate, kind: str, task: Any
    ) -> None:
        share(setting_of(path))
        with OtherProcess(path, setting_of(path, kind)) as other:
            result_id = other.enqueue(task, gate.port)
            visitor = gate.next_visitor()
            handle = find(result_id)
            assert handle.status is RUNNING
            assert handle.cancel()
            if kind != "processes":
                gate.open()
                visitor.let_go()
            handle.join(LONG_S)
            assert handle.status is FAILED
            assert handle.errors[-1].exception_class_path == path_of(TaskCancelled)

    def test_what_runs_is_stopped_while_its_owner_takes_others_over(
        self,
        path: Path,
        share: Open,
        gate: Gate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(recovery, "_CLAIMED_AT_ONCE", 1)
        setting = setting_of(path, STORE="tests.shared_store.OwnedStore")
        with OtherProcess(path, setting) as other:
            other.enqueue_many(add, 3, 1, 2, in_s=3600.0)
            other.kill()
        share(setting_of(path, "loop", STORE="tests.shared_store.SlowToAdopt"))
        store = get_executor_state(ALIAS).store
        assert isinstance(store, SlowToAdopt)
        try:
            handle = sleep_for_ever.using(backend=ALIAS).enqueue(gate.port)
            gate.next_visitor().let_go()
            # As another process does it.
            (record,) = store.get([handle.id]).values()
            assert store.save([apply_cancel_request(record)]) == [True]
            store.may_go_on.release()
            handle.join(LONG_S)  # though the third has not been told of yet
        finally:
            store.may_go_on.release(3)
        assert handle.errors[-1].exception_class_path == path_of(TaskCancelled)

    def test_what_a_dead_process_has_left_needs_no_other(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            running = other.enqueue(hold_twice, gate.port)
            gate.next_visitor()
            waiting = other.enqueue(add, 1, 2)
            other.kill()
        share(setting_of(path))
        for result_id in (waiting, running):
            handle = find(result_id)
            assert handle.cancel(wait=True)
            assert handle.status is FAILED

    def test_a_receiver_of_its_end_may_cancel_another(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            other.enqueue(hold, gate.port)
            gate.next_visitor()
            first, second = other.enqueue(add, 1, 2), other.enqueue(add, 3, 4)
            other.kill()
        share(setting_of(path))

        def cancel_the_other(task_result: LocalTaskResult[Any], **_: object) -> None:
            if task_result.id == first:
                assert find(second).cancel()

        task_finished.connect(cancel_the_other)
        try:
            assert find(first).cancel(wait=True)
        finally:
            task_finished.disconnect(cancel_the_other)
        assert find(second).errors[-1].exception_class_path == path_of(TaskCancelled)

    def test_what_its_owner_cannot_stop_any_more_is_stopped(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            running = other.enqueue(hold, gate.port)
            gate.next_visitor()
            waiting, later = other.enqueue(add, 1, 2), other.enqueue(add, 3, 4)
            other.stop()  # it lives, but does nothing
            share(setting_of(path))
            handles = [find(each) for each in (running, waiting, later)]
            for handle in handles[:2]:
                assert handle.cancel()
            other.kill()
            for handle, error in zip(
                handles, (WorkerLost, TaskCancelled), strict=False
            ):
                handle.join(LONG_S)
                assert handle.errors[-1].exception_class_path == path_of(error)
            assert find(later).status is READY  # this process does not serve

    def test_one_that_cannot_be_cancelled_here_disturbs_no_other(
        self,
        path: Path,
        share: Open,
        gate: Gate,
        other_gate: Gate,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        setting = setting_of(path, MAX_WORKERS=1)
        with (
            OtherProcess(path, setting) as living,
            OtherProcess(path, setting) as dying,
            ThreadPoolExecutor() as pool,
        ):
            held = living.enqueue(hold, gate.port, "held")
            visitor = gate.next_visitor()
            dying.enqueue(hold, other_gate.port)
            other_gate.next_visitor()
            waiting = dying.enqueue(add, 1, 2)
            living.stop()
            dying.stop()
            share(setting_of(path, EXECUTOR="tests.recovering_tasks.no_executor"))
            assert find(waiting).cancel()
            value, error = (
                pool.submit(find(held).wait, LONG_S),
                pool.submit(find(waiting).wait, LONG_S),
            )
            dying.kill()
            while not (value.done() or "There is no executor here" in caplog.text):
                pass
            living.go_on()
            visitor.let_go()
            assert value.result() == "held"
            with pytest.raises(TaskFailed, match="TaskCancelled"):
                error.result()


class TestLeaving:
    @pytest.mark.parametrize(
        "leave", [partial(shutdown_executor, ALIAS), drain], ids=["alias", "process"]
    )
    def test_waits_for_another_thread_that_has_begun_to_leave(
        self, path: Path, share: Open, leave: Callable[[], None]
    ) -> None:
        """The process would end else, and leave half of what says that it lives."""
        share(setting_of(path, STORE="tests.shared_store.SlowToLeave"))
        assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
        store = get_executor_state(ALIAS).store
        assert isinstance(store, SlowToLeave)
        leave_behind = partial(shutdown_executor, ALIAS, wait=False)
        first, second = (
            threading.Thread(target=each) for each in (leave_behind, leave)
        )
        first.start()
        assert store.files.has_begun.wait(LONG_S)
        second.start()
        while second.is_alive() and not is_in(second, Recovery.release):
            pass
        assert second.is_alive()
        store.files.may_end.set()
        for thread in (first, second):
            thread.join(LONG_S)
            assert not thread.is_alive()

    def test_nothing_begins_once_it_is_time(
        self, path: Path, share: Open, gate: Gate, other_gate: Gate
    ) -> None:
        share(
            setting_of(
                path, "loop", MAX_WORKERS=3, SYNC_THREADS=1, SHUTDOWN_TIMEOUT=0.1
            )
        )
        stubborn = async_hold_at_the_end.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor()
        held = hold.using(backend=ALIAS).enqueue(other_gate.port)
        on_thread = other_gate.next_visitor()
        # There is a slot for it, and no thread.
        waiting = add.using(backend=ALIAS).enqueue(1, 2)
        ending = threading.Thread(target=shutdown_executor, args=(ALIAS,))
        ending.start()
        cleaning_up = gate.next_visitor()
        on_thread.let_go()
        held.join(LONG_S)
        cleaning_up.let_go()
        ending.join(LONG_S)
        assert find(waiting.id).status is TaskResultStatus.READY
        assert find(stubborn.id).status is TaskResultStatus.FAILED

    @pytest.mark.parametrize("kind", ["loop", "processes"])
    def test_what_it_cuts_off_is_lost_as_the_store_knows(
        self, path: Path, share: Open, gate: Gate, kind: str
    ) -> None:
        share(setting_of(path, kind, SHUTDOWN_TIMEOUT=0.1))
        result = async_hold.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor()
        shutdown_executor(ALIAS)
        (error,) = find(result.id).errors
        assert error.exception_class_path == path_of(WorkerLost)

    def test_a_look_that_goes_on_meanwhile_is_no_fault(
        self, path: Path, share: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        share(setting_of(path, STORE="tests.shared_store.SlowToLook"))
        before = set(threading.enumerate())
        assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
        store = get_executor_state(ALIAS).store
        assert isinstance(store, SlowToLook)
        assert store.has_begun.wait(LONG_S)
        shutdown_executor(ALIAS)
        store.may_end.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(LONG_S)
        assert "not looked after" not in caplog.text


def is_in(thread: threading.Thread, function: Callable[..., object]) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


class TestSeenElsewhere:
    def test_metadata_and_changes_are_seen(
        self, path: Path, share: Open, gate: Gate
    ) -> None:
        share(setting_of(path))
        with OtherProcess(path, setting_of(path)) as other:
            watched = find(other.enqueue(tell_and_hold, gate.port))
            gate.next_visitor().let_go()
            seen: list[tuple[str, dict[str, Any]]] = []
            for handle in watched.watch_sync():
                seen.append((handle.status, handle.metadata))
                if handle.metadata and not handle.is_finished:
                    gate.next_visitor().let_go()
            assert seen[-2:] == [(RUNNING, {"step": 1}), (SUCCESSFUL, {"step": 1})]
