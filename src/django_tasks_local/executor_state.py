"""What an alias owns in this process: its store, its queue, its executor."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, NamedTuple

from django.tasks.base import Task, TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist

from .async_bridge import Completion
from .dispatcher import Dispatcher
from .errors import StoreError
from .identity import new_owner, new_result_id, this_process
from .jobs import Job
from .options import LocalOptions
from .poller import PolledResult
from .protocols import ResultStore
from .records import (
    Answer,
    CancelRequest,
    EnqueueRequest,
    GetRequest,
    Record,
    TaskSpec,
    Timestamp,
    apply_cancel_request,
)
from .recovery import Recovery, owned_store
from .results import LocalTaskResult, handle_of
from .retention import Retention
from .signals import asend, has_only_djangos_receiver, is_heard, send, task_enqueued
from .task_registry import remember_task
from .tasks import metadata_text, run_after_of

__all__ = ["ExecutorState", "Siblings"]

_CANCELS_AT_MOST = 20


class Siblings(NamedTuple):
    """What a state needs of all those of this process, and tells them."""

    serve: Callable[[EnqueueRequest | GetRequest | CancelRequest], Answer]
    """Does what a task in a worker process asks for."""
    find_completion: Callable[[str, str], Completion | None]
    """What waits for the result of that alias and id."""
    has_ended: Callable[["ExecutorState"], None]
    """The last task of a retired state has ended."""


class ExecutorState:
    """What all backend instances of an alias share in this process.

    Making one starts nothing: the executor comes with the first enqueue.
    """

    def __init__(
        self, *, alias: str, sender: type, options: LocalOptions, siblings: Siblings
    ) -> None:
        self.alias: str = alias
        self.options: LocalOptions = options
        self.is_retired: bool = False
        self.store: ResultStore = options.store(options, alias=alias)
        self._sender = sender
        self._siblings = siblings
        self._owner = new_owner()
        self._retention = Retention(self.store, alias=alias, options=options)
        owned = owned_store(self.store)
        self._dispatcher = Dispatcher(
            alias=alias,
            sender=sender,
            options=options,
            store=self.store,
            retention=self._retention,
            is_owned=owned is not None,
            serve=siblings.serve,
            find_completion=siblings.find_completion,
            on_done=self._forget,
        )
        self._recovery: Recovery | None = None
        if owned is not None:
            self._recovery = Recovery(
                owned, alias=alias, owner=self._owner, tasks=self._dispatcher
            )

    def enqueue(
        self,
        task: "Task[..., Any]",
        spec: TaskSpec,
        calls: Sequence[str],
        *,
        context: Context | None = None,
    ) -> list[LocalTaskResult[Any]]:
        """Store tasks and have them run; returns their handles.

        One for each of the `calls`, which are the arguments' JSON texts. All or none:
        raises QueueFull; Retired where another state has taken this one's place.
        """
        jobs = self._prepare(task, spec, calls, context)
        ready = [job.record for job in jobs]

        def are_visible() -> None:
            try:
                if is_heard(task_enqueued):  # by receivers with a handle of their own
                    for job, record in zip(jobs, ready, strict=True):
                        send(task_enqueued, self._sender, self._handle(record, job))
            finally:
                self._dispatcher.push(jobs)

        if self._recovery is None:
            self._store_ready(jobs, ready, are_visible)
        else:
            try:
                self._store_ready(
                    jobs, ready, _Admitted(self._dispatcher, jobs, are_visible)
                )
            finally:  # one that has failed may have been stored
                self.serve()
        return list(map(self._handle, ready, jobs))

    async def aenqueue(
        self, task: "Task[..., Any]", spec: TaskSpec, calls: Sequence[str]
    ) -> list[LocalTaskResult[Any]]:
        """The same on an event loop, for a store that does not block."""
        if has_only_djangos_receiver(task_enqueued):
            return self.enqueue(task, spec, calls)
        jobs = self._prepare(task, spec, calls, None)
        ready = [job.record for job in jobs]
        self._store_ready(jobs, ready, lambda: None)
        try:
            for job, record in zip(jobs, ready, strict=True):
                await asend(task_enqueued, self._sender, self._handle(record, job))
        finally:  # they are stored and have to run
            self._dispatcher.push(jobs)
        return list(map(self._handle, ready, jobs))

    def cancel(self, result_id: str, /) -> bool:
        """Cancel what waits or runs here; False where it is finished.

        Raises TaskResultDoesNotExist.
        """
        job = self._dispatcher.job(result_id)
        # What becomes part of a transaction has not happened yet, and may never.
        if job is not None and not self._is_in_transaction:
            return self._dispatcher.cancel(job)
        for _ in range(_CANCELS_AT_MOST):
            record = self.store.get([result_id]).get(result_id)
            if record is None:
                raise TaskResultDoesNotExist(self._explain_unknown(result_id))
            if record.is_finished:
                return False
            # Its owner sees to it when it sees the request. Should that die before it
            # has, somebody does who looks after the store, or waits (`look_up`).
            requested = record
            if not record.is_cancel_requested:
                requested = apply_cancel_request(record)
                if not self.store.save([requested])[0]:
                    continue
            if (
                self._recovery is not None
                and not self._is_in_transaction
                and self._recovery.is_orphan(requested)
            ):
                self._recovery.take(requested)
            return True
        raise StoreError(
            f"Result {result_id} is not as it is seen here: it is being changed again "
            "and again, or this transaction's isolation level hides the changes."
        )

    def get_result(self, result_id: str, /) -> LocalTaskResult[Any]:
        """The handle of a result. Raises TaskResultDoesNotExist."""
        job = self._dispatcher.job(result_id)
        record = self.store.get([result_id]).get(result_id)
        if record is None:
            raise TaskResultDoesNotExist(self._explain_unknown(result_id))
        if record.is_finished:
            return handle_of(record)
        if job is not None:
            return self._handle(record, job)
        return handle_of(record, waitable=self._polled(record))

    def look_up(self, ids: Sequence[str], /) -> Mapping[str, Record]:
        """The records of what somebody here waits for, by id.

        What is to be cancelled, and has lost its owner, is cancelled soon.
        """
        found = self.store.get(ids)
        if self._recovery is not None:
            self._recovery.cancel_orphans_soon(
                [
                    record
                    for record in found.values()
                    if record.is_cancel_requested and not record.is_finished
                ]
            )
        return found

    def serve(self) -> None:
        """Look after the store's tasks from now on, those of dead processes among them.

        For stores whose tasks outlive their process. Does not wait.
        """
        if self._recovery is not None:
            self._recovery.serve()
            self._retention.begin()

    def adopt(self) -> int:
        """Take over now what dead processes have left; how many tasks these were."""
        return 0 if self._recovery is None else self._recovery.adopt()

    @property
    def adopted_count(self) -> int:
        """How many tasks of dead processes have been taken over here so far."""
        return 0 if self._recovery is None else self._recovery.adopted_count

    def prune(self) -> int:
        """Forget now the results that are not to be kept; how many these were."""
        return self._retention.prune()

    def find_completion(self, result_id: str, /) -> PolledResult | None:
        """What waits for a result that runs elsewhere, as the store has it."""
        record = self.store.get([result_id]).get(result_id)
        return None if record is None else self._polled(record)

    def job(self, result_id: str, /) -> Job | None:
        """What is waiting or running under that id."""
        return self._dispatcher.job(result_id)

    def retire(self, *, runs_until: Timestamp) -> None:
        """Take no new tasks; what is here runs to its end, then the workers go.

        Tasks that are not due before `runs_until` fail.
        """
        self.is_retired = True
        self._dispatcher.retire(runs_until=runs_until)

    def is_idle(self, *, until: Timestamp) -> bool:
        """Whether nothing runs, nor waits but for a time after `until`."""
        return self._dispatcher.is_idle(until=until)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until nothing runs, nor is due in that time; False when it is over."""
        return self._dispatcher.wait_until_idle(timeout_s)

    def unfinished_ids(self) -> list[str]:
        """The ids of what waits or runs."""
        return self._dispatcher.unfinished_ids()

    def drop_queued(self, reason: str) -> None:
        """Fail what still waits, or leave it in a store that others look after."""
        self._dispatcher.drop_queued(reason)

    def leave_queued(self) -> None:
        """Leave what still waits to others, where these look after it."""
        if self._recovery is not None:
            self._recovery.end()
            self._dispatcher.drop_queued("")

    def end(self, *, timeout_s: float) -> None:
        """End the workers, whatever still runs."""
        self._retention.end()
        self._dispatcher.end(timeout_s=timeout_s)

    def release(self) -> None:
        """Let others see to what is unfinished, unless it still runs here."""
        if self._recovery is not None:
            self._recovery.end()
            if not self._dispatcher.unfinished_ids():
                self._recovery.release()

    @property
    def _is_in_transaction(self) -> bool:
        owned = owned_store(self.store)
        return owned is not None and owned.is_in_transaction

    def _prepare(
        self,
        task: "Task[..., Any]",
        spec: TaskSpec,
        calls: Sequence[str],
        context: Context | None,
    ) -> list[Job]:
        """The tasks' jobs, each with a place in the queue."""
        self._dispatcher.start()
        if self._recovery is not None:
            self._recovery.hold()
        run_after = run_after_of(task)
        metadata = metadata_text(task)
        owner = self._owner
        now = time.time()
        jobs: list[Job] = []
        for arguments in calls:
            # By position: names would cost as much again.
            record = Record(
                new_result_id(),
                spec,
                self.alias,
                arguments,
                run_after,
                owner,
                now,
                TaskResultStatus.READY,
                None,
                None,
                None,
                None,
                (),
                (),
                metadata,
                run_after,
            )
            own_context = copy_context() if context is None else context.copy()
            jobs.append(Job(record, task=task, context=own_context))
        self._dispatcher.admit(jobs)
        remember_task(spec, task)
        return jobs

    def _store_ready(
        self, jobs: list[Job], ready: list[Record], on_visible: Callable[[], None]
    ) -> None:
        try:
            self.store.add(ready, on_visible=on_visible)
        except BaseException:  # also where Ctrl-C came in between
            self._dispatcher.refuse(jobs)
            raise

    def _forget(self) -> None:
        """The last task of a retired state has ended."""
        self._retention.end()
        try:
            if self._recovery is not None:
                self._recovery.release()
        finally:
            self._siblings.has_ended(self)
            self.store.close()

    def _handle(self, record: Record, job: Job) -> LocalTaskResult[Any]:
        return handle_of(record, waitable=job, task=job.task)

    def _polled(self, record: Record) -> PolledResult | None:
        # In a store of this process alone nobody would bring it to its end.
        return PolledResult(record) if self.store.is_shared else None

    def _explain_unknown(self, result_id: str) -> str:
        text = f"TASKS[{self.alias!r}] has no result {result_id!r}."
        if self.store.is_shared:
            return text
        keep = self.options.max_results
        kept = "its finished results" if keep is None else f"the last {keep} finished"
        return (
            f"{text} Its store knows only what was enqueued in this process "
            f"({this_process()}), and of that {kept}: a result of another process, or "
            "from before a restart, is found by a store that processes share: "
            f"TASKS[{self.alias!r}]['OPTIONS']['STORE'] can be 'sqlite', a file of "
            "this machine, or 'database', the project's own."
        )


class _Admitted:
    """Told when admitted tasks can be seen; dropped where they never will be.

    As by a store that joins a transaction which is rolled back.
    """

    __slots__ = ("_are_visible", "_dispatcher", "_is_called", "_jobs")

    def __init__(
        self, dispatcher: Dispatcher, jobs: list[Job], are_visible: Callable[[], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._jobs = jobs
        self._are_visible = are_visible
        self._is_called = False

    def __call__(self) -> None:
        self._is_called = True
        self._are_visible()

    def __del__(self) -> None:
        if not self._is_called:
            self._dispatcher.abandon(self._jobs)
