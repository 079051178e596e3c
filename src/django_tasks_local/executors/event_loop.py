"""Coroutines on an event loop."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from ..backoff import Backoff
from ..errors import TaskCancelled
from ..identity import this_process
from ..interruption import InterruptibleCoroutine
from ..options import LocalOptions
from ..protocols import WorkerHost
from ..records import Call, Interruption, Outcome, Record
from ..worker import (
    error_record,
    is_async,
    is_awaited_by_a_thread,
    lost_outcome,
    run_coroutine_task,
    run_task,
    stopped_outcome,
)
from .loop_thread import LoopThread
from .loop_watch import LoopWatch
from .sync_threads import Place, SyncThreads, Work

__all__ = ["EventLoopExecutor"]

_END_S = 1.0
_SHUT_DOWN = "Its alias was shut down before the task could run."


class EventLoopExecutor:
    """Runs coroutine functions on one event loop. An `ExecutorFactory`.

    Its thread starts with the first of them. Functions run on the threads beside it.
    """

    option_names: Sequence[str] = ()
    can_stop_coroutines = True
    can_stop_functions = False

    def __init__(self, options: LocalOptions, /, *, host: WorkerHost) -> None:
        self._host = host
        self._options = options
        self._name = f"django-tasks-{host.alias}"
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._is_ending = False
        self._has_loop_ended = False
        self._is_left_to_loop = False
        """The loop's thread ends the others."""
        self._loop_thread: LoopThread | None = None
        self._watch: LoopWatch | None = None
        self._threads = SyncThreads(
            name=f"{self._name}-sync", count=options.sync_threads
        )
        self._task_host = _Host(host, self._threads, is_on_loop=self._is_on_loop)
        self._worker_id = f"{this_process()}:{host.alias}-loop"
        self._done = self._end  # one bound method for all, not one for each that runs
        # The coroutines, by their results' ids, from when they are handed over.
        self._running: dict[str, _Running] = {}

    def submit(self, call: Call, /) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self.run(call, future.set_result)
        return future

    def run(self, call: Call, done: Callable[[Outcome], None], /) -> None:
        reason = self._hand_over(call, done)
        if reason is not None:
            done(lost_outcome(call.record.id, reason))

    def _hand_over(self, call: Call, done: Callable[[Outcome], None]) -> str | None:
        """Why it cannot run, where it cannot."""
        function = call.function
        try:
            if function is None or not is_async(function):
                self._threads.submit(
                    Work(
                        partial(self._run_function, call, done),
                        partial(done, lost_outcome(call.record.id, _SHUT_DOWN)),
                        call.record.id,
                    )
                )
                return None
            loop_thread = self._ready_loop()
        except RuntimeError as err:
            # The interpreter is ending, or the system has no thread left.
            return str(err)
        running = self._running[call.record.id] = _Running(call, function, done)
        if (
            loop_thread.call_soon(self._begin, running)
            or self._running.pop(running.id, None) is None  # `_loop_ended` has it
        ):
            return None
        return _SHUT_DOWN

    def interrupt(
        self, result_id: str, /, *, attempt: int, reason: Interruption
    ) -> bool:
        running, loop_thread = self._running.get(result_id), self._loop_thread
        if running is None or running.attempt != attempt or loop_thread is None:
            return False
        with self._lock:  # decides whose reason it is
            has_to_stop = running.note(reason)
        if has_to_stop:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                loop_thread.loop.call_soon_threadsafe(running.stop)
        return has_to_stop

    def shutdown(self, *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._is_shut_down = True
            loop_thread, watch = self._loop_thread, self._watch
        if loop_thread is not None:
            loop_thread.call_soon(self._end_by, loop_thread, deadline)
            loop_thread.join(timeout_s)
        if watch is not None:
            watch.end()
        with self._lock:  # decides who ends the threads
            # What is to end at once tells the host so, for which they are needed.
            is_still_needed = loop_thread is not None and not self._has_loop_ended
            self._is_left_to_loop = is_still_needed and timeout_s <= 0
            is_left_to_loop = self._is_left_to_loop
        if is_left_to_loop:
            self._threads.refuse_functions()
        else:
            self._threads.shutdown(timeout_s=max(0.0, deadline - time.monotonic()))

    # A coroutine, on the loop's thread, from its start to its end. What the host may
    # block in is done on one of the threads beside it.

    def _begin(self, running: "_Running") -> None:
        running.place = self._threads.take_place()
        if self._watch is not None:
            self._watch.watch()
        if self._host.transitions_may_block:
            self._in_thread(partial(self._start_in_thread, running))
        else:
            self._run(running, self._started(running))

    def _start_in_thread(self, running: "_Running") -> None:
        assert self._loop_thread is not None  # as it began there
        self._loop_thread.call_soon(self._run, running, self._started(running))

    def _started(self, running: "_Running") -> Record | None:
        return self._host.started(running.id, worker_id=self._worker_id, at=time.time())

    def _run(self, running: "_Running", record: Record | None) -> None:
        if record is None:
            self._end(running, stopped_outcome(running.id, TaskCancelled()))
            return
        assert self._loop_thread is not None  # as it began there
        assert running.place is not None  # likewise
        # What it is to do first, it does now: nobody can cancel it before that. The
        # context is nobody else's.
        running.task = asyncio.Task(
            run_coroutine_task(
                record,
                host=self._task_host,
                function=running.function,
                thread_context=running.place.token,
                backoff=running.backoff,
                interruptible=running,
                done=self._done,
            ),
            loop=self._loop_thread.loop,
            name=record.task.path,
            context=running.context or copy_context(),
            eager_start=True,
        )

    def _end(self, running: "_Running", outcome: Outcome) -> None:
        running.outcome = outcome
        if self._host.transitions_may_block:
            assert self._loop_thread is not None  # as it began there
            # Once the coroutine has left its context, where receivers are called.
            self._loop_thread.call_soon(self._tell_in_thread, running)
        else:
            self._tell(running)
            assert running.place is not None  # as it began
            self._threads.leave(running.place)

    def _tell_in_thread(self, running: "_Running") -> None:
        self._in_thread(partial(self._tell, running))
        assert running.place is not None  # as it began
        self._threads.leave(running.place)

    def _tell(self, running: "_Running") -> None:
        # Before: it may be handed over again at once.
        if self._running.pop(running.id, None) is not None:
            assert running.outcome is not None  # as it has ended
            running.done(running.outcome)
        if self._is_ending and not self._running and self._loop_thread is not None:
            self._loop_thread.stop()

    def _in_thread(self, function: Callable[[], None]) -> None:
        try:
            self._threads.submit(Work(function, function), is_errand=True)
        except RuntimeError:  # no thread can be started: better so than never
            function()

    # A function.

    def _run_function(self, call: Call, done: Callable[[Outcome], None]) -> None:
        try:
            outcome = self._outcome_of_function(call)
        except BaseException as err:  # it should not, but the thread serves others
            outcome = lost_outcome(call.record.id, error_record(err).traceback)
        done(outcome)

    def _outcome_of_function(self, call: Call) -> Outcome:
        name = threading.current_thread().name.removeprefix("django-tasks-")
        record = self._host.started(
            call.record.id, worker_id=f"{this_process()}:{name}", at=time.time()
        )
        if record is None:
            return stopped_outcome(call.record.id, TaskCancelled())
        return run_task(
            record,
            host=self._task_host,
            function=call.function,
            context=call.context or copy_context(),
            backoff=call.backoff,
        )

    # The loop itself.

    def _is_on_loop(self) -> bool:
        return self._loop_thread is not None and self._loop_thread.is_current

    def _ready_loop(self) -> LoopThread:
        if self._loop_thread is not None and not self._is_shut_down:
            return self._loop_thread
        with self._lock:  # it is started once
            if self._is_shut_down:
                raise RuntimeError(_SHUT_DOWN)
            if self._loop_thread is None:
                self._loop_thread = LoopThread(
                    name=f"{self._name}-loop",
                    new_loop=self._options.new_event_loop,
                    sync_threads=self._threads,
                    on_end=self._loop_ended,
                )
                if self._options.slow_callback_s is not None:
                    self._watch = LoopWatch(
                        self._loop_thread,
                        alias=self._host.alias,
                        slow_s=self._options.slow_callback_s,
                        is_needed=lambda: bool(self._running),
                    )
            return self._loop_thread

    def _end_by(self, loop_thread: LoopThread, deadline: float) -> None:
        """Stop the loop once nothing runs, or when it is time."""
        self._is_ending = True
        if self._running:
            left_s = max(0.0, deadline - time.monotonic())
            loop_thread.loop.call_later(left_s, self._stop_running, loop_thread)
        else:
            loop_thread.stop()

    def _stop_running(self, loop_thread: LoopThread) -> None:
        for running in list(self._running.values()):
            self.interrupt(
                running.id, attempt=running.attempt, reason=Interruption.SHUTDOWN
            )
        # Those that do not let themselves be stopped:
        loop_thread.loop.call_later(_END_S, loop_thread.stop)

    def _loop_ended(self) -> None:
        reason = "Its alias was shut down before the task came to its end."
        for running in list(self._running.values()):
            if running.outcome is None:
                running.outcome = lost_outcome(running.id, reason)
            self._tell(running)
        with self._lock:
            self._has_loop_ended = True
            is_left_to_loop = self._is_left_to_loop
        if is_left_to_loop:
            self._threads.shutdown(timeout_s=0.0)


class _Running(InterruptibleCoroutine):
    """A coroutine from its start to its end."""

    __slots__ = ("backoff", "context", "done", "function", "id", "outcome", "place")

    def __init__(
        self,
        call: Call,
        function: Callable[..., Coroutine[Any, Any, Any]],
        done: Callable[[Outcome], None],
    ) -> None:
        super().__init__(
            attempt=len(call.record.worker_ids) + 1, timeout_s=call.timeout_s
        )
        self.id: str = call.record.id
        self.context: Context | None = call.context
        self.backoff: Backoff | None = call.backoff
        self.function: Callable[..., Coroutine[Any, Any, Any]] = function
        self.done: Callable[[Outcome], None] = done
        self.place: Place | None = None
        self.outcome: Outcome | None = None


class _Host:
    """The `TaskHost` of a task, which steps aside where it waits on a thread."""

    def __init__(
        self, host: WorkerHost, threads: SyncThreads, *, is_on_loop: Callable[[], bool]
    ) -> None:
        self._host = host
        self._threads = threads
        self._is_on_loop = is_on_loop

    @property
    def may_block(self) -> bool:
        return self._host.may_block

    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        self._host.save_metadata(result_id, metadata, attempt=attempt)

    def is_cancel_requested(self, result_id: str, /) -> bool:
        return self._host.is_cancel_requested(result_id)

    def lend_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        # Inside `async_to_sync` a coroutine may run on the loop, while the thread that
        # called it waits.
        if not self._is_on_loop() or is_awaited_by_a_thread():
            self._threads.step_aside(result_id)
        self._host.lend_slot(result_id, group=group)

    def reclaim_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        self._host.reclaim_slot(result_id, group=group)
