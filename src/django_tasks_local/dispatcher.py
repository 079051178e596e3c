"""Feeds free slots, records what becomes of each task, and wakes who waits for it."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import override

from django.dispatch import Signal
from django.tasks.base import TaskResultStatus

from .context import enter_task
from .errors import (
    TaskCancelled,
    TaskFailed,
    TaskTimeout,
    WorkerLost,
    path_of,
)
from .jobs import Job, Records
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
from .slots import Slots
from .timer import Timer
from .worker import ask_backoff, lost_outcome

__all__ = ["Dispatcher"]

_NOT_DUE = "Its alias was shut down before the task was due."
_CANCELLED = ErrorRecord(
    path_of(TaskCancelled),
    f"{path_of(TaskCancelled)}: The task was cancelled before it ran.\n",
)
_NOT_TRIED_AGAIN = ErrorRecord(
    path_of(TaskCancelled),
    f"{path_of(TaskCancelled)}: The task was cancelled and is not tried again.\n",
)
_TOLD_BY_TEXT = {path_of(kind): kind for kind in (WorkerLost, TaskTimeout)}


class Dispatcher(WorkerHost):
    """What an alias runs in this process: those that wait, and those that run.

    It is the `WorkerHost` of its executor. Who has which slot is decided by `Slots`,
    and what becomes of a task by a change of its record (`Records`).
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
        self._store = store
        self._records = Records(store, alias=alias, options=options)
        self._serve = serve
        self._find_job = find_job
        self._on_done = on_done
        self._slots = Slots(
            alias=alias,
            max_workers=options.max_workers,
            max_pending=options.max_pending,
        )
        self._timer = Timer(self._ring, name=f"django-tasks-{alias}-timer")
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

        For all or none. Raises QueueFull, and Retired once `retire` was called.
        """
        self._slots.admit(jobs)

    def refuse(self, jobs: Sequence[Job], /) -> None:
        """Give the places back, of tasks that were not stored after all.

        Of those that were pushed in spite of that nothing is taken back.
        """
        self._slots.withdraw(jobs)
        if self._slots.settle():
            self._close()

    def push(self, jobs: Sequence[Job], /) -> None:
        """Put admitted tasks, which are stored now, into their places."""
        due: list[Job] = []
        late: list[Job] = []
        wait_s = None
        try:
            wait_s = self._slots.push(jobs, due, late)
        finally:  # also when Ctrl-C comes just now
            self._submit(due)
        self._fail(late, _NOT_DUE)
        if wait_s is not None:
            self._timer.wake_in(wait_s)

    def cancel(self, job: Job, /) -> bool:
        """End a task: one that waits at once, one that runs as its executor can.

        False where it is finished.
        """
        record = self._records.change(job, _cancelled)
        if record is None:
            return False
        if record.is_finished:
            self._slots.drop(job)
            self._tell_end(job, record)
            if self._slots.settle():
                self._close()
        else:
            self._interrupt(
                record.id, attempt=len(record.worker_ids), reason=Interruption.CANCEL
            )
        return True

    def job(self, result_id: str, /) -> Job | None:
        """The task of that id, until it is finished."""
        return self._slots.find(result_id)

    def unfinished_ids(self) -> list[str]:
        """The ids of the tasks that wait or run, the oldest first."""
        return self._slots.unfinished_ids()

    def is_idle(self, *, until: Timestamp) -> bool:
        """Whether no task runs, or waits for anything but a time after `until`."""
        return self._slots.is_idle(until=until)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until `is_idle` until then; False after `timeout_s` seconds."""
        return self._slots.wait_until_idle(timeout_s)

    def retire(self, *, runs_until: Timestamp) -> None:
        """Take no new tasks, run those that are here, then end the executor.

        Those whose time comes later than `runs_until` fail.
        """
        late: list[Job] = []
        is_done = self._slots.retire(late, runs_until=runs_until)
        self._fail(late, _NOT_DUE)
        if is_done:
            self._close()

    def drop_queued(self, reason: str) -> None:
        """Fail the tasks that still wait, so that nobody waits for them."""
        waiting: list[Job] = []
        self._slots.drain(waiting)
        self._fail(waiting, reason)

    def end(self, *, timeout_s: float) -> None:
        """End the executor, whatever still runs. May be called twice."""
        self._slots.run_nothing_again()
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
        job = self._slots.find(result_id)
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
            self._timer.wake_in(self._slots.set_deadline(job, timeout_s))
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

        job = self._slots.find(result_id)
        if job is None or self._records.change(job, changed) is None:
            raise RuntimeError(
                f"Attempt {attempt} of task {result_id} does not run any more."
            )

    @override
    def is_cancel_requested(self, result_id: str, /) -> bool:
        job = self._slots.find(result_id)
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
    def lend_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        due: list[Job] = []
        try:
            self._slots.lend(result_id, due)
        finally:  # as in `push`
            self._submit(due)

    @override
    def reclaim_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        self._slots.reclaim(result_id)

    # From the queue to the executor, and back.

    def _ring(self) -> float | None:
        """Start what is due, and stop what takes too long (the timer's)."""
        due: list[Job] = []
        overdue, next_s = self._slots.ring(due)
        try:
            for job, attempt in overdue:
                self._interrupt(
                    job.record.id, attempt=attempt, reason=Interruption.TIMEOUT
                )
        finally:
            self._submit(due)
        return next_s

    def _interrupt(self, result_id: str, *, attempt: int, reason: Interruption) -> None:
        if self._executor is not None:
            try:
                self._executor.interrupt(result_id, attempt=attempt, reason=reason)
            except Exception:  # an executor's that does not keep its promise
                log_exception(
                    "TASKS[%r]: %s could not be stopped", self._alias, result_id
                )

    def _submit(self, due: list[Job]) -> None:
        """Hand tasks that have slots to the executor, and what comes of that."""
        due.reverse()
        try:
            while due:
                job = due.pop()
                outcome = self._hand_over(job)
                if outcome is not None:
                    self._finish(job, outcome, due)
        except BaseException:  # Ctrl-C: those that are left must not be lost
            for job in due:
                self._slots.put_back(job)
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
            self._slots.put_back(job)
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
            except RuntimeError:  # no thread can be started: then `_submit` has to
                job.early_outcome = outcome
        else:
            self._finish_and_go_on(job, outcome)

    def _finish_and_go_on(self, job: Job, outcome: Outcome) -> None:
        due: list[Job] = []
        try:
            self._finish(job, outcome, due)
        finally:
            self._submit(due)

    def _fail(self, jobs: Sequence[Job], reason: str) -> None:
        for job in jobs:
            self._finish_and_go_on(job, lost_outcome(job.record.id, reason))

    def _finish(self, job: Job, outcome: Outcome, due: list[Job]) -> None:
        """Record what came of an attempt; who gets its slot is `due`."""
        job.early_outcome = None
        record = None
        try:
            outcome = self._with_backoff(job, outcome)
            record = self._records.change(job, partial(_ended, outcome=outcome))
            if record is not None and record.is_finished:
                self._tell_end(job, record)
        except Exception as err:  # a store's that raises what it should not
            log_exception("TASKS[%r]: no end of %s", self._alias, job.record.id)
            if job.decide():
                reason = f"Its end could not be recorded: {type(err).__name__}."
                lost = lost_outcome(job.record.id, reason)
                self._tell_end(job, apply_outcome(job.record, lost))
        finally:  # whatever happens, nobody waits for ever
            if record is None or record.is_finished:
                if self._slots.free(job, due):
                    self._close()
            else:
                self._run_again(job, due)

    def _run_again(self, job: Job, due: list[Job]) -> None:
        late: list[Job] = []
        if job.spare_context is not None:
            job.context, job.spare_context = job.spare_context, None
        wait_s, is_done = self._slots.free_for_another(job, due, late)
        if wait_s is not None:
            self._timer.wake_in(wait_s)
        self._fail(late, _NOT_DUE)
        if is_done:
            self._close()

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
        ):
            return outcome
        backoff = job.backoff(self._options, attempts=len(record.worker_ids))
        if backoff is None or error.exception_class_path == _CANCELLED[0]:
            return outcome
        if record.is_cancel_requested:  # it would run again, so `_ended` cancels it
            return outcome._replace(retry_after_s=0.0)

        def ask() -> Outcome:
            enter_task(self, record.id, self._alias)
            return ask_backoff(backoff, _as_exception(record, error), record, outcome)

        return job.context.run(ask)

    def _tell_end(self, job: Job, record: Record) -> None:
        """A task is finished, as its store knows: tell everybody else."""
        try:
            self._records.forget_old()
            self._send(task_finished, job, record)
        finally:
            self._slots.forget(job)
            # The tasks that waited for this one have their slots back before the next
            # begins.
            job.finish(record)
            job.let_go()

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
