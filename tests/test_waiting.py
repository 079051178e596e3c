"""Waiting for results: in threads, under asyncio and under trio."""

import asyncio
import copy
import gc
import pickle
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
import uvloop
from django.core.exceptions import SynchronousOnlyOperation
from django.tasks import TaskResultStatus, task_backends

from django_tasks_local import LocalTaskResult, TaskFailed, wait
from django_tasks_local.async_bridge import Bell
from django_tasks_local.errors import TaskFailed as TaskFailedByItsModule

from .awaiting_tasks import time_out_often
from .conftest import BACKENDS, LOOPS, Configure
from .gates import LONG_S, Gate
from .leftovers import kept_waiters, objects_and_memory_blocks
from .tasks import add, async_add, fail, hold

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED


type NewLoop = Callable[[], asyncio.AbstractEventLoop]
type Loop = str | tuple[str, dict[str, Any]]


def run_on[T](loop: Loop, main: Callable[[], Awaitable[T]], *, debug: bool = True) -> T:
    """Run a coroutine function on one of the loops that all tests share."""
    name, options = (loop, {}) if isinstance(loop, str) else loop
    if not debug and name == "asyncio":
        options = {**options, "debug": False}
    return anyio.run(main, backend=name, backend_options=options)


class TestThreads:
    def test_wait_gives_the_return_value(self, alias: str) -> None:
        handle = add.using(backend=alias).enqueue(2, 3)
        assert handle.wait(timeout=LONG_S) == 5
        assert handle.status is SUCCESSFUL
        assert handle.wait() == 5
        assert handle.wait(0) == 5

    def test_wait_raises_what_is_recorded_of_a_failure(self, alias: str) -> None:
        handle = fail.using(backend=alias).enqueue()
        with pytest.raises(TaskFailed) as caught:
            handle.wait(LONG_S)
        error = caught.value
        assert handle.status is FAILED
        assert error.result_id == handle.id
        assert error.exception_class_path == "builtins.ValueError"
        assert error.traceback == handle.errors[0].traceback
        text = str(error)
        assert text.startswith(f"Task {handle.id} failed with builtins.ValueError\n")
        assert "in fail\n    raise error" in text
        assert text.endswith("ValueError: wrong value")
        assert type(error) is TaskFailedByItsModule

    def test_task_failed_can_be_pickled_and_copied(self) -> None:
        handle = fail.enqueue()
        with pytest.raises(TaskFailed) as caught:
            handle.wait(LONG_S)
        for error in (
            pickle.loads(pickle.dumps(caught.value)),
            copy.copy(caught.value),
        ):
            assert str(error) == str(caught.value)
            assert error.result_id == handle.id

    def test_join_waits_and_never_raises_for_a_failure(self, alias: str) -> None:
        handle = fail.using(backend=alias).enqueue()
        handle.join(LONG_S)
        assert handle.status is FAILED
        assert handle.finished_at is not None
        handle.join()

    def test_refresh_brings_a_handle_up_to_date(self, alias: str, gate: Gate) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port)
        visitor = gate.next_visitor()
        handle.refresh()
        assert handle.status is RUNNING
        assert handle.attempts == 1
        other = hold.using(backend=alias).get_result(handle.id)
        visitor.let_go()
        other.join(LONG_S)
        assert handle.status is RUNNING
        handle.refresh()
        assert handle.status is SUCCESSFUL
        assert handle.return_value == ""

    @pytest.mark.parametrize("timeout", [0, 0.01, -1])
    def test_a_timeout_leaves_the_task_alone(
        self, alias: str, gate: Gate, timeout: float
    ) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port, "unharmed")
        visitor = gate.next_visitor()
        for method in (handle.wait, handle.join):
            with pytest.raises(
                TimeoutError, match=f"{handle.id} is still RUNNING after {timeout} sec"
            ):
                method(timeout)
        assert handle.status is RUNNING
        visitor.let_go()
        assert handle.wait(LONG_S) == "unharmed"

    def test_a_timeout_may_be_as_long_as_one_likes(self, alias: str) -> None:
        assert add.using(backend=alias).enqueue(1, 2).wait(1e30) == 3
        assert add.using(backend=alias).enqueue(1, 2).wait(float("inf")) == 3

    def test_all_waiters_wake(self, alias: str, gate: Gate) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port, "for all")
        visitor = gate.next_visitor()
        ready = threading.Barrier(21)

        def wait_for_it() -> object:
            mine = hold.using(backend=alias).get_result(handle.id)
            ready.wait(LONG_S)
            return mine.wait(LONG_S)

        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(wait_for_it) for _ in range(20)]
            ready.wait(LONG_S)
            visitor.let_go()
            assert [future.result(LONG_S) for future in waiting] == ["for all"] * 20

    def test_timed_out_waiters_leave_nothing_behind(
        self, alias: str, gate: Gate
    ) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port)
        gate.next_visitor()
        with pytest.raises(TimeoutError):
            handle.wait(0.001)
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(200):
            with pytest.raises(TimeoutError):
                handle.wait(0.0001)
        gc.collect()
        assert len(gc.get_objects()) - before < 100
        gate.open()
        handle.wait(LONG_S)


@pytest.mark.anyio
class TestLoops:
    """What holds under asyncio and trio alike."""

    async def test_await_gives_the_return_value(self, alias: str) -> None:
        handle = await async_add.using(backend=alias).aenqueue(2, 3)
        with anyio.fail_after(LONG_S):
            assert await handle == 5
        assert handle.status is SUCCESSFUL
        assert await handle == 5

    async def test_a_sync_enqueue_can_be_awaited(self, alias: str) -> None:
        with anyio.fail_after(LONG_S):
            assert await add.using(backend=alias).enqueue(2, 3) == 5

    async def test_await_raises_what_is_recorded_of_a_failure(self, alias: str) -> None:
        handle = await fail.using(backend=alias).aenqueue()
        with anyio.fail_after(LONG_S), pytest.raises(TaskFailed, match="wrong value"):
            await handle
        await handle.ajoin()
        assert handle.status is FAILED

    async def test_a_result_can_be_looked_up(self, alias: str) -> None:
        task = add.using(backend=alias)
        handle = await task.aenqueue(2, 3)
        found = await task.aget_result(handle.id)
        with anyio.fail_after(LONG_S):
            assert await found == 5
        await handle.arefresh()
        assert handle.return_value == 5

    async def test_timeouts_leave_the_task_alone(self, alias: str, gate: Gate) -> None:
        handle = await hold.using(backend=alias).aenqueue(gate.port, "unharmed")
        visitor = await anyio.to_thread.run_sync(gate.next_visitor)
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match="still RUNNING after"):
                await handle.ajoin(timeout)
            with pytest.raises(TimeoutError, match="still RUNNING after"):
                await wait(handle, timeout)
            with pytest.raises(TimeoutError), anyio.fail_after(timeout):
                await handle
        assert handle.status is RUNNING
        visitor.let_go()
        with anyio.fail_after(LONG_S):
            assert await handle == "unharmed"

    async def test_all_waiters_wake(self, alias: str, gate: Gate) -> None:
        handle = await hold.using(backend=alias).aenqueue(gate.port, "for all")
        visitor = await anyio.to_thread.run_sync(gate.next_visitor)
        values: list[object] = []

        async def wait_for_it() -> None:
            values.append(await handle)

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(wait_for_it)
            await anyio.wait_all_tasks_blocked()
            assert values == []
            visitor.let_go()
        assert values == ["for all"] * 100

    async def test_cancelled_waiters_leave_nothing_behind(
        self, alias: str, gate: Gate
    ) -> None:
        handle = await hold.using(backend=alias).aenqueue(gate.port, "unharmed")
        visitor = await anyio.to_thread.run_sync(gate.next_visitor)

        async def cancel_waiters(count: int) -> None:
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(handle.ajoin)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

        await cancel_waiters(10)
        gc.collect()
        before = len(gc.get_objects())
        await cancel_waiters(300)
        gc.collect()
        assert len(gc.get_objects()) - before < 200
        visitor.let_go()
        with anyio.fail_after(LONG_S):
            assert await handle == "unharmed"

    async def test_blocking_waits_are_refused_on_a_loops_thread(
        self, alias: str
    ) -> None:
        handle = await add.using(backend=alias).aenqueue(2, 3)
        with pytest.raises(SynchronousOnlyOperation, match="use 'await result'"):
            handle.wait(LONG_S)
        with pytest.raises(SynchronousOnlyOperation):
            handle.join()
        with anyio.fail_after(LONG_S):
            assert await handle == 5

    async def test_wait_is_typed_and_takes_any_result(self, alias: str) -> None:
        result = await add.using(backend=alias).aenqueue(2, 3)
        assert await wait(result) == 5
        assert await wait(result, LONG_S) == 5
        failing = await fail.using(backend=alias).aenqueue()
        with pytest.raises(TaskFailed):
            await wait(failing, LONG_S)


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_enqueuing_and_looking_up_take_no_other_thread(
    alias: str, gate: Gate, monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    started: list[str] = []
    start = threading.Thread.start

    def noted_start(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    async def main() -> None:
        handle = await hold.using(backend=alias).aenqueue(gate.port)
        found = await hold.using(backend=alias).aget_result(handle.id)
        await found.arefresh()
        await task_backends[alias].aget_result(handle.id)
        gate.open()
        await handle

    monkeypatch.setattr(threading.Thread, "start", noted_start)
    if run is asyncio.run:
        run(main())
    else:
        run(main)
    assert [name for name in started if not name.startswith("django-tasks-")] == []


@pytest.mark.parametrize(
    "new_loop",
    [asyncio.new_event_loop, uvloop.new_event_loop],
    ids=["asyncio", "uvloop"],
)
class TestAsyncio:
    """What asyncio alone has, and uvloop with it."""

    def test_gather(self, alias: str, new_loop: NewLoop) -> None:
        async def main() -> list[int]:
            handles = [await add.using(backend=alias).aenqueue(n, 1) for n in range(9)]
            return list(await asyncio.gather(*handles))

        assert asyncio.run(main(), loop_factory=new_loop) == list(range(1, 10))

    def test_gather_of_one_handle_twice(self, alias: str, new_loop: NewLoop) -> None:
        async def main() -> tuple[int, int]:
            handle = await add.using(backend=alias).aenqueue(1, 1)
            return await asyncio.gather(handle, handle)

        assert list(asyncio.run(main(), loop_factory=new_loop)) == [2, 2]

    def test_wait_for(self, alias: str, gate: Gate, new_loop: NewLoop) -> None:
        async def main() -> object:
            handle = await hold.using(backend=alias).aenqueue(gate.port, "unharmed")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handle, 0.01)
            gate.open()
            return await asyncio.wait_for(handle, LONG_S)

        assert asyncio.run(main(), loop_factory=new_loop) == "unharmed"

    def test_task_group_and_timeout(self, alias: str, new_loop: NewLoop) -> None:
        async def value_of(handle: LocalTaskResult[int]) -> int:
            return await handle

        async def main() -> list[int]:
            handles = [await add.using(backend=alias).aenqueue(n, 1) for n in range(3)]
            async with asyncio.timeout(LONG_S), asyncio.TaskGroup() as group:
                tasks = [group.create_task(value_of(handle)) for handle in handles]
            return [task.result() for task in tasks]

        assert asyncio.run(main(), loop_factory=new_loop) == [1, 2, 3]

    def test_as_completed(
        self, alias: str, configure: Configure, gate: Gate, new_loop: NewLoop
    ) -> None:
        configure(alias, MAX_WORKERS=3)

        async def main() -> list[object]:
            task = hold.using(backend=alias)
            handles = [await task.aenqueue(gate.port, n) for n in range(3)]
            visitors = {v.name: v for v in [gate.next_visitor() for _ in handles]}
            order = ["1", "2", "0"]
            visitors[order.pop(0)].let_go()
            seen: list[object] = []
            for soonest in asyncio.as_completed(handles):
                seen.append(await soonest)
                if order:
                    visitors[order.pop(0)].let_go()
            return seen

        assert asyncio.run(main(), loop_factory=new_loop) == [1, 2, 0]

    def test_a_closed_loop_does_no_harm(
        self, alias: str, gate: Gate, new_loop: NewLoop
    ) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port, "unharmed")
        visitor = gate.next_visitor()
        loop = new_loop()
        waiting = loop.create_task(handle.ajoin())
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()  # with the waiter still waiting
        visitor.let_go()
        assert handle.wait(LONG_S) == "unharmed"
        waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # on purpose


def test_waiters_of_several_loops_at_once_wake(alias: str, gate: Gate) -> None:
    handle = hold.using(backend=alias).enqueue(gate.port, "everywhere")
    visitor = gate.next_visitor()
    loops = [*LOOPS.values(), *LOOPS.values()]
    ready = threading.Barrier(len(loops) + 1)

    async def await_it() -> object:
        mine = hold.using(backend=alias).get_result(handle.id)
        async with anyio.create_task_group() as group:
            group.start_soon(mine.ajoin)
            await anyio.wait_all_tasks_blocked()
            ready.wait(LONG_S)
        return mine.return_value

    with ThreadPoolExecutor(len(loops)) as pool:
        futures = [pool.submit(run_on, loop, await_it) for loop in loops]
        ready.wait(LONG_S)
        visitor.let_go()
        values = [future.result(LONG_S) for future in futures]
    assert values == ["everywhere"] * len(loops)


@pytest.mark.parametrize("loop", [*LOOPS.values()], ids=[*LOOPS])
def test_a_task_that_ends_after_the_waiters_loop_finds_nobody_to_wake(
    loop: Loop, gate: Gate
) -> None:
    handle = hold.enqueue(gate.port, "unharmed")
    visitor = gate.next_visitor()
    late: list[Bell] = []

    async def leave_bell() -> None:
        with anyio.move_on_after(0):
            await handle
        late.append(Bell())

    run_on(loop, leave_bell)
    visitor.let_go()
    assert handle.wait(LONG_S) == "unharmed"
    late.pop().ring()  # as one does that has just been about to


class TestNothingIsLeft:
    """Of what waits with a time limit, again and again, for a task that goes on."""

    @staticmethod
    async def time_out(handle: LocalTaskResult[Any], count: int) -> int:
        """In each way that all loops have; how often it did."""
        timed_out = 0
        for _ in range(count):
            try:
                await handle.ajoin(0)
            except TimeoutError:
                timed_out += 1
            with anyio.move_on_after(0) as scope:
                await handle
            timed_out += scope.cancelled_caught
            async with aclosing(handle.watch()) as changes:
                with anyio.move_on_after(0) as scope:
                    await anext(changes)
                timed_out += scope.cancelled_caught
        return timed_out

    @staticmethod
    async def time_out_under_asyncio(handle: LocalTaskResult[Any], count: int) -> int:
        timed_out = 0
        for _ in range(count):
            try:
                async with asyncio.timeout(0):
                    await handle
            except TimeoutError:
                timed_out += 1
            try:
                await asyncio.wait_for(handle.ajoin(), 0)
            except TimeoutError:
                timed_out += 1
        return timed_out

    @pytest.mark.parametrize(
        "loop, count, count_under_asyncio",
        [
            (LOOPS["asyncio"], 3_500, 45_000),
            (LOOPS["uvloop"], 500, 500),
            (LOOPS["trio"], 500, 0),
        ],
        ids=[*LOOPS],
    )
    def test_after_a_hundred_thousand_awaits_memory_is_what_it_was(
        self, gate: Gate, loop: Loop, count: int, count_under_asyncio: int
    ) -> None:
        handle = hold.enqueue(gate.port)
        gate.next_visitor()
        handle.refresh()

        async def time_out(count: int, count_under_asyncio: int) -> None:
            timed_out = await self.time_out(handle, count)
            timed_out += await self.time_out_under_asyncio(handle, count_under_asyncio)
            assert timed_out == 3 * count + 2 * count_under_asyncio

        async def main() -> None:
            await time_out(100, min(100, count_under_asyncio))
            before = objects_and_memory_blocks()
            await time_out(count, count_under_asyncio)
            objects, blocks = objects_and_memory_blocks()
            assert kept_waiters(handle) == []
            assert objects - before[0] < 50
            assert blocks - before[1] < 200

        run_on(loop, main, debug=False)  # which would take a minute

    @pytest.mark.parametrize("inner", BACKENDS)
    def test_in_a_task_that_waits(self, alias: str, gate: Gate, inner: str) -> None:
        handle = hold.using(backend=inner).enqueue(gate.port)
        gate.next_visitor()
        task = time_out_often.using(backend=alias)
        task.enqueue(inner, handle.id, 10).wait(LONG_S)
        before = objects_and_memory_blocks()
        objects, blocks = task.enqueue(inner, handle.id, 50).wait(LONG_S)
        here = objects_and_memory_blocks()
        assert kept_waiters(handle) == []
        assert objects < 50
        assert blocks < 200
        # What is left here of a finished task is its result.
        assert here[0] - before[0] < 50


class TestHandles:
    def test_are_equal_and_hashed_by_their_id(self, alias: str) -> None:
        task = add.using(backend=alias)
        one, two = task.enqueue(1, 2), task.enqueue(1, 2)
        again = task.get_result(one.id)
        assert one == again
        assert hash(one) == hash(again)
        assert one != two
        assert {one, again, two} == {one, two}
        assert one != one.id
        assert [one.wait(LONG_S), two.wait(LONG_S)] == [3, 3]

    @pytest.mark.parametrize(
        "duplicate",
        [lambda handle: pickle.loads(pickle.dumps(handle)), copy.copy, copy.deepcopy],
        ids=["pickle", "copy", "deepcopy"],
    )
    def test_can_be_pickled_and_copied(
        self,
        alias: str,
        gate: Gate,
        duplicate: Callable[[LocalTaskResult[Any]], LocalTaskResult[Any]],
    ) -> None:
        task = hold.using(backend=alias, priority=7)
        handle = task.enqueue(gate.port, "both")
        other = duplicate(handle)
        assert other == handle
        assert other is not handle
        assert other.task == task
        assert other.args == handle.args
        assert other.status is READY
        gate.open()
        assert other.wait(LONG_S) == "both"
        assert handle.wait(LONG_S) == "both"
        finished = duplicate(handle)
        assert finished.status is SUCCESSFUL
        assert finished.return_value == "both"
        assert finished.finished_at == handle.finished_at

    def test_a_finished_handle_looks_nothing_up(
        self, alias: str, configure: Configure
    ) -> None:
        configure(alias, MAX_RESULTS=0)
        handle = add.using(backend=alias).enqueue(1, 2)
        handle.join(LONG_S)
        handle.refresh()
        handle.join()
        asyncio.run(handle.arefresh())
        assert pickle.loads(pickle.dumps(handle)).wait() == 3

    def test_show_what_they_are(self, alias: str) -> None:
        handle = add.using(backend=alias).enqueue(1, 2)
        handle.join(LONG_S)
        assert handle.id in repr(handle)
        assert "SUCCESSFUL" in repr(handle)


def test_awaiting_in_a_thread_of_its_own_loop(alias: str) -> None:
    """As a sync view that uses `async_to_sync` does."""
    from asgiref.sync import async_to_sync

    async def main() -> int:
        return await (await add.using(backend=alias).aenqueue(1, 2))

    run: Callable[[], Awaitable[int]] = main
    assert async_to_sync(run)() == 3
