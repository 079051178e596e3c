"""What an alias owns in this process: its store, its queue, its executor.

One `ExecutorState` an alias, shared by all backend instances of that alias (Django
makes one for each thread), made at its first use; and what happens to all of them
when the settings change, when the process forks, and when it ends.
"""

import atexit
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.tasks import task_backends
from django.tasks.base import Task, TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

from .async_bridge import Completion, is_in_event_loop
from .context import is_running
from .dispatcher import Dispatcher
from .errors import StoreError
from .executors.processes import ProcessExecutor
from .executors.threads import ThreadExecutor
from .foreign_results import record_of
from .identity import new_owner, new_result_id, this_process
from .jobs import Job
from .logs import log_warning
from .options import LocalOptions, parse_options
from .poller import PolledResult
from .protocols import ExecutorFactory, ResultStore
from .records import (
    Answer,
    CancelRequest,
    Enqueued,
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
from .signals import (
    asend,
    has_only_djangos_receiver,
    is_heard,
    send,
    task_enqueued,
)
from .slots import Retired
from .task_registry import find_task, remember_task
from .tasks import metadata_text, run_after_of
from .worker import refusal_of

__all__ = [
    "ExecutorState",
    "cancel",
    "drain",
    "find_unfinished",
    "get_executor_state",
    "open_state",
    "settings_generation",
    "shutdown_executor",
]


_END_S = 1.0  # for threads that have nothing left to do
_RELOAD_S = 0.1  # for all of it, where somebody waits for the new code
_NAMED_AT_MOST = 100
_CANCELS_AT_MOST = 20


class ExecutorState:
    """What all backend instances of an alias share in this process.

    Making one starts nothing: the executor comes with the first enqueue.
    """

    def __init__(self, *, alias: str, sender: type, options: LocalOptions) -> None:
        self.alias: str = alias
        self.options: LocalOptions = options
        self.is_retired: bool = False
        self.store: ResultStore = options.store(options, alias=alias)
        self._sender = sender
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
            serve=_serve,
            find_completion=_find_completion,
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
            with _lock:  # from now on the end of the process does not wait for it
                _retired.discard(self)
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


# The states of this process.

_lock = threading.Lock()
_states: dict[str, ExecutorState] = {}
_retired: set[ExecutorState] = set()


def open_state(alias: str, make: Callable[[], ExecutorState], /) -> ExecutorState:
    """The alias's state in this process; the first call makes it."""
    state = _states.get(alias)
    if state is None:
        _arm_exit()
        made = make()
        with _lock:  # decides whose state is the alias's
            state = _states.setdefault(alias, made)
        if state is not made:
            made.store.close()
    return state


def find_unfinished(alias: str, result_id: str, /) -> LocalTaskResult[Any] | None:
    """The handle of what waits or runs in this process.

    A task that began before the settings changed finds what was enqueued then.
    """
    for state in _all_states():
        if state.alias == alias and state.job(result_id) is not None:
            return state.get_result(result_id)
    return None


def _alias_of(name: str) -> str:
    """2.0 named states "tasks-<alias>"."""
    if name in _states or name in settings.TASKS:
        return name
    return name.removeprefix("tasks-")


_FACTORIES: dict[type[Executor], ExecutorFactory] = {
    ThreadPoolExecutor: ThreadExecutor,
    ProcessPoolExecutor: ProcessExecutor,
}


def get_executor_state(
    name: str,
    executor_class: type[Executor] | None = None,
    max_workers: int | None = None,
    max_results: int | None = None,
) -> ExecutorState:
    """The state of an alias in this process, made at the first call.

    `name` is the alias, or "tasks-<alias>" as in 2.0. The other arguments are 2.0's
    too, and count only where the call makes the state of an alias that the settings
    do not know: ``ThreadPoolExecutor`` and ``ProcessPoolExecutor`` stand for threads
    and processes. Raises InvalidTaskBackend for an unknown alias without them.
    """
    alias = _alias_of(name)
    state = _states.get(alias)
    if state is not None:
        return state
    if alias in settings.TASKS or executor_class is None:
        return _state_of(alias)
    factory = _FACTORIES[executor_class]
    options = {"MAX_WORKERS": max_workers or 10, "MAX_RESULTS": max_results or 1000}
    parsed = parse_options(
        alias,
        {"OPTIONS": options},
        backend_name="ExecutorState",
        default_max_workers=10,
        default_executor=factory,
        has_processes=factory is ProcessExecutor,
    )
    if isinstance(parsed, list):
        raise ValueError(parsed[0].message)
    return open_state(
        alias,
        lambda: ExecutorState(alias=alias, sender=ExecutorState, options=parsed),
    )


def _state_of(alias: str) -> ExecutorState:
    """The state of an alias of the settings.

    Its backend knows how to make it.
    """
    backend = task_backends[alias]
    state = getattr(backend, "state", None)
    if not isinstance(state, ExecutorState):
        raise TypeError(f"TASKS[{alias!r}] is a {type(backend).__name__}.")
    return state


def shutdown_executor(name: str, wait: bool = True) -> None:
    """End what an alias runs in this process; a later enqueue begins anew.

    New tasks are refused from now on, or rather begin a new state. With `wait`, blocks
    until those that are here have ended, for ``SHUTDOWN_TIMEOUT`` seconds at most:
    then those that still wait fail with WorkerLost, and worker processes are killed;
    one WARNING names what did not finish. Without it, or from a task of the same
    alias, that all comes to its end in the background, without a time limit. A name
    that has no state is no error. On an event loop's thread it does not wait. What
    another call, or a change of the settings, has begun to end is waited for too.
    """
    alias = _alias_of(name)
    with _lock:
        current = _states.pop(alias, None)
        if current is not None:
            _retired.add(current)
        ending = [state for state in _retired if state.alias == alias]
    if current is not None:
        patience_s = current.options.shutdown_timeout_s
        current.retire(runs_until=time.time() + patience_s)
    if not wait or is_running(alias) or is_in_event_loop():
        return
    begin = time.monotonic()
    for state in ending:
        left_s = begin + state.options.shutdown_timeout_s - time.monotonic()
        if not state.wait_until_idle(max(0.0, left_s)):
            _warn_of_unfinished(state.unfinished_ids(), "SHUTDOWN_TIMEOUT")
            state.drop_queued(
                f"TASKS[{alias!r}] was shut down before the task could run."
            )
            state.end(timeout_s=0.0)  # kills what it can
        state.end(timeout_s=_END_S)
        state.release()
        with _lock:
            _retired.discard(state)


def _warn_of_unfinished(ids: list[str], limit: str) -> None:
    if not ids:
        return
    named = ", ".join(ids[:_NAMED_AT_MOST])
    more = len(ids) - _NAMED_AT_MOST
    log_warning(
        "%d tasks did not finish before %s: %s%s",
        len(ids),
        limit,
        named,
        f" and {more} more" if more > 0 else "",
    )


# What a task in a worker process asks of this one.


def _serve(request: EnqueueRequest | GetRequest | CancelRequest) -> Answer:
    try:
        match request:
            case EnqueueRequest():
                return _enqueue_for_child(request)
            case GetRequest():
                return record_of(_get_for_child(request))
            case CancelRequest():
                return cancel(request.alias, request.result_id)
    except BaseException as err:  # the child's task gets it, whatever it is
        return refusal_of(err)


def _enqueue_for_child(request: EnqueueRequest) -> Enqueued:
    task = find_task(
        request.task, run_after=request.run_after, metadata=request.metadata
    )
    while True:
        state = _states.get(request.alias) or _state_of(request.alias)
        try:
            results = state.enqueue(task, request.task, request.arguments)
        except Retired:
            continue  # the alias has a new state, or gets one
        for result in results:
            result.refresh()  # what has ended already may be forgotten soon
        return Enqueued(tuple(map(record_of, results)))


def _get_for_child(request: GetRequest) -> LocalTaskResult[Any]:
    unfinished = find_unfinished(request.alias, request.result_id)
    if unfinished is not None:
        return unfinished
    state = _states.get(request.alias) or _state_of(request.alias)
    return state.get_result(request.result_id)


def cancel(alias: str, result_id: str, /) -> bool:
    """Cancel a task of this process; False where it is finished.

    Raises TaskResultDoesNotExist where its alias does not know it.
    """
    for state in _all_states():  # perhaps from before the settings changed
        if state.alias == alias and state.job(result_id) is not None:
            return state.cancel(result_id)
    return (_states.get(alias) or _state_of(alias)).cancel(result_id)


def _find_completion(alias: str, result_id: str) -> Completion | None:
    for state in _all_states():
        if state.alias == alias:
            job = state.job(result_id)
            if job is not None:
                return job
    return (_states.get(alias) or _state_of(alias)).find_completion(result_id)


# When the settings change.

_generation = 0


def settings_generation() -> int:
    """How often the ``TASKS`` setting has changed."""
    return _generation


def _retire_all(*, setting: str, **_: object) -> None:
    global _generation
    if setting == "TASKS":
        with _lock:
            _generation += 1
            states = list(_states.values())
            _states.clear()
            _retired.update(states)
        for state in states:
            state.retire(runs_until=time.time())


setting_changed.connect(_retire_all)


# When the process ends.

_is_exit_armed = False


def _arm_exit() -> None:
    """Have `drain` called when Python ends.

    `threading._register_atexit` runs hooks in reverse order of registration, before
    threads are joined. Ours has to run before that of `concurrent.futures.thread`,
    after which no task could use `async_to_sync` or an executor of its own; that module
    has been imported here for its names. The function is private: where it is gone,
    `atexit` alone has to do.
    """
    global _is_exit_armed
    with _lock:
        if _is_exit_armed:
            return
        _is_exit_armed = True
    # Again later, for what other threads and exit hooks have enqueued since.
    atexit.register(drain)
    # Refused where Python is ending already, with a thread of ours still running.
    with suppress(AttributeError, RuntimeError):
        threading._register_atexit(drain)  # type: ignore[attr-defined]


def drain() -> None:
    """Let tasks finish until each alias's SHUTDOWN_TIMEOUT, then end the workers.

    For when the process ends: one WARNING names what did not finish. An enqueue
    afterwards begins anew. Under runserver's autoreload tasks have a moment only.
    """
    begin = time.monotonic()
    is_reloaded = os.environ.get(DJANGO_AUTORELOAD_ENV) == "true"
    limit = "runserver's reload or end" if is_reloaded else "SHUTDOWN_TIMEOUT"
    most_s = _RELOAD_S if is_reloaded else math.inf
    try:
        while True:
            busy = [
                (left, state)
                for state in _all_states()
                if (
                    left := begin
                    + min(state.options.shutdown_timeout_s, most_s)
                    - time.monotonic()
                )
                > 0
                and not state.is_idle(until=time.time() + left)
            ]
            if not busy:
                break
            # A task may enqueue to another alias, so look at all of them again.
            left, state = busy[0]
            state.wait_until_idle(left)
    except (
        BaseException
    ) as err:  # Ctrl-C, or what a server's handler of a signal raises
        limit = type(err).__name__
        raise
    finally:
        states = _all_states()
        unfinished = [
            result_id for state in states for result_id in state.unfinished_ids()
        ]
        _warn_of_unfinished(unfinished, limit)
        with _lock:
            _states.clear()  # what is enqueued from now on is another state's
            _retired.update(states)
        for state in states:
            state.retire(runs_until=math.inf)  # what is left has just been named
            state.leave_queued()
            state.end(timeout_s=0.0)  # kills what it can
        deadline = time.monotonic() + min(_END_S, most_s)
        for state in states:
            state.end(timeout_s=max(0.0, deadline - time.monotonic()))
            state.release()
        with _lock:
            _retired.difference_update(states)


def _all_states() -> list[ExecutorState]:
    with _lock:
        return [*_states.values(), *_retired]


# When the process forks.


def _begin_anew() -> None:
    """In a fork nothing of the parent's runs.

    Its threads are not there, its children are not ours, and its locks may be held
    for ever.
    """
    global _lock, _states, _retired
    _lock = threading.Lock()
    for state in (*_states.values(), *_retired):
        state.is_retired = True
    _states = {}
    _retired = set()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_begin_anew)
