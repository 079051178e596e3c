"""Faults that reviews have found between the parts, so that they do not come back."""

import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, override

import pytest
from django.tasks import TaskResultStatus
from django.tasks.signals import task_enqueued

from django_tasks_local import LocalTask, LocalTaskResult, WorkerLost, task
from django_tasks_local.backoff import fixed
from django_tasks_local.executors.threads import ThreadExecutor
from django_tasks_local.options import LocalOptions
from django_tasks_local.records import Interruption, Record
from django_tasks_local.state import get_executor_state, shutdown_executor
from django_tasks_local.stores.memory import MemoryStore

from .conftest import Configure
from .gates import LONG_S, Gate, apass_gate
from .tasks import add, fail, hold

READY, FAILED = TaskResultStatus.READY, TaskResultStatus.FAILED


def names_of(handle: LocalTaskResult[Any]) -> list[str]:
    return [error.exception_class.__name__ for error in handle.errors]


@contextmanager
def received(receiver: Any) -> Generator[None]:
    task_enqueued.connect(receiver)
    try:
        yield
    finally:
        task_enqueued.disconnect(receiver)


def test_deferred_task_that_meets_a_shutdown_fails_with_it(alias: str) -> None:
    """Stored before the shutdown, and in the queue only after it."""
    enders: list[threading.Thread] = []

    def shut_down(**_: object) -> None:
        state = get_executor_state(alias)
        enders.append(threading.Thread(target=shutdown_executor, args=(alias,)))
        enders[0].start()
        while not state.is_retired:
            pass

    later = datetime.now(UTC) + timedelta(hours=1)
    with received(shut_down):
        handle = add.using(backend=alias, run_after=later).enqueue(1, 2)
    handle.join(LONG_S)
    assert names_of(handle) == ["WorkerLost"]
    enders[0].join(LONG_S)
    assert not enders[0].is_alive()


def test_shutdown_waits_for_nothing_once_the_last_task_waits_for_its_time(
    alias: str, gate: Gate
) -> None:
    fails_later: LocalTask[..., Any] = task(
        backend=alias, max_attempts=2, backoff=fixed(3600)
    )(hold_and_fail)
    handle = fails_later.enqueue(gate.port)
    visitor = gate.next_visitor()
    state = get_executor_state(alias)
    waiting = threading.Event()
    idle: list[bool] = []

    def wait() -> None:
        waiting.set()
        idle.append(state.wait_until_idle(3 * LONG_S))

    waiter = threading.Thread(target=wait)
    waiter.start()
    waiting.wait(LONG_S)
    visitor.let_go()
    waiter.join(LONG_S)  # long before its patience is at its end
    assert idle == [True]
    assert handle.cancel()


def hold_and_fail(port: int) -> None:
    hold.func(port)
    raise ValueError


class OddSeconds(float):
    """Cannot be pickled, and so cannot leave a worker process."""

    @override
    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


@pytest.mark.parametrize("answer", [10**400, OddSeconds(0)], ids=["huge", "odd"])
def test_backoff_may_answer_odd_numbers(alias: str, answer: float) -> None:
    tried: LocalTask[..., Any] = task(
        backend=alias,
        max_attempts=2,
        backoff=answer_huge if answer > 1 else answer_odd,
    )(fail.func)
    handle = tried.enqueue()
    handle.join(LONG_S)
    expected = ["ValueError", "TypeError"] if answer > 1 else ["ValueError"] * 2
    assert names_of(handle) == expected


def answer_huge(exception: BaseException, result: LocalTaskResult[Any]) -> float:
    return 10**400


def answer_odd(exception: BaseException, result: LocalTaskResult[Any]) -> float:
    return OddSeconds(0)


class FailingOnce(MemoryStore):
    """Its first change of a record fails."""

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        super().__init__(options, alias=alias)
        self._has_failed = False

    @override
    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        if not self._has_failed:
            self._has_failed = True
            raise OSError("database is locked")
        return super().save(records)


def test_store_that_failed_once_knows_the_end(alias: str, configure: Configure) -> None:
    configure(alias, STORE=FailingOnce)
    handle = add.using(backend=alias).enqueue(1, 2)
    assert handle.wait(LONG_S) == 3
    found = add.using(backend=alias).get_result(handle.id)
    assert found.return_value == 3
    assert not found.cancel()


class Unstoppable(ThreadExecutor):
    """Fails where it is asked to stop a call."""

    @override
    def interrupt(
        self, result_id: str, /, *, attempt: int, reason: Interruption
    ) -> bool:
        raise OSError("no")


def test_executor_that_cannot_stop_a_call_costs_nobody_a_slot(
    configure: Configure, gate: Gate
) -> None:
    configure("default", EXECUTOR=Unstoppable, MAX_WORKERS=2)
    limited: LocalTask[..., Any] = task(timeout=0.01)(async_hold)
    running = limited.enqueue(gate.port)
    visitor = gate.next_visitor()
    soon = datetime.now(UTC) + timedelta(seconds=0.02)
    due = [add.using(run_after=soon).enqueue(number, 1) for number in range(5)]
    assert [handle.wait(LONG_S) for handle in due] == [1, 2, 3, 4, 5]
    assert running.cancel()  # it is merely asked
    visitor.let_go()
    running.join(LONG_S)
    assert running.attempts == 1


async def async_hold(port: int) -> None:
    await apass_gate(port, "")


def test_backoff_in_the_parent_is_part_of_its_task(configure: Configure) -> None:
    """One that waits for another task lends its slot, as the task would have."""
    configure("cpu", MAX_WORKERS=1)
    dies: LocalTask[..., Any] = task(
        backend="cpu", max_attempts=2, backoff=wait_for_another
    )(end_process)
    handle = dies.enqueue()
    handle.join(LONG_S)
    assert names_of(handle) == ["WorkerLost"] * 2


def end_process() -> None:
    os._exit(3)


def wait_for_another(exception: BaseException, result: LocalTaskResult[Any]) -> float:
    assert isinstance(exception, WorkerLost)
    assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3
    return 0
