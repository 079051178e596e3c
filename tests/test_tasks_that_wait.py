"""Tasks that enqueue, look up and wait for tasks, wherever each of them runs."""

import itertools
import os
import signal
from typing import Any

import pytest
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist

from .awaiting_tasks import gather_standing, let_all_go
from .conftest import Configure
from .gates import LONG_S, Gate
from .tasks import (
    add,
    add_by_task,
    add_by_task_async,
    async_add,
    cancel_waiters,
    enqueue_and_wait,
    enqueue_hold,
    gather_tasks,
    hold,
    look_up,
    look_up_async,
    look_up_unknown,
    nest,
    nest_async,
    wait_for_failing,
    wait_in_threads,
    wait_too_short,
)

ALIASES = ["default", "cpu", "loop"]


@pytest.fixture(params=ALIASES, ids=["for_threads", "for_processes", "for_loop"])
def inner_alias(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_task_waits_for_a_task(alias: str, inner_alias: str) -> None:
    for task in (add_by_task, add_by_task_async):
        assert task.using(backend=alias).enqueue(inner_alias, 1, 2).wait(LONG_S) == 3


@pytest.mark.parametrize(
    "aliases", [*([alias] for alias in ALIASES), ALIASES], ids="-".join
)
@pytest.mark.parametrize("task", [nest, nest_async], ids=["sync", "async"])
def test_nesting_deeper_than_max_workers_does_not_lock_up(
    configure: Configure, aliases: list[str], task: Any
) -> None:
    configure(*ALIASES, MAX_WORKERS=1)
    outer = task.using(backend=aliases[0]).enqueue(aliases, 5)
    assert outer.wait(LONG_S) == 5


def test_nothing_new_starts_until_running_is_within_max_workers(
    alias: str, configure: Configure, gate: Gate, other_gate: Gate
) -> None:
    configure(alias, MAX_WORKERS=1)
    outer = enqueue_and_wait.using(backend=alias).enqueue(
        alias, gate.port, other_gate.port
    )
    inner = gate.next_visitor()  # on the slot that the outer one lends
    late = [hold.using(backend=alias).enqueue(gate.port, n) for n in range(2)]
    inner.let_go()
    woken = other_gate.next_visitor()  # at once, and it has its slot again
    assert woken.name == "woken"
    for handle in late:
        handle.refresh()
        assert handle.status is TaskResultStatus.READY
    woken.let_go()
    assert gate.next_visitor().name == "0"
    gate.open()
    assert outer.wait(LONG_S) == "inner"
    assert [handle.wait(LONG_S) for handle in late] == [0, 1]


def test_results_of_a_tasks_tasks_are_found_where_it_was_enqueued(
    alias: str, inner_alias: str, gate: Gate
) -> None:
    outer = enqueue_hold.using(backend=alias).enqueue(inner_alias, gate.port, "inner")
    visitor = gate.next_visitor()
    inner = hold.using(backend=inner_alias).get_result(outer.wait(LONG_S))
    assert inner.status is TaskResultStatus.RUNNING
    visitor.let_go()
    assert inner.wait(LONG_S) == "inner"


def test_a_task_looks_results_up(alias: str, inner_alias: str) -> None:
    known = add.using(backend=inner_alias).enqueue(1, 2)
    known.wait(LONG_S)
    for task in (look_up, look_up_async):
        found = task.using(backend=alias).enqueue(inner_alias, known.id)
        assert found.wait(LONG_S) == ["SUCCESSFUL", [1, 2], 3]


def test_a_task_is_told_of_unknown_results(alias: str, inner_alias: str) -> None:
    with pytest.raises(TaskResultDoesNotExist) as caught:
        task_backends[inner_alias].get_result("unknown")
    told = look_up_unknown.using(backend=alias).enqueue(inner_alias).wait(LONG_S)
    assert told == str(caught.value)


def test_a_task_is_told_of_failures(alias: str, inner_alias: str) -> None:
    told = wait_for_failing.using(backend=alias).enqueue(inner_alias).wait(LONG_S)
    assert told[0] == "builtins.ValueError"
    assert told[1].endswith("ValueError: wrong value\n")


def test_timeouts_in_a_task_leave_what_it_waits_for_alone(
    alias: str, inner_alias: str, gate: Gate
) -> None:
    outer = wait_too_short.using(backend=alias).enqueue(inner_alias, gate.port)
    both_run = {v.name: v for v in (gate.next_visitor(), gate.next_visitor())}
    both_run["enqueued"].let_go()
    assert gate.next_visitor().name == "timed out"
    gate.open()
    *timeouts, status, value = outer.wait(LONG_S)
    assert len(timeouts) == 3
    assert all("after 0.01 seconds" in timeout for timeout in timeouts)
    assert [status, value] == ["RUNNING", "inner"]


def test_cancelled_awaits_in_a_task_leave_what_they_await_alone(
    alias: str, inner_alias: str, gate: Gate
) -> None:
    outer = cancel_waiters.using(backend=alias).enqueue(inner_alias, gate.port)
    both_run = {v.name: v for v in (gate.next_visitor(), gate.next_visitor())}
    both_run["enqueued"].let_go()
    assert gate.next_visitor().name == "cancelled"
    gate.open()
    expected = ["CancelledError"] * 3 + ["TimeoutError"] * 2 + ["RUNNING", "inner"]
    assert outer.wait(LONG_S) == expected


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_process_that_has_stopped_does_not_hold_up_the_loop_of_what_it_awaits(
    configure: Configure, gate: Gate, is_killed: bool
) -> None:
    count = 1000  # more than its pipe holds of what it is told
    configure("loop", MAX_WORKERS=2 * count)
    outer = gather_standing.using(backend="cpu").enqueue(count, gate.port)
    visitor = gate.next_visitor()
    os.kill(int(visitor.name), signal.SIGSTOP)
    try:
        assert let_all_go.enqueue().wait(LONG_S) == count
        assert async_add.using(backend="loop").enqueue(1, 2).wait(LONG_S) == 3
        if is_killed:
            outer.cancel()
    finally:
        os.kill(int(visitor.name), signal.SIGCONT)
    visitor.let_go()
    if is_killed:
        outer.join(LONG_S)
        assert outer.status is TaskResultStatus.FAILED
    else:
        assert outer.wait(LONG_S) == count


def test_a_task_gathers_tasks(alias: str, inner_alias: str) -> None:
    handle = gather_tasks.using(backend=alias).enqueue(inner_alias, 20)
    assert handle.wait(LONG_S) == list(range(1, 21))


def test_threads_of_a_task_wait_at_the_same_time(alias: str, inner_alias: str) -> None:
    handle = wait_in_threads.using(backend=alias).enqueue(inner_alias, 8)
    assert handle.wait(LONG_S) == list(range(1, 9))


def test_a_task_that_has_waited_takes_the_next_calls_too(configure: Configure) -> None:
    configure("cpu", MAX_WORKERS=1)
    for a, inner in itertools.product(range(3), ALIASES):
        assert (
            add_by_task.using(backend="cpu").enqueue(inner, a, 1).wait(LONG_S) == a + 1
        )


def test_a_tasks_wrong_arguments_are_refused_where_it_runs(alias: str) -> None:
    handle = add_by_task.using(backend=alias).enqueue("no such alias", 1, 2)
    handle.join(LONG_S)
    assert "The connection 'no such alias' doesn't exist." in handle.errors[0].traceback


def test_a_full_queue_refuses_a_tasks_task_too(
    alias: str, configure: Configure, gate: Gate
) -> None:
    configure("cpu", "default", MAX_WORKERS=1, MAX_PENDING=1)
    other = "cpu" if alias == "default" else "default"
    running = hold.using(backend=other).enqueue(gate.port)
    gate.next_visitor()
    waiting = hold.using(backend=other).enqueue(gate.port)
    handle = add_by_task.using(backend=alias).enqueue(other, 1, 2)
    handle.join(LONG_S)
    assert (
        handle.errors[0].exception_class_path == "django_tasks_local.errors.QueueFull"
    )
    gate.open()
    running.wait(LONG_S)
    waiting.wait(LONG_S)
