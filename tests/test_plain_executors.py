"""Any executor of `concurrent.futures` runs tasks: loky's, the standard library's."""

import asyncio
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import ClassVar, override

import pytest
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask
from django.test import override_settings

from django_tasks_local import TaskFailed, task
from django_tasks_local.errors import WorkerLost, path_of
from django_tasks_local.executors.plain import ExecutorAdapter, PlainExecutor
from django_tasks_local.identity import this_process
from django_tasks_local.options import LocalOptions
from django_tasks_local.state import shutdown_executor
from django_tasks_local.testing import ExecutorContract, RecordingHost
from django_tasks_local.testing import calls as suite_calls

from . import plain_executors
from .conftest import Configure, RunScript
from .gates import LONG_S, Gate
from .plain_executors import Kept, lent, pool_of_loky, pool_of_processes, reused
from .retry_tasks import fail_until
from .tasks import (
    async_add,
    colour,
    count_sessions,
    enqueue_see_colour,
    fail,
    hold,
    nest,
    note_and_report,
    own_pid,
    see_colour,
    store_session,
)

WORKERS = 3


class TestThreads(ExecutorContract):
    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> PlainExecutor:
        return plain_executors.threads(options, host=host)


class ProcessesContract(ExecutorContract):
    """What an executor in other processes keeps of it that knows nothing of tasks.

    All tests use one pool, but for those that end its processes: to have each of these
    import the project takes longer than most tests.
    """

    has_own_processes = True
    pool: ClassVar[Executor]

    @classmethod
    def make_pool(cls, workers: int) -> Executor:
        raise NotImplementedError

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _open_pool(cls) -> Iterator[None]:
        with cls.make_pool(WORKERS) as cls.pool:
            contract = cls()
            with (
                contract._executor(max_workers=WORKERS) as (executor, host),
                contract._gate() as gate,  # so that all of them have started
            ):
                for slot in range(WORKERS):
                    executor.submit(
                        host.make_call(suite_calls.hold, [gate.port], slot=slot)
                    )
                gate.wait_for_arrivals(WORKERS)
            yield

    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> PlainExecutor:
        return ExecutorAdapter(lambda _: Kept(self.pool))(options, host=host)

    @override
    def test_metadata_is_seen_while_the_task_runs_and_at_its_end(self) -> None:
        """It is seen at its end."""
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(
                suite_calls.tell,
                [gate.port],
                takes_context=True,
                metadata={"given": "größe 🧵"},
            )
            future = executor.submit(call)
            gate.wait_for_arrivals(1)
            gate.open()
            outcome = self._result(call, future)
            assert self._metadata_of(outcome) == {
                "given": "größe 🧵",
                "told": ["größe", 1.5, None],
                "at the end": "🧵",
            }
            assert host.saved == []

    @override
    def test_more_slots_than_max_workers_run_at_once(self) -> None:
        """They run in turn where there are no more processes."""
        with self._executor() as (executor, host):
            made = [
                host.make_call(suite_calls.echo, [slot], slot=slot)
                for slot in range(2 * WORKERS)
            ]
            futures = [executor.submit(call) for call in made]
            for slot, (call, future) in enumerate(zip(made, futures, strict=True)):
                assert self._value_of(self._result(call, future)) == [[slot], {}]

    @override
    def test_call_whose_worker_dies_fails_alone(self) -> None:
        """It fails with all that run just then; later ones have other processes."""
        made: list[Executor] = []

        def make(options: LocalOptions) -> Executor:
            made.append(self.make_pool(options.max_workers))
            return made[-1]

        host = RecordingHost()
        options = self._options()
        executor = ExecutorAdapter(make)(options, host=host)
        with self._gate() as gate:
            held = host.make_call(suite_calls.hold, [gate.port], slot=1)
            futures = [executor.submit(held)]
            gate.wait_for_arrivals(1)
            dying = host.make_call(suite_calls.die, [3], slot=0)
            futures.append(executor.submit(dying))
            for call, future in zip((held, dying), futures, strict=True):
                error = self._result(call, future).error
                assert error is not None
                assert error.exception_class_path == path_of(WorkerLost)
                assert call.record.task.path in error.traceback
            after = host.make_call(suite_calls.echo)
            assert self._value(executor, after) == [[], {}]
        assert len(made) == 2
        executor.shutdown(timeout_s=self.timeout_s)

    def _options(self) -> LocalOptions:
        with self._executor() as (executor, _):
            assert isinstance(executor, PlainExecutor)
            return executor._options


class TestProcesses(ProcessesContract):
    @override
    @classmethod
    def make_pool(cls, workers: int) -> Executor:
        return pool_of_processes(workers)


class TestLoky(ProcessesContract):
    @override
    @classmethod
    def make_pool(cls, workers: int) -> Executor:
        return pool_of_loky(workers)


if sys.version_info >= (3, 14):
    from concurrent.futures import InterpreterPoolExecutor

    class TestInterpreters(ProcessesContract):
        @override
        @classmethod
        def make_pool(cls, workers: int) -> Executor:
            return InterpreterPoolExecutor(workers)

        @override
        def test_call_whose_worker_dies_fails_alone(self) -> None:
            """It would end this process."""

else:

    def test_interpreters() -> None:
        pytest.skip("Python has InterpreterPoolExecutor from 3.14 on")


# Under an alias.

PLAIN = "tests.plain_executors."


@pytest.fixture(scope="module")
def one_pool() -> Iterator[None]:
    with pool_of_loky(1) as pool:  # what loky starts for all its pools stays
        pool.submit(os.getpid).result(LONG_S)
    with pool_of_processes(2) as pool:
        pool.submit(os.getpid).result(LONG_S)
        lent.append(pool)
        yield
        lent.clear()


@pytest.fixture
def alias(one_pool: None, configure: Configure) -> str:
    """An alias whose tasks run in a pool of processes."""
    configure("cpu", EXECUTOR=f"{PLAIN}kept", MAX_WORKERS=1)
    return "cpu"


class TestAnAlias:
    def test_runs_its_tasks_in_the_pools_processes(self, alias: str) -> None:
        handle = own_pid.using(backend=alias).enqueue()
        assert handle.wait(LONG_S) != os.getpid()
        assert handle.status is TaskResultStatus.SUCCESSFUL
        assert handle.worker_ids == [f"{this_process()}:cpu-0"]
        assert asyncio.run(_aenqueue(alias)) == 3

    def test_failure_and_another_attempt(self, alias: str) -> None:
        with pytest.raises(TaskFailed, match="wrong value"):
            fail.using(backend=alias).enqueue().wait(LONG_S)
        handle = fail_until.using(backend=alias).enqueue(3)
        assert handle.wait(LONG_S) == 3
        assert handle.attempts == 3

    def test_tasks_see_the_test_database(self, alias: str, database: None) -> None:
        key = "plain"
        assert store_session.using(backend=alias).enqueue(key).wait(LONG_S) == 1
        assert count_sessions.func() == 1

    def test_context_variables_go_along(
        self, one_pool: None, configure: Configure
    ) -> None:
        configure("cpu", EXECUTOR=f"{PLAIN}kept", CONTEXT=["tests.tasks.colour"])
        token = colour.set("blue")
        try:
            handle = see_colour.using(backend="cpu").enqueue()
        finally:
            colour.reset(token)
        assert handle.wait(LONG_S) == "blue"

    def test_metadata_comes_with_the_end(self, alias: str) -> None:
        handle = note_and_report.using(backend=alias, metadata={"given": 1}).enqueue()
        assert handle.wait(LONG_S) == {"given": 1, "noted": True}
        assert handle.metadata.keys() == {"given", "noted", "progress"}
        assert handle.progress is not None

    def test_task_that_waits_for_its_turn_can_be_cancelled(
        self, alias: str, gate: Gate
    ) -> None:
        held = hold.using(backend=alias).enqueue(gate.port, "held")
        visitor = gate.next_visitor()
        waiting = hold.using(backend=alias).enqueue(gate.port, "waiting")
        assert held.is_finished is waiting.is_finished is False
        assert waiting.cancel(wait=True)
        assert held.cancel()  # it is asked, and does not hear it
        visitor.let_go()
        assert held.wait(LONG_S) == "held"
        assert gate.is_deserted()

    def test_time_limit_is_refused(self, alias: str) -> None:
        for function in (own_pid.func, async_add.func):
            with pytest.raises(InvalidTask, match="cannot stop"):
                task(backend=alias, timeout=5)(function)

    def test_tasks_cannot_use_other_tasks(self, alias: str) -> None:
        handle = enqueue_see_colour.using(backend=alias).enqueue("default")
        with pytest.raises(TaskFailed, match="nothing leads from there"):
            handle.wait(LONG_S)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python's own
    def test_fork_is_refused(self, configure: Configure) -> None:
        configure("cpu", EXECUTOR=f"{PLAIN}forks", MAX_WORKERS=1)
        handle = own_pid.using(backend="cpu").enqueue()
        with pytest.raises(TaskFailed, match=r"mp_context=multiprocessing\.get_"):
            handle.wait(LONG_S)

    def test_executor_that_cannot_be_made_is_told(self, configure: Configure) -> None:
        configure("cpu", EXECUTOR=f"{PLAIN}broken", MAX_WORKERS=1)
        for _ in range(2):
            with pytest.raises(TaskFailed, match="no pool for you") as failure:
                own_pid.using(backend="cpu").enqueue().wait(LONG_S)
            assert failure.value.exception_class_path == path_of(WorkerLost)

    def test_shared_executor_that_others_shut_down_is_had_anew(
        self, one_pool: None, configure: Configure
    ) -> None:
        configure("cpu", EXECUTOR=f"{PLAIN}reusable", MAX_WORKERS=1)
        pids = set[int]()
        for _ in range(2):
            pids.add(own_pid.using(backend="cpu").enqueue().wait(LONG_S))
            reused[-1].shutdown(wait=True)
        assert len(pids) == 2

    @pytest.mark.parametrize("name", ["processes", "loky_processes"])
    def test_end_does_not_wait_for_a_stuck_task(
        self, name: str, one_pool: None, configure: Configure, gate: Gate
    ) -> None:
        configure("cpu", EXECUTOR=f"{PLAIN}{name}", MAX_WORKERS=1, SHUTDOWN_TIMEOUT=0.1)
        handle = hold.using(backend="cpu").enqueue(gate.port)
        gate.next_visitor()
        shutdown_executor("cpu")
        with pytest.raises(TaskFailed, match="WorkerLost"):
            handle.wait(LONG_S)

    def test_tasks_on_its_threads_are_as_on_ones_own(
        self, configure: Configure
    ) -> None:
        configure("default", EXECUTOR=f"{PLAIN}threads", MAX_WORKERS=2)
        token = colour.set("blue")
        try:
            handle = see_colour.enqueue()
        finally:
            colour.reset(token)
        assert handle.wait(LONG_S) == "blue"
        assert nest.enqueue(["default"], 5).wait(LONG_S) == 5


async def _aenqueue(alias: str) -> int:
    return await (await async_add.using(backend=alias).aenqueue(1, 2))


def test_plain_executor_of_the_settings_gets_a_hint() -> None:
    options = {"EXECUTOR": ProcessPoolExecutor}
    backend = {"BACKEND": "django_tasks_local.ProcessPoolBackend", "OPTIONS": options}
    with override_settings(TASKS={"default": backend}):
        (message,) = task_backends["default"].check()
    assert "ExecutorAdapter" in (message.hint or "")


def test_exit_of_the_process_does_not_wait_for_a_stuck_task(
    run_script: RunScript,
) -> None:
    done = run_script(
        """
        import sys
        from tests.small_project import configure

        options = {"EXECUTOR": "pools.pool", "MAX_WORKERS": 1, "SHUTDOWN_TIMEOUT": 0.2}
        backend = "django_tasks_local.ProcessPoolBackend"
        configure(TASKS={"default": {"BACKEND": backend, "OPTIONS": options}})

        from tests.small_tasks import double, hold_for_ever

        if __name__ == "__main__":
            print(double.enqueue(2).wait(30), flush=True)
            hold_for_ever.enqueue()
            sys.exit(6)
        """,
        files={
            "pools.py": """
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context
            from django_tasks_local.executors.plain import ExecutorAdapter

            context = get_context("forkserver")
            pool = ExecutorAdapter(lambda _: ProcessPoolExecutor(1, mp_context=context))
            """
        },
        exit_code=6,
    )
    assert done.stdout == "4\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("1 tasks did not finish before SHUTDOWN_TIMEOUT: ")
