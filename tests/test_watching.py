"""Seeing each change of a result, and several results as their tasks finish."""

import asyncio
import gc
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import pytest
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.tasks import TaskResultStatus, task_backends
from django.test import override_settings

from django_tasks_local import (
    LocalTask,
    LocalTaskResult,
    TaskFailed,
    as_completed,
)
from django_tasks_local.state import get_executor_state

from .conftest import Configure
from .foreign_backends import tell
from .gates import LONG_S, Gate
from .tasks import add, async_hold, fail, gather_tasks, hold
from .watching_tasks import (
    MANY,
    complete_inner,
    complete_inner_async,
    complete_some,
    complete_some_async,
    fail_twice,
    pause_between,
    pause_between_async,
    step,
    watch_inner,
    watch_inner_async,
)

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED

type AnyTask = LocalTask[..., Any]


def forms(sync: object, coroutine: object) -> pytest.MarkDecorator:
    """A task as a function, and as a coroutine function."""
    return pytest.mark.parametrize(
        "task", [sync, coroutine], ids=["function", "coroutine"]
    )


@pytest.fixture
def both_django_and_foreign(nothing_left_behind: None) -> Iterator[None]:
    """Aliases of Django's ImmediateBackend, and of one that only answers look-ups."""
    others = {
        "immediate": "django.tasks.backends.immediate.ImmediateBackend",
        "foreign": "tests.foreign_backends.ForeignBackend",
    }
    backends = {alias: {"BACKEND": path} for alias, path in others.items()}
    with override_settings(TASKS={**settings.TASKS, **backends}):
        yield


def object_count() -> int:
    """How many objects somebody still keeps."""
    gc.collect()
    return len(gc.get_objects())


class TestWatchSync:
    def test_each_change_gives_a_fresh_handle_and_the_finished_one_is_last(
        self, alias: str, gate: Gate
    ) -> None:
        handle = step.using(backend=alias, metadata={"given": 1}).enqueue(gate.port)
        watch = handle.watch_sync()
        for number in range(2):
            visitor = gate.next_visitor()
            seen = next(watch)
            if seen.metadata == {"given": 1}:  # it has begun, and not told anything
                seen = next(watch)
            assert seen == handle
            assert seen is not handle
            assert seen.status is RUNNING
            assert seen.metadata == {"given": 1, "step": number}
            visitor.let_go()
        last = next(watch)
        assert last.status is SUCCESSFUL
        assert last.return_value == "stepped"
        assert last.task == handle.task
        assert next(watch, None) is None
        assert handle.status is READY  # a snapshot, which it was left

    def test_it_begins_with_what_has_changed_since_the_snapshot(
        self, alias: str, gate: Gate
    ) -> None:
        handle = step.using(backend=alias).enqueue(gate.port)
        visitor = gate.next_visitor()
        seen = next(handle.watch_sync())
        assert [seen.status, seen.metadata] == [RUNNING, {"step": 0}]
        handle.refresh()
        watch = handle.watch_sync()  # nothing has changed since
        visitor.let_go()
        gate.next_visitor()
        seen = next(watch)
        assert [seen.status, seen.metadata] == [RUNNING, {"step": 1}]
        gate.open()
        assert [seen.status for seen in watch] == [SUCCESSFUL]
        assert [seen.status for seen in handle.watch_sync()] == [SUCCESSFUL]

    def test_a_finished_handle_is_given_once(self) -> None:
        handle = add.enqueue(1, 2)
        assert handle.wait(LONG_S) == 3
        for _ in range(2):
            (seen,) = handle.watch_sync()
            assert seen == handle
            assert seen is not handle
            assert seen.return_value == 3

    def test_failures_are_given_like_anything_else(
        self, alias: str, gate: Gate
    ) -> None:
        handle = fail_twice.using(backend=alias).enqueue(gate.port)
        watch = handle.watch_sync()
        for attempt in (1, 2):
            visitor = gate.next_visitor()
            while (seen := next(watch)).attempts < attempt:
                assert seen.status in {READY, RUNNING}
            assert seen.status is RUNNING
            assert len(seen.errors) == attempt - 1
            visitor.let_go()
        *between, last = watch
        assert between == []
        assert last.status is FAILED
        assert len(last.errors) == 2
        with pytest.raises(TaskFailed, match="again"):
            last.wait()

    def test_cancelling_is_a_change(self, configure: Configure, gate: Gate) -> None:
        configure("default", MAX_WORKERS=1)
        hold.enqueue(gate.port)
        gate.next_visitor()
        waiting = add.enqueue(1, 2)
        watch = waiting.watch_sync()
        assert waiting.cancel()
        assert [seen.status for seen in watch] == [FAILED]
        gate.open()

    def test_all_watchers_see_the_end(self, alias: str, gate: Gate) -> None:
        handle = step.using(backend=alias).enqueue(gate.port)
        ready = threading.Barrier(11)

        def watch() -> list[LocalTaskResult[Any]]:
            mine = step.using(backend=alias).get_result(handle.id)
            ready.wait(LONG_S)
            return list(mine.watch_sync())

        with ThreadPoolExecutor(10) as pool:
            watching = [pool.submit(watch) for _ in range(10)]
            ready.wait(LONG_S)
            for _ in range(2):
                gate.next_visitor().let_go()
            for future in watching:
                *others, last = future.result(LONG_S)
                assert {seen.is_finished for seen in others} <= {False}
                assert last.return_value == "stepped"

    def test_a_watcher_that_leaves_leaves_nothing_behind(self, gate: Gate) -> None:
        handle = hold.enqueue(gate.port, "unharmed")
        gate.next_visitor()

        def look_once() -> None:
            for seen in handle.watch_sync():
                assert seen.status is RUNNING
                break

        look_once()
        before = object_count()
        for _ in range(200):
            look_once()
        assert object_count() - before < 100
        gate.open()
        assert handle.wait(LONG_S) == "unharmed"

    def test_a_pickled_handle_is_watched(self, alias: str, gate: Gate) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port, "unpickled")
        other = pickle.loads(pickle.dumps(handle))
        gate.open()
        *_, last = other.watch_sync()
        assert last.return_value == "unpickled"

    @pytest.mark.anyio
    async def test_it_is_refused_on_a_loops_thread(self, gate: Gate) -> None:
        handle = hold.enqueue(gate.port)
        with pytest.raises(SynchronousOnlyOperation, match=r"in result\.watch\(\)"):
            next(handle.watch_sync())
        gate.open()
        await handle
        with pytest.raises(SynchronousOnlyOperation):
            next(handle.watch_sync())


@pytest.mark.anyio
class TestWatch:
    """What holds under asyncio and trio alike."""

    async def test_each_change_gives_a_fresh_handle_and_the_finished_one_is_last(
        self, alias: str, gate: Gate
    ) -> None:
        task = step.using(backend=alias, metadata={"given": 1})
        handle = await task.aenqueue(gate.port)
        watch = handle.watch()
        with anyio.fail_after(LONG_S):
            for number in range(2):
                visitor = await anyio.to_thread.run_sync(gate.next_visitor)
                seen = await anext(watch)
                if seen.metadata == {"given": 1}:
                    seen = await anext(watch)
                assert seen == handle
                assert seen is not handle
                assert seen.status is RUNNING
                assert seen.metadata == {"given": 1, "step": number}
                visitor.let_go()
            (last,) = [seen async for seen in watch]
        assert last.return_value == "stepped"
        assert handle.status is READY
        await handle.arefresh()
        (last,) = [seen async for seen in handle.watch()]
        assert last.return_value == "stepped"

    async def test_all_watchers_see_the_end(self, alias: str, gate: Gate) -> None:
        handle = await hold.using(backend=alias).aenqueue(gate.port, "for all")
        values: list[object] = []

        async def watch() -> None:
            *_, last = [seen async for seen in handle.watch()]
            values.append(last.return_value)

        with anyio.fail_after(LONG_S):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(watch)
                await anyio.to_thread.run_sync(gate.next_visitor)
                await anyio.wait_all_tasks_blocked()
                assert values == []
                gate.open()
        assert values == ["for all"] * 50

    async def test_cancelled_watchers_leave_nothing_behind(self, gate: Gate) -> None:
        handle = await hold.aenqueue(gate.port, "unharmed")
        await anyio.to_thread.run_sync(gate.next_visitor)

        async def watch() -> None:
            async for seen in handle.watch():
                assert seen.status is RUNNING

        async def cancel_watchers(count: int) -> None:
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(watch)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

        await cancel_watchers(10)
        before = object_count()
        await cancel_watchers(300)
        assert object_count() - before < 200
        gate.open()
        with anyio.fail_after(LONG_S):
            assert await handle == "unharmed"

    async def test_a_watch_can_be_closed(self, gate: Gate) -> None:
        handle = await hold.aenqueue(gate.port)
        async with aclosing(handle.watch()) as watch:
            async for seen in watch:
                assert not seen.is_finished
                break
        gate.open()
        with anyio.fail_after(LONG_S):
            await handle


class TestWatchingInTasks:
    """A task that watches another one lends its slot meanwhile."""

    @forms(watch_inner, watch_inner_async)
    def test_a_task_watches_its_own_tasks(
        self, alias: str, configure: Configure, gate: Gate, task: AnyTask
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        outer = task.using(backend=alias).enqueue(alias, gate.port)
        gate.next_visitor().let_go()
        states, value = outer.wait(LONG_S)
        assert [states[-1], value] == ["SUCCESSFUL", "inner"]
        assert set(states[:-1]) <= {"RUNNING"}

    @pytest.mark.parametrize("other", ["default", "cpu"], ids=["threads", "processes"])
    def test_of_another_alias_too(self, other: str, alias: str, gate: Gate) -> None:
        outer = watch_inner.using(backend=alias).enqueue(other, gate.port)
        gate.next_visitor().let_go()
        states, value = outer.wait(LONG_S)
        assert [states[-1], value] == ["SUCCESSFUL", "inner"]


@pytest.mark.usefixtures("both_django_and_foreign")
class TestWatchingResultsOfOtherBackends:
    def test_one_of_djangos_immediate_backend_is_given_once(self) -> None:
        handle = add.using(backend="immediate").enqueue(1, 2)
        (seen,) = handle.watch_sync()
        assert seen.return_value == 3

    def test_changes_are_seen_by_looking_again(self) -> None:
        handle = add.using(backend="foreign").enqueue(1, 2)
        watch = handle.watch_sync()
        tell(handle, RUNNING)
        assert next(watch).status is RUNNING
        tell(handle, SUCCESSFUL, 3)
        (last,) = watch
        assert last.return_value == 3

    @pytest.mark.anyio
    async def test_and_under_asyncio_and_trio(self) -> None:
        handle = add.using(backend="foreign").enqueue(1, 2)
        with anyio.fail_after(LONG_S):
            watch = handle.watch()
            tell(handle, RUNNING)
            assert (await anext(watch)).status is RUNNING
            tell(handle, FAILED)
            assert [seen.status async for seen in watch] == [FAILED]


class TestAsCompleted:
    def test_results_come_in_the_order_in_which_their_tasks_finish(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=3)
        handles = [hold.using(backend=alias).enqueue(gate.port, n) for n in range(3)]
        visitors = {v.name: v for v in [gate.next_visitor() for _ in handles]}
        completed = iter(as_completed(handles, LONG_S))
        for number in (1, 2, 0):
            visitors[str(number)].let_go()
            done = next(completed)
            assert done is handles[number]
            assert done.status is SUCCESSFUL
            assert done.return_value == number
        assert next(completed, None) is None

    def test_finished_ones_come_first(self, gate: Gate) -> None:
        held = hold.enqueue(gate.port, "held")
        seen, unseen = (add.enqueue(n, 1) for n in range(2))
        seen.join(LONG_S)
        add.get_result(unseen.id).join(LONG_S)
        handles: list[LocalTaskResult[Any]] = [held, seen, unseen]
        completed = iter(as_completed(handles, LONG_S))
        assert [next(completed), next(completed)] == [seen, unseen]
        assert unseen.return_value == 2
        gate.open()
        assert [done.return_value for done in completed] == ["held"]

    def test_failed_ones_come_too(self) -> None:
        failing = fail.enqueue()
        (done,) = as_completed([failing], LONG_S)
        assert done is failing
        assert done.status is FAILED
        with pytest.raises(TaskFailed, match="wrong value"):
            done.wait()

    def test_each_comes_once(self) -> None:
        task = add
        handle = task.enqueue(1, 2)
        completed = list(as_completed([handle, task.get_result(handle.id), handle]))
        assert completed == [handle]

    def test_of_nothing_nothing_comes(self) -> None:
        nothing: list[LocalTaskResult[int]] = []
        assert list(as_completed(nothing)) == []
        assert list(as_completed(nothing, timeout=0)) == []

    def test_any_iterable_will_do_and_may_be_gone_through_again(self) -> None:
        completed = as_completed(add.enqueue(n, 1) for n in range(3))
        first = [done.return_value for done in completed]
        assert sorted(first) == [1, 2, 3]
        assert [done.return_value for done in completed] == [1, 2, 3]

    @pytest.mark.parametrize("timeout", [0, 0.01, -1])
    def test_a_timeout_says_how_many_are_left(self, gate: Gate, timeout: float) -> None:
        done = add.enqueue(1, 2)
        done.join(LONG_S)
        held = hold.enqueue(gate.port, "unharmed")
        handles: list[LocalTaskResult[Any]] = [held, done]
        completed = iter(as_completed(handles, timeout))
        assert next(completed) is done
        with pytest.raises(
            TimeoutError, match=f"^1 of 2 tasks are unfinished after {timeout} seconds"
        ):
            next(completed)
        gate.open()
        assert held.wait(LONG_S) == "unharmed"

    def test_a_timeout_may_be_as_long_as_one_likes(self) -> None:
        for timeout in (1e30, float("inf")):
            (done,) = as_completed([add.enqueue(1, 2)], timeout)
            assert done.return_value == 3

    def test_leaving_early_leaves_nothing_behind(self, gate: Gate) -> None:
        done = add.enqueue(1, 2)
        done.join(LONG_S)
        held = hold.enqueue(gate.port, "unharmed")
        handles: list[LocalTaskResult[Any]] = [held, done]

        def leave() -> None:
            for each in as_completed(handles):
                assert each is done
                break
            with pytest.raises(TimeoutError):
                list(as_completed([held], timeout=0))

        leave()
        before = object_count()
        for _ in range(200):
            leave()
        assert object_count() - before < 100
        gate.open()
        assert held.wait(LONG_S) == "unharmed"

    def test_results_of_several_aliases_are_waited_for_at_once(
        self, gate: Gate, other_gate: Gate
    ) -> None:
        thread = hold.enqueue(gate.port, "thread")
        process = hold.using(backend="cpu").enqueue(other_gate.port, "process")
        completed = iter(as_completed([thread, process], LONG_S))
        other_gate.open()
        assert next(completed) is process
        gate.open()
        assert next(completed) is thread

    @pytest.mark.anyio
    async def test_it_is_refused_on_a_loops_thread(self) -> None:
        nothing: list[LocalTaskResult[int]] = []
        with pytest.raises(SynchronousOnlyOperation, match="use 'async for"):
            list(as_completed(nothing))


@pytest.mark.anyio
class TestAsCompletedAsync:
    """What holds under asyncio and trio alike."""

    async def test_results_come_in_the_order_in_which_their_tasks_finish(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=3)
        task = async_hold.using(backend=alias)
        handles = [await task.aenqueue(gate.port, n) for n in range(3)]
        arrived = [await anyio.to_thread.run_sync(gate.next_visitor) for _ in handles]
        visitors = {visitor.name: visitor for visitor in arrived}
        completed = aiter(as_completed(handles, LONG_S))
        for number in (1, 2, 0):
            visitors[str(number)].let_go()
            done = await anext(completed)
            assert done is handles[number]
            assert done.return_value == number
        assert await anext(completed, None) is None

    async def test_finished_and_failed_ones_come_once_and_first(
        self, gate: Gate
    ) -> None:
        held = hold.enqueue(gate.port, "held")
        done, failed = add.enqueue(1, 2), fail.enqueue()
        with anyio.fail_after(LONG_S):
            await done.ajoin()
            await failed.ajoin()
            handles: list[LocalTaskResult[Any]] = [held, done, held, failed, done]
            completed = aiter(as_completed(handles))
            assert await anext(completed) is done
            assert await anext(completed) is failed
            gate.open()
            assert [each.return_value async for each in completed] == ["held"]

    async def test_of_nothing_nothing_comes(self) -> None:
        nothing: list[LocalTaskResult[int]] = []
        assert [done async for done in as_completed(nothing, timeout=0)] == []

    @pytest.mark.parametrize("timeout", [0, 0.01, -1])
    async def test_a_timeout_says_how_many_are_left(
        self, gate: Gate, timeout: float
    ) -> None:
        done, held = add.enqueue(1, 2), hold.enqueue(gate.port, "unharmed")
        await done.ajoin(LONG_S)
        handles: list[LocalTaskResult[Any]] = [held, done]
        completed = aiter(as_completed(handles, timeout))
        assert await anext(completed) is done
        with pytest.raises(
            TimeoutError, match=f"^1 of 2 tasks are unfinished after {timeout} seconds"
        ):
            await anext(completed)
        gate.open()
        with anyio.fail_after(LONG_S):
            assert await held == "unharmed"

    async def test_leaving_early_leaves_nothing_behind(self, gate: Gate) -> None:
        done = add.enqueue(1, 2)
        held = hold.enqueue(gate.port, "unharmed")
        handles: list[LocalTaskResult[Any]] = [held, done]
        await done.ajoin(LONG_S)

        async def leave(count: int) -> None:
            for _ in range(count):
                async with aclosing(aiter(as_completed(handles))) as completed:
                    async for each in completed:
                        assert each is done
                        break
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(anext, aiter(as_completed([held])))
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

        await leave(10)
        before = object_count()
        await leave(200)
        assert object_count() - before < 200
        gate.open()
        with anyio.fail_after(LONG_S):
            assert await held == "unharmed"


class TestAsCompletedInTasks:
    """A task that waits for others lends its slot until one has finished."""

    @forms(complete_inner, complete_inner_async)
    def test_of_its_own_alias(
        self, alias: str, configure: Configure, task: AnyTask
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        outer = task.using(backend=alias).enqueue(alias)
        assert outer.wait(LONG_S) == list(range(MANY))

    @pytest.mark.parametrize("other", ["default", "cpu"], ids=["threads", "processes"])
    def test_of_any_alias(self, alias: str, other: str) -> None:
        outer = complete_inner.using(backend=alias).enqueue(other)
        assert outer.wait(LONG_S) == list(range(MANY))

    @forms(complete_some, complete_some_async)
    def test_leaving_early_and_timeouts_leave_the_others_alone(
        self, alias: str, gate: Gate, task: AnyTask
    ) -> None:
        outer = task.using(backend=alias).enqueue("default", gate.port)
        visitors = {v.name: v for v in [gate.next_visitor() for _ in range(3)]}
        visitors["enqueued"].let_go()
        visitors["0"].let_go()
        timed_out = gate.next_visitor()
        assert timed_out.name == "timed out"
        visitors["1"].let_go()
        timed_out.let_go()
        assert outer.wait(LONG_S) == [
            0,
            0,
            "1 of 2 tasks are unfinished after 0.01 seconds.",
            [0, 1],
        ]

    @forms(pause_between, pause_between_async)
    def test_nothing_new_starts_while_the_task_goes_on(
        self,
        alias: str,
        configure: Configure,
        gate: Gate,
        other_gate: Gate,
        task: AnyTask,
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        outer = task.using(backend=alias).enqueue(alias, gate.port, other_gate.port)
        gate.next_visitor().let_go()
        between = other_gate.next_visitor()  # it has its slot again
        backend = task_backends[alias]
        unfinished = get_executor_state(alias).unfinished_ids()
        states = {backend.get_result(each).status for each in unfinished}
        assert states == {RUNNING, READY}
        assert gate.is_deserted()
        between.let_go()
        gate.next_visitor().let_go()
        other_gate.open()
        assert outer.wait(LONG_S) == [0, 1]

    def test_a_coroutine_gathers_handles(
        self, alias: str, configure: Configure
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        outer = gather_tasks.using(backend=alias).enqueue(alias, 5)
        assert outer.wait(LONG_S) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("both_django_and_foreign")
class TestAsCompletedOfOtherBackends:
    def test_they_come_as_they_are_seen_to_finish(self, gate: Gate) -> None:
        ours = hold.enqueue(gate.port, "ours")
        theirs = [add.using(backend="foreign").enqueue(n, 1) for n in range(2)]
        now = add.using(backend="immediate").enqueue(1, 2)
        handles: list[LocalTaskResult[Any]] = [ours, *theirs, now]
        completed = iter(as_completed(handles, LONG_S))
        assert next(completed) is now
        tell(theirs[1], SUCCESSFUL, 2)
        assert next(completed) is theirs[1]
        assert theirs[1].return_value == 2
        gate.open()
        assert next(completed) is ours
        tell(theirs[0], FAILED)
        assert [done.status for done in completed] == [FAILED]

    @pytest.mark.anyio
    async def test_under_asyncio_and_trio(self) -> None:
        theirs = [add.using(backend="foreign").enqueue(n, 1) for n in range(2)]
        completed = aiter(as_completed(theirs, LONG_S))
        for number in (1, 0):
            tell(theirs[number], SUCCESSFUL, number)
            assert await anext(completed) is theirs[number]
        assert await anext(completed, None) is None

    def test_plain_results_of_theirs_will_do(self) -> None:
        backend = task_backends["foreign"]
        result = backend.enqueue(add, [1, 2], {})
        tell(result, SUCCESSFUL, 3)
        (done,) = as_completed([result])
        assert done.return_value == 3

    def test_nobody_looks_any_more_once_nobody_waits(self) -> None:
        theirs = add.using(backend="foreign").enqueue(1, 2)
        with pytest.raises(TimeoutError, match="1 of 1 tasks are unfinished"):
            list(as_completed([theirs], timeout=0))
        for thread in threading.enumerate():
            if thread.name == "django-tasks-foreign-poll":
                thread.join(LONG_S)
                assert not thread.is_alive()


def test_gather_takes_handles(alias: str) -> None:
    async def main() -> list[Any]:
        task = add.using(backend=alias)
        handles = [await task.aenqueue(n, 1) for n in range(3)]
        failing = await fail.using(backend=alias).aenqueue()
        return await asyncio.gather(*handles, failing, return_exceptions=True)

    *sums, error = asyncio.run(main())
    assert sums == [1, 2, 3]
    assert isinstance(error, TaskFailed)
