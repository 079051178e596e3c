"""A task can harm itself at most."""

import os
import signal
from typing import Any

import pytest
from django.tasks import TaskResultStatus

from django_tasks_local import LocalTaskResult, WorkerLost

from .conftest import Configure
from .gates import LONG_S, Gate
from .leftovers import wait_until_gone
from .tasks import (
    ERRORS,
    add,
    async_fail,
    colour,
    echo,
    exit_process,
    fail,
    is_in_transaction,
    leave_thread_running,
    leave_transaction_open,
    own_pid,
    see_colour,
    see_colour_async,
    store_session,
)

FAILED = TaskResultStatus.FAILED


def assert_lost(handle: LocalTaskResult[Any], reason: str) -> None:
    handle.join(LONG_S)
    assert handle.status is FAILED
    (error,) = handle.errors
    assert error.exception_class is WorkerLost
    assert reason in error.traceback, error.traceback
    assert handle.attempts == 1


class TestExceptions:
    @pytest.mark.parametrize("kind", ERRORS)
    def test_fail_only_the_task_that_raises_them(
        self, alias: str, configure: Configure, kind: str
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        handles: list[LocalTaskResult[Any]] = [
            fail.using(backend=alias).enqueue(kind),
            async_fail.using(backend=alias).enqueue(kind),
        ]
        good = add.using(backend=alias).enqueue(1, 2)
        for handle in handles:
            handle.join(LONG_S)
            assert handle.status is FAILED
            (error,) = handle.errors
            if kind not in ("StopIteration", "CancelledError") or handle is handles[0]:
                expected = type(ERRORS[kind]())
                assert error.exception_class is expected
                assert expected.__qualname__ in error.traceback
        assert good.wait(LONG_S) == 3
        processes = {each.worker_ids[0].rsplit(":", 1)[0] for each in (*handles, good)}
        assert len(processes) == 1

    def test_of_one_task_never_reach_another(self, alias: str) -> None:
        handles: list[LocalTaskResult[Any]] = []
        for number in range(20):
            handles.append(fail.using(backend=alias).enqueue())
            handles.append(echo.using(backend=alias).enqueue(number))
        for number, handle in enumerate(handles):
            handle.join(LONG_S)
            if number % 2:
                assert handle.return_value == number // 2
            else:
                assert handle.status is FAILED


class TestDeadWorkers:
    @pytest.mark.parametrize("code", [0, 3, 255])
    def test_are_told_by_their_exit_code(self, code: int) -> None:
        lost = exit_process.using(backend="cpu").enqueue(code)
        assert_lost(lost, f"exited with code {code}")
        assert lost.worker_ids[0].split(":")[1] in lost.errors[0].traceback
        assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3

    def test_that_were_idle_harm_nobody(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1)
        for _ in range(3):
            pid = own_pid.using(backend="cpu").enqueue().wait(LONG_S)
            os.kill(pid, signal.SIGKILL)
            assert wait_until_gone(pid)
            after = own_pid.using(backend="cpu").enqueue()
            assert after.wait(LONG_S) != pid
            assert after.errors == []

    def test_in_great_number_are_all_replaced(self) -> None:
        lost = [exit_process.using(backend="cpu").enqueue(3) for _ in range(10)]
        good = [add.using(backend="cpu").enqueue(n, 1) for n in range(10)]
        for handle in lost:
            assert_lost(handle, "exited with code 3")
        assert [handle.wait(LONG_S) for handle in good] == list(range(1, 11))


class TestLargeValues:
    def test_of_five_megabytes_go_both_ways(self, alias: str) -> None:
        text = "äx" * 2_500_000
        assert echo.using(backend=alias).enqueue(text).wait(LONG_S) == text
        rows = [{"id": n, "name": f"row {n}"} for n in range(100_000)]
        assert echo.using(backend=alias).enqueue(rows).wait(LONG_S) == rows

    def test_of_many_tasks_do_not_mix(self) -> None:
        texts = [str(n) * 1_000_000 for n in range(8)]
        handles = [echo.using(backend="cpu").enqueue(text) for text in texts]
        assert [handle.wait(LONG_S) for handle in handles] == texts


def test_a_thread_that_goes_on_harms_no_later_task(
    configure: Configure, gate: Gate
) -> None:
    configure("cpu", MAX_WORKERS=1)
    leave_thread_running.using(backend="cpu").enqueue(gate.port).wait(LONG_S)
    visitor = gate.next_visitor()
    assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3
    visitor.let_go()


@pytest.mark.usefixtures("database")
def test_an_open_transaction_is_not_the_next_tasks(
    alias: str, configure: Configure
) -> None:
    configure(alias, MAX_WORKERS=1)
    for key in ("one", "two"):
        leave_transaction_open.using(backend=alias).enqueue(key).wait(LONG_S)
        assert is_in_transaction.using(backend=alias).enqueue().wait(LONG_S) is False
    assert store_session.using(backend=alias).enqueue("three").wait(LONG_S) == 1


class TestContextVariables:
    @pytest.mark.parametrize(
        "task", [see_colour, see_colour_async], ids=["def", "async"]
    )
    def test_of_the_enqueuer_are_seen_and_changes_do_not_leak(self, task: Any) -> None:
        token = colour.set("red")
        try:
            handles = [task.enqueue() for _ in range(5)]
            colour.set("blue")
            handles.append(task.enqueue())
            assert [handle.wait(LONG_S) for handle in handles] == ["red"] * 5 + ["blue"]
            assert colour.get() == "blue"
        finally:
            colour.reset(token)
        assert task.enqueue().wait(LONG_S) == "none"

    @pytest.mark.anyio
    async def test_of_an_enqueuing_coroutine_are_seen(self) -> None:
        colour.set("green")
        assert await (await see_colour.aenqueue()) == "green"
        assert await (await see_colour_async.aenqueue()) == "green"

    def test_of_one_call_are_not_seen_by_the_next_in_a_process(
        self, configure: Configure
    ) -> None:
        configure("cpu", MAX_WORKERS=1)
        for _ in range(2):
            for task in (see_colour, see_colour_async):
                assert task.using(backend="cpu").enqueue().wait(LONG_S) == "none"
