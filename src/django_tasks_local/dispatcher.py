"""Feeds free slots, records what becomes of each task, and wakes who waits for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from heapq import heappop, heappush
from typing import Any, override

from django.dispatch import Signal
from django.tasks.base import Task, TaskResultStatus

from .async_bridge import Completion
from .context import enter_task
from .errors import QueueFull, TaskFailed
from .locks import give_way
from .logs import log_error, log_exception
from .options import LocalOptions
from .protocols import ResultStore, TaskExecutor, WorkerHost
from .records import (
    Call,
    EnqueueRequest,
    GetRequest,
    Outcome,
    Record,
    Refusal,
    Timestamp,
    apply_outcome,
    apply_start,
)
from .results import handle_of
from .signals import is_heard, send, task_finished, task_started
from .task_queue import TaskQueue
from .worker import lost_outcome

__all__ = ["Dispatcher", "Job", "Retired"]


_NO_CONTEXT = Context()


class Retired(Exception):
    """The dispatcher takes no new tasks: another one has taken its place."""


class Job(Completion):
    """A task from its enqueue to its end."""

    __slots__ = (
        "context",
        "early_outcome",
        "is_pushed",
        "lent",
        "slot",
        "submitter",
        "task",
    )

    def __init__(
        self, record: Record, *, task: "Task[..., Any]", context: Context
    ) -> None:
        super().__init__(record)
        self.task: Task[..., Any] = task
        self.context: Context = context
        self.slot: int | None = None
        """The slot it runs on, once it runs."""
        self.is_pushed: bool = False
        self.early_outcome: Outcome | None = None
        self.submitter: int | None = None
        """The thread that is just handing it to the executor."""
        self.lent: int = 0


class Dispatcher(WorkerHost):
    """What an alias runs in this process: those that wait, and those that run.

    A task leaves the queue only into a free slot. It is the `WorkerHost` of its
    executor.
    """

    def __init__(
        self,
        *,
        alias: str,
        sender: type,
        options: LocalOptions,
        store: ResultStore,
        serve: Callable[[EnqueueRequest | GetRequest], Record | Refusal],
        find_job: Callable[[str, str], Job | None],
        on_done: Callable[[], None],
    ) -> None:
        self._alias = alias
        self._sender = sender
        self._options = options
        self._max_workers = options.max_workers
        self._store = store
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
        self._is_retired = False
        self._executor: TaskExecutor | None = None
        self._executor_lock = threading.Lock()

    # What the state asks of it.

    def start(self) -> None:
        """Make the executor, unless that is done. Raises what its factory raises."""
        if self._executor is None:
            with self._executor_lock:  # the factory is called once
                if self._executor is None:
                    self._executor = self._options.executor(self._options, host=self)

    def admit(self, job: Job, /) -> None:
        """Take a place in the queue for a task that is about to be stored.

        Raises QueueFull where there is none, Retired once `retire` was called.
        """
        limit = self._options.max_pending
        give_way(self._lock)
        with self._lock:  # decides who gets the last place
            if self._is_retired:
                raise Retired
            if limit is not None and self._pending >= limit:
                raise QueueFull(
                    f"{self._pending} tasks are waiting, and "
                    f"TASKS[{self._alias!r}]['OPTIONS']['MAX_PENDING'] is {limit}."
                )
            self._pending += 1
            self._jobs[job.record.id] = job

    def refuse(self, job: Job, /) -> None:
        """Give the place back, of a task that was not stored after all.

        Of one that was pushed in spite of that nothing is taken back.
        """
        give_way(self._lock)
        with self._lock:
            if job.is_pushed:
                return
            self._pending -= 1
            del self._jobs[job.record.id]
            if not self._jobs:
                self._all_ended.notify_all()
            is_done = self._is_retired and not self._jobs
        if is_done:
            self._close()

    def push(self, job: Job, /) -> None:
        """Put an admitted task, which is stored now, into its place."""
        due = None
        give_way(self._lock)
        try:
            with self._lock:
                job.is_pushed = True
                self._queue.push(job, priority=job.record.task.priority)
                due = self._take_due()
        finally:  # also when Ctrl-C comes just now
            self._submit(due)

    def job(self, result_id: str, /) -> Job | None:
        """The task of that id, until it is finished."""
        return self._jobs.get(result_id)

    def unfinished_ids(self) -> list[str]:
        """The ids of the tasks that wait or run, the oldest first."""
        give_way(self._lock)
        with self._lock:
            return list(self._jobs)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until no task waits or runs; False after `timeout_s` seconds."""
        with self._all_ended:
            return self._all_ended.wait_for(lambda: not self._jobs, timeout_s)

    def retire(self) -> None:
        """Take no new tasks, run those that are here, then end the executor."""
        give_way(self._lock)
        with self._lock:  # decides whether there is anything to wait for
            self._is_retired = True
            is_done = not self._jobs
        if is_done:
            self._close()

    def drop_queued(self, reason: str) -> None:
        """Fail the tasks that still wait, so that nobody waits for them."""
        give_way(self._lock)
        with self._lock:
            jobs = self._queue.drain()
            self._pending -= len(jobs)
        for job in jobs:
            self._submit(self._finish(job, lost_outcome(job.record.id, reason)))

    def end(self, *, timeout_s: float) -> None:
        """End the executor, whatever still runs. May be called twice."""
        if self._executor is not None:
            self._executor.shutdown(timeout_s=timeout_s)

    # What the executor tells and asks (WorkerHost).

    @property
    @override
    def alias(self) -> str:
        return self._alias

    @override
    def started(self, result_id: str, /, *, worker_id: str, at: Timestamp) -> Record:
        job = self._jobs[result_id]
        record = apply_start(job.record, worker_id=worker_id, at=at)
        self._save(record)
        job.record = record
        self._send(task_started, job, record)
        return record

    @override
    def serve(self, request: EnqueueRequest | GetRequest, /) -> Record | Refusal:
        return self._serve(request)

    @override
    def on_finished(
        self, alias: str, result_id: str, notify: Callable[[Record], None], /
    ) -> Callable[[], None] | None:
        job = self._find_job(alias, result_id)
        if job is None:
            return None

        def wake() -> None:
            notify(job.record)

        return partial(job.remove_waiter, wake) if job.add_waiter(wake) else None

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
        self._submit(due)

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

    # From the queue to the executor, and back.

    def _take_due(self) -> Job | None:
        """Give a free slot to the task that is next. To be called under the lock.

        Once is enough: whatever frees a slot, or lends one, frees one.
        """
        if not self._queue or self._running - self._lent >= self._max_workers:
            return None
        job = self._queue.pop()
        self._pending -= 1
        self._running += 1
        if self._free_slots:
            job.slot = heappop(self._free_slots)
        else:
            job.slot = self._slot_count
            self._slot_count += 1
        return job

    def _submit(self, job: Job | None) -> None:
        """Hand a task that has a slot to the executor, and what comes of that."""
        while job is not None:
            outcome = self._hand_over(job)
            job = None if outcome is None else self._finish(job, outcome)

    def _hand_over(self, job: Job) -> Outcome | None:
        """The outcome, where this thread has to see to it."""
        executor = self._executor
        assert executor is not None  # `start` comes before the first `admit`
        assert job.slot is not None  # `_take_due` gave it one
        try:
            call = Call(job.record, job.slot, job.task.func, job.context)
            future = executor.submit(call)
        except BaseException:  # Ctrl-C: the executor's own part does not raise
            self._take_back(job)
            raise
        job.submitter = threading.get_ident()
        future.add_done_callback(partial(self._ended, job))
        job.submitter = None
        return job.early_outcome

    def _take_back(self, job: Job) -> None:
        with self._lock:
            assert job.slot is not None  # as above
            self._running -= 1
            heappush(self._free_slots, job.slot)
            job.slot = None
            self._pending += 1
            self._queue.push(job, priority=job.record.task.priority)

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
        self._submit(self._finish(job, outcome))

    def _finish(self, job: Job, outcome: Outcome) -> Job | None:
        """Record what came of a task; the next one for its slot."""
        record = apply_outcome(job.record, outcome)
        try:
            self._save(record)
            self._forget_old_results()
            self._send(task_finished, job, record)
        finally:  # whatever happens, nobody waits for ever
            self._jobs.pop(record.id, None)
            # The tasks that waited for this one have their slots back before the next
            # begins.
            job.finish(record)
            # A handle that is kept should not keep the enqueuer's context.
            job.context = _NO_CONTEXT
            due = self._free(job)
        return due

    def _free(self, job: Job) -> Job | None:
        give_way(self._lock)
        with self._lock:  # decides what the slot does next, and whether all is done
            if job.slot is not None:
                self._running -= 1
                heappush(self._free_slots, job.slot)
            if job.lent:
                self._lent -= 1
            due = self._take_due()
            is_done = self._is_retired and not self._jobs
            if not self._jobs:
                self._all_ended.notify_all()
        if is_done:
            self._close()
        return due

    def _save(self, record: Record) -> None:
        try:
            is_saved = self._store.save([record])[0]
        except Exception:  # a store's; the task goes on all the same
            log_exception(
                "TASKS[%r]: the store failed to save result %s as %s",
                self._alias,
                record.id,
                record.status,
            )
        else:
            if not is_saved:
                log_error(
                    "TASKS[%r]: the store refused to save result %s as %s",
                    self._alias,
                    record.id,
                    record.status,
                )

    def _forget_old_results(self) -> None:
        keep = self._options.max_results
        if keep is not None:
            try:
                self._store.discard(keep=keep)
            except Exception:  # a store's; the next task's end tries again
                log_exception("TASKS[%r]: old results stay in the store", self._alias)

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
