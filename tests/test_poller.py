"""Waiting for what other processes run, and other libraries' backends."""

import asyncio
import gc
import logging
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTaskBackend, TaskResultDoesNotExist
from django.test import override_settings

from django_tasks_local import LocalTaskResult, TaskFailed, as_completed, wait
from django_tasks_local.async_bridge import Completion

from .conftest import RunScript
from .elsewhere import ALIAS, OtherProcess, tasks_setting
from .foreign_backends import ForeignBackend, break_look_up, tell
from .gates import LONG_S, Gate
from .leftovers import our_threads
from .polling_tasks import (
    WAYS,
    await_it,
    complete_it,
    find,
    find_and_hold,
    wait_for,
    watch_it,
)
from .shared_store import CountingStore, store_of
from .tasks import add, fail, hold
from .watching_tasks import step

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
POLLER = f"django-tasks-{ALIAS}-poll"

type Way = Callable[[str], Any]

ALL_WAYS: dict[str, Way] = {
    **WAYS,
    "await under trio": lambda result_id: trio.run(await_it, result_id),
    "watch under trio": lambda result_id: trio.run(watch_it, result_id),
    "async for under trio": lambda result_id: trio.run(complete_it, result_id),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherProcess]:
    """A process that runs what it is told to, in a store shared with this one."""
    with OtherProcess(tmp_path_factory.mktemp("shared") / "results") as process:
        yield process


@pytest.fixture
def store(other: OtherProcess, nothing_left_behind: None) -> Iterator[CountingStore]:
    """This process's end of that store."""
    shared = tasks_setting(str(other.path))
    with override_settings(TASKS={**settings.TASKS, **shared}):
        yield store_of(ALIAS)


def pollers() -> list[threading.Thread]:
    return [thread for thread in our_threads() if thread.name.endswith("-poll")]


def assert_no_poller_is_left() -> None:
    for thread in pollers():
        thread.join(LONG_S)
    assert pollers() == []


def polled(store: CountingStore) -> list[int]:
    """Of how many ids each round was."""
    return [count for name, count in store.looked_up if name == POLLER]


class Rounds:
    """Tells when the poller looks."""

    def __init__(self, store: CountingStore) -> None:
        self._begun = threading.Semaphore(0)
        self.times: list[float] = []
        """When it has looked, by the monotonic clock."""
        store.on_look_up = self._note

    def _note(self, ids: list[str]) -> None:
        if threading.current_thread().name == POLLER:
            self.times.append(time.monotonic())
            self._begun.release()

    def next(self) -> None:
        """Block until the next one begins."""
        assert self._begun.acquire(timeout=LONG_S)


@pytest.fixture
def rounds(store: CountingStore) -> Rounds:
    return Rounds(store)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


class TestResultsOfAnotherProcess:
    @pytest.mark.parametrize("way", ALL_WAYS.values(), ids=ALL_WAYS)
    def test_they_are_waited_for_as_ones_own(
        self,
        other: OtherProcess,
        rounds: Rounds,
        gate: Gate,
        pool: ThreadPoolExecutor,
        way: Way,
    ) -> None:
        result_id = other.enqueue(hold, gate.port, "elsewhere")
        visitor = gate.next_visitor()
        waiting = pool.submit(way, result_id)
        rounds.next()
        rounds.next()
        assert not waiting.done()
        visitor.let_go()
        assert waiting.result(LONG_S) == "elsewhere"
        assert_no_poller_is_left()

    @pytest.mark.parametrize("way", WAYS)
    def test_from_a_worker_process_too(
        self, other: OtherProcess, rounds: Rounds, gate: Gate, way: str
    ) -> None:
        result_id = other.enqueue(hold, gate.port, "elsewhere")
        visitor = gate.next_visitor()
        outer = wait_for.using(backend="cpu").enqueue(way, result_id)
        rounds.next()
        visitor.let_go()
        assert outer.wait(LONG_S) == "elsewhere"
        assert_no_poller_is_left()

    def test_failures_come_as_task_failed(
        self, other: OtherProcess, store: CountingStore
    ) -> None:
        handle = find(other.enqueue(fail))
        with pytest.raises(TaskFailed, match="wrong value"):
            handle.wait(LONG_S)

    def test_changes_are_seen_one_by_one(
        self, other: OtherProcess, store: CountingStore, gate: Gate
    ) -> None:
        seen = find(other.enqueue(step, gate.port))
        watch = seen.watch_sync()
        for number in range(2):
            visitor = gate.next_visitor()
            while seen.metadata != {"step": number}:  # it may have been seen before
                seen = next(watch)
            assert seen.status is RUNNING
            visitor.let_go()
        assert [seen.return_value for seen in watch] == ["stepped"]

    def test_handles_that_were_pickled_are_waited_for(
        self, other: OtherProcess, store: CountingStore, gate: Gate
    ) -> None:
        handle = find(other.enqueue(hold, gate.port, "pickled"))
        copy: LocalTaskResult[Any] = pickle.loads(pickle.dumps(handle))
        gate.open()
        assert copy.wait(LONG_S) == "pickled"
        copy.refresh()
        handle.refresh()
        assert handle.status is SUCCESSFUL

    def test_a_time_limit_leaves_them_alone(
        self, other: OtherProcess, store: CountingStore, gate: Gate
    ) -> None:
        handle = find(other.enqueue(hold, gate.port, "unharmed"))
        visitor = gate.next_visitor()
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError, match="is still RUNNING after"):
                handle.wait(timeout)
        with pytest.raises(TimeoutError, match="1 of 1 tasks are unfinished"):
            list(as_completed([handle], 0.02))
        assert_no_poller_is_left()
        visitor.let_go()
        assert handle.wait(LONG_S) == "unharmed"

    def test_one_that_the_store_has_lost_is_not_waited_for_any_longer(
        self,
        other: OtherProcess,
        store: CountingStore,
        rounds: Rounds,
        gate: Gate,
        pool: ThreadPoolExecutor,
    ) -> None:
        ids = [other.enqueue(hold, gate.port, name) for name in ("lost", "kept")]
        ways: list[Way] = [WAYS["wait"], WAYS["await"], WAYS["for"]]
        lost = [pool.submit(way, ids[0]) for way in ways]
        kept = pool.submit(WAYS["wait"], ids[1])
        rounds.next()
        store.forget(ids[0])
        for future in lost:
            with pytest.raises(TaskResultDoesNotExist, match="has no result"):
                future.result(LONG_S)
        gate.open()
        assert kept.result(LONG_S) == "kept"

    def test_nor_in_a_worker_process(
        self, other: OtherProcess, store: CountingStore, rounds: Rounds, gate: Gate
    ) -> None:
        result_id = other.enqueue(hold, gate.port, "lost")
        outer = wait_for.using(backend="cpu").enqueue("wait", result_id)
        rounds.next()
        store.forget(result_id)
        with pytest.raises(TaskFailed, match="TaskResultDoesNotExist"):
            outer.wait(LONG_S)

    def test_waiters_of_two_event_loops_wake(
        self,
        other: OtherProcess,
        rounds: Rounds,
        gate: Gate,
        pool: ThreadPoolExecutor,
    ) -> None:
        result_id = other.enqueue(hold, gate.port, "everywhere")
        handle = find(result_id)  # one and the same, and others of the same result
        ready = threading.Barrier(3)

        async def await_both() -> list[Any]:
            awaited = asyncio.gather(handle, await_it(result_id))
            ready.wait(LONG_S)
            return list(await awaited)

        waiting = [pool.submit(asyncio.run, await_both()) for _ in range(2)]
        ready.wait(LONG_S)
        rounds.next()
        gate.open()
        for future in waiting:
            assert future.result(LONG_S) == ["everywhere"] * 2


def count_objects() -> int:
    """Those that live, but for weak references to what does not.

    A connection of sqlite3's keeps up to 200 of those, to cursors that it has had.
    """
    return sum(
        not (type(each) is weakref.ReferenceType and each() is None)
        for each in gc.get_objects()
    )


class TestThePoller:
    def test_nobody_looks_where_a_handle_is_only_held(
        self, other: OtherProcess, store: CountingStore, gate: Gate, other_gate: Gate
    ) -> None:
        result_id = other.enqueue(hold, gate.port)
        gate.next_visitor()
        handle = find(result_id)
        handle.refresh()
        holder = find_and_hold.using(backend="cpu").enqueue(result_id, other_gate.port)
        visitor = other_gate.next_visitor()
        assert pollers() == []
        visitor.let_go()
        holder.wait(LONG_S)
        assert polled(store) == []
        gate.open()
        assert handle.wait(LONG_S) == ""

    def test_a_round_is_one_look_up_for_all_ids(
        self,
        other: OtherProcess,
        store: CountingStore,
        gate: Gate,
        pool: ThreadPoolExecutor,
    ) -> None:
        ids = other.enqueue_many(hold, 100, gate.port, "many")
        full = threading.Event()

        def look(wanted: list[str]) -> None:
            if len(wanted) == 100:
                full.set()

        store.on_look_up = look
        waiting = pool.submit(lambda: list(as_completed(map(find, ids), LONG_S)))
        assert full.wait(LONG_S)
        begin = polled(store).index(100)
        gate.open()
        assert {done.return_value for done in waiting.result(LONG_S)} == {"many"}
        sizes = polled(store)[begin:]
        assert sizes == sorted(sizes, reverse=True)  # and all at once: none is of one
        assert len(sizes) < 100

    def test_all_waiters_of_a_result_are_one_id(
        self, other: OtherProcess, store: CountingStore, gate: Gate, rounds: Rounds
    ) -> None:
        result_id = other.enqueue(hold, gate.port, "one")

        async def main() -> list[Any]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(await_it(result_id)) for _ in range(200)]
                for _ in range(3):
                    await asyncio.to_thread(rounds.next)
                gate.open()
            return [task.result() for task in tasks]

        assert asyncio.run(main()) == ["one"] * 200
        assert set(polled(store)) == {1}

    def test_it_looks_less_and_less_often(
        self, other: OtherProcess, store: CountingStore, gate: Gate, rounds: Rounds
    ) -> None:
        handle = find(other.enqueue(hold, gate.port))
        gate.next_visitor()
        waiter = threading.Thread(target=handle.wait)
        waiter.start()
        for _ in range(5):
            rounds.next()
        gate.open()
        gaps = [after - before for before, after in pairwise(rounds.times[:5])]
        for gap, least in zip(gaps, [0.02, 0.04, 0.08, 0.16], strict=True):
            assert gap >= least
        waiter.join(LONG_S)

    def test_what_is_finished_needs_no_thread(
        self,
        other: OtherProcess,
        store: CountingStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        handle = find(other.enqueue(add, 1, 2))
        pickled = pickle.dumps(handle)
        assert handle.wait(LONG_S) == 3
        assert_no_poller_is_left()
        monkeypatch.setattr(threading.Thread, "start", None)
        assert pickle.loads(pickled).wait() == 3
        again: LocalTaskResult[Any] = pickle.loads(pickled)
        assert [seen.return_value for seen in again.watch_sync()] == [3]
        assert [done.return_value for done in as_completed([find(handle.id)])] == [3]

    def test_where_no_thread_can_start_waiters_are_told(
        self,
        other: OtherProcess,
        store: CountingStore,
        gate: Gate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        handle = find(other.enqueue(hold, gate.port))
        gate.next_visitor()

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for method in (handle.wait, lambda: list(handle.watch_sync())):
                with pytest.raises(RuntimeError, match="no thread can be started"):
                    method()
        gate.open()
        assert handle.wait(LONG_S) == ""

    @pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
    def test_waiters_that_leave_leave_nothing_behind(
        self,
        other: OtherProcess,
        store: CountingStore,
        gate: Gate,
        run: Callable[..., Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        handle = find(other.enqueue(hold, gate.port))
        gate.next_visitor()

        async def time_out(count: int) -> None:
            waitable = await handle.aopen_waitable()
            for _ in range(count):
                with anyio.move_on_after(0):
                    await waitable.wait_async(at_end=lambda: None)

        async def main() -> int:
            await time_out(100)
            await anyio.to_thread.run_sync(assert_no_poller_is_left)
            gc.collect()
            before = count_objects()
            await time_out(2_000)
            await anyio.to_thread.run_sync(assert_no_poller_is_left)
            store.looked_up.clear()
            gc.collect()
            return count_objects() - before

        # asyncio tells of a slow machine, in records that pytest keeps.
        with caplog.at_level(logging.ERROR, logger="asyncio"):
            grown = run(main()) if run is asyncio.run else run(main)
        assert grown < 100
        waitable = handle.open_waitable()
        assert isinstance(waitable, Completion)
        assert not waitable._waiters
        gate.open()
        assert handle.wait(LONG_S) == ""

    def test_a_failing_store_fails_who_waits_now_and_nobody_later(
        self,
        other: OtherProcess,
        store: CountingStore,
        gate: Gate,
        pool: ThreadPoolExecutor,
    ) -> None:
        handle = find(other.enqueue(hold, gate.port, "later"))
        broken = threading.Event()

        def look(ids: list[str]) -> None:
            if broken.is_set() and threading.current_thread().name == POLLER:
                raise OSError("The disk has gone.")

        store.on_look_up = look
        ways = [
            handle.wait,
            lambda: asyncio.run(wait(handle)),
            lambda: list(as_completed([handle])),
        ]
        waiting = [pool.submit(way) for way in ways]
        broken.set()
        for future in waiting:
            with pytest.raises(OSError, match="The disk has gone"):
                future.result(LONG_S)
        broken.clear()
        gate.open()
        assert handle.wait(LONG_S) == "later"


@pytest.fixture
def foreign(nothing_left_behind: None) -> Iterator[None]:
    """Aliases of other libraries' backends."""
    names = {
        "foreign": "ForeignBackend",
        "none": "NoResultsBackend",
        "torn": "TornBackend",
    }
    backends = {
        alias: {"BACKEND": f"tests.foreign_backends.{name}"}
        for alias, name in names.items()
    }
    with override_settings(TASKS={**settings.TASKS, **backends}):
        yield


@pytest.mark.usefixtures("foreign")
class TestOtherLibrariesBackends:
    @pytest.mark.parametrize("error", [ValueError("broken"), SystemExit("broken")])
    def test_an_error_of_a_look_up_harms_only_its_own_waiters(
        self, pool: ThreadPoolExecutor, error: BaseException
    ) -> None:
        task = add.using(backend="foreign")
        bad, good = task.enqueue(1, 2), task.enqueue(1, 2)
        watches = bad.watch_sync(), good.watch_sync()
        for handle, watch in zip((bad, good), watches, strict=True):
            tell(handle, RUNNING)
            assert next(watch).status is RUNNING
        waiting = [pool.submit(list[Any], watch) for watch in watches]
        break_look_up(bad, error)
        with pytest.raises(type(error), match="broken"):
            waiting[0].result(LONG_S)
        tell(good, SUCCESSFUL, 3)
        assert [seen.return_value for seen in waiting[1].result(LONG_S)] == [3]

    def test_one_that_keeps_no_results_says_so(self) -> None:
        handle = add.using(backend="none").enqueue(1, 2)
        with pytest.raises(NotImplementedError):
            handle.wait(LONG_S)
        with pytest.raises(NotImplementedError):
            asyncio.run(wait(handle))
        with pytest.raises(NotImplementedError):
            list(as_completed([handle]))

    def test_one_that_keeps_no_error_fails_all_the_same(self) -> None:
        handle = add.using(backend="foreign").enqueue(1, 2)
        tell(handle, FAILED)
        with pytest.raises(TaskFailed, match="Its backend says no more"):
            handle.wait(LONG_S)

    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_what_was_read_while_it_ended_is_read_again(self, is_async: bool) -> None:
        handle = add.using(backend="torn").enqueue(1, 2)
        tell(handle, SUCCESSFUL, 3)
        assert (asyncio.run(wait(handle)) if is_async else handle.wait(LONG_S)) == 3
        assert handle.finished_at is not None

    def test_handles_that_were_pickled_are_waited_for(self) -> None:
        handle = add.using(backend="foreign").enqueue(1, 2)
        watch = handle.watch_sync()
        tell(handle, RUNNING)
        seen = next(watch)
        copy: LocalTaskResult[int] = pickle.loads(pickle.dumps(seen))
        tell(handle, SUCCESSFUL, 3)
        assert copy.wait(LONG_S) == 3

    def test_the_backend_in_force_is_asked(self, pool: ThreadPoolExecutor) -> None:
        handle: LocalTaskResult[Any] = add.using(backend="foreign").enqueue(1, 2)
        waiting = pool.submit(handle.wait, LONG_S)
        other = {"BACKEND": "tests.foreign_backends.AllDoneBackend"}
        with override_settings(TASKS={**settings.TASKS, "foreign": other}):
            assert waiting.result(LONG_S) == "done"

    def test_an_alias_that_is_gone_is_not_waited_for_any_longer(
        self, pool: ThreadPoolExecutor
    ) -> None:
        handle = add.using(backend="foreign").enqueue(1, 2)
        waiting = pool.submit(handle.wait, LONG_S)
        tasks = {**settings.TASKS}
        del tasks["foreign"]
        with (
            override_settings(TASKS=tasks),
            pytest.raises(InvalidTaskBackend, match="foreign"),
        ):
            waiting.result(LONG_S)

    @pytest.mark.usefixtures("database")
    def test_no_database_connection_is_left_open(
        self, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle = add.using(backend="foreign").enqueue(1, 2)
        used: list[BaseDatabaseWrapper] = []
        looked = threading.Event()

        def look() -> None:
            if threading.current_thread() in pollers():
                connection = connections["default"]
                connection.ensure_connection()
                used.append(connection)
                looked.set()

        monkeypatch.setattr(ForeignBackend, "look_up_hooks", [look])
        waiting = pool.submit(handle.wait)
        assert looked.wait(LONG_S)
        assert used[0].connection is not None
        tell(handle, SUCCESSFUL, 3)
        assert waiting.result(LONG_S) == 3
        assert {each.connection for each in used} == {None}  # by now, not only soon
        with pytest.raises(TimeoutError):
            add.using(backend="foreign").enqueue(1, 2).wait(0.02)
        assert_no_poller_is_left()
        assert {each.connection for each in used} == {None}


SCRIPT = """
    import os, threading, warnings
    from tests.small_project import configure
    foreign = {"BACKEND": "tests.foreign_backends.ForeignBackend"}
    threads = {"BACKEND": "django_tasks_local.ThreadPoolBackend"}
    configure(TASKS={"default": threads, "foreign": foreign})
    from django.tasks import TaskResultStatus
    from tests.foreign_backends import ForeignBackend, tell
    from tests.small_tasks import double

    looked = threading.Event()

    def look():
        if threading.current_thread().name == "django-tasks-foreign-poll":
            looked.set()

    ForeignBackend.look_up_hooks.append(look)

    def wait_in_thread(handle):
        looked.clear()
        thread = threading.Thread(target=handle.wait, daemon=True)
        thread.start()
        looked.wait()
        return thread

    if __name__ == "__main__":
        handle = double.using(backend="foreign").enqueue(2)
        thread = wait_in_thread(handle)
"""


def test_a_fork_looks_for_itself(run_script: RunScript) -> None:
    done = run_script(
        SCRIPT
        + """
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        pid = os.fork()
        if pid == 0:
            assert threading.active_count() == 1
            thread = wait_in_thread(handle)
            other = double.using(backend="foreign").enqueue(3)
            other_thread = wait_in_thread(other)
            for each in (handle, other):
                tell(each, TaskResultStatus.SUCCESSFUL, "in the fork")
                print(each.wait(20), flush=True)
            thread.join(), other_thread.join()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert thread.is_alive()
        tell(handle, TaskResultStatus.SUCCESSFUL, "here")
        thread.join()
        print(handle.wait(20))
        """
    )
    assert done.stdout == "in the fork\n" * 2 + "here\n"
    assert done.stderr == ""


def test_it_does_not_hold_up_the_exit_of_the_process(run_script: RunScript) -> None:
    done = run_script(SCRIPT)
    assert done.stdout == ""
    assert done.stderr == ""
