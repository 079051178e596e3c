"""Feeds free slots, records what becomes of each task, and wakes who waits for it."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from heapq import heappop, heappush
from typing import override

from django.dispatch import Signal
from django.tasks.base import TaskResultStatus

from .context import enter_task
from .errors import (
    QueueFull,
    TaskCancelled,
    TaskFailed,
    TaskTimeout,
    WorkerLost,
    path_of,
)
from .jobs import Job, Records
from .locks import give_way
from .logs import log_exception
from .options import LocalOptions
from .protocols import ResultStore, TaskExecutor, WorkerHost
from .records import (
    Answer,
    Call,
    CancelRequest,
    EnqueueRequest,
    ErrorRecord,
    GetRequest,
    Interruption,
    Outcome,
    Record,
    Timestamp,
    apply_cancel,
    apply_cancel_request,
    apply_metadata,
    apply_outcome,
    apply_start,
)
from .results import handle_of
from .signals import is_heard, send, task_finished, task_started
from .task_queue import DueHeap, TaskQueue
from .timer import Timer
from .worker import ask_backoff, lost_outcome

__all__ = ["Dispatcher", "Retired"]

_CLOCK_S = 1.0  # a change of the wall clock is noticed after so many seconds

_CANCELLED = ErrorRecord(
    path_of(TaskCancelled),
    f"{path_of(TaskCancelled)}: The task was cancelled before it ran.\n",
)
_NOT_TRIED_AGAIN = ErrorRecord(
    path_of(TaskCancelled),
    f"{path_of(TaskCancelled)}: The task was cancelled and is not tried again.\n",
)
_TOLD_BY_TEXT = {path_of(kind): kind for kind in (WorkerLost, TaskTimeout)}


class Retired(Exception):
    """The dispatcher takes no new tasks: another one has taken its place."""


class Dispatcher(WorkerHost):
    """What an alias runs in this process: those that wait, and those that run.

    A task leaves the queue only into a free slot. It is the `WorkerHost` of its
    executor. What becomes of a task is decided by a change of its record (`Records`);
    what is decided under the lock here is who has which slot.
    """

    def __init__(
        self,
        *,
        alias: str,
        sender: type,
        options: LocalOptions,
        store: ResultStore,
        serve: Callable[[EnqueueRequest | GetRequest | CancelRequest], Answer],
        find_job: Callable[[str, str], Job | None],
        on_done: Callable[[], None],
    ) -> None:
        self._alias = alias
        self._sender = sender
        self._options = options
        self._max_workers = options.max_workers
        self._store = store
        self._records = Records(store, alias=alias, options=options)
        self._serve = serve
        self._find_job = find_job
        self._on_done = on_done
        self._lock = threading.Lock()
        self._all_ended = threading.Condition(self._lock)
        self._queue = TaskQueue[Job]()
        self._jobs: dict[str, Job] = {}
        self._pending = 0  # places taken: those in the queue and on their way there
        self._running = 0
        self._lent = 0
        self._free_slots: list[int] = []  # a heap: low numbers are used first
        self._slot_count = 0
        self._deadlines = DueHeap[Job]()
        self._timer = Timer(self._ring, name=f"django-tasks-{alias}-timer")
        self._is_retired = False
        self._runs_until: Timestamp | None = None
        self._executor: TaskExecutor | None = None
        self._executor_lock = threading.Lock()

    # What the state asks of it.

    def start(self) -> TaskExecutor:
        """Make the executor, unless that is done. Raises what its factory raises."""
        if self._executor is None:
            with self._executor_lock:  # the factory is called once
                if self._executor is None:
                    self._executor = self._options.executor(self._options, host=self)
        return self._executor

    def admit(self, jobs: Sequence[Job], /) -> None:
        """Take places in the queue for tasks that are about to be stored.

        For all or none. Raises QueueFull where there are not as many, Retired once
        `retire` was called.
        """
        limit = self._options.max_pending
        give_way(self._lock)
        with self._lock:  # decides who gets the last place
            if self._is_retired:
                raise Retired
            if limit is not None and self._pending + len(jobs) > limit:
                raise QueueFull(
                    f"{self._pending} tasks are waiting, and "
                    f"TASKS[{self._alias!r}]['OPTIONS']['MAX_PENDING'] is {limit}."
                )
            self._pending += len(jobs)
            for job in jobs:
                job.has_place = True
                self._jobs[job.record.id] = job

    def refuse(self, jobs: Sequence[Job], /) -> None:
        """Give the places back, of tasks that were not stored after all.

        Of those that were pushed in spite of that nothing is taken back.
        """
        give_way(self._lock)
        with self._lock:
            for job in jobs:
                if not job.is_pushed:
                    self._forget(job)
            is_done = self._note_end()
        if is_done:
            self._close()

    def push(self, jobs: Sequence[Job], /) -> None:
        """Put admitted tasks, which are stored now, into their places."""
        due: Sequence[Job] = ()
        wake_in_s = None
        give_way(self._lock)
        try:
            with self._lock:
                for job in jobs:
                    job.is_pushed = True
                    wait_s = self._put(job)
                    if wait_s is not None:
                        wake_in_s = min(wait_s, wake_in_s or wait_s)
                due = self._take_due()
        finally:  # also when Ctrl-C comes just now
            self._submit_all(due)
        if wake_in_s is not None:
            self._timer.wake_in(min(wake_in_s, _CLOCK_S))

    def cancel(self, job: Job, /) -> bool:
        """End a task: one that waits at once, one that runs as its executor can.

        False where it is finished.
        """
        record = self._records.change(job, _cancelled)
        if record is None:
            return False
        if record.is_finished:
            give_way(self._lock)
            with self._lock:
                self._forget(job)
            self._tell_end(job, record)
            give_way(self._lock)
            with self._lock:
                is_done = self._note_end()
            if is_done:
                self._close()
        elif self._executor is not None:
            self._executor.interrupt(
                record.id, attempt=len(record.worker_ids), reason=Interruption.CANCEL
            )
        return True

    def job(self, result_id: str, /) -> Job | None:
        """The task of that id, until it is finished."""
        return self._jobs.get(result_id)

    def unfinished_ids(self) -> list[str]:
        """The ids of the tasks that wait or run, the oldest first."""
        give_way(self._lock)
        with self._lock:
            return list(self._jobs)

    def is_idle(self, *, until: Timestamp) -> bool:
        """Whether no task runs, or waits for anything but a time after `until`."""
        give_way(self._lock)
        with self._lock:
            return self._has_rest(until)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until `is_idle` until then; False after `timeout_s` seconds."""
        until = time.time() + timeout_s
        with self._all_ended:
            return self._all_ended.wait_for(lambda: self._has_rest(until), timeout_s)

    def retire(self, *, runs_until: Timestamp) -> None:
        """Take no new tasks, run those that are here, then end the executor.

        Those whose time comes later than `runs_until` fail.
        """
        give_way(self._lock)
        with self._lock:  # decides whether there is anything to wait for
            self._is_retired = True
            self._runs_until = runs_until
            late = self._drained(self._queue.drain_deferred(runs_until))
            is_done = self._note_end()
        self._fail(late, "Its alias was shut down before the task was due.")
        if is_done:
            self._close()

    def drop_queued(self, reason: str) -> None:
        """Fail the tasks that still wait, so that nobody waits for them."""
        give_way(self._lock)
        with self._lock:
            jobs = self._drained(self._queue.drain())
        self._fail(jobs, reason)

    def end(self, *, timeout_s: float) -> None:
        """End the executor, whatever still runs. May be called twice."""
        with self._lock:
            self._runs_until = -math.inf  # nothing is tried again
        self._timer.end()
        if self._executor is not None:
            self._executor.shutdown(timeout_s=timeout_s)

    # What the executor tells and asks (WorkerHost).

    @property
    @override
    def alias(self) -> str:
        return self._alias

    @property
    @override
    def may_block(self) -> bool:
        return self._store.may_block

    @override
    def started(
        self, result_id: str, /, *, worker_id: str, at: Timestamp
    ) -> Record | None:
        job = self._jobs.get(result_id)
        if job is None:
            return None
        record = self._records.change(
            job, partial(_started, worker_id=worker_id, at=at)
        )
        if record is None:
            return None
        self._send(task_started, job, record)
        timeout_s = job.timeout_s(self._options)
        if timeout_s is not None:
            with self._lock:
                job.deadline_s = time.monotonic() + timeout_s
                self._deadlines.push(job, at=job.deadline_s)
            self._timer.wake_in(timeout_s)
        return record

    @override
    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        def changed(record: Record) -> Record | None:
            if (
                record.status is not TaskResultStatus.RUNNING
                or len(record.worker_ids) != attempt
            ):
                return None
            return apply_metadata(record, metadata)

        job = self._jobs.get(result_id)
        if job is None or self._records.change(job, changed) is None:
            raise RuntimeError(
                f"Attempt {attempt} of task {result_id} does not run any more."
            )

    @override
    def is_cancel_requested(self, result_id: str, /) -> bool:
        job = self._jobs.get(result_id)
        return job is not None and job.record.is_cancel_requested

    @override
    def serve(self, request: EnqueueRequest | GetRequest | CancelRequest, /) -> Answer:
        return self._serve(request)

    @override
    def on_change(
        self,
        alias: str,
        result_id: str,
        notify: Callable[[Record], None],
        /,
        *,
        revision: int | None = None,
    ) -> Callable[[], None] | None:
        job = self._find_job(alias, result_id)
        if job is None:
            return None

        def wake() -> None:
            notify(job.record)

        if not job.add_waiter(wake, revision=revision):
            return None
        return partial(job.remove_waiter, wake)

    @override
    def lend_slot(self, result_id: str, /) -> None:
        give_way(self._lock)
        with self._lock:
            job = self._jobs.get(result_id)
            if job is None or job.slot is None:
                return
            job.lent += 1
            if job.lent > 1:
                return
            self._lent += 1
            due = self._take_due()
        self._submit_all(due)

    @override
    def reclaim_slot(self, result_id: str, /) -> None:
        give_way(self._lock)
        with self._lock:
            job = self._jobs.get(result_id)
            if job is None or not job.lent:
                return
            job.lent -= 1
            if job.lent == 0:
                self._lent -= 1

    # What is decided under the lock.

    def _put(self, job: Job) -> float | None:
        """Queue a task that nobody has cancelled; the seconds until it is due."""
        record = job.record
        if job.is_decided:
            return None
        job.is_queued = True
        priority = record.task.priority
        if record.due_at is not None:
            wait_s = record.due_at - time.time()
            if wait_s > 0:
                self._queue.defer(job, priority=priority, due_at=record.due_at)
                return wait_s
        self._queue.push(job, priority=priority)
        return None

    def _take_due(self) -> Sequence[Job]:
        """Give free slots to the tasks that are next."""
        due: list[Job] = []
        queue = self._queue
        while queue.ready_count and self._running - self._lent < self._max_workers:
            job = queue.pop()
            job.is_queued = False
            if job.has_place:
                job.has_place = False
                self._pending -= 1
            self._running += 1
            if self._free_slots:
                job.slot = heappop(self._free_slots)
            else:
                job.slot = self._slot_count
                self._slot_count += 1
            due.append(job)
        return due

    def _take_back(self, job: Job) -> None:
        """The other way: it could not be handed over."""
        with self._lock:
            self._free_slot(job)
            job.has_place = True
            self._pending += 1
            self._put(job)

    def _free_slot(self, job: Job) -> None:
        if job.slot is not None:
            self._running -= 1
            heappush(self._free_slots, job.slot)
            job.slot = None
        if job.lent:
            job.lent = 0
            self._lent -= 1
        if job.deadline_s is not None:
            job.deadline_s = None
            self._deadlines.discard(job)

    def _forget(self, job: Job) -> None:
        """A task waits no longer; its slot, if it has one, is its call's."""
        self._jobs.pop(job.record.id, None)
        if job.is_queued:
            job.is_queued = False
            self._queue.remove(job)
        if job.has_place:
            job.has_place = False
            self._pending -= 1

    def _drained(self, jobs: Sequence[Job]) -> Sequence[Job]:
        for job in jobs:
            job.is_queued = False
        return jobs

    def _note_end(self) -> bool:
        """Tell who waits for all to end; whether a retired one is done."""
        if self._running == 0 and len(self._jobs) == self._queue.deferred_count:
            self._all_ended.notify_all()
            return self._is_retired and not self._jobs
        return False

    def _has_rest(self, until: Timestamp) -> bool:
        if self._running or len(self._jobs) != self._queue.deferred_count:
            return False
        next_due = self._queue.next_due
        return next_due is None or next_due > until

    # From the queue to the executor, and back.

    def _ring(self) -> float | None:
        """Start what is due, and stop what takes too long (the timer's)."""
        with self._lock:
            self._queue.release(time.time())
            due = self._take_due()
            late = [
                (job, len(job.record.worker_ids))
                for job in self._deadlines.pop_due(time.monotonic())
            ]
            for job, _ in late:
                job.deadline_s = None
            next_s = self._next_ring_s()
        executor = self._executor
        for job, attempt in late:
            if executor is not None:
                executor.interrupt(
                    job.record.id, attempt=attempt, reason=Interruption.TIMEOUT
                )
        self._submit_all(due)
        return next_s

    def _next_ring_s(self) -> float | None:
        """Waiting goes by the monotonic clock, deciding about tasks by the wall's."""
        next_s: list[float] = []
        if self._queue.next_due is not None:
            next_s.append(min(self._queue.next_due - time.time(), _CLOCK_S))
        if self._deadlines.next_at is not None:
            next_s.append(self._deadlines.next_at - time.monotonic())
        return min(next_s, default=None)

    def _submit_all(self, jobs: Sequence[Job]) -> None:
        """Hand tasks that have slots to the executor, and what comes of that."""
        waiting = list(reversed(jobs))
        try:
            while waiting:
                job = waiting.pop()
                outcome = self._hand_over(job)
                if outcome is not None:
                    waiting.extend(reversed(self._finish(job, outcome)))
        except BaseException:  # Ctrl-C: those that are left must not be lost
            for job in waiting:
                self._take_back(job)
            raise

    def _hand_over(self, job: Job) -> Outcome | None:
        """The outcome, where this thread has to see to it."""
        executor = self._executor
        assert executor is not None  # `start` comes before the first `admit`
        assert job.slot is not None  # `_take_due` gave it one
        try:
            record = job.record
            options = self._options
            backoff = job.backoff(options, attempts=len(record.worker_ids) + 1)
            if backoff is not None:
                job.spare_context = job.context.copy()
            future = executor.submit(
                Call(
                    record,
                    job.slot,
                    job.task.func,
                    job.context,
                    backoff,
                    job.timeout_s(options),
                )
            )
        except BaseException:  # Ctrl-C: the executor's own part does not raise
            self._take_back(job)
            raise
        job.submitter = threading.get_ident()
        future.add_done_callback(partial(self._ended, job))
        job.submitter = None
        return job.early_outcome

    def _ended(self, job: Job, future: Future[Outcome]) -> None:
        try:
            outcome = future.result()
        except BaseException as err:  # an executor's that does not keep its promise
            log_exception("TASKS[%r]: no outcome of %s", self._alias, job.record.id)
            reason = f"Its executor gave no outcome: {type(err).__name__}."
            outcome = lost_outcome(job.record.id, reason)
        if job.submitter == threading.get_ident():
            # The call had ended before `add_done_callback`, which then calls here on
            # a thread that may be a request's, or run an event loop.
            finish = threading.Thread(
                target=self._finish_and_go_on,
                args=(job, outcome),
                name=f"django-tasks-{self._alias}-end",
                daemon=True,
            )
            try:
                finish.start()
            except RuntimeError:  # no thread can be started: then `_submit_all` has to
                job.early_outcome = outcome
        else:
            self._finish_and_go_on(job, outcome)

    def _finish_and_go_on(self, job: Job, outcome: Outcome) -> None:
        self._submit_all(self._finish(job, outcome))

    def _fail(self, jobs: Sequence[Job], reason: str) -> None:
        for job in jobs:
            outcome = lost_outcome(job.record.id, reason)
            self._submit_all(self._finish(job, outcome))

    def _finish(self, job: Job, outcome: Outcome) -> Sequence[Job]:
        """Record what came of an attempt; the next ones for the slot."""
        job.early_outcome = None
        record = None
        try:
            outcome = self._with_backoff(job, outcome)
            record = self._records.change(job, partial(_ended, outcome=outcome))
            if record is not None and record.is_finished:
                self._tell_end(job, record)
        finally:  # whatever happens, nobody waits for ever
            due = self._free(job, record)
        return due

    def _with_backoff(self, job: Job, outcome: Outcome) -> Outcome:
        """The outcome, once its task's backoff has been asked if it has to be.

        In a worker that has died, or been killed, nobody could ask it.
        """
        record = job.record
        error = outcome.error
        if (
            error is None
            or outcome.is_backoff_asked
            or record.status is not TaskResultStatus.RUNNING
            or record.is_cancel_requested
        ):
            return outcome
        backoff = job.backoff(self._options, attempts=len(record.worker_ids))
        if backoff is None or error.exception_class_path == _CANCELLED[0]:
            return outcome
        return job.context.run(
            ask_backoff, backoff, _as_exception(record, error), record, outcome
        )

    def _tell_end(self, job: Job, record: Record) -> None:
        """A task is finished, as its store knows: tell everybody else."""
        try:
            self._records.forget_old()
            self._send(task_finished, job, record)
        finally:
            self._jobs.pop(record.id, None)
            # The tasks that waited for this one have their slots back before the next
            # begins.
            job.finish(record)
            job.let_go()

    def _free(self, job: Job, record: Record | None) -> Sequence[Job]:
        """An attempt has ended; with a record that is not finished, for another."""
        late: Sequence[Job] = ()
        wait_s = None
        give_way(self._lock)
        with self._lock:  # decides what the slot does next, and whether all is done
            self._free_slot(job)
            if record is not None and not record.is_finished:
                if job.spare_context is not None:
                    job.context, job.spare_context = job.spare_context, None
                wait_s = self._put(job)
                if self._runs_until is not None:
                    late = self._drained(self._queue.drain_deferred(self._runs_until))
            due = self._take_due()
            is_done = self._note_end()
        if wait_s is not None:
            self._timer.wake_in(min(wait_s, _CLOCK_S))
        self._fail(late, "Its alias was shut down before the task was due.")
        if is_done:
            self._close()
        return due

    def _close(self) -> None:
        self.end(timeout_s=0.0)
        self._on_done()

    # Signals.

    def _send(self, signal: Signal, job: Job, record: Record) -> None:
        has_failed = record.status is TaskResultStatus.FAILED
        if is_heard(signal, has_failed=has_failed):
            try:
                # The receivers, Django's logging among them, see what the task sees.
                job.context.run(self._send_in_context, signal, job, record)
            except KeyboardInterrupt:  # a receiver's: nobody interrupts a worker
                log_exception(
                    "TASKS[%r]: a receiver raised for result %s", self._alias, record.id
                )

    def _send_in_context(self, signal: Signal, job: Job, record: Record) -> None:
        enter_task(self, record.id, self._alias)
        result = handle_of(record, waitable=job, task=job.task)
        if record.status is not TaskResultStatus.FAILED:
            send(signal, self._sender, result)
            return
        # Django's receiver logs the exception that is being handled.
        path, traceback = record.errors[-1]
        try:
            raise TaskFailed(
                result_id=record.id, exception_class_path=path, traceback=traceback
            )
        except TaskFailed as error:
            error.__traceback__ = None  # ours, which would hide the task's
            send(signal, self._sender, result)


def _cancelled(record: Record) -> Record | None:
    """What cancelling makes of a task."""
    if record.status is TaskResultStatus.READY:
        return apply_cancel(record, _CANCELLED, at=time.time())
    if record.is_finished:
        return None
    return apply_cancel_request(record)


def _started(record: Record, *, worker_id: str, at: Timestamp) -> Record | None:
    if record.status is not TaskResultStatus.READY:
        return None
    return apply_start(record, worker_id=worker_id, at=at)


def _ended(record: Record, *, outcome: Outcome) -> Record | None:
    if record.is_finished:
        return None
    if record.is_cancel_requested and outcome.retry_after_s is not None:
        outcome = outcome._replace(
            retry_after_s=None,
            further_errors=(*outcome.further_errors, _NOT_TRIED_AGAIN),
        )
    return apply_outcome(record, outcome)


def _as_exception(record: Record, error: ErrorRecord) -> BaseException:
    """What a backoff is given where there was no live exception, or it is gone."""
    path, traceback = error
    kind = _TOLD_BY_TEXT.get(path)
    if kind is not None:
        return kind(traceback.removeprefix(f"{path}: ").rstrip())
    return TaskFailed(
        result_id=record.id, exception_class_path=path, traceback=traceback
    )
