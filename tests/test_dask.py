"""Tasks on a Dask cluster that is well: a real scheduler and real workers."""

import gc
import signal
import threading
import tracemalloc
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import Error
from django.core.exceptions import ImproperlyConfigured
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask
from django.test import override_settings
from django.utils import timezone

from django_tasks_local import (
    DaskBackend,
    LocalTaskResult,
    TaskCancelled,
    TaskFailed,
    TaskTimeout,
    WorkerLost,
)
from django_tasks_local.errors import path_of
from django_tasks_local.executors import dask_cluster as dask_cluster_module
from django_tasks_local.state import shutdown_executor

from .conftest import RunScript
from .dask_clusters import DaskCluster
from .dask_tasks import (
    ALIAS,
    add_by_another,
    add_by_another_async,
    be_asked,
    length,
    sleep_for_ever,
    tell,
)
from .gates import LONG_S, Gate
from .kept import ALIAS as KEPT
from .kept import DASK, find, sharing
from .stopping import async_hold_at_the_end, limited
from .tasks import add, async_add, colour, fail, hold

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
FAILED = TaskResultStatus.FAILED


@contextmanager
def on(address: str | None, **options: Any) -> Generator[None]:
    """The project has an alias whose tasks run there."""
    setting = {
        "BACKEND": "django_tasks_local.DaskBackend",
        "OPTIONS": {"ADDRESS": address, "SHUTDOWN_TIMEOUT": 10.0, **options},
    }
    with override_settings(TASKS={**settings.TASKS, ALIAS: setting}):
        try:
            yield
        finally:
            shutdown_executor(ALIAS)


def error_of(handle: LocalTaskResult[Any]) -> str:
    """The class of what a task has failed with."""
    with pytest.raises(TaskFailed) as caught:
        handle.wait(LONG_S)
    return caught.value.exception_class_path


@pytest.fixture
def _dask(dask_cluster: DaskCluster, nothing_left_behind: None) -> Iterator[None]:
    with on(dask_cluster.address, CONTEXT=["tests.tasks.colour"]):
        yield


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    with DaskCluster(tmp_path_factory.mktemp("lone")) as cluster:
        cluster.start_scheduler()
        cluster.start_worker(threads=1)
        yield cluster


@pytest.mark.usefixtures("_dask")
class TestTasks:
    def test_function_and_coroutine_return_their_values(self) -> None:
        assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
        assert async_add.using(backend=ALIAS).enqueue(3, 4).wait(LONG_S) == 7

    @pytest.mark.anyio
    async def test_result_can_be_awaited(self) -> None:
        handle = await add.using(backend=ALIAS).aenqueue(1, 2)
        assert await handle == 3

    def test_start_and_worker_are_real(
        self, gate: Gate, dask_cluster: DaskCluster
    ) -> None:
        handle = hold.using(backend=ALIAS).enqueue(gate.port, "x")
        gate.next_visitor()
        seen = task_backends[ALIAS].get_result(handle.id)
        assert seen.status is RUNNING
        assert seen.worker_ids[0] in dask_cluster.worker_addresses
        gate.open()
        assert handle.wait(LONG_S) == "x"

    def test_its_key_names_its_function_and_its_result(
        self, gate: Gate, dask_cluster: DaskCluster
    ) -> None:
        held = hold.using(backend=ALIAS)
        soon = held.using(run_after=timezone.now() + timedelta(seconds=0.1))
        handles = [held.enqueue(gate.port, "x"), soon.enqueue(gate.port, "y")]
        for _ in handles:
            gate.next_visitor()
        keys = {f"tests.tasks.hold-{handle.id}" for handle in handles}
        assert keys <= dask_cluster.known_keys()
        gate.open()
        assert [handle.wait(LONG_S) for handle in handles] == ["x", "y"]

    def test_metadata_and_context_go_both_ways(self, gate: Gate) -> None:
        token = colour.set("green")
        try:
            handle = tell.using(backend=ALIAS).enqueue(gate.port)
        finally:
            colour.reset(token)
        gate.next_visitor()
        handle.refresh()
        assert handle.metadata == {"step": "größe 🧵"}
        gate.open()
        value = handle.wait(LONG_S)
        assert value["attempt"] == 1
        assert value["colour"] == "green"
        assert handle.metadata == {"step": "over"}

    def test_failure_shows_where(self) -> None:
        handle = fail.using(backend=ALIAS).enqueue("ValueError")
        assert error_of(handle) == "builtins.ValueError"
        assert "tests/tasks.py" in handle.errors[0].traceback

    def test_task_that_runs_is_asked_to_stop(self, gate: Gate) -> None:
        handle = be_asked.using(backend=ALIAS).enqueue(gate.port)
        visitor = gate.next_visitor()
        assert handle.cancel()
        # It may pass the gate once more before the message has come.
        visitor.let_go()
        gate.open()
        assert error_of(handle) == path_of(TaskCancelled)

    def test_coroutine_that_runs_is_cancelled(self, gate: Gate) -> None:
        handle = sleep_for_ever.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor().let_go()
        assert handle.cancel(wait=True)
        assert error_of(handle) == path_of(TaskCancelled)

    def test_time_limits_are_kept_as_on_threads(self, gate: Gate) -> None:
        handle = limited(sleep_for_ever, 0.3, ALIAS).enqueue(gate.port)
        gate.next_visitor().let_go()
        assert error_of(handle) == path_of(TaskTimeout)
        with pytest.raises(InvalidTask, match="cannot stop a function"):
            limited(hold, 0.3, ALIAS).enqueue(gate.port)


class TestOneThread:
    """A single worker with a single thread."""

    @pytest.fixture(autouse=True)
    def _on(self, lone: DaskCluster, nothing_left_behind: None) -> Iterator[None]:
        with on(lone.address):
            yield

    def test_task_that_waits_for_tasks_lets_them_run(self) -> None:
        assert add_by_another.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == [3, 5]
        handle = add_by_another_async.using(backend=ALIAS).enqueue(1, 2)
        assert handle.wait(LONG_S) == 3

    def test_what_waits_is_ready_and_goes_by_priority(
        self, gate: Gate, lone: DaskCluster
    ) -> None:
        # Dask has a worker fetch one task more than it has threads for.
        held = [hold.using(backend=ALIAS).enqueue(gate.port, "first")]
        visitor = gate.next_visitor()
        held.append(hold.using(backend=ALIAS).enqueue(gate.port, "fetched"))
        for priority in (-5, 10, 0):
            urgent = hold.using(backend=ALIAS, priority=priority)
            held.append(urgent.enqueue(gate.port, priority))
        lone.wait_for_tasks(len(held))
        assert [handle.status for handle in held[1:]] == [READY] * 4
        order = []
        for _ in held[1:]:
            visitor.let_go()
            visitor = gate.next_visitor()
            order.append(visitor.name)
        gate.open()
        for handle in held:
            handle.wait(LONG_S)
        assert [name for name in order if name != "fetched"] == ["10", "0", "-5"]

    def test_cancelled_one_never_runs(self, gate: Gate) -> None:
        first = hold.using(backend=ALIAS).enqueue(gate.port)
        visitor = gate.next_visitor()
        waiting = [hold.using(backend=ALIAS).enqueue(gate.port) for _ in range(3)]
        assert all(handle.cancel() for handle in waiting)
        visitor.let_go()
        assert first.wait(LONG_S) == ""
        assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
        assert gate.is_deserted()
        assert {error_of(handle) for handle in waiting} == {path_of(TaskCancelled)}

    def test_enqueue_does_not_wait_for_the_scheduler(self, lone: DaskCluster) -> None:
        add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S)
        lone.scheduler.interrupt(signal.SIGSTOP)
        try:
            handles = [add.using(backend=ALIAS).enqueue(n, 1) for n in range(20)]
            assert {handle.status for handle in handles} == {READY}
        finally:
            lone.scheduler.interrupt(signal.SIGCONT)
        assert [handle.wait(LONG_S) for handle in handles] == [*range(1, 21)]


@pytest.mark.usefixtures("nothing_left_behind")
class TestMemory:
    def test_what_has_gone_out_is_not_kept(self, dask_cluster: DaskCluster) -> None:
        size, count = 100_000, 60

        def run(times: int) -> None:
            for _ in range(times):
                length.using(backend=ALIAS).enqueue("x" * size).wait(LONG_S)

        with on(dask_cluster.address, MAX_RESULTS=1):
            tracemalloc.start()
            try:
                run(1)
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
                run(count)
                gc.collect()
                grown = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
        assert grown < count * size / 3


@pytest.mark.usefixtures("nothing_left_behind")
class TestEnd:
    def test_store_that_may_block_knows_of_what_was_lost(
        self, dask_cluster: DaskCluster, gate: Gate, tmp_path: Path
    ) -> None:
        options = {"ADDRESS": dask_cluster.address, "SHUTDOWN_TIMEOUT": 0.1}
        with sharing(tmp_path / "results", DASK, **options):
            handle = hold.using(backend=KEPT).enqueue(gate.port)
            gate.next_visitor()
            shutdown_executor(KEPT)
            assert error_of(find(handle.id)) == path_of(WorkerLost)

    def test_nothing_begins_once_it_is_time(self, tmp_path: Path, gate: Gate) -> None:
        with DaskCluster(tmp_path) as cluster:
            cluster.start_scheduler()
            cluster.start_worker(threads=2)
            options = {"ADDRESS": cluster.address, "SHUTDOWN_TIMEOUT": 0.1}
            with sharing(tmp_path / "results", DASK, MAX_WORKERS=3, **options):
                stubborn = async_hold_at_the_end.using(backend=KEPT).enqueue(gate.port)
                gate.next_visitor()
                prompt = sleep_for_ever.using(backend=KEPT).enqueue(gate.port)
                gate.next_visitor().let_go()
                waiting = add.using(backend=KEPT).enqueue(1, 2)
                cluster.wait_for_tasks(3)
                ending = threading.Thread(target=shutdown_executor, args=(KEPT,))
                ending.start()
                cleaning_up = gate.next_visitor()
                prompt.join(LONG_S)
                cleaning_up.let_go()
                ending.join(LONG_S)
                assert find(waiting.id).status is READY
                assert find(stubborn.id).status is FAILED

    def test_leaves_nothing_behind_though_the_scheduler_is_just_asked(
        self, dask_cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dask_cluster_module, "_PULSE_S", 0.0)  # at any moment
        for number in range(10):
            with on(dask_cluster.address):
                assert add.using(backend=ALIAS).enqueue(number, 1).wait(LONG_S)


class TestOwnCluster:
    def test_without_an_address_it_starts_one_that_ends_with_it(
        self, run_script: RunScript
    ) -> None:
        done = run_script(
            """
            from tests.small_project import configure
            from tests.leftovers import descendants, wait_until_gone

            if __name__ == "__main__":
                configure(
                    TASKS={
                        "default": {
                            "BACKEND": "django_tasks_local.DaskBackend",
                            "OPTIONS": {"EXECUTOR_OPTIONS": {"N_WORKERS": 1}},
                        }
                    }
                )
                from django.tasks import task_backends
                from tests.small_tasks import double

                handle = double.enqueue(4)
                print(handle.wait(50), *handle.worker_ids)
                children = descendants()
                assert children
                task_backends["default"].close()
                assert all(map(wait_until_gone, children))
            """,
        )
        assert done.stdout.startswith("8 tls://127.0.0.1:")

    def test_a_script_without_a_guard_is_told(self, run_script: RunScript) -> None:
        done = run_script(
            """
            from tests.small_project import configure
            configure(
                TASKS={
                    "default": {
                        "BACKEND": "django_tasks_local.DaskBackend",
                        "OPTIONS": {
                            "EXECUTOR_OPTIONS": {"N_WORKERS": 1},
                            "CONNECT_TIMEOUT": 0.1,
                            "SHUTDOWN_TIMEOUT": 0.1,
                        },
                    }
                }
            )
            from django_tasks_local import ClusterUnreachable
            from tests.small_tasks import double

            handle = double.enqueue(4)
            while True:
                try:
                    handle.wait(0.1)
                except TimeoutError:
                    pass
                try:
                    double.enqueue(4)
                except ClusterUnreachable as err:
                    print(err)
                    break
            """
        )
        assert "In a script, all that it does has to stand under" in done.stdout
        assert "A worker imports this script" in done.stderr


class TestDeployment:
    def test_what_cannot_be_read_counts_for_nothing(
        self, run_script: RunScript
    ) -> None:
        code = """
            from pathlib import Path
            from tests.small_project import configure

            configure(INSTALLED_APPS=["shop"])
            from django_tasks_local.executors.deployment import this_deployment

            seen = this_deployment()
            this_deployment.cache_clear()
            Path("shop/.#models.py").symlink_to("nowhere")
            Path("shop/directory.py").mkdir()
            assert this_deployment() == seen
            this_deployment.cache_clear()
            Path("shop/tasks.py").write_text("OTHER = 1")
            assert "another version of the project" in str(
                seen.difference_from(this_deployment())
            )
        """
        run_script(code, files={"shop/__init__.py": "", "shop/tasks.py": ""})


class TestSettings:
    @pytest.mark.parametrize(
        "options, message",
        [
            ({"ADDRESS": "scheduler:8786"}, "ADDRESS'] must be an address"),
            ({"ADDRESS": "tls://s:8786"}, "TLS'] must be given"),
            ({"TLS": {"CA_FILE": "a", "CERT": "b", "KEY": "c"}}, "for no other"),
            ({"ADDRESS": "tls://s:1", "TLS": {"CA_FILE": "a"}}, "TLS'] must be a dict"),
            ({"CONNECT_TIMEOUT": 0}, "CONNECT_TIMEOUT'] must be a number"),
            ({"EXECUTOR_OPTIONS": {"N_WORKERS": 0}}, "N_WORKERS'] must be an integer"),
            ({"IDLE_TIMEOUT": 1}, "ProcessPoolBackend takes it"),
        ],
    )
    def test_wrong_ones_are_named(self, options: dict[str, Any], message: str) -> None:
        backend = DaskBackend(ALIAS, {"OPTIONS": options})
        (finding,) = backend.check()
        assert isinstance(finding, Error)
        assert message in f"{finding.msg} {finding.hint}"
        with pytest.raises(ImproperlyConfigured):
            backend.enqueue(add, (1, 2))
