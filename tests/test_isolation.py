"""A task can harm itself at most."""

import os
import signal
from pathlib import Path
from typing import Any, override

import pytest
from django.tasks import TaskResultStatus
from django.test import override_settings

from django_tasks_local import LocalTaskResult, WorkerLost

from .conftest import Configure
from .crashing_import import never_runs
from .gates import LONG_S, Gate
from .leftovers import wait_until_gone
from .tasks import (
    ERRORS,
    add,
    async_fail,
    change_directory,
    close_all_files,
    close_standard_files,
    colour,
    echo,
    exit_process,
    fail,
    fail_with_long_text,
    fork_and_exit_by_exception,
    fork_and_return,
    hold,
    is_in_transaction,
    kill_self,
    leave_thread_running,
    leave_transaction_open,
    own_pid,
    recurse_for_ever,
    see_colour,
    see_colour_async,
    store_session,
    write_to_stdout,
)

FAILED = TaskResultStatus.FAILED


class EndsWhoUnpicklesIt:
    @override
    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (8,)


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
        assert good.worker_ids == handles[0].worker_ids  # by the same process

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

    def test_endless_recursion_is_a_failure(self, alias: str) -> None:
        handle = recurse_for_ever.using(backend=alias).enqueue()
        handle.join(LONG_S)
        assert handle.errors[0].exception_class is RecursionError

    def test_long_tracebacks_are_shortened(self, alias: str) -> None:
        handle = fail_with_long_text.using(backend=alias).enqueue(1_000_000)
        handle.join(LONG_S)
        text = handle.errors[0].traceback
        assert len(text) < 101_000
        assert text.startswith("Traceback (most recent call last):\n")
        assert "characters left out" in text
        assert text.endswith("line 999999\n")


class TestDeadWorkers:
    @pytest.mark.parametrize(
        "number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda n: n.name
    )
    def test_fail_only_the_task_they_ran(
        self, gate: Gate, number: signal.Signals
    ) -> None:
        neighbour = hold.using(backend="cpu").enqueue(gate.port, "unharmed")
        visitor = gate.next_visitor()
        lost = kill_self.using(backend="cpu").enqueue(number)
        after = own_pid.using(backend="cpu").enqueue()
        assert_lost(lost, f"was killed by {number.name}")
        assert "tests.tasks.kill_self" in lost.errors[0].traceback
        pid = after.wait(LONG_S)  # in its successor
        assert lost.worker_ids != after.worker_ids
        assert after.worker_ids[0].split(":")[1:] == [str(pid), "cpu-1"]
        visitor.let_go()
        assert neighbour.wait(LONG_S) == "unharmed"

    @pytest.mark.parametrize("code", [0, 3, 255])
    def test_are_told_by_their_exit_code(self, code: int) -> None:
        lost = exit_process.using(backend="cpu").enqueue(code)
        assert_lost(lost, f"exited with code {code}")
        assert lost.worker_ids[0].split(":")[1] in lost.errors[0].traceback
        assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3

    def test_while_they_import_the_tasks_module(self) -> None:
        lost = never_runs.using(backend="cpu").enqueue()
        assert_lost(lost, "exited with code 9")
        assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3

    def test_while_they_unpickle_the_project(self) -> None:
        with override_settings(ANSWER=EndsWhoUnpicklesIt()):
            lost = add.using(backend="cpu").enqueue(1, 2)
            assert_lost(lost, "exited with code 8 while it started")
        assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3

    def test_that_lose_their_pipe(self) -> None:
        lost = close_all_files.using(backend="cpu").enqueue()
        lost.join(LONG_S)
        assert lost.errors[0].exception_class is WorkerLost
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


class TestMisbehaviour:
    """In worker processes, which are there for it."""

    @pytest.fixture(autouse=True)
    def _one_worker(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1)

    def assert_works_on(self) -> None:
        assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3

    def test_closed_standard_files(self) -> None:
        close_standard_files.using(backend="cpu").enqueue().wait(LONG_S)
        self.assert_works_on()

    def test_a_megabyte_on_stdout(self, capfd: pytest.CaptureFixture[str]) -> None:
        write_to_stdout.using(backend="cpu").enqueue(1_000_000).wait(LONG_S)
        self.assert_works_on()

    def test_another_directory(self, tmp_path: Path) -> None:
        change = change_directory.using(backend="cpu")
        assert change.enqueue(str(tmp_path)).wait(LONG_S) == str(tmp_path)
        self.assert_works_on()

    def test_a_thread_that_goes_on(self, gate: Gate) -> None:
        leave_thread_running.using(backend="cpu").enqueue(gate.port).wait(LONG_S)
        visitor = gate.next_visitor()
        self.assert_works_on()
        visitor.let_go()

    def test_a_fork_that_comes_back(self) -> None:
        fork = fork_and_return.using(backend="cpu").enqueue()
        assert fork.wait(LONG_S) == "process"
        self.assert_works_on()

    def test_a_fork_that_raises(self) -> None:
        fork = fork_and_exit_by_exception.using(backend="cpu").enqueue()
        assert fork.wait(LONG_S) == "process"
        self.assert_works_on()


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
    @pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
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
