"""Tasks that take longer than they may are stopped, wherever they run."""

import gc
import math
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import TaskResultStatus, task_backends
from django.tasks import task as django_task
from django.tasks.exceptions import InvalidTask

from django_tasks_local import (
    LocalTask,
    LocalTaskResult,
    TaskFailed,
    TaskTimeout,
    task,
)
from django_tasks_local.backoff import fixed, only
from django_tasks_local.executors.threads import ThreadExecutor
from django_tasks_local.state import shutdown_executor

from .conftest import Configure
from .gates import LONG_S, Gate
from .leftovers import our_threads, wait_until_gone
from .stopping import (
    async_hold_at_the_end,
    await_for_ever,
    check_slots,
    count_for_ever,
    error_names,
    fail_when_cancelled,
    hold_at_the_end,
    ignore_all_signals,
    limited,
    own_thread,
    ran_in,
    sleep_for_ever,
    spin_for_ever,
    stored,
    swallow_cancellation,
    swallow_everything,
    swallow_timeout,
    use_database_for_ever,
    use_the_library,
    wait_for_ever,
    work,
)
from .tasks import add, async_add, async_fail, fail, hold, own_pid

RUNNING, SUCCESSFUL = TaskResultStatus.RUNNING, TaskResultStatus.SUCCESSFUL
FAILED = TaskResultStatus.FAILED

SHORT_S = 0.05
"""The limit of what would not end by itself."""
NEVER_S = 1e6


@pytest.fixture
def raising(configure: Configure) -> None:
    """Threads are stopped by an exception; there are two of them."""
    configure("default", MAX_WORKERS=2, TIMEOUT_ON_THREADS="raise")


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def no_others_garbage() -> Iterator[None]:
    """What other tests have left is collected before, or after: not by these threads.

    Of an exception that comes into a callback of the collector's Python only says so.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def assert_timed_out(handle: LocalTaskResult[Any], seconds: float) -> None:
    with pytest.raises(
        TaskFailed, match=f"longer than its time limit of {seconds:g} s"
    ):
        handle.wait(LONG_S)
    assert handle.status is FAILED
    assert error_names(handle) == ["TaskTimeout"]
    assert stored(handle).errors == handle.errors


def test_the_error_is_a_time_out() -> None:
    assert issubclass(TaskTimeout, TimeoutError)


class TestProcesses:
    @pytest.mark.parametrize(
        "task",
        [
            spin_for_ever,
            count_for_ever,
            sleep_for_ever,
            ignore_all_signals,
            swallow_everything,
            await_for_ever,
        ],
        ids=lambda task: task.name,
    )
    def test_are_killed_and_replaced(
        self, configure: Configure, task: LocalTask[[], None]
    ) -> None:
        configure("cpu", MAX_WORKERS=1)
        late = limited(task, SHORT_S, "cpu").enqueue()
        next_one = own_pid.using(backend="cpu").enqueue()
        assert_timed_out(late, SHORT_S)
        (pid,) = ran_in(late)
        assert wait_until_gone(pid)
        assert next_one.wait(LONG_S) != pid
        assert own_pid.using(backend="cpu").enqueue().wait(LONG_S) == next_one.wait()

    def test_that_are_others_are_left_alone(self, gate: Gate) -> None:
        neighbour = hold.using(backend="cpu").enqueue(gate.port, "unharmed")
        visitor = gate.next_visitor()
        assert_timed_out(limited(spin_for_ever, SHORT_S, "cpu").enqueue(), SHORT_S)
        visitor.let_go()
        assert neighbour.wait(LONG_S) == "unharmed"
        assert error_names(neighbour) == []
        check_slots("cpu", gate, 2)

    def test_leave_the_tasks_that_they_wait_for(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("cpu", MAX_WORKERS=1)
        outer = limited(wait_for_ever, 0.5, "cpu").enqueue("cpu", gate.port)
        inner = gate.next_visitor()
        assert_timed_out(outer, 0.5)
        inner.let_go()
        check_slots("cpu", gate, 1)

    def test_that_are_about_as_fast_as_they_must_be_lose_no_slot(
        self, gate: Gate
    ) -> None:
        limits = [0.0005, 0.001, 0.002, 0.004]
        handles = [
            limited(work, random.choice(limits), "cpu").enqueue(2000) for _ in range(60)
        ]
        for handle in handles:
            assert_on_time_or_timed_out(handle, work.func(2000))
        check_slots("cpu", gate, 2)


class TestCoroutines:
    def test_are_cancelled_and_clean_up(self, gate: Gate) -> None:
        handle = limited(async_hold_at_the_end, 0.5, "default").enqueue(gate.port)
        assert gate.next_visitor().name == "inside"
        cleaning_up = gate.next_visitor()
        assert cleaning_up.name == "finally"
        handle.refresh()
        assert handle.status is RUNNING
        cleaning_up.let_go()
        assert_timed_out(handle, 0.5)

    def test_that_swallow_it_have_the_value_they_return(self, gate: Gate) -> None:
        task = limited(swallow_cancellation, SHORT_S, "default")
        handle = task.enqueue(gate.port, "all the same")
        assert handle.wait(LONG_S) == "all the same"
        assert handle.status is SUCCESSFUL
        assert handle.errors == []

    def test_that_raise_another_error_have_that(self, gate: Gate) -> None:
        handle = limited(fail_when_cancelled, SHORT_S, "default").enqueue(gate.port)
        handle.join(LONG_S)
        assert error_names(handle) == ["ValueError"]

    def test_that_cancel_themselves_have_not_timed_out(self, alias: str) -> None:
        handle = limited(async_fail, LONG_S, alias).enqueue("CancelledError")
        handle.join(LONG_S)
        assert error_names(handle) == ["CancelledError"]

    def test_in_time_are_left_alone(self, alias: str) -> None:
        handles = [limited(async_add, LONG_S, alias).enqueue(n, 1) for n in range(20)]
        assert [handle.wait(LONG_S) for handle in handles] == list(range(1, 21))

    @pytest.mark.usefixtures("hasty_switches", "no_others_garbage")
    def test_about_as_fast_as_they_must_be_lose_no_slot(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("default", MAX_WORKERS=2)
        limits = [1e-6, 0.0005, 0.001, 0.002]
        handles = [
            limited(async_add, random.choice(limits), "default").enqueue(number, 1)
            for number in range(200)
        ]
        for number, handle in enumerate(handles):
            assert_on_time_or_timed_out(handle, number + 1)
        check_slots("default", gate, 2)


# Hypothesis counts what garbage collection takes, on whichever thread collects: where
# the exception comes just there, nobody gets it, and the function goes on.
@pytest.mark.filterwarnings(
    "ignore:.*gc_callback:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.usefixtures("raising")
class TestThreads:
    """With TIMEOUT_ON_THREADS."""

    def test_change_the_status_only_when_the_function_has_ended(
        self, gate: Gate
    ) -> None:
        handle = limited(hold_at_the_end, SHORT_S, "default").enqueue(gate.port)
        cleaning_up = gate.next_visitor()
        handle.refresh()
        assert handle.status is RUNNING
        with pytest.raises(TimeoutError):
            handle.join(0.01)
        cleaning_up.let_go()
        assert_timed_out(handle, SHORT_S)
        assert "in spin" in handle.errors[0].traceback

    def test_that_swallow_it_have_the_value_they_return(
        self, configure: Configure
    ) -> None:
        configure("default", MAX_WORKERS=1, TIMEOUT_ON_THREADS="raise")
        handle = limited(swallow_timeout, SHORT_S, "default").enqueue()
        struck = handle.wait(LONG_S)
        assert handle.status is SUCCESSFUL
        assert handle.errors == []
        replacement = own_thread.enqueue().wait(LONG_S)
        assert replacement != struck
        assert limited(own_thread, LONG_S, "default").enqueue().wait(LONG_S) == (
            replacement
        )
        assert own_thread.enqueue().wait(LONG_S) == replacement

    def test_that_are_stopped_leave_the_next_task_alone(
        self, configure: Configure
    ) -> None:
        configure("default", MAX_WORKERS=1, TIMEOUT_ON_THREADS="raise")
        late = limited(spin_for_ever, SHORT_S, "default").enqueue()
        waiting = [add.enqueue(number, 1) for number in range(20)]
        assert_timed_out(late, SHORT_S)
        assert [handle.wait(LONG_S) for handle in waiting] == list(range(1, 21))

    def test_that_are_neighbours_are_left_alone(self, gate: Gate) -> None:
        neighbour = hold.enqueue(gate.port, "unharmed")
        visitor = gate.next_visitor()
        assert_timed_out(limited(spin_for_ever, SHORT_S, "default").enqueue(), SHORT_S)
        visitor.let_go()
        assert neighbour.wait(LONG_S) == "unharmed"
        check_slots("default", gate, 2)

    @pytest.mark.usefixtures("database")
    def test_that_are_stopped_close_their_connections(self, gate: Gate) -> None:
        handle = limited(use_database_for_ever, 0.3, "default").enqueue(gate.port)
        closing = gate.next_visitor()
        assert closing.name == "closed"
        assert_timed_out(handle, 0.3)
        closing.let_go()

    def test_coroutines_are_cancelled_all_the_same(self, gate: Gate) -> None:
        handle = limited(async_hold_at_the_end, 0.3, "default").enqueue(gate.port)
        assert [gate.next_visitor().name, gate.next_visitor().name] == [
            "inside",
            "finally",
        ]
        gate.open()
        assert_timed_out(handle, 0.3)

    @pytest.mark.usefixtures("hasty_switches", "no_others_garbage")
    def test_about_as_fast_as_they_must_be_lose_nothing_else(self, gate: Gate) -> None:
        """Thousands of times the exception comes as the function ends."""
        threads = set(our_threads())
        limits = [random.uniform(1e-6, 0.002) for _ in range(50)]
        values = [work.func(amount) for amount in range(200)]
        handles: list[tuple[LocalTaskResult[int], int]] = []
        for _ in range(500):
            amount = random.randrange(200)
            late = limited(work, random.choice(limits), "default")
            handles.append((late.enqueue(amount), values[amount]))
        others = [add.enqueue(number, 1) for number in range(200)]
        for handle, value in handles:
            assert_on_time_or_timed_out(handle, value)
        assert [handle.wait(LONG_S) for handle in others] == list(range(1, 201))
        statuses = {handle.status for handle, _ in handles}
        assert statuses == {SUCCESSFUL, FAILED}
        check_slots("default", gate, 2)
        shutdown_executor("default")
        for thread in set(our_threads()) - threads:
            thread.join(LONG_S)
        assert set(our_threads()) - threads == set()

    @pytest.mark.usefixtures("hasty_switches", "no_others_garbage")
    def test_that_ask_the_library_for_something_leave_it_whole(
        self, gate: Gate
    ) -> None:
        """The exception comes while the task enqueues, waits, cancels, saves…"""
        task = use_the_library
        handles = [
            limited(task, random.uniform(0.001, 0.02), "default").enqueue("default", 50)
            for _ in range(60)
        ]
        for handle in handles:
            assert_on_time_or_timed_out(handle, 50)
        check_slots("default", gate, 2)
        shutdown_executor("default")


def assert_on_time_or_timed_out(handle: LocalTaskResult[Any], value: object) -> None:
    handle.join(LONG_S)
    if handle.status is SUCCESSFUL:
        assert handle.return_value == value
        assert handle.errors == []
    else:
        assert error_names(handle) == ["TaskTimeout"], handle.errors


ENDLESS = [
    pytest.param(await_for_ever, "default", id="coroutine_on_threads"),
    pytest.param(spin_for_ever, "default", id="function_on_threads"),
    pytest.param(await_for_ever, "cpu", id="coroutine_in_processes"),
    pytest.param(spin_for_ever, "cpu", id="function_in_processes"),
]


@pytest.mark.usefixtures("raising")
class TestEverywhere:
    @pytest.mark.parametrize("task, where", ENDLESS)
    def test_a_microsecond_is_a_time_limit(
        self, task: LocalTask[[], None], where: str, gate: Gate
    ) -> None:
        handles = [limited(task, 1e-6, where).enqueue() for _ in range(4)]
        for handle in handles:
            assert_timed_out(handle, 1e-6)
        check_slots(where, gate, 2)

    @pytest.mark.parametrize("task, where", ENDLESS)
    def test_each_attempt_has_the_whole_time(
        self, task: LocalTask[[], None], where: str
    ) -> None:
        twice: LocalTask[[], None] = LocalTask(
            priority=0,
            func=task.func,
            backend=where,
            queue_name="default",
            run_after=None,
            timeout=SHORT_S,
            max_attempts=2,
            backoff=only(TaskTimeout, then=fixed(0)),
        )
        handle = twice.enqueue()
        handle.join(LONG_S)
        assert error_names(handle) == ["TaskTimeout"] * 2
        assert handle.attempts == 2
        assert handle.started_at is not None
        assert handle.last_attempted_at is not None
        assert handle.finished_at is not None
        first = handle.last_attempted_at - handle.started_at
        second = handle.finished_at - handle.last_attempted_at
        assert min(first, second).total_seconds() > SHORT_S * 0.9

    @pytest.mark.parametrize("is_async", [False, True], ids=["function", "coroutine"])
    def test_an_error_in_time_is_that_error(self, alias: str, is_async: bool) -> None:
        if alias == "loop" and not is_async:
            return  # refused there
        failing: LocalTask[..., None] = async_fail if is_async else fail
        handle = limited(failing, LONG_S, alias).enqueue("ValueError")
        handle.join(LONG_S)
        assert error_names(handle) == ["ValueError"]


def test_the_tasks_own_limit_counts(configure: Configure) -> None:
    configure("cpu", TIMEOUT=1e-6)
    assert limited(add, LONG_S, "cpu").enqueue(1, 2).wait(LONG_S) == 3
    configure("cpu", TIMEOUT=NEVER_S)
    assert_timed_out(limited(spin_for_ever, SHORT_S, "cpu").enqueue(), SHORT_S)


@pytest.mark.parametrize("task, where", ENDLESS)
def test_the_options_limit_counts_for_the_others(
    configure: Configure, task: LocalTask[[], None], where: str
) -> None:
    more = {"TIMEOUT_ON_THREADS": "raise"} if where == "default" else {}
    configure(where, TIMEOUT=SHORT_S, **more)
    assert_timed_out(task.using(backend=where).enqueue(), SHORT_S)


def test_shutting_down_ends_the_timer(gate: Gate) -> None:
    handle = limited(hold, NEVER_S, "cpu").enqueue(gate.port, "in time")
    visitor = gate.next_visitor()
    timers = [thread for thread in our_threads() if thread.name.endswith("-timer")]
    assert len(timers) == 1
    visitor.let_go()
    assert handle.wait(LONG_S) == "in time"
    shutdown_executor("cpu")
    timers[0].join(LONG_S)
    assert not timers[0].is_alive()


def test_the_timer_ends_with_what_has_a_limit(alias: str) -> None:
    assert limited(async_add, NEVER_S, alias).enqueue(1, 2).wait(LONG_S) == 3
    for thread in our_threads():
        if thread.name.endswith("-timer"):
            thread.join(5)
            assert not thread.is_alive()


class TestDefinitions:
    @pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "3"], ids=repr)
    def test_what_is_no_limit_is_refused(self, alias: str, value: Any) -> None:
        with pytest.raises(InvalidTask, match="a number of seconds above 0, got"):
            task(timeout=value, backend=alias)(async_add.func)

    def test_a_limit_cannot_be_set_for_one_call(self) -> None:
        use: Any = async_add.using
        with pytest.raises(TypeError, match="timeout"):
            use(timeout=3)

    def test_a_function_on_threads_can_have_none(self) -> None:
        with pytest.raises(InvalidTask) as caught:
            task(timeout=3)(add.func)
        for named in (
            "timeout of 3 s",
            add.module_path,
            "ThreadPoolBackend cannot stop a function",
            "ProcessPoolBackend",
            "async def",
            "OPTIONS['TIMEOUT_ON_THREADS'] = 'raise'",
        ):
            assert named in str(caught.value)
        with pytest.raises(InvalidTask):
            limited(add, 3, "cpu").using(backend="default")

    @pytest.mark.parametrize("define", [task, django_task], ids=["ours", "djangos"])
    def test_nor_one_from_the_options(
        self, configure: Configure, define: Callable[..., Any]
    ) -> None:
        configure("default", TIMEOUT=3)
        with pytest.raises(InvalidTask, match=r"TASKS\['default'\].*TIMEOUT.* of 3 s"):
            define(add.func)
        with pytest.raises(InvalidTask, match="cannot be kept"):
            add.enqueue(1, 2)
        assert define(async_add.func).enqueue(1, 2).wait(LONG_S) == 3

    @pytest.mark.parametrize("raises", [False, True], ids=["", "raise"])
    def test_ones_own_executor_has_to_say_that_it_stops_them(
        self, configure: Configure, raises: bool
    ) -> None:
        more = {"TIMEOUT_ON_THREADS": "raise"} if raises else {}
        configure("default", EXECUTOR=Unstoppable, **more)
        for function in (add.func, async_add.func):
            with pytest.raises(InvalidTask, match="cannot stop"):
                task(timeout=3)(function)
        configure("default", EXECUTOR=StopsCoroutines, **more)
        assert task(timeout=3)(async_add.func).timeout == 3
        with pytest.raises(InvalidTask, match="cannot stop a function"):
            task(timeout=3)(add.func)
        configure("default", EXECUTOR=f"{__name__}.StopsCoroutines", **more)
        with pytest.raises(InvalidTask, match="cannot stop a function"):
            task(timeout=3)(add.func)
        configure("default", EXECUTOR="django_tasks_local.executors.threads.Absent")
        with pytest.raises(InvalidTask, match="cannot stop"):
            task(timeout=3)(add.func)

    def test_ones_own_executor_in_place_of_processes_too(
        self, configure: Configure
    ) -> None:
        configure("cpu", EXECUTOR=Unstoppable)
        with pytest.raises(InvalidTask, match="cannot stop a function"):
            task(timeout=3, backend="cpu")(add.func)

    def test_a_kind_of_thread_executor_raises_where_it_may(
        self, configure: Configure
    ) -> None:
        configure("default", EXECUTOR=OwnThreads, TIMEOUT_ON_THREADS="raise")
        assert_timed_out(limited(spin_for_ever, SHORT_S, "default").enqueue(), SHORT_S)


class Unstoppable:
    """An executor of a project's own, as far as definitions look at it."""


class StopsCoroutines:
    can_stop_coroutines = True


class OwnThreads(ThreadExecutor):
    pass


class TestOptions:
    @pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "3"], ids=repr)
    def test_a_limit_is_a_number_of_seconds(
        self, configure: Configure, alias: str, value: object
    ) -> None:
        configure(alias, TIMEOUT=value)
        (message,) = task_backends[alias].check()
        assert message.msg == (
            f"TASKS['{alias}']['OPTIONS']['TIMEOUT'] must be a number of seconds "
            f"above 0, or None, got {value!r}."
        )

    def test_none_is_no_limit(self, configure: Configure, alias: str) -> None:
        configure(alias, TIMEOUT=None)
        assert task_backends[alias].check() == []
        assert add.using(backend=alias).enqueue(1, 2).wait(LONG_S) == 3

    @pytest.mark.parametrize("value", ["Raise", True, 1, []], ids=repr)
    def test_threads_raise_or_do_not(self, configure: Configure, value: object) -> None:
        configure("default", TIMEOUT_ON_THREADS=value)
        (message,) = task_backends["default"].check()
        assert "['TIMEOUT_ON_THREADS'] must be 'raise' or None, got" in message.msg
        with pytest.raises(ImproperlyConfigured, match="TIMEOUT_ON_THREADS"):
            add.enqueue(1, 2)
        with pytest.raises(InvalidTask, match="cannot stop a function"):
            task(timeout=3)(add.func)

    def test_processes_have_no_such_option(self, configure: Configure) -> None:
        configure("cpu", TIMEOUT_ON_THREADS="raise")
        (message,) = task_backends["cpu"].check()
        assert "TIMEOUT_ON_THREADS" in message.msg


def test_a_limit_may_be_longer_than_anybody_can_wait(alias: str) -> None:
    assert limited(async_add, 1e300, alias).enqueue(1, 2).wait(LONG_S) == 3
