"""Many at once: nothing is lost, crossed, stuck or kept."""

import gc
import logging
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, override

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from django.conf import settings
from django.dispatch import Signal
from django.tasks import TaskResultStatus, task_backends
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import override_settings

from django_tasks_local import LocalTaskResult, WorkerLost
from django_tasks_local.backend import FuturesBackend
from django_tasks_local.state import (
    ExecutorState,
    get_executor_state,
    shutdown_executor,
)

from .conftest import Configure, RunScript
from .gates import LONG_S, Gate
from .leftovers import kept_waiters, our_threads
from .stress_tasks import echo, echo_by_task, shut_down
from .tasks import hold

SIGNALS = {
    "enqueued": task_enqueued,
    "started": task_started,
    "finished": task_finished,
}


def in_threads(count: int, use: Callable[[int], None]) -> None:
    """Have as many threads begin at once; raise what one of them raises."""
    begin = threading.Barrier(count)

    def begin_together(number: int) -> None:
        begin.wait(LONG_S)
        use(number)

    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(begin_together, range(count)):
            pass


@contextmanager
def connected(signal: Signal, receive: Callable[..., None]) -> Generator[None]:
    signal.connect(receive)
    try:
        yield
    finally:
        signal.disconnect(receive)


def test_a_hundred_threads_enqueue_wait_and_refresh(alias: str) -> None:
    def use(number: int) -> None:
        task = echo.using(backend=alias)
        for value in range(number * 5, number * 5 + 5):
            handle = task.enqueue(value)
            again = task.get_result(handle.id)
            handle.refresh()
            assert handle.wait(LONG_S) == value
            again.refresh()
            assert again.return_value == value
            assert kept_waiters(handle) == []

    in_threads(100, use)


def test_a_hundred_threads_wait_for_one_result_and_some_give_up(
    alias: str, gate: Gate
) -> None:
    handle = hold.using(backend=alias).enqueue(gate.port, "for all")
    visitor = gate.next_visitor()
    given_up = threading.Barrier(51)

    def use(number: int) -> None:
        mine = hold.using(backend=alias).get_result(handle.id)
        if number % 2:
            with pytest.raises(TimeoutError):
                mine.wait(random.random() / 100)
            given_up.wait(LONG_S)
            if number == 1:
                visitor.let_go()
        elif number == 0:
            given_up.wait(LONG_S)
        assert mine.wait(LONG_S) == "for all"

    in_threads(100, use)
    handle.join(LONG_S)
    assert kept_waiters(handle) == []


@pytest.mark.anyio
async def test_a_thousand_coroutines_await_one_result_and_some_are_cancelled(
    alias: str, gate: Gate
) -> None:
    handle = await hold.using(backend=alias).aenqueue(gate.port, "for all")
    visitor = await anyio.to_thread.run_sync(gate.next_visitor)
    ends = Counter[object]()
    scopes: list[anyio.CancelScope] = []

    async def wait_for_it() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            value = await handle
            ends[value] += 1
        ends["cancelled"] += scope.cancelled_caught

    with anyio.fail_after(LONG_S):
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(wait_for_it)
            await anyio.wait_all_tasks_blocked()
            assert len(kept_waiters(handle)) == 1000
            leaving = random.sample(scopes, 500)  # pytest-randomly tells the seed
            for scope in leaving[:300]:
                scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert len(kept_waiters(handle)) == 700
            visitor.let_go()
            for scope in leaving[300:]:  # while the end comes, or after it
                scope.cancel()
                await anyio.lowlevel.checkpoint()
    assert ends.total() == 1000
    assert 300 <= ends["cancelled"] <= 500
    assert kept_waiters(handle) == []
    assert handle.return_value == "for all"


def test_ten_thousand_values_of_worker_processes_are_not_crossed(
    configure: Configure,
) -> None:
    configure("cpu", MAX_WORKERS=2, MAX_RESULTS=None)
    task = echo.using(backend="cpu")
    values = [f"{n}-" * random.randrange(1, 20) for n in range(10_000)]
    handles = [task.enqueue(value) for value in values]
    assert [handle.wait(LONG_S) for handle in handles] == values
    assert [task.get_result(handle.id).return_value for handle in handles] == values


def close(alias: str) -> None:
    backend = task_backends[alias]
    assert isinstance(backend, FuturesBackend)
    backend.close()


class TestShutdown:
    def test_while_threads_enqueue_loses_nothing(self, alias: str) -> None:
        rounds = threading.Semaphore(0)
        over = threading.Event()

        def use(number: int) -> None:
            if number == 0:
                try:
                    for _ in range(5):
                        close(alias)
                        for _ in range(8):
                            assert rounds.acquire(timeout=LONG_S)
                finally:
                    over.set()
            while not over.is_set():
                task = echo.using(backend=alias)
                handles = [task.enqueue([number, n]) for n in range(10)]
                expected = [[number, n] for n in range(10)]
                assert [handle.wait(LONG_S) for handle in handles] == expected
                rounds.release()

        in_threads(5, use)

    @pytest.mark.parametrize("inner_alias", ["default", "cpu"])
    def test_while_tasks_enqueue_loses_nothing(
        self, alias: str, inner_alias: str
    ) -> None:
        task = echo_by_task.using(backend=alias)
        handles = [task.enqueue(inner_alias, n) for n in range(20)]
        shutdown_executor(inner_alias)
        close(alias)
        assert [handle.wait(LONG_S) for handle in handles] == list(range(20))

    def test_by_several_threads_at_once(self, alias: str, gate: Gate) -> None:
        task = hold.using(backend=alias)
        handles = [task.enqueue(gate.port, n) for n in range(8)]
        gate.next_visitor()
        gate.open()
        in_threads(4, lambda _: close(alias))
        assert [handle.wait(LONG_S) for handle in handles] == list(range(8))
        assert echo.using(backend=alias).enqueue("anew").wait(LONG_S) == "anew"


@pytest.mark.parametrize(
    "aliases", [["default"], ["cpu"], ["cpu", "default"]], ids="-".join
)
def test_tasks_may_shut_down_where_they_run(alias: str, aliases: list[str]) -> None:
    task = shut_down.using(backend=alias)
    handles = [task.enqueue(aliases, n) for n in range(6)]
    assert [handle.wait(LONG_S) for handle in handles] == list(range(6))


def test_two_hundred_overrides_leave_nothing_while_tasks_are_in_flight() -> None:
    """No process or file either, as after each test."""
    threads = set(our_threads())
    handles: list[tuple[int, LocalTaskResult[Any]]] = []
    states: list[weakref.ref[ExecutorState]] = []
    for number in range(200):
        with override_settings(TASKS=dict(settings.TASKS)):
            # Processes now and then: each override has its own.
            for alias in ["default", *["cpu"] * (number % 50 == 0)]:
                task = echo.using(backend=alias)
                handles += [(n, task.enqueue(n)) for n in range(number, number + 4)]
                states.append(weakref.ref(get_executor_state(alias)))
    for value, handle in handles:
        assert handle.wait(LONG_S) == value
    for thread in set(our_threads()) - threads:
        thread.join(LONG_S)
    assert set(our_threads()) == threads
    gc.collect()
    assert [state for state in states if state() is not None] == []


class TestReceivers:
    @pytest.mark.parametrize("name", SIGNALS)
    def test_that_block_hold_up_their_own_task_only(
        self, alias: str, name: str
    ) -> None:
        is_reached, may_go_on = threading.Event(), threading.Event()
        task = echo.using(backend=alias)

        def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
            if task_result.args == ["held up"]:
                is_reached.set()
                assert may_go_on.wait(LONG_S)

        with connected(SIGNALS[name], receive), ThreadPoolExecutor(1) as pool:
            try:
                enqueuing = pool.submit(task.enqueue, "held up")
                assert is_reached.wait(LONG_S)
                handles = [task.enqueue(n) for n in range(50)]
                assert [handle.wait(LONG_S) for handle in handles] == list(range(50))
                if name != "enqueued":
                    held_up = enqueuing.result(LONG_S)
                    held_up.refresh()
                    assert held_up.status is TaskResultStatus.RUNNING
            finally:
                may_go_on.set()
            assert enqueuing.result(LONG_S).wait(LONG_S) == "held up"

    def test_that_raise_and_enqueue_do_no_harm_to_many(self, alias: str) -> None:
        further: list[tuple[str, LocalTaskResult[Any]]] = []

        def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
            (value,) = task_result.args
            if isinstance(value, int):
                text = f"{value} {task_result.status}"
                further.append((text, echo.using(backend=alias).enqueue(text)))
            raise LookupError(value)

        def use(number: int) -> None:
            task = echo.using(backend=alias)
            handles = [task.enqueue(number * 10 + n) for n in range(10)]
            for n, handle in enumerate(handles):
                assert handle.wait(LONG_S) == number * 10 + n

        with (
            connected(task_enqueued, receive),
            connected(task_started, receive),
            connected(task_finished, receive),
        ):
            in_threads(8, use)
            assert len(further) == 3 * 80
            for text, handle in further:
                assert handle.wait(LONG_S) == text


class RaisingHandler(logging.Handler):
    @override
    def emit(self, record: logging.LogRecord) -> None:
        raise LookupError(record.getMessage())


def test_a_log_handler_that_raises_does_not_stop_a_shutdown(
    alias: str, configure: Configure, gate: Gate
) -> None:
    configure(alias, MAX_WORKERS=1, SHUTDOWN_TIMEOUT=0.1)
    running = hold.using(backend=alias).enqueue(gate.port, "running")
    gate.next_visitor()
    waiting = echo.using(backend=alias).enqueue("waiting")
    loggers = [logging.getLogger(n) for n in ("django.tasks", "django_tasks_local")]
    handler = RaisingHandler()
    for logger in loggers:
        logger.addHandler(handler)
    try:
        shutdown_executor(alias)
        waiting.join(LONG_S)
        assert waiting.errors[0].exception_class is WorkerLost
        gate.open()
        running.join(LONG_S)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert echo.using(backend=alias).enqueue("anew").wait(LONG_S) == "anew"


def test_a_fork_server_killed_just_now_loses_no_task(run_script: RunScript) -> None:
    done = run_script(
        """
    import os, signal
    from tests.small_project import configure
    configure()
    from tests.leftovers import descendants, wait_until_gone
    from tests.small_tasks import own_pid

    if __name__ == "__main__":
        task = own_pid.using(backend="cpu")
        for _ in range(3):
            worker = task.enqueue().wait(30)
            servers = descendants() - {worker}
            os.kill(worker, signal.SIGKILL)
            assert wait_until_gone(worker)
            for server in servers:
                os.kill(server, signal.SIGKILL)  # whether it is gone is not waited for
        task.enqueue().wait(30)
        """
    )
    assert [done.stdout, done.stderr] == ["", ""]


@pytest.mark.parametrize("how", ["ignored", "reaped by others"])
def test_a_server_that_others_have_buried_is_started_again(
    run_script: RunScript, how: str
) -> None:
    done = run_script(
        """
    import os, signal, sys
    from tests.small_project import configure
    configure()
    from tests.leftovers import descendants, wait_until_gone
    from tests.small_tasks import own_pid

    def reap(number, frame):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    if __name__ == "__main__":
        handler = signal.SIG_IGN if sys.argv[1] == "ignored" else reap
        signal.signal(signal.SIGCHLD, handler)
        task = own_pid.using(backend="cpu")
        worker = task.enqueue().wait(30)
        for pid in descendants():
            os.kill(pid, signal.SIGKILL)
            assert wait_until_gone(pid)
        assert task.enqueue().wait(30) != worker
        """,
        how,
    )
    assert [done.stdout, done.stderr] == ["", ""]


def test_a_shutdown_that_meets_an_enqueue_loses_no_task(configure: Configure) -> None:
    configure("default", MAX_WORKERS=2, SHUTDOWN_TIMEOUT=0.0)
    handles: list[LocalTaskResult[Any]] = []
    for number in range(50):
        both = threading.Barrier(2)

        def enqueue(number: int = number, both: threading.Barrier = both) -> None:
            both.wait(LONG_S)
            handles.append(echo.enqueue(number))

        thread = threading.Thread(target=enqueue)
        thread.start()
        both.wait(LONG_S)
        shutdown_executor("default")
        thread.join(LONG_S)
    for handle in handles:
        handle.join(LONG_S)
        assert handle.is_finished
    assert len(handles) == 50
