"""Tasks are cancelled, wherever they are on their way; against their end one wins."""

import asyncio
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import override_settings

from django_tasks_local import (
    LocalTask,
    LocalTaskResult,
    QueueFull,
    TaskCancelled,
    TaskFailed,
)
from django_tasks_local.backend import FuturesBackend
from django_tasks_local.backoff import fixed
from django_tasks_local.executors.fork_server import start_child
from django_tasks_local.executors.processes import ProcessExecutor

from .conftest import MAX_WORKERS, Configure
from .gates import LONG_S, Gate
from .leftovers import wait_until_gone
from .retry_tasks import HOUR_S, fail_for_an_hour, fail_until
from .stopping import (
    acancel_it,
    acancel_oneself,
    async_hold_at_the_end,
    await_for_ever,
    be_asked,
    cancel_it,
    cancel_oneself,
    check_slots,
    error_names,
    fail_when_cancelled,
    ran_in,
    stored,
    swallow_cancellation,
    wait_for_ever,
    work,
)
from .tasks import add, async_add, hold, own_pid

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
PATH = "django_tasks_local.errors.TaskCancelled"


class Ends:
    """How tasks have ended, as the signal says."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, TaskResultStatus]] = []

    def receive(self, *, task_result: LocalTaskResult[Any], **_: Any) -> None:
        self.seen.append((task_result.id, task_result.status))

    def of(self, handle: LocalTaskResult[Any]) -> list[TaskResultStatus]:
        return [status for result_id, status in self.seen if result_id == handle.id]


@pytest.fixture
def ends(nothing_left_behind: None) -> Iterator[Ends]:
    ends = Ends()
    task_finished.connect(ends.receive)
    yield ends
    task_finished.disconnect(ends.receive)


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


def backend_of(alias: str) -> FuturesBackend:
    backend = task_backends[alias]
    assert isinstance(backend, FuturesBackend)
    return backend


def assert_cancelled(
    handle: LocalTaskResult[Any], ends: Ends, *earlier_errors: str
) -> None:
    with pytest.raises(TaskFailed) as caught:
        handle.wait(LONG_S)
    assert caught.value.exception_class_path == PATH
    assert handle.status is FAILED
    assert error_names(handle) == [*earlier_errors, "TaskCancelled"]
    assert handle.finished_at is not None
    assert ends.of(handle) == [FAILED]
    found = stored(handle)
    assert [found.status, found.errors] == [FAILED, handle.errors]


def between_attempts(task: LocalTask[[], Any]) -> LocalTaskResult[Any]:
    handle = task.enqueue()
    for each in handle.watch_sync():
        if each.status is READY and each.attempts == 1:
            break
    return handle


def test_the_error_passes_through_what_catches_exceptions() -> None:
    assert issubclass(TaskCancelled, BaseException)
    assert not issubclass(TaskCancelled, Exception)


class TestWaitingTasks:
    """They never run."""

    @pytest.mark.parametrize("wait", [False, True], ids=["ask", "wait"])
    @pytest.mark.parametrize("by", ["handle", "backend"])
    @pytest.mark.parametrize("crossing", ["sync", "async"])
    def test_that_are_pending(
        self,
        alias: str,
        configure: Configure,
        gate: Gate,
        ends: Ends,
        by: str,
        crossing: str,
        wait: bool,
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        first = hold.using(backend=alias).enqueue(gate.port, "first")
        gate.next_visitor()
        pending = hold.using(backend=alias).enqueue(gate.port, "pending")
        backend = backend_of(alias)
        match by, crossing:
            case "handle", "sync":
                accepted = pending.cancel(wait=wait)
            case "handle", _:
                accepted = async_to_sync(pending.acancel)(wait=wait)
            case _, "sync":
                accepted = backend.cancel(pending.id, wait=wait)
            case _:
                accepted = async_to_sync(backend.acancel)(pending.id, wait=wait)
        assert accepted is True
        assert_cancelled(pending, ends)
        assert [pending.attempts, pending.started_at] == [0, None]
        gate.open()
        assert first.wait(LONG_S) == "first"
        assert ends.of(first) == [SUCCESSFUL]

    def test_that_are_deferred(self, alias: str, ends: Ends) -> None:
        later = datetime.now(UTC) + timedelta(seconds=HOUR_S)
        handle = add.using(backend=alias, run_after=later).enqueue(1, 2)
        assert handle.cancel(wait=True)
        assert_cancelled(handle, ends)
        assert handle.attempts == 0

    def test_between_attempts(self, alias: str, gate: Gate, ends: Ends) -> None:
        handle = between_attempts(fail_for_an_hour.using(backend=alias))
        assert handle.cancel(wait=True)
        assert_cancelled(handle, ends, "ValueError")
        assert handle.attempts == 1
        check_slots(alias, gate, MAX_WORKERS[alias])

    def test_free_their_places(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1, MAX_PENDING=2)
        running = hold.using(backend=alias).enqueue(gate.port, "running")
        visitor = gate.next_visitor()
        task = hold.using(backend=alias)
        later = replace(task, run_after=datetime.now(UTC) + timedelta(seconds=HOUR_S))
        for _ in range(3):
            pending = task.enqueue(gate.port, "pending")
            deferred = later.enqueue(gate.port, "deferred")
            for full in (task, later):
                with pytest.raises(QueueFull):
                    full.enqueue(gate.port, "too many")
            assert pending.cancel()
            assert deferred.cancel()
        last = task.enqueue(gate.port, "last")
        visitor.let_go()
        assert gate.next_visitor().name == "last"
        assert last.cancel()
        gate.open()
        assert running.wait(LONG_S) == "running"

    def test_wake_all_who_wait_for_them(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        hold.using(backend=alias).enqueue(gate.port)
        gate.next_visitor()
        pending = hold.using(backend=alias).enqueue(gate.port)
        are_waiting = threading.Barrier(4)

        def wait() -> str:
            are_waiting.wait(LONG_S)
            return outcome_for(copy(pending))

        def run_loop() -> str:
            async def wait() -> str:
                waiter = asyncio.ensure_future(copy(pending))
                await asyncio.sleep(0)
                are_waiting.wait(LONG_S)
                with pytest.raises(TaskFailed) as caught:
                    await waiter
                return caught.value.exception_class_path

            return asyncio.run(wait())

        with ThreadPoolExecutor(3) as threads:
            waiters = [threads.submit(each) for each in (wait, wait, run_loop)]
            are_waiting.wait(LONG_S)
            assert pending.cancel()
            assert [waiter.result(LONG_S) for waiter in waiters] == [PATH] * 3

    def test_in_receivers_of_task_enqueued(
        self, alias: str, gate: Gate, ends: Ends
    ) -> None:
        seen: list[bool] = []

        def cancel(*, task_result: LocalTaskResult[Any], **_: Any) -> None:
            seen.append(task_result.cancel(wait=True))

        task_enqueued.connect(cancel)
        try:
            sync = hold.using(backend=alias).enqueue(gate.port)
            of_many = backend_of(alias).enqueue_many(
                hold.using(backend=alias), [((gate.port,), {})] * 2
            )
            unsync = async_to_sync(hold.using(backend=alias).aenqueue)(gate.port)
        finally:
            task_enqueued.disconnect(cancel)
        assert seen == [True] * 4
        for handle in (sync, *of_many, unsync):
            assert_cancelled(handle, ends)
        assert gate.is_deserted()
        check_slots(alias, gate, MAX_WORKERS[alias])

    def test_while_their_worker_process_starts(
        self,
        configure: Configure,
        gate: Gate,
        ends: Ends,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        is_starting, may_start = threading.Event(), threading.Event()

        def start_later(*args: Any, **kwargs: Any) -> Any:
            is_starting.set()
            assert may_start.wait(LONG_S)
            return start_child(*args, **kwargs)

        monkeypatch.setattr(f"{ProcessExecutor.__module__}.start_child", start_later)
        configure("cpu", MAX_WORKERS=1)
        handle = hold.using(backend="cpu").enqueue(gate.port)
        assert is_starting.wait(LONG_S)
        assert handle.cancel(wait=True)
        assert_cancelled(handle, ends)
        assert handle.attempts == 0
        may_start.set()
        check_slots("cpu", gate, 1)

    def test_of_former_settings(
        self, alias: str, configure: Configure, gate: Gate, ends: Ends
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        task = hold.using(backend=alias)
        first, pending, other = (task.enqueue(gate.port, name) for name in range(3))
        gate.next_visitor()
        configure(alias, MAX_WORKERS=2)
        assert pending.cancel(wait=True)
        assert backend_of(alias).cancel(other.id)
        for handle in (pending, other):
            with pytest.raises(TaskFailed, match=PATH):
                handle.wait(LONG_S)
            assert ends.of(handle) == [FAILED]
        gate.open()
        assert first.wait(LONG_S) == 0


def outcome_for(handle: LocalTaskResult[Any]) -> str:
    """What who waits for a result is told."""
    try:
        handle.wait(LONG_S)
    except TaskFailed as err:
        return err.exception_class_path
    return "returned"


class TestRunningInProcesses:
    @pytest.mark.parametrize(
        "crossing, wait",
        [("sync", False), ("sync", True), ("async", False), ("async", True)],
        ids=["sync", "sync_wait", "async", "async_wait"],
    )
    def test_are_killed_and_replaced(
        self, configure: Configure, gate: Gate, ends: Ends, crossing: str, wait: bool
    ) -> None:
        configure("cpu", MAX_WORKERS=1)
        handle = hold.using(backend="cpu").enqueue(gate.port)
        gate.next_visitor()
        next_one = own_pid.using(backend="cpu").enqueue()
        if crossing == "sync":
            assert handle.cancel(wait=wait)
        else:
            assert async_to_sync(handle.acancel)(wait=wait)
        assert_cancelled(handle, ends)
        (pid,) = ran_in(handle)
        assert wait_until_gone(pid)
        assert next_one.wait(LONG_S) != pid
        assert own_pid.using(backend="cpu").enqueue().wait(LONG_S) == next_one.wait()

    def test_are_not_tried_again(self, gate: Gate, ends: Ends) -> None:
        task = replace(hold, backend="cpu", max_attempts=3, backoff=fixed(0))
        handle = task.enqueue(gate.port)
        gate.next_visitor()
        assert handle.cancel(wait=True)
        assert_cancelled(handle, ends)
        assert handle.attempts == 1
        assert gate.is_deserted()

    def test_leave_the_tasks_that_they_wait_for(
        self, configure: Configure, gate: Gate, ends: Ends
    ) -> None:
        configure("cpu", MAX_WORKERS=1)
        outer = wait_for_ever.using(backend="cpu").enqueue("cpu", gate.port)
        inner = gate.next_visitor()
        assert outer.cancel(wait=True)
        assert_cancelled(outer, ends)
        inner.let_go()
        check_slots("cpu", gate, 1)

    def test_while_receivers_of_task_started_run(self, gate: Gate, ends: Ends) -> None:
        seen: list[object] = []

        def cancel(*, task_result: LocalTaskResult[Any], **_: Any) -> None:
            with pytest.raises(RuntimeError, match="cannot wait for its own end"):
                task_result.cancel(wait=True)
            seen.append(task_result.cancel())

        task_started.connect(cancel)
        try:
            handle = hold.using(backend="cpu").enqueue(gate.port)
            handle.join(LONG_S)
        finally:
            task_started.disconnect(cancel)
        assert seen == [True]
        assert_cancelled(handle, ends)
        assert gate.is_deserted()
        check_slots("cpu", gate, 2)


class TestRunningCoroutines:
    """On threads."""

    def test_are_cancelled_and_clean_up(self, gate: Gate, ends: Ends) -> None:
        handle = async_hold_at_the_end.enqueue(gate.port)
        assert gate.next_visitor().name == "inside"
        assert handle.cancel()
        cleaning_up = gate.next_visitor()
        assert cleaning_up.name == "finally"
        handle.refresh()
        assert handle.status is RUNNING
        assert ends.of(handle) == []
        cleaning_up.let_go()
        assert_cancelled(handle, ends)
        assert "CancelledError" in handle.errors[0].traceback

    def test_are_not_tried_again(self, gate: Gate, ends: Ends) -> None:
        task = replace(await_for_ever, max_attempts=3, backoff=fixed(0))
        handle = task.enqueue()
        for each in handle.watch_sync():
            if each.status is RUNNING:
                break
        assert handle.cancel(wait=True)
        assert_cancelled(handle, ends)
        assert handle.attempts == 1
        check_slots("default", gate, 4)

    def test_that_swallow_it_are_successful(self, gate: Gate, ends: Ends) -> None:
        handle = swallow_cancellation.enqueue(gate.port, "all the same")
        gate.next_visitor()
        assert handle.cancel(wait=True) is False
        assert handle.wait() == "all the same"
        assert ends.of(handle) == [SUCCESSFUL]

    def test_that_raise_another_error_have_that(self, gate: Gate, ends: Ends) -> None:
        handle = fail_when_cancelled.enqueue(gate.port)
        gate.next_visitor()
        assert handle.cancel(wait=True) is False
        assert error_names(handle) == ["ValueError"]
        assert ends.of(handle) == [FAILED]

    def test_while_receivers_of_task_started_run(self, gate: Gate, ends: Ends) -> None:
        def cancel(*, task_result: LocalTaskResult[Any], **_: Any) -> None:
            assert task_result.cancel()

        task_started.connect(cancel)
        try:
            handle = async_hold_at_the_end.enqueue(gate.port)
            handle.join(LONG_S)
        finally:
            task_started.disconnect(cancel)
        assert_cancelled(handle, ends)
        assert gate.is_deserted()


class TestRunningFunctions:
    """On threads: they are asked."""

    @pytest.mark.parametrize("then", ["checkpoint", "save_metadata", "report_progress"])
    @pytest.mark.parametrize("attempts", [1, 3], ids=["once", "with_attempts"])
    def test_stop_where_they_look(
        self, gate: Gate, ends: Ends, then: str, attempts: int
    ) -> None:
        task = replace(be_asked, max_attempts=attempts, backoff=fixed(0))
        handle = task.enqueue(gate.port, then)
        visitor = gate.next_visitor()
        assert visitor.name == "False"
        assert handle.cancel()
        assert handle.cancel()  # not yet finished
        handle.refresh()
        assert handle.status is RUNNING
        visitor.let_go()
        assert_cancelled(handle, ends)
        assert handle.attempts == 1
        assert "in be_asked" in handle.errors[0].traceback
        if then == "save_metadata":
            assert handle.metadata == {"seen": True}
        check_slots("default", gate, 4)

    def test_that_return_are_successful(self, gate: Gate, ends: Ends) -> None:
        handle = be_asked.enqueue(gate.port, "return")
        assert cancel_and_let_go(handle, gate) is False
        assert handle.wait() == "returned"
        assert handle.errors == []
        assert ends.of(handle) == [SUCCESSFUL]

    def test_that_raise_another_error_have_that(self, gate: Gate, ends: Ends) -> None:
        handle = be_asked.enqueue(gate.port, "fail")
        assert cancel_and_let_go(handle, gate) is False
        assert error_names(handle) == ["ValueError"]
        assert ends.of(handle) == [FAILED]

    def test_that_raise_another_error_are_not_tried_again(
        self, gate: Gate, ends: Ends
    ) -> None:
        task = replace(be_asked, max_attempts=3, backoff=fixed(0))
        handle = task.enqueue(gate.port, "fail")
        assert cancel_and_let_go(handle, gate) is True
        assert_cancelled(handle, ends, "ValueError")
        assert handle.attempts == 1
        assert gate.is_deserted()

    def test_of_former_settings(
        self, configure: Configure, gate: Gate, ends: Ends
    ) -> None:
        handle = be_asked.enqueue(gate.port, "checkpoint")
        visitor = gate.next_visitor()
        configure("default", MAX_WORKERS=1)
        assert backend_of("default").cancel(handle.id)
        visitor.let_go()
        assert outcome_for(handle) == PATH
        assert ends.of(handle) == [FAILED]


def cancel_and_let_go(handle: LocalTaskResult[Any], gate: Gate) -> bool:
    """Cancel a task at a gate, and wait for its end."""
    visitor = gate.next_visitor()
    assert handle.cancel()
    with ThreadPoolExecutor(1) as thread:
        accepted = thread.submit(handle.cancel, wait=True)
        visitor.let_go()
        return accepted.result(LONG_S)


class TestFinishedTasks:
    """Nothing changes."""

    def test_cannot_be_cancelled(self, alias: str, ends: Ends) -> None:
        handle = add.using(backend=alias).enqueue(1, 2)
        seen_ready = copy(handle)
        assert handle.wait(LONG_S) == 3
        backend = backend_of(alias)
        before = stored(handle)
        for wait in (False, True):
            assert handle.cancel(wait=wait) is False
            assert copy(seen_ready).cancel(wait=wait) is False
            assert backend.cancel(handle.id, wait=wait) is False
            assert async_to_sync(backend.acancel)(handle.id, wait=wait) is False
            assert async_to_sync(copy(seen_ready).acancel)(wait=wait) is False
        assert stored(handle).status is before.status is SUCCESSFUL
        assert stored(handle).finished_at == before.finished_at
        assert ends.of(handle) == [SUCCESSFUL]

    def test_cannot_be_cancelled_twice(self, alias: str, ends: Ends) -> None:
        handle = between_attempts(fail_for_an_hour.using(backend=alias))
        other = copy(handle)
        assert handle.cancel()
        assert handle.cancel() is False
        assert other.cancel(wait=True) is False
        assert_cancelled(handle, ends, "ValueError")

    @pytest.mark.parametrize("crossing", ["sync", "async"])
    def test_that_the_store_has_forgotten_cannot_be_cancelled(
        self, alias: str, configure: Configure, crossing: str
    ) -> None:
        configure(alias, MAX_RESULTS=1)
        handle = add.using(backend=alias).enqueue(1, 2)
        seen_ready = copy(handle)
        handle.join(LONG_S)
        configure(alias, MAX_WORKERS=1)
        with pytest.raises(TaskResultDoesNotExist):
            backend_of(alias).get_result(handle.id)
        if crossing == "sync":
            assert seen_ready.cancel() is False
        else:
            assert async_to_sync(seen_ready.acancel)() is False

    @pytest.mark.parametrize("wait", [False, True], ids=["ask", "wait"])
    def test_that_nobody_knows_do_not_exist(self, alias: str, wait: bool) -> None:
        backend = backend_of(alias)
        with pytest.raises(TaskResultDoesNotExist):
            backend.cancel("unknown", wait=wait)
        with pytest.raises(TaskResultDoesNotExist):
            async_to_sync(backend.acancel)("unknown", wait=wait)
        asked = cancel_it.using(backend=alias).enqueue(alias, "unknown", wait)
        assert asked.wait(LONG_S) == "TaskResultDoesNotExist"


def test_waiting_for_the_end_is_refused_on_an_event_loops_thread(
    alias: str, configure: Configure, gate: Gate
) -> None:
    configure(alias, MAX_WORKERS=1)
    task = hold.using(backend=alias)
    _, pending = task.enqueue(gate.port), task.enqueue(gate.port)
    gate.next_visitor()

    async def main() -> None:
        with pytest.raises(SynchronousOnlyOperation, match="acancel"):
            pending.cancel(wait=True)
        with pytest.raises(SynchronousOnlyOperation, match="acancel"):
            backend_of(alias).cancel(pending.id, wait=True)

    asyncio.run(main())
    pending.refresh()
    assert pending.status is READY
    assert pending.cancel()


@pytest.mark.parametrize("other_alias", ["default", "cpu"])
class TestByAnotherTask:
    @pytest.mark.parametrize("wait", [False, True], ids=["ask", "wait"])
    @pytest.mark.parametrize("task", [cancel_it, acancel_it], ids=["sync", "async"])
    def test_a_waiting_one(
        self,
        alias: str,
        other_alias: str,
        gate: Gate,
        ends: Ends,
        task: LocalTask[[str, str, bool], bool | str],
        wait: bool,
    ) -> None:
        later = datetime.now(UTC) + timedelta(seconds=HOUR_S)
        deferred = hold.using(backend=other_alias, run_after=later).enqueue(gate.port)
        cancelling = task.using(backend=alias)
        assert cancelling.enqueue(other_alias, deferred.id, wait).wait(LONG_S) is True
        assert_cancelled(deferred, ends)
        assert cancelling.enqueue(other_alias, deferred.id, wait).wait(LONG_S) is False

    @pytest.mark.parametrize("wait", [False, True], ids=["ask", "wait"])
    def test_a_running_one(
        self,
        alias: str,
        other_alias: str,
        configure: Configure,
        gate: Gate,
        ends: Ends,
        wait: bool,
    ) -> None:
        configure(other_alias, MAX_WORKERS=2)
        running = async_hold_at_the_end.using(backend=other_alias).enqueue(gate.port)
        assert gate.next_visitor().name == "inside"
        cancelling = cancel_it.using(backend=alias)
        asked = cancelling.enqueue(other_alias, running.id, wait)
        if other_alias == "default":
            gate.next_visitor().let_go()
        assert asked.wait(LONG_S) is True
        assert_cancelled(running, ends)
        check_slots(other_alias, gate, 2)


class TestByItself:
    @pytest.mark.parametrize(
        "task", [cancel_oneself, acancel_oneself], ids=["function", "coroutine"]
    )
    def test_without_waiting(
        self,
        alias: str,
        configure: Configure,
        gate: Gate,
        ends: Ends,
        task: LocalTask[[str, bool], str],
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        handle = task.using(backend=alias).enqueue(alias, False)
        assert_cancelled(handle, ends)
        check_slots(alias, gate, 1)

    @pytest.mark.parametrize(
        "task", [cancel_oneself, acancel_oneself], ids=["function", "coroutine"]
    )
    def test_with_waiting_is_refused(
        self, alias: str, task: LocalTask[[str, bool], str]
    ) -> None:
        handle = task.using(backend=alias).enqueue(alias, True)
        assert handle.wait(LONG_S) == f"Task {handle.id} cannot wait for its own end."


class TestDjangosBackends:
    def test_what_immediate_has_run_is_finished(self) -> None:
        backend = "django.tasks.backends.immediate.ImmediateBackend"
        with override_settings(TASKS={"default": {"BACKEND": backend}}):
            handle = add.enqueue(1, 2)
            for wait in (False, True):
                assert handle.cancel(wait=wait) is False
                assert async_to_sync(handle.acancel)(wait=wait) is False
            assert handle.wait() == 3

    def test_what_dummy_never_runs_cannot_be_cancelled(self) -> None:
        backend = "django.tasks.backends.dummy.DummyBackend"
        with override_settings(TASKS={"default": {"BACKEND": backend}}):
            handle = add.enqueue(1, 2)
            for wait in (False, True):
                with pytest.raises(NotImplementedError, match="DummyBackend"):
                    handle.cancel(wait=wait)
                with pytest.raises(NotImplementedError, match="DummyBackend"):
                    async_to_sync(handle.acancel)(wait=wait)
            assert handle.status is READY


@pytest.mark.usefixtures("hasty_switches")
class TestRaces:
    """With the end of a task: one wins, and all agree on which."""

    @pytest.mark.parametrize("wait", [False, True], ids=["ask", "wait"])
    def test_everybody_sees_the_same_end(
        self, alias: str, configure: Configure, gate: Gate, ends: Ends, wait: bool
    ) -> None:
        configure(alias, MAX_WORKERS=2)
        calls: list[tuple[LocalTask[..., Any], tuple[int, ...]]] = [
            (add, (1, 2)),
            (async_add, (1, 2)),
            (fail_until, (3,)),
            (fail_until, (99,)),
            (work, (300,)),
        ]
        are_up = [hold.using(backend=alias).enqueue(gate.port) for _ in range(2)]
        for visitor in [gate.next_visitor() for _ in are_up]:
            visitor.let_go()
        with ThreadPoolExecutor(4) as cancelling, ThreadPoolExecutor(8) as waiting:
            races: list[tuple[LocalTaskResult[Any], Any, Any]] = []
            for task, args in calls * {"default": 40, "cpu": 8, "loop": 40}[alias]:
                handle = task.using(backend=alias).enqueue(*args)
                waiter = waiting.submit(outcome_for, copy(handle))
                previous = races[-1][0] if races else handle
                canceller = cancelling.submit(
                    cancel_at_any_time, copy(handle), copy(previous), wait=wait
                )
                races.append((handle, waiter, canceller))
            seen = Counter(
                assert_agreed(handle, waiter.result(LONG_S), ends)
                for handle, waiter, _ in races
            )
            for handle, _, canceller in races:
                is_cancelled = error_names(handle)[-1:] == ["TaskCancelled"]
                accepted = canceller.result(LONG_S)
                assert accepted is is_cancelled or (accepted and not wait)
        assert sum(seen.values()) == len(races)
        check_slots(alias, gate, 2)

    def test_of_one_task_many_cancel_it_ends_once(
        self, alias: str, configure: Configure, gate: Gate, ends: Ends
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        task = hold.using(backend=alias)
        first = task.enqueue(gate.port, "first")
        visitor = gate.next_visitor()
        start = threading.Barrier(8)

        def cancel(handle: LocalTaskResult[Any]) -> bool:
            start.wait(LONG_S)
            return handle.cancel()

        with ThreadPoolExecutor(8) as threads:
            for _ in range(10):
                pending = task.enqueue(gate.port, "pending")
                accepted = list(threads.map(cancel, [copy(pending)] * 8))
                assert accepted.count(True) == 1
                assert_cancelled(pending, ends)
        visitor.let_go()
        assert first.wait(LONG_S) == "first"


def cancel_at_any_time(
    handle: LocalTaskResult[Any], previous: LocalTaskResult[Any], *, wait: bool
) -> bool:
    """Cancel a task at once, as it begins, or as the one before it ends."""
    match random.randrange(5):
        case 0:
            pass
        case 1 | 2:
            next(each for each in handle.watch_sync() if each.status is not READY)
        case _:
            if previous != handle:
                previous.join(LONG_S)
    return handle.cancel(wait=wait)


def assert_agreed(handle: LocalTaskResult[Any], seen: str, ends: Ends) -> str:
    """Signal, store, handle and who waits say the same of a task's end."""
    handle.join(LONG_S)
    assert ends.of(handle) == [handle.status]
    found = stored(handle)
    assert [found.status, found.errors] == [handle.status, handle.errors]
    if handle.status is SUCCESSFUL:
        assert seen == "returned"
    else:
        assert seen == handle.errors[-1].exception_class_path
    return seen
