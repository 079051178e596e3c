"""Tasks with a `run_after`: when they run, what they cost, and how they end."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTask
from django.test import override_settings

from django_tasks_local import QueueFull, TaskFailed
from django_tasks_local.state import shutdown_executor

from .conftest import Configure, RunScript
from .gates import LONG_S, Gate
from .leftovers import our_threads
from .retry_tasks import defer_add, fail_at_first
from .tasks import add, hold

READY, FAILED = TaskResultStatus.READY, TaskResultStatus.FAILED
HOUR_S = 3600.0


def timers(alias: str) -> list[threading.Thread]:
    name = f"django-tasks-{alias}-timer"
    return [thread for thread in our_threads() if thread.name == name]


def from_now(seconds: float) -> datetime:
    """By the system's clock."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


class Clock:
    """What `time.time` says in this process: it goes only where a test sets it.

    How long a wait takes is not its affair, and worker processes have the system's own.
    """

    def __init__(self) -> None:
        self._now = time.time()

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now, UTC)

    def set(self, now: datetime) -> None:
        self._now = now.timestamp()

    def __call__(self) -> float:
        return self._now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


class TestWhen:
    def test_a_task_runs_at_its_time_and_not_before(self, alias: str) -> None:
        at = from_now(0.2)
        handle = add.using(backend=alias, run_after=at).enqueue(1, 2)
        assert handle.status is READY
        assert handle.wait(LONG_S) == 3
        assert handle.started_at is not None
        assert handle.started_at >= at

    def test_a_time_that_is_past_is_now(self, alias: str) -> None:
        at = from_now(-HOUR_S)
        handle = add.using(backend=alias, run_after=at).enqueue(1, 2)
        assert timers(alias) == []
        assert handle.wait(LONG_S) == 3

    @pytest.mark.anyio
    async def test_coroutines_defer_tasks_too(self, alias: str) -> None:
        at = from_now(0.1)
        handle = await add.using(backend=alias, run_after=at).aenqueue(1, 2)
        assert await handle == 3
        assert handle.started_at is not None
        assert handle.started_at >= at

    def test_later_tasks_do_not_hold_up_earlier_ones(self, alias: str) -> None:
        late = add.using(backend=alias, run_after=from_now(HOUR_S)).enqueue(1, 1)
        soon = add.using(backend=alias, run_after=from_now(0.1)).enqueue(1, 2)
        assert add.using(backend=alias).enqueue(1, 3).wait(LONG_S) == 4
        assert soon.wait(LONG_S) == 3
        late.refresh()
        assert late.status is READY
        assert late.cancel()

    def test_the_priority_decides_among_those_that_are_due_at_once(
        self, alias: str, configure: Configure, clock: Clock, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        at = clock.now() + timedelta(seconds=0.1)
        for priority in (0, 50, -50):
            task = hold.using(backend=alias, run_after=at, priority=priority)
            for name in "ab":
                task.enqueue(gate.port, f"{priority}{name}")
        clock.set(at)
        for name in ("50a", "50b", "0a", "0b", "-50a", "-50b"):
            visitor = gate.next_visitor()
            assert visitor.name == name
            visitor.let_go()

    def test_a_clock_that_is_set_is_followed(self, clock: Clock) -> None:
        now = clock.now()
        first = add.using(run_after=now + timedelta(seconds=0.1)).enqueue(1, 2)
        clock.set(now - timedelta(hours=1))
        second = add.using(run_after=clock.now() + timedelta(seconds=0.2)).enqueue(1, 3)
        clock.set(clock.now() + timedelta(seconds=0.2))
        assert second.wait(LONG_S) == 4
        first.refresh()
        assert first.status is READY  # an hour and a tenth of a second to go
        clock.set(now + timedelta(seconds=0.1))
        assert first.wait(LONG_S) == 3

    def test_a_task_in_a_child_defers_tasks(self, alias: str) -> None:
        at = from_now(0.2).timestamp()
        outer = defer_add.using(backend="cpu").enqueue(alias, at)
        inner = add.using(backend=alias).get_result(outer.wait(LONG_S))
        assert inner.task.run_after == datetime.fromtimestamp(at, UTC)
        assert inner.wait(LONG_S) == 3
        assert inner.started_at is not None
        assert inner.started_at.timestamp() >= at


class TestTimes:
    def test_the_result_says_when(self, alias: str) -> None:
        at = from_now(HOUR_S)
        deferred = add.using(backend=alias, run_after=at)
        handle = deferred.enqueue(1, 2)
        found = add.using(backend=alias).get_result(handle.id)
        for each in (handle, found):
            assert each.task.run_after == at
            assert each.task == deferred
            assert each.started_at is None
        assert handle.cancel()

    def test_naive_times_are_refused_with_use_tz(self, alias: str) -> None:
        soon: Any = timedelta(seconds=1)
        with pytest.raises(InvalidTask, match="must be a datetime, got"):
            add.using(run_after=soon)
        with pytest.raises(InvalidTask, match="run_after must be an aware datetime"):
            add.using(backend=alias, run_after=datetime.now())

    def test_naive_times_are_local_ones_without_it(self, alias: str) -> None:
        with override_settings(USE_TZ=False):
            at = datetime.now() + timedelta(seconds=0.2)
            handle = add.using(backend=alias, run_after=at).enqueue(1, 2)
            assert handle.task.run_after == at
            assert handle.wait(LONG_S) == 3
            assert handle.started_at is not None
            assert handle.started_at.tzinfo is None
            assert handle.started_at >= at


class TestTheTimersThread:
    def test_is_one_for_each_alias_with_deferred_tasks(self) -> None:
        assert add.enqueue(1, 2).wait(LONG_S) == 3
        assert timers("default") == []
        handles = [
            add.using(backend=alias, run_after=from_now(HOUR_S + number)).enqueue(1, 2)
            for number in range(5)
            for alias in ("default", "cpu")
        ]
        for alias in ("default", "cpu"):
            assert len(timers(alias)) == 1
        assert all(handle.cancel() for handle in handles)

    def test_ends_with_the_last_deferred_task(self, alias: str) -> None:
        add.using(backend=alias, run_after=from_now(0.1)).enqueue(1, 2)
        cancelled = add.using(backend=alias, run_after=from_now(HOUR_S)).enqueue(1, 2)
        (timer,) = timers(alias)
        assert cancelled.cancel()
        timer.join(LONG_S)
        assert not timer.is_alive()
        again = add.using(backend=alias, run_after=from_now(0.1)).enqueue(1, 2)
        assert again.wait(LONG_S) == 3


class TestMaxPending:
    def test_counts_deferred_tasks(self, alias: str, configure: Configure) -> None:
        configure(alias, MAX_PENDING=2)
        deferred = add.using(backend=alias, run_after=from_now(HOUR_S))
        handles = [deferred.enqueue(1, 2) for _ in range(2)]
        for task in (deferred, add.using(backend=alias)):
            with pytest.raises(QueueFull, match=r"2 tasks are waiting.*is 2"):
                task.enqueue(1, 2)
        assert handles[0].cancel()
        handles.append(deferred.enqueue(1, 2))
        assert all(handle.cancel() for handle in handles[1:])
        assert add.using(backend=alias).enqueue(1, 2).wait(LONG_S) == 3

    def test_does_not_count_those_that_are_tried_again(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1, MAX_PENDING=1)
        deferred = add.using(backend=alias, run_after=from_now(HOUR_S))
        retried = fail_at_first.using(backend=alias).enqueue(gate.port)
        visitor = gate.next_visitor()
        full = deferred.enqueue(1, 2)
        visitor.let_go()
        assert retried.wait(LONG_S) == 2  # at its second attempt, though it is full
        with pytest.raises(QueueFull):
            deferred.enqueue(1, 2)
        assert full.cancel()


class TestEnds:
    def test_a_shutdown_runs_what_is_due_in_time_and_fails_the_rest(
        self, alias: str, configure: Configure
    ) -> None:
        configure(alias, SHUTDOWN_TIMEOUT=10.0)
        soon = add.using(backend=alias, run_after=from_now(0.3)).enqueue(1, 2)
        late = add.using(backend=alias, run_after=from_now(HOUR_S)).enqueue(1, 2)
        (timer,) = timers(alias)
        began = time.monotonic()
        shutdown_executor(alias)
        assert time.monotonic() - began < 5
        assert soon.wait(0) == 3
        with pytest.raises(TaskFailed, match=r"WorkerLost: .* before the task was due"):
            late.wait(0)
        assert late.attempts == 0
        timer.join(LONG_S)
        assert not timer.is_alive()

    def test_a_shutdown_fails_the_rest_at_once(self, alias: str, gate: Gate) -> None:
        running = hold.using(backend=alias).enqueue(gate.port, "done")
        gate.next_visitor()
        late = add.using(backend=alias, run_after=from_now(HOUR_S)).enqueue(1, 2)
        shutdown_executor(alias, wait=False)
        late.join(0)
        assert late.status is FAILED
        gate.open()
        assert running.wait(LONG_S) == "done"

    def test_other_settings_fail_what_is_not_due_and_leave_no_thread(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        running = hold.using(backend=alias).enqueue(gate.port, "done")
        gate.next_visitor()
        late = add.using(backend=alias, run_after=from_now(HOUR_S)).enqueue(1, 2)
        (timer,) = timers(alias)
        configure(alias, MAX_WORKERS=1)
        with pytest.raises(TaskFailed, match="WorkerLost"):
            late.wait(0)
        gate.open()
        assert running.wait(LONG_S) == "done"
        timer.join(LONG_S)
        assert not timer.is_alive()

    def test_the_exit_waits_for_what_is_due_in_time_and_names_the_rest(
        self, run_script: RunScript
    ) -> None:
        done = run_script(
            """
    import atexit, logging, os, time
    from datetime import UTC, datetime, timedelta
    from tests.small_project import configure
    configure()
    from django.tasks.signals import task_finished
    from tests.small_tasks import double

    def report(task_result, **_):
        os.write(1, f"{task_result.return_value}\\n".encode())

    if __name__ == "__main__":
        logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
        logging.getLogger("django.tasks").setLevel(logging.CRITICAL)
        # Python before 3.12.3 starts no thread any more when it exits (gh-113964).
        double.enqueue(1).wait(30)
        task_finished.connect(report)
        now = datetime.now(UTC)
        for alias in ("default", "cpu"):
            late = double.using(backend=alias, run_after=now + timedelta(hours=1))
            print(late.enqueue(1).id, flush=True)
        begin = time.monotonic()
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        double.using(run_after=soon).enqueue(4)
        # What is registered last runs first, and what is registered first last.
        atexit.register(lambda: os.write(1, f"{time.monotonic() - begin}".encode()))
            """
        )
        *ids, eight, seconds = done.stdout.split()
        assert [len(ids), eight] == [2, "8"]
        assert float(seconds) < 5  # SHUTDOWN_TIMEOUT is 20
        (line,) = done.stderr.splitlines()
        begin = "WARNING django_tasks_local 2 tasks did not finish before"
        assert line.startswith(f"{begin} SHUTDOWN_TIMEOUT: ")
        assert all(result_id in line for result_id in ids)
