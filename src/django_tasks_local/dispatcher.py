"""Feeds free slots, records what becomes of each task, and wakes who waits for it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import override

from django.dispatch import Signal
from django.tasks.base import TaskResultStatus
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist

from .async_bridge import Completion
from .context import current_result_id, enter_task
from .errors import TaskFailed, path_of
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
    apply_metadata,
    apply_outcome,
)
from .results import handle_of
from .retention import Retention
from .signals import (
    has_receivers_of_a_project,
    is_heard,
    send,
    task_finished,
    task_started,
)
from .slots import Retired, Slots
from .task_registry import find_stored_task, stand_in
from .timer import Timer
from .transitions import (
    CANCELLED_PATH,
    as_exception,
    cancelled,
    ended,
    started,
    started_after_all,
)
from .worker import ask_backoff, lost_outcome

__all__ = ["Dispatcher"]

type _Run = Callable[[Call, Callable[[Outcome], None]], None]

_LEFT = "The alias was shut down in this process."
_LOST = "The process that ran it ended before the task did."
_ROLLED_BACK = "the transaction in which the task was enqueued was rolled back."
_NOT_DUE = "Its alias was shut down before the task was due."

# Until a task begins whose start the store has failed to save.
_PUT_OFF_S = 1.0

# So long it is looked for tasks that may have been stored after all.
_DOUBT_S = 30.0


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
        retention: Retention,
        is_owned: bool,
        serve: Callable[[EnqueueRequest | GetRequest | CancelRequest], Answer],
        find_completion: Callable[[str, str], Completion | None],
        on_done: Callable[[], None],
    ) -> None:
        self._alias = alias
        self._sender = sender
        self._options = options
        self._store = store
        self._records = Records(store, alias=alias, is_owned=is_owned)
        self._retention = retention
        self._is_owned = is_owned
        self._is_ending = False
        # Since when, and which: perhaps they have been stored after all.
        self._doubted = deque[tuple[float, str]]()
        self._serve = serve
        self._find_completion = find_completion
        self._on_done = on_done
        self._slots = Slots(
            alias=alias,
            max_workers=options.max_workers,
            max_pending=options.max_pending,
        )
        self._timer = Timer(self._ring, name=f"django-tasks-{alias}-timer")
        self._executor: TaskExecutor | None = None
        self._run: _Run = self._run_by_future
        # Those of a `DistantExecutor`.
        self._check_reachable: Callable[[], None] | None = None
        self._waiting_count: Callable[[], int] | None = None
        self._withdraw: Callable[[str], None] | None = None
        self._executor_lock = threading.Lock()
        # Of two that adopt one task in one process at once, the one that loses would
        # take the other's away. Held while a store is waited for, by nobody who holds
        # another lock, and not while a project's receivers are called.
        self._adoption = threading.Lock()

    # What the state asks of it.

    def start(self) -> TaskExecutor:
        """Make the executor, unless that is done. Raises what its factory raises."""
        if self._executor is None:
            with self._executor_lock:  # the factory is called once
                if self._executor is None:
                    executor = self._options.executor(self._options, host=self)
                    self._run = getattr(executor, "run", self._run_by_future)
                    self._check_reachable = getattr(executor, "check_reachable", None)
                    self._waiting_count = getattr(executor, "waiting_count", None)
                    self._withdraw = getattr(executor, "withdraw", None)
                    self._executor = executor
        return self._executor

    @property
    def has_tasks(self) -> bool:
        """Whether any of its tasks waits or runs."""
        return self._slots.has_any

    def admit(self, jobs: Sequence[Job], /) -> None:
        """Take places in the queue for tasks that are about to be stored.

        For all or none. Raises QueueFull, what the executor raises that is away, and
        Retired once `retire` was called.
        """
        if self._check_reachable is not None:
            self._check_reachable()
        count = 0 if self._waiting_count is None else self._waiting_count()
        self._slots.admit(jobs, waiting_elsewhere=count)

    def refuse(self, jobs: Sequence[Job], /) -> None:
        """Give the places back, of tasks that were not stored after all.

        Of those that were pushed in spite of that nothing is taken back.
        """
        self._slots.withdraw(jobs)
        self._doubt(jobs)
        if self._slots.settle():
            self._close()

    def abandon(self, jobs: Sequence[Job], /) -> None:
        """The same, where their transaction was rolled back, as is seen at any time.

        Or so it seems: see `see_to_own`.
        """
        self._slots.abandon(jobs)
        self._doubt(jobs)
        for job in jobs:
            if job.decide():
                job.fail(TaskResultDoesNotExist(f"{job.record.id}: {_ROLLED_BACK}"))
                job.let_go()

    def adopt(self, records: Sequence[Record], /, *, owner: str) -> int:
        """Take over tasks of a dead owner's; how many these were.

        One that ran is lost, which may mean that it runs again.
        """
        if not records:
            return 0
        self.start()
        with self._adoption:
            claimed = self._claim(records, owner=owner)
        ready: list[Job] = []
        for job, error in claimed:
            record = job.record
            if record.status is TaskResultStatus.RUNNING:
                self._slots.drop(job)
                self._fail([job], f"{_LOST} ({records[0].owner})")
            elif record.is_cancel_requested:
                self.cancel(job)
            elif error is not None:
                self._slots.drop(job)
                self._finish_and_go_on(
                    job,
                    Outcome(record.id, time.time(), error=error, is_backoff_asked=True),
                )
            else:
                ready.append(job)
        self.push(ready)
        return len(claimed)

    def _claim(
        self, records: Sequence[Record], *, owner: str
    ) -> list[tuple[Job, ErrorRecord | None]]:
        """Those of the tasks that are this owner's from now on, with their places.

        Each with the error of one that cannot run.
        """
        jobs = [
            _adopted(record._replace(owner=owner, revision=record.revision + 1))
            for record in records
            if self._slots.find(record.id) is None  # or another thread was faster
        ]
        try:
            self._slots.admit([job for job, _ in jobs], is_limited=False)
        except Retired:
            return []
        try:
            saved = self._store.save([job.record for job, _ in jobs])
        except BaseException:
            self._slots.withdraw([job for job, _ in jobs])
            raise
        claimed: list[tuple[Job, ErrorRecord | None]] = []
        for (job, error), is_mine in zip(jobs, saved, strict=True):
            if is_mine:
                claimed.append((job, error))
            else:
                self._slots.withdraw([job])
        return claimed

    def heed_cancel_request(self, record: Record, /) -> None:
        """Another process wants one of its tasks to stop."""
        job = self._slots.find(record.id)
        if job is not None and not job.record.is_cancel_requested:
            self.cancel(job)

    def save_missed(self) -> None:
        """Save the ends that a store that failed has missed. Raises what it raises."""
        self._records.save_missed()

    def see_to_own(self, *, owner: str) -> None:
        """Mend what a store that failed, or a lost connection, has left of its tasks.

        Ends that could not be saved are saved. Tasks that were refused or abandoned are
        run if they have been stored nevertheless: the answer to a commit can be lost,
        and of the hooks of a transaction one that raises keeps the later ones from
        being called. Raises what the store raises.
        """
        self.save_missed()
        if self._slots.settle():  # nobody tells of those that were abandoned
            self._close()
            return
        # One by one: more may come at any moment, the garbage collector's too.
        doubted = [self._doubted.popleft() for _ in range(len(self._doubted))]
        if not doubted:
            return
        try:
            found = self._store.get(result_id for _, result_id in doubted)
            self.adopt(
                [
                    record
                    for record in found.values()
                    if record.owner == owner and not record.is_finished
                ],
                owner=owner,
            )
            long_ago_s = time.monotonic() - _DOUBT_S
            doubted = [each for each in doubted if each[0] > long_ago_s]
        finally:
            self._doubted.extendleft(doubted)

    def _doubt(self, jobs: Sequence[Job]) -> None:
        if self._is_owned:
            now_s = time.monotonic()
            self._doubted.extend((now_s, job.record.id) for job in jobs)

    def push(self, jobs: Sequence[Job], /) -> None:
        """Put admitted tasks, which are stored now, into their places."""
        due: list[Job] = []
        late: list[Job] = []
        wait_s = None
        try:
            wait_s = self._slots.push(jobs, due, late)
        finally:  # also when Ctrl-C comes just now
            self._submit(due)
        self._give_up(late, _NOT_DUE)
        if wait_s is not None:
            self._timer.wake_in(wait_s)

    def cancel(self, job: Job, /) -> bool:
        """End a task: one that waits at once, one that runs as its executor can.

        False where it is finished.
        """
        record = self._records.change(job, cancelled)
        if record is None:
            return False
        if record.is_finished:
            self._slots.drop(job)
            self._tell_end(job, record)
            if self._withdraw is not None:
                self._withdraw(record.id)
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
        """The ids of the tasks that wait or run, the oldest first.

        Only of those that run, where others will see to the rest.
        """
        if self._is_owned:
            return self._slots.running_ids()
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
        self._give_up(late, _NOT_DUE)
        if is_done:
            self._close()

    def drop_queued(self, reason: str) -> None:
        """Fail the tasks that still wait, so that nobody waits for them.

        Or leave them to others, where these will see to them.
        """
        waiting: list[Job] = []
        self._slots.drain(waiting)
        self._give_up(waiting, reason)

    def end(self, *, timeout_s: float) -> None:
        """End the executor, whatever still runs. May be called twice."""
        self._is_ending = True
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

    @property
    @override
    def transitions_may_block(self) -> bool:
        return self._store.may_block or has_receivers_of_a_project()

    @override
    def started(
        self, result_id: str, /, *, worker_id: str, at: Timestamp
    ) -> Record | None:
        job = self._slots.find(result_id)
        if job is None:
            return None
        try:
            change = started_after_all if job.is_start_in_doubt else started
            record = self._records.change(
                job, change, worker_id, at, must_be_saved=self._is_owned
            )
        except Exception:  # a store's: were this process to die, it would run again
            job.is_put_off = job.is_start_in_doubt = True
            return None
        if record is None:
            return None
        job.is_start_in_doubt = False
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
        try:
            completion = self._find_completion(alias, result_id)
            if completion is None:
                return None

            def wake() -> None:
                notify(completion.record)

            if not completion.add_waiter(wake, revision=revision):
                return None
        except Exception:  # a store's, of a result that does not run here
            log_exception("TASKS[%r]: cannot wait for result %s", alias, result_id)
            return None
        return partial(completion.remove_waiter, wake)

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
        assert job.slot is not None  # `_take_due` gave it one
        try:
            record = job.record
            options = self._options
            backoff = job.backoff(options, attempts=len(record.worker_ids) + 1)
            if backoff is not None:
                job.spare_context = job.context.copy()
            call = Call(
                record,
                job.slot,
                job.task.func,
                job.context,
                backoff,
                job.timeout_s(options),
            )
            attempt = _Attempt(self, job)
            self._run(call, attempt)
        except BaseException:  # Ctrl-C: the executor's own part does not raise
            self._slots.put_back(job)
            raise
        attempt.submitter = None
        return attempt.early_outcome

    def _run_by_future(self, call: Call, done: Callable[[Outcome], None]) -> None:
        """For executors that know nothing but Futures."""
        assert self._executor is not None  # `start` comes before the first `admit`

        def resolved(future: Future[Outcome]) -> None:
            try:
                outcome = future.result()
            except BaseException as err:  # an executor's that breaks its promise
                result_id = call.record.id
                log_exception("TASKS[%r]: no outcome of %s", self._alias, result_id)
                reason = f"Its executor gave no outcome: {type(err).__name__}."
                outcome = lost_outcome(result_id, reason)
            done(outcome)

        self._executor.submit(call).add_done_callback(resolved)

    def end_attempt(self, attempt: "_Attempt", outcome: Outcome) -> None:
        """See to what came of it, on this thread or another."""
        job = attempt.job
        if attempt.submitter == threading.get_ident():
            # The call has ended before it was all handed over, on a thread that may be
            # a request's, or run an event loop.
            finish = threading.Thread(
                target=self._finish_and_go_on,
                args=(job, outcome),
                name=f"django-tasks-{self._alias}-end",
                daemon=True,
            )
            try:
                finish.start()
            except RuntimeError:  # no thread can be started: then `_submit` has to
                attempt.early_outcome = outcome
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

    def _give_up(self, jobs: Sequence[Job], reason: str) -> None:
        """They do not run any more, here at least."""
        if not self._is_owned:
            self._fail(jobs, reason)
            return
        for job in jobs:
            self._leave(job)
        if jobs and self._slots.settle():
            self._close()

    def _leave(self, job: Job) -> None:
        """Leave a task that waits to whoever adopts it."""
        self._slots.drop(job)
        self._slots.forget(job)
        if job.decide():
            job.fail(RuntimeError(f"{_LEFT} Task {job.record.id} waits in its store."))
            job.let_go()

    def _finish(self, job: Job, outcome: Outcome, due: list[Job]) -> None:
        """Record what came of an attempt; who gets its slot is `due`."""
        record = None
        if (
            self._is_owned
            and self._is_ending
            and job.record.status is TaskResultStatus.READY
        ):  # it was handed over, but has not begun
            self._leave(job)
        elif job.is_put_off:
            job.put_off(time.time() + _PUT_OFF_S)
            self._run_again(job, due)
            return
        try:
            outcome = self._with_backoff(job, outcome)
            record = self._records.change(job, ended, outcome)
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
                self._slots.forget(job)
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
        self._give_up(late, _NOT_DUE)
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
        if backoff is None or error.exception_class_path == CANCELLED_PATH:
            return outcome
        if record.is_cancel_requested:  # it would run again, so `_ended` cancels it
            return outcome._replace(retry_after_s=0.0)

        def ask() -> Outcome:
            enter_task(self, record.id, self._alias)
            return ask_backoff(backoff, as_exception(record, error), record, outcome)

        return _in_context_of(job, ask)

    def _tell_end(self, job: Job, record: Record) -> None:
        """A task is finished, as its store knows: tell everybody else."""
        try:
            self._retention.note_end()
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
                _in_context_of(job, self._send_in_context, signal, job, record)
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


def _adopted(record: Record) -> tuple[Job, ErrorRecord | None]:
    """The job of a task that another process has enqueued, or why it cannot run."""
    error = None
    try:
        task = find_stored_task(record)
    except InvalidTask as err:
        task = stand_in(record.task, record.alias)
        error = ErrorRecord(path_of(InvalidTask), f"{path_of(InvalidTask)}: {err}\n")
    return Job(record, task=task, context=Context()), error


class _Attempt:
    """What the executor was given; it calls this with what came of it."""

    __slots__ = ("_dispatcher", "early_outcome", "job", "submitter")

    def __init__(self, dispatcher: Dispatcher, job: Job) -> None:
        self._dispatcher = dispatcher
        self.job: Job = job
        self.submitter: int | None = threading.get_ident()
        """The thread that is just handing it over."""
        self.early_outcome: Outcome | None = None

    def __call__(self, outcome: Outcome) -> None:
        self._dispatcher.end_attempt(self, outcome)


def _in_context_of[**P, R](
    job: Job, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    if current_result_id.get("") == job.record.id:  # a coroutine ends in its own
        return function(*args, **kwargs)
    return job.context.run(function, *args, **kwargs)
