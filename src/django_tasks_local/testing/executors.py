"""What every executor promises, as tests."""
# ruff: noqa: D102  # the name of a test says what is promised

import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self, override

from ..context import LocalTaskContext, current_result_id, lending_slot
from ..errors import WorkerLost
from ..json_text import decode_value
from ..options import LocalOptions
from ..protocols import TaskExecutor
from ..records import Call, Outcome
from .contract import in_threads, options_for
from .hosts import RecordingHost

__all__ = ["ExecutorContract"]


class _Gate:
    """Holds calls wherever they run, until it is opened.

    A held call waits on a connection to this machine's loopback address.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.settimeout(timeout_s)
        self._held: list[socket.socket] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def wait_for_arrivals(self, count: int) -> None:
        """Block until as many more calls are held. Raises TimeoutError."""
        for _ in range(count):
            connection, _ = self._listener.accept()
            self._held.append(connection)

    def open(self) -> None:
        """Let all that were held go on."""
        while self._held:
            self._held.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.open()
        self._listener.close()


# What the calls run. Module-level functions, since a worker process imports them.


def _echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


async def _echo_async(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


def _hold(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)  # nothing comes: the other end closes it
    return "went on"


def _see(context: LocalTaskContext) -> dict[str, Any]:
    result = context.task_result
    return {
        "current_result_id": current_result_id.get(),
        "id": result.id,
        "status": result.status,
        "worker_ids": result.worker_ids,
        "attempt": context.attempt,
    }


class _TwoArguments(Exception):
    """Cannot be unpickled, which breaks pools that send exceptions."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class _Unshowable(Exception):
    @override
    def __str__(self) -> str:
        raise ValueError("no text")


class _FarOut(BaseException):
    pass


def _raise(kind: str) -> None:
    match kind:
        case "SystemExit":
            raise SystemExit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "GeneratorExit":
            raise GeneratorExit
        case "BaseException":
            raise _FarOut("far out")
        case "two arguments":
            raise _TwoArguments("this", "that")
        case "unshowable":
            raise _Unshowable
        case _:
            raise ValueError(f"wrong: {kind}")


def _return_odd(kind: str) -> object:
    match kind:
        case "set":
            return {1, 2}
        case "nan":
            return float("nan")
        case "bytes":
            return b"\xff"
        case "recursive":
            items: list[object] = []
            items.append(items)
            return items
        case _:
            return object()


def _die(exit_code: int) -> None:
    os._exit(exit_code)


def _lend() -> None:
    with lending_slot():  # as one does who waits for a task
        pass


def _get_var() -> str:
    return _var.get()


_var: ContextVar[str] = ContextVar("_var", default="unset")


def _path(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class ExecutorContract:
    """What a `TaskExecutor` promises, as tests. Override `make_executor`."""

    timeout_s: ClassVar[float] = 30.0
    """What takes longer than this many seconds has failed."""
    has_own_processes: ClassVar[bool] = False
    """Calls run in other processes: the suite ends some of these."""

    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> TaskExecutor:
        """A new executor, as its `ExecutorFactory` would make it.

        Called once a test. `options` has no ``executor_options``: use
        `dataclasses.replace` to give some. The suite shuts the executor down.
        """
        raise NotImplementedError

    @contextmanager
    def _executor(
        self, *, max_workers: int = 2
    ) -> Generator[tuple[TaskExecutor, RecordingHost]]:
        host = RecordingHost()
        executor = self.make_executor(options_for(max_workers=max_workers), host=host)
        try:
            yield executor, host
        finally:
            executor.shutdown(timeout_s=self.timeout_s)

    def _gate(self) -> _Gate:
        return _Gate(timeout_s=self.timeout_s)

    def _outcome(self, executor: TaskExecutor, call: Call) -> Outcome:
        return self._result(call, executor.submit(call))

    def _result(self, call: Call, future: Future[Outcome]) -> Outcome:
        """The outcome of a Future, which is that of the call."""
        outcome = future.result(self.timeout_s)
        assert type(outcome) is Outcome
        assert outcome.result_id == call.record.id
        assert (outcome.value is None) != (outcome.error is None)
        assert outcome.finished_at >= call.record.enqueued_at
        assert not future.cancelled()
        return outcome

    def _value(self, executor: TaskExecutor, call: Call) -> Any:
        return self._value_of(self._outcome(executor, call))

    @staticmethod
    def _value_of(outcome: Outcome) -> Any:
        assert outcome.error is None, outcome.error.traceback
        assert outcome.value is not None
        return decode_value(outcome.value)

    # What comes of a call.

    def test_function_is_called_with_its_arguments(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_echo, [1, "größe 🧵", None], {"key": [1.5, True]})

            assert self._value(executor, call) == [
                [1, "größe 🧵", None],
                {"key": [1.5, True]},
            ]

    def test_coroutine_function_runs_to_its_end(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_echo_async, [1], {"key": 2})

            assert self._value(executor, call) == [[1], {"key": 2}]

    def test_large_arguments_and_values_arrive(self) -> None:
        text = "größer 🧵 " * 200_000
        with self._executor() as (executor, host):
            assert self._value(executor, host.make_call(_echo, [text])) == [[text], {}]

    def test_exception_is_an_outcome(self) -> None:
        self._assert_raised("input", ValueError, text="wrong: input")

    def test_exception_that_cannot_be_unpickled_is_an_outcome(self) -> None:
        self._assert_raised("two arguments", _TwoArguments, text="this and that")

    def test_exception_that_cannot_be_shown_is_an_outcome(self) -> None:
        self._assert_raised("unshowable", _Unshowable, text="_Unshowable")

    def test_system_exit_is_an_outcome(self) -> None:
        self._assert_raised("SystemExit", SystemExit, text="SystemExit: 3")

    def test_keyboard_interrupt_is_an_outcome(self) -> None:
        self._assert_raised(
            "KeyboardInterrupt", KeyboardInterrupt, text="KeyboardInterrupt"
        )

    def test_any_base_exception_is_an_outcome(self) -> None:
        self._assert_raised("BaseException", _FarOut, text="far out")
        self._assert_raised("GeneratorExit", GeneratorExit, text="GeneratorExit")

    def _assert_raised(
        self, kind: str, error_class: type[BaseException], *, text: str
    ) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_raise, [kind])
            error = self._outcome(executor, call).error

            assert error is not None
            assert error.exception_class_path == _path(error_class)
            assert text in error.traceback
            assert len(host.starts_of(call)) == 1
            # The worker is as good as before.
            assert self._value(executor, host.make_call(_echo)) == [[], {}]

    def test_value_that_is_not_json_is_a_type_error(self) -> None:
        with self._executor() as (executor, host):
            for kind in ("object", "set", "nan", "bytes", "recursive"):
                call = host.make_call(_return_odd, [kind])
                error = self._outcome(executor, call).error

                assert error is not None, kind
                assert error.exception_class_path == _path(TypeError), kind

    def test_function_that_cannot_be_imported_has_an_outcome(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_echo, [1])
            lost = call.record.task._replace(path="no_such_module.tasks.work")
            call = call._replace(record=call.record._replace(task=lost))

            self._outcome(executor, call)  # an error where it had to be imported
            assert self._value(executor, host.make_call(_echo)) == [[], {}]

    # Its start.

    def test_start_is_told_once_and_before_the_function_runs(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            submitted_at = time.time()
            future = executor.submit(call)
            gate.wait_for_arrivals(1)

            (start,) = host.starts_of(call)
            assert start.worker_id
            assert submitted_at <= start.at <= time.time()
            gate.open()
            outcome = self._result(call, future)
            assert outcome.finished_at >= start.at
            assert host.starts_of(call) == [start]

    def test_task_sees_the_record_of_its_start(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_see, takes_context=True)
            seen = self._value(executor, call)

            (start,) = host.starts_of(call)
            assert seen == {
                "current_result_id": call.record.id,
                "id": call.record.id,
                "status": "RUNNING",
                "worker_ids": [start.worker_id],
                "attempt": 1,
            }

    def test_function_runs_in_the_calls_context(self) -> None:
        """For calls in this process: a context cannot be sent to another."""
        if self.has_own_processes:
            return
        with self._executor() as (executor, host):
            call = host.make_call(_get_var)
            assert call.context is not None
            call.context.run(_var.set, "the enqueuer's")

            assert self._value(executor, call) == "the enqueuer's"
            assert self._value(executor, host.make_call(_get_var)) == "unset"

    def test_task_that_waits_lends_its_slot(self) -> None:
        """For calls in this process: in another, waiting takes more than a host."""
        if self.has_own_processes:
            return
        with self._executor() as (executor, host):
            call = host.make_call(_lend)

            assert self._value(executor, call) is None
            assert host.lent == [call.record.id]
            assert host.reclaimed == [call.record.id]

    # Slots.

    def test_submit_does_not_wait_for_the_call(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            future = executor.submit(call)

            assert not future.done()
            gate.wait_for_arrivals(1)
            gate.open()
            assert self._value_of(self._result(call, future)) == "went on"

    def test_slots_run_at_once(self) -> None:
        self._assert_at_once(max_workers=3, slots=range(3))

    def test_more_slots_than_max_workers_run_at_once(self) -> None:
        """Tasks that wait for tasks lend their slots, and the others get new ones."""
        self._assert_at_once(max_workers=1, slots=range(4))

    def _assert_at_once(self, *, max_workers: int, slots: Sequence[int]) -> None:
        with (
            self._executor(max_workers=max_workers) as (executor, host),
            self._gate() as gate,
        ):
            for _ in range(2):  # the second time slots are taken that were used before
                calls = [
                    host.make_call(_hold, [gate.port], slot=slot) for slot in slots
                ]
                futures = [executor.submit(call) for call in calls]
                gate.wait_for_arrivals(len(calls))

                assert not any(future.done() for future in futures)
                gate.open()
                for call, future in zip(calls, futures, strict=True):
                    assert self._value_of(self._result(call, future)) == "went on"

    def test_slot_may_be_taken_again_from_the_callback_of_its_last_call(self) -> None:
        turns = 50
        with self._executor(max_workers=1) as (executor, host):
            outcomes: list[Outcome] = []
            all_done: Future[None] = Future()

            def take(future: Future[Outcome]) -> None:
                try:
                    outcomes.append(future.result(0))
                    submit()
                except BaseException as err:
                    all_done.set_exception(err)
                    raise

            def submit() -> None:
                if len(outcomes) == turns:
                    all_done.set_result(None)
                    return
                call = host.make_call(_echo, [len(outcomes)])
                executor.submit(call).add_done_callback(take)

            submit()
            all_done.result(self.timeout_s)

            values = [self._value_of(outcome) for outcome in outcomes]
            assert values == [[[turn], {}] for turn in range(turns)]
            assert len(host.starts) == turns

    def test_callback_may_take_long(self) -> None:
        goes_on = threading.Event()
        is_over = threading.Event()

        def wait(_: Future[Outcome]) -> None:
            goes_on.wait(self.timeout_s)
            is_over.set()

        with self._executor() as (executor, host), self._gate() as gate:
            slow = host.make_call(_hold, [gate.port], slot=0)
            executor.submit(slow).add_done_callback(wait)
            gate.wait_for_arrivals(1)
            gate.open()

            # Another slot goes on meanwhile.
            assert self._value(executor, host.make_call(_echo, slot=1)) == [[], {}]
            goes_on.set()
            assert is_over.wait(self.timeout_s)

    def test_threads_may_submit_at_once(self) -> None:
        turns = 10
        with self._executor(max_workers=4) as (executor, host):

            def use(slot: int) -> Callable[[], None]:
                def run() -> None:
                    for turn in range(turns):
                        call = host.make_call(_echo, [slot, turn], slot=slot)
                        assert self._value(executor, call) == [[slot, turn], {}]

                return run

            in_threads([use(slot) for slot in range(4)], timeout_s=self.timeout_s)

            assert len(host.starts) == 4 * turns

    def test_call_whose_worker_dies_fails_alone(self) -> None:
        """For calls in other processes."""
        if not self.has_own_processes:
            return
        with self._executor() as (executor, host), self._gate() as gate:
            held = host.make_call(_hold, [gate.port], slot=1)
            held_future = executor.submit(held)
            gate.wait_for_arrivals(1)
            for exit_code in (0, 3):
                call = host.make_call(_die, [exit_code], slot=0)
                error = self._outcome(executor, call).error

                assert error is not None
                assert error.exception_class_path == _path(WorkerLost)
                assert len(host.starts_of(call)) == 1
                after = host.make_call(_echo, slot=0)
                assert self._value(executor, after) == [[], {}]
            assert not held_future.done()
            gate.open()
            assert self._value_of(self._result(held, held_future)) == "went on"

    # The end.

    def test_unused_executor_may_be_shut_down_twice(self) -> None:
        with self._executor() as (executor, _):
            executor.shutdown(timeout_s=self.timeout_s)
            executor.shutdown(timeout_s=0.0)

    def test_used_executor_may_be_shut_down_twice(self) -> None:
        with self._executor() as (executor, host):
            for slot in range(2):
                call = host.make_call(_echo, slot=slot)
                assert self._value(executor, call) == [[], {}]
            executor.shutdown(timeout_s=self.timeout_s)
            executor.shutdown(timeout_s=self.timeout_s)

    def test_running_call_may_finish_before_the_time_is_over(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            future = executor.submit(call)
            gate.wait_for_arrivals(1)

            def shut_down() -> None:
                executor.shutdown(timeout_s=self.timeout_s)

            in_threads([shut_down, gate.open], timeout_s=self.timeout_s)

            assert self._value_of(self._result(call, future)) == "went on"

    def test_shutdown_does_not_wait_longer_than_it_may(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            future = executor.submit(call)
            gate.wait_for_arrivals(1)
            began = time.monotonic()
            executor.shutdown(timeout_s=0.0)
            assert time.monotonic() - began < self.timeout_s / 2

            gate.open()  # for threads, which go on
            outcome = self._result(call, future)
            if self.has_own_processes:
                assert outcome.error is not None
                assert outcome.error.exception_class_path == _path(WorkerLost)

    def test_executor_may_be_shut_down_from_the_callback_of_its_last_call(self) -> None:
        ended: Future[None] = Future()
        with self._executor() as (executor, host), self._gate() as gate:

            def end(_: Future[Outcome]) -> None:
                try:
                    executor.shutdown(timeout_s=self.timeout_s)
                except BaseException as err:
                    ended.set_exception(err)
                    raise
                ended.set_result(None)

            call = host.make_call(_hold, [gate.port])
            executor.submit(call).add_done_callback(end)
            gate.wait_for_arrivals(1)
            gate.open()
            ended.result(self.timeout_s / 2)
