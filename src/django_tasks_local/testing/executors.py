"""What every executor promises, as tests."""
# ruff: noqa: D102  # the name of a test says what is promised

import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, ClassVar

from ..backoff import Backoff
from ..errors import TaskCancelled, TaskTimeout, WorkerLost, path_of
from ..json_text import decode_value
from ..options import LocalOptions
from ..protocols import TaskExecutor
from ..records import Call, Interruption, Outcome
from . import calls
from .calls import Gate
from .contract import in_threads, options_for
from .hosts import RecordingHost

__all__ = ["ExecutorContract"]


_REASONS = {Interruption.CANCEL: TaskCancelled, Interruption.TIMEOUT: TaskTimeout}


class ExecutorContract:
    """What a `TaskExecutor` promises, as tests. Override `make_executor`.

    What it says of itself by `can_stop_functions` and `can_stop_coroutines` is tested.
    """

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

    def _gate(self) -> Gate:
        return Gate(timeout_s=self.timeout_s)

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
            call = host.make_call(
                calls.echo, [1, "größe 🧵", None], {"key": [1.5, True]}
            )

            assert self._value(executor, call) == [
                [1, "größe 🧵", None],
                {"key": [1.5, True]},
            ]

    def test_coroutine_function_runs_to_its_end(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(calls.echo_async, [1], {"key": 2})

            assert self._value(executor, call) == [[1], {"key": 2}]

    def test_large_arguments_and_values_arrive(self) -> None:
        text = "größer 🧵 " * 200_000
        with self._executor() as (executor, host):
            assert self._value(executor, host.make_call(calls.echo, [text])) == [
                [text],
                {},
            ]

    def test_exception_is_an_outcome(self) -> None:
        self._assert_raised("input", ValueError, text="wrong: input")

    def test_exception_that_cannot_be_unpickled_is_an_outcome(self) -> None:
        self._assert_raised("two arguments", calls.TwoArguments, text="this and that")

    def test_exception_that_cannot_be_shown_is_an_outcome(self) -> None:
        self._assert_raised("unshowable", calls.Unshowable, text="Unshowable")

    def test_system_exit_is_an_outcome(self) -> None:
        self._assert_raised("SystemExit", SystemExit, text="SystemExit: 3")

    def test_keyboard_interrupt_is_an_outcome(self) -> None:
        self._assert_raised(
            "KeyboardInterrupt", KeyboardInterrupt, text="KeyboardInterrupt"
        )

    def test_any_base_exception_is_an_outcome(self) -> None:
        self._assert_raised("BaseException", calls.FarOut, text="far out")
        self._assert_raised("GeneratorExit", GeneratorExit, text="GeneratorExit")

    def _assert_raised(
        self, kind: str, error_class: type[BaseException], *, text: str
    ) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(calls.raise_error, [kind])
            error = self._outcome(executor, call).error

            assert error is not None
            assert error.exception_class_path == path_of(error_class)
            assert text in error.traceback
            assert len(host.starts_of(call)) == 1
            # The worker is as good as before.
            assert self._value(executor, host.make_call(calls.echo)) == [[], {}]

    def test_value_that_is_not_json_is_a_type_error(self) -> None:
        with self._executor() as (executor, host):
            for kind in ("object", "set", "nan", "bytes", "recursive"):
                call = host.make_call(calls.return_odd, [kind])
                error = self._outcome(executor, call).error

                assert error is not None, kind
                assert error.exception_class_path == path_of(TypeError), kind

    def test_function_that_cannot_be_imported_has_an_outcome(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(calls.echo, [1])
            lost = call.record.task._replace(path="no_such_module.tasks.work")
            call = call._replace(record=call.record._replace(task=lost))

            self._outcome(executor, call)  # an error where it had to be imported
            assert self._value(executor, host.make_call(calls.echo)) == [[], {}]

    # Its start.

    def test_start_is_told_once_and_before_the_function_runs(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(calls.hold, [gate.port])
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
            call = host.make_call(calls.see_context, takes_context=True)
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
            call = host.make_call(calls.get_var)
            assert call.context is not None
            call.context.run(calls.var.set, "the enqueuer's")

            assert self._value(executor, call) == "the enqueuer's"
            assert self._value(executor, host.make_call(calls.get_var)) == "unset"

    def test_task_that_waits_lends_its_slot(self) -> None:
        """For calls in this process: in another, waiting takes more than a host."""
        if self.has_own_processes:
            return
        with self._executor() as (executor, host):
            call = host.make_call(calls.lend)

            assert self._value(executor, call) is None
            assert host.lent == [call.record.id]
            assert host.reclaimed == [call.record.id]

    def test_call_that_was_cancelled_before_does_not_run(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            for function in (calls.hold, calls.hold_async):
                call = host.make_call(
                    function, [gate.port], backoff=calls.divide_by_zero
                )
                host.cancelled.add(call.record.id)
                # It would be held if it ran.
                outcome = executor.submit(call).result(self.timeout_s)

                assert type(outcome) is Outcome
                assert outcome.result_id == call.record.id
                assert len(host.starts_of(call)) == 1
                assert self._value(executor, host.make_call(calls.echo)) == [[], {}]

    # Another attempt.

    def test_backoff_is_asked_where_the_exception_is(self) -> None:
        with self._executor() as (executor, host):
            for attempt in (1, 3):
                call = host.make_call(
                    calls.be_busy,
                    [1.5],
                    attempt=attempt,
                    backoff=calls.wait_while_busy,
                )
                outcome = self._failed(executor, call, calls.Busy)

                assert outcome.is_backoff_asked
                assert outcome.further_errors == ()
                assert outcome.retry_after_s == 1.5 * attempt

    def test_backoff_may_answer_none(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(calls.be_busy, [1], backoff=calls.Answers(None))
            outcome = self._failed(executor, call, calls.Busy)

            assert outcome.is_backoff_asked
            assert outcome.further_errors == ()
            assert outcome.retry_after_s is None

    def test_what_a_backoff_raises_is_a_further_error(self) -> None:
        self._assert_backoffs_fail([calls.divide_by_zero], ZeroDivisionError)

    def test_answer_that_is_no_time_is_a_further_error(self) -> None:
        answers = (-1, float("nan"), float("inf"), "soon", True)
        backoffs = [calls.Answers(answer) for answer in answers]
        self._assert_backoffs_fail(backoffs, TypeError)

    def _assert_backoffs_fail(
        self, backoffs: Sequence[Backoff], error_class: type[BaseException]
    ) -> None:
        with self._executor() as (executor, host):
            for backoff in backoffs:
                call = host.make_call(calls.be_busy, [1], backoff=backoff)
                outcome = self._failed(executor, call, calls.Busy)

                assert outcome.is_backoff_asked
                assert outcome.retry_after_s is None
                (error,) = outcome.further_errors
                assert error.exception_class_path == path_of(error_class)
                assert self._value(executor, host.make_call(calls.echo)) == [[], {}]

    def test_backoff_is_asked_about_failures_only(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(calls.echo, backoff=calls.divide_by_zero)
            outcome = self._outcome(executor, call)
            assert self._value_of(outcome) == [[], {}]
            self._assert_not_asked(outcome)

            # A task that was cancelled is not tried again.
            call = host.make_call(calls.cancel_itself, backoff=calls.divide_by_zero)
            self._assert_not_asked(self._failed(executor, call, TaskCancelled))

            call = host.make_call(calls.be_busy, [1])
            self._assert_not_asked(self._failed(executor, call, calls.Busy))

    @staticmethod
    def _assert_not_asked(outcome: Outcome) -> None:
        assert not outcome.is_backoff_asked
        assert outcome.retry_after_s is None
        assert outcome.further_errors == ()

    def test_backoff_that_cannot_be_pickled_does_no_harm(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(calls.be_busy, [1], backoff=lambda error, result: 2.0)
            outcome = self._failed(executor, call, calls.Busy)

            assert outcome.is_backoff_asked
            assert outcome.retry_after_s in (
                2.0,
                None,
            )  # asked here, or not to be found

    def _failed(
        self, executor: TaskExecutor, call: Call, error_class: type[BaseException]
    ) -> Outcome:
        outcome = self._outcome(executor, call)
        assert outcome.error is not None
        assert outcome.error.exception_class_path == path_of(error_class)
        return outcome

    # Metadata.

    def test_metadata_is_seen_while_the_task_runs_and_at_its_end(self) -> None:
        told = {"given": "größe 🧵", "told": ["größe", 1.5, None]}
        with self._executor() as (executor, host), self._gate() as gate:
            for function, may_block in (
                (calls.tell, False),
                (calls.tell_async, False),
                (calls.tell_async, True),
            ):
                host.may_block = may_block
                call = host.make_call(
                    function,
                    [gate.port],
                    takes_context=True,
                    attempt=2,
                    metadata={"given": "größe 🧵"},
                )
                future = executor.submit(call)
                gate.wait_for_arrivals(1)

                (saved,) = host.saved_by(call)
                assert decode_value(saved.metadata) == told
                assert saved.attempt == 2
                gate.open()
                outcome = self._result(call, future)
                assert self._value_of(outcome) == {"given": "größe 🧵"}
                assert self._metadata_of(outcome) == {**told, "at the end": "🧵"}

    def test_metadata_of_a_task_that_fails_is_kept(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(calls.tell_and_fail, takes_context=True)
            outcome = self._failed(executor, call, ValueError)

            assert self._metadata_of(outcome) == {"told": "so far"}
            assert outcome.further_errors == ()

    def test_metadata_that_nobody_changes_stays(self) -> None:
        with self._executor() as (executor, host):
            for function in (calls.tell_nothing, calls.see_context, calls.echo):
                call = host.make_call(
                    function,
                    takes_context=function is not calls.echo,
                    metadata={"given": 1},
                )
                outcome = self._outcome(executor, call)

                assert outcome.error is None
                if outcome.metadata is not None:
                    assert self._metadata_of(outcome) == {"given": 1}
                assert host.saved == []

    def test_metadata_that_is_not_json_is_a_type_error(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(
                calls.tell_what_is_not_json, [False], takes_context=True
            )
            outcome = self._failed(executor, call, TypeError)
            assert outcome.metadata is None

            # The function's own error comes first.
            call = host.make_call(
                calls.tell_what_is_not_json, [True], takes_context=True
            )
            outcome = self._failed(executor, call, ValueError)
            assert outcome.metadata is None
            (further,) = outcome.further_errors
            assert further.exception_class_path == path_of(TypeError)

            # A task that saves it is told at once.
            call = host.make_call(calls.save_what_is_not_json, takes_context=True)
            assert self._value(executor, call) == "TypeError"
            assert host.saved == []

    @staticmethod
    def _metadata_of(outcome: Outcome) -> Any:
        assert outcome.metadata is not None
        return decode_value(outcome.metadata)

    # Calls that are stopped.

    def test_task_that_was_asked_to_stop_learns_of_it(self) -> None:
        """For calls in this process: one in another is ended."""
        if self.has_own_processes:
            return
        with self._executor() as (executor, host):
            for where in ("checkpoint", "save_metadata", "report_progress"):
                call = host.make_call(
                    calls.stop_when_asked,
                    [where],
                    takes_context=True,
                    backoff=calls.divide_by_zero,
                )
                host.cancel_requested.add(call.record.id)

                self._assert_not_asked(self._failed(executor, call, TaskCancelled))

    def test_running_call_is_ended(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            for function in self._can_stop(executor):
                for reason, error_class in _REASONS.items():
                    call = self._make_held(host, function, gate)
                    future = executor.submit(call)
                    gate.wait_for_arrivals(1)

                    assert self._interrupt(executor, call, reason)
                    self._assert_ended(self._result(call, future), error_class)
                    assert not self._interrupt(executor, call, reason)
                    # Its slot is as good as before.
                    after = host.make_call(calls.echo)
                    assert self._value(executor, after) == [[], {}]

    def test_call_that_cannot_be_ended_goes_on(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            can_stop = self._can_stop(executor)
            for function in (calls.hold, calls.hold_async):
                if function in can_stop:
                    continue
                call = host.make_call(function, [gate.port])
                future = executor.submit(call)
                gate.wait_for_arrivals(1)

                assert not self._interrupt(executor, call, Interruption.CANCEL)
                gate.open()
                assert self._value_of(self._result(call, future)) == "went on"

    def test_other_attempts_and_tasks_are_not_ended(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            for function in (calls.hold, calls.hold_async):
                call = self._make_held(host, function, gate, attempt=2)
                future = executor.submit(call)
                gate.wait_for_arrivals(1)

                other = host.make_call(function, [gate.port])
                for attempt in (1, 3):
                    assert not self._interrupt(
                        executor, call, Interruption.TIMEOUT, attempt=attempt
                    )
                assert not self._interrupt(executor, other, Interruption.CANCEL)
                gate.open()
                assert self._value_of(self._result(call, future)) == "went on"

    def test_other_slots_go_on_when_a_call_is_ended(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            for function in self._can_stop(executor):
                other = self._make_held(host, function, gate, slot=1)
                other_future = executor.submit(other)
                gate.wait_for_arrivals(1)
                call = self._make_held(host, function, gate)
                future = executor.submit(call)
                gate.wait_for_arrivals(1)

                assert self._interrupt(executor, call, Interruption.CANCEL)
                self._assert_ended(self._result(call, future), TaskCancelled)
                assert not other_future.done()
                gate.open()
                outcome = self._result(other, other_future)
                assert self._value_of(outcome) == "went on"

    def test_call_that_does_not_run_cannot_be_ended(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            for function in (calls.hold, calls.hold_async):
                call = host.make_call(function, [gate.port])
                assert not self._interrupt(executor, call, Interruption.CANCEL)

                future = executor.submit(call)
                gate.wait_for_arrivals(1)
                gate.open()
                assert self._value_of(self._result(call, future)) == "went on"
                assert not self._interrupt(executor, call, Interruption.CANCEL)
                assert self._value(executor, host.make_call(calls.echo)) == [[], {}]

    def test_call_may_be_ended_as_it_begins(self) -> None:
        """The host has been told of its start, but the function does not run yet."""
        with self._executor() as (executor, host), self._gate() as gate:
            for function in self._can_stop(executor):
                for reason, error_class in _REASONS.items():
                    call = self._make_held(host, function, gate)

                    def end(_: str, call: Call = call, reason: Any = reason) -> None:
                        self._interrupt(executor, call, reason)

                    host.at_start = end
                    outcome = self._outcome(executor, call)
                    host.at_start = None

                    self._assert_ended(outcome, error_class)
                    after = host.make_call(calls.echo)
                    assert self._value(executor, after) == [[], {}]

    def test_of_many_that_end_a_call_one_does(self) -> None:
        reasons = [*_REASONS] * 4
        with self._executor() as (executor, host), self._gate() as gate:
            for function in self._can_stop(executor):
                call = self._make_held(host, function, gate)
                future = executor.submit(call)
                gate.wait_for_arrivals(1)

                ended = in_threads(
                    [self._interrupter(executor, call, reason) for reason in reasons],
                    timeout_s=self.timeout_s,
                )

                assert ended.count(True) == 1
                error_class = _REASONS[reasons[ended.index(True)]]
                self._assert_ended(self._result(call, future), error_class)
                assert self._value(executor, host.make_call(calls.echo)) == [[], {}]

    def test_call_that_ends_just_then_ends_in_one_way(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            for function in self._can_stop(executor):
                for _ in range(5):
                    call = self._make_held(host, function, gate)
                    future = executor.submit(call)
                    gate.wait_for_arrivals(1)

                    in_threads(
                        [
                            gate.open,
                            self._interrupter(executor, call, Interruption.CANCEL),
                        ],
                        timeout_s=self.timeout_s,
                    )

                    outcome = self._result(call, future)
                    if outcome.error is None:
                        assert self._value_of(outcome) == "went on"
                    else:
                        self._assert_ended(outcome, TaskCancelled)
                    after = host.make_call(calls.echo)
                    assert self._value(executor, after) == [[], {}]

    def test_executor_may_be_shut_down_after_a_call_was_ended(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            functions = self._can_stop(executor)
            held = [
                self._make_held(host, function, gate, slot=slot)
                for slot, function in enumerate(functions)
            ]
            futures = [executor.submit(call) for call in held]
            gate.wait_for_arrivals(len(held))
            for call in held:
                assert self._interrupt(executor, call, Interruption.CANCEL)
            executor.shutdown(timeout_s=self.timeout_s)

            for call, future in zip(held, futures, strict=True):
                self._assert_ended(self._result(call, future), TaskCancelled)
                assert not self._interrupt(executor, call, Interruption.CANCEL)

    @staticmethod
    def _can_stop(executor: TaskExecutor) -> Sequence[Callable[[int], object]]:
        """What holds a call, and can be ended."""
        return [
            function
            for function, attribute in (
                (calls.hold, "can_stop_functions"),
                (calls.hold_async, "can_stop_coroutines"),
            )
            if getattr(executor, attribute, False)
        ]

    def _make_held(
        self,
        host: RecordingHost,
        function: Callable[[int], object],
        gate: Gate,
        *,
        slot: int = 0,
        attempt: int = 1,
    ) -> Call:
        return host.make_call(
            function, [gate.port], slot=slot, attempt=attempt, timeout_s=self.timeout_s
        )

    @staticmethod
    def _interrupt(
        executor: TaskExecutor, call: Call, reason: Interruption, *, attempt: int = 1
    ) -> bool:
        return executor.interrupt(call.record.id, attempt=attempt, reason=reason)

    def _interrupter(
        self, executor: TaskExecutor, call: Call, reason: Interruption
    ) -> Callable[[], bool]:
        return lambda: self._interrupt(executor, call, reason)

    @staticmethod
    def _assert_ended(outcome: Outcome, error_class: type[BaseException]) -> None:
        assert outcome.error is not None, outcome.value
        assert outcome.error.exception_class_path == path_of(error_class)
        assert outcome.retry_after_s is None

    # Slots.

    def test_submit_does_not_wait_for_the_call(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(calls.hold, [gate.port])
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
                held = [
                    host.make_call(calls.hold, [gate.port], slot=slot) for slot in slots
                ]
                futures = [executor.submit(call) for call in held]
                gate.wait_for_arrivals(len(held))

                assert not any(future.done() for future in futures)
                gate.open()
                for call, future in zip(held, futures, strict=True):
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
                call = host.make_call(calls.echo, [len(outcomes)])
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
            slow = host.make_call(calls.hold, [gate.port], slot=0)
            executor.submit(slow).add_done_callback(wait)
            gate.wait_for_arrivals(1)
            gate.open()

            # Another slot goes on meanwhile.
            assert self._value(executor, host.make_call(calls.echo, slot=1)) == [[], {}]
            goes_on.set()
            assert is_over.wait(self.timeout_s)

    def test_threads_may_submit_at_once(self) -> None:
        turns = 10
        with self._executor(max_workers=4) as (executor, host):

            def use(slot: int) -> Callable[[], None]:
                def run() -> None:
                    for turn in range(turns):
                        call = host.make_call(calls.echo, [slot, turn], slot=slot)
                        assert self._value(executor, call) == [[slot, turn], {}]

                return run

            in_threads([use(slot) for slot in range(4)], timeout_s=self.timeout_s)

            assert len(host.starts) == 4 * turns

    def test_call_whose_worker_dies_fails_alone(self) -> None:
        """For calls in other processes."""
        if not self.has_own_processes:
            return
        with self._executor() as (executor, host), self._gate() as gate:
            held = host.make_call(calls.hold, [gate.port], slot=1)
            held_future = executor.submit(held)
            gate.wait_for_arrivals(1)
            for exit_code in (0, 3):
                call = host.make_call(calls.die, [exit_code], slot=0)
                error = self._outcome(executor, call).error

                assert error is not None
                assert error.exception_class_path == path_of(WorkerLost)
                assert len(host.starts_of(call)) == 1
                after = host.make_call(calls.echo, slot=0)
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
                call = host.make_call(calls.echo, slot=slot)
                assert self._value(executor, call) == [[], {}]
            executor.shutdown(timeout_s=self.timeout_s)
            executor.shutdown(timeout_s=self.timeout_s)

    def test_running_call_may_finish_before_the_time_is_over(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(calls.hold, [gate.port])
            future = executor.submit(call)
            gate.wait_for_arrivals(1)

            def shut_down() -> None:
                executor.shutdown(timeout_s=self.timeout_s)

            in_threads([shut_down, gate.open], timeout_s=self.timeout_s)

            assert self._value_of(self._result(call, future)) == "went on"

    def test_shutdown_does_not_wait_longer_than_it_may(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(calls.hold, [gate.port])
            future = executor.submit(call)
            gate.wait_for_arrivals(1)
            began = time.monotonic()
            executor.shutdown(timeout_s=0.0)
            assert time.monotonic() - began < self.timeout_s / 2

            gate.open()  # for threads, which go on
            outcome = self._result(call, future)
            if self.has_own_processes:
                assert outcome.error is not None
                assert outcome.error.exception_class_path == path_of(WorkerLost)

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

            call = host.make_call(calls.hold, [gate.port])
            executor.submit(call).add_done_callback(end)
            gate.wait_for_arrivals(1)
            gate.open()
            ended.result(self.timeout_s / 2)
