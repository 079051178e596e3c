"""Django's contract for task backends, kept thinly over an alias's state."""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, override

from django.conf import settings
from django.core.checks import CheckMessage
from django.core.signals import request_started
from django.tasks import task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import DEFAULT_TASK_QUEUE_NAME, Task
from django.tasks.exceptions import InvalidTask, InvalidTaskBackend
from django.utils.timezone import is_aware

from .async_bridge import in_thread
from .backoff import Backoff
from .checks import as_check_messages, as_exception
from .context import current_result_id, is_running, parent_link
from .executors.dask import DaskExecutor
from .executors.event_loop import EventLoopExecutor
from .executors.processes import ProcessExecutor
from .executors.threads import ThreadExecutor
from .interruption import calls_in_reach, out_of_reach
from .options import (
    Finding,
    LocalOptions,
    default_process_count,
    parse_options,
    parse_queues,
)
from .protocols import ExecutorFactory, ParentLink
from .records import CancelRequest, Enqueued, EnqueueRequest, GetRequest, Record
from .results import LocalTaskResult, handle_of
from .slots import Retired
from .state import (
    ExecutorState,
    cancel,
    find_unfinished,
    open_state,
    settings_generation,
    shutdown_executor,
)
from .task_registry import check_that_it_is_there, remember_function
from .tasks import (
    LocalTask,
    arguments_text,
    as_arguments,
    metadata_text,
    run_after_of,
    task_spec,
)
from .worker import is_async

__all__ = [
    "DaskBackend",
    "EventLoopBackend",
    "FuturesBackend",
    "ProcessPoolBackend",
    "ThreadPoolBackend",
    "current_result_id",
    "serve_all",
]


_VALID_TASKS_AT_MOST = 1000


class FuturesBackend(BaseTaskBackend):
    """What the backends of this library have in common.

    Making one starts nothing and never raises over settings: what is wrong with them
    is told by `check`, and by the first enqueue as ImproperlyConfigured.
    """

    task_class: type["Task[..., Any]"] = LocalTask
    supports_defer: bool = True
    supports_async_task: bool = True
    supports_get_result: bool = True
    supports_priority: bool = True
    supports_metadata: bool = True

    has_threads: ClassVar[bool] = False
    """The options of threads (`ThreadPoolOptions`) are among its own."""
    has_processes: ClassVar[bool] = False
    """The options of worker processes (`ProcessPoolOptions`) are among its own."""
    has_event_loop: ClassVar[bool] = False
    """The options of an event loop (`EventLoopOptions`) are among its own."""
    has_cluster: ClassVar[bool] = False
    """The options of a cluster (`DaskOptions`) are among its own."""
    default_executor: ClassVar[ExecutorFactory]
    """What runs the tasks where ``OPTIONS["EXECUTOR"]`` names nothing else."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        queues = parse_queues(params)
        options = params.get("OPTIONS")
        super().__init__(
            alias,
            {
                **params,
                "QUEUES": [DEFAULT_TASK_QUEUE_NAME] if queues is None else queues,
                "OPTIONS": options if isinstance(options, dict) else {},
            },
        )
        self._params = params
        self._valid_tasks: dict[int, Task[..., Any]] = {}
        self._parsed: LocalOptions | list[Finding] | None = None
        # Django never lets go of the backends of former settings.
        self._state: Callable[[], ExecutorState | None] = _no_state
        self._generation = settings_generation()

    @classmethod
    def default_max_workers(cls) -> int:
        """``MAX_WORKERS`` where the settings do not say."""
        return 10

    @property
    def state(self) -> ExecutorState:
        """What all instances of this alias share in this process, made when needed.

        Raises ImproperlyConfigured where the settings are wrong.
        """
        state = self._state()
        if state is None or state.is_retired:
            state = self._open_state()
            self._state = weakref.ref(state)
        return state

    def _open_state(self) -> ExecutorState:
        current = self._in_force()
        if current is not self:
            return current.state
        options = self._parse()
        if isinstance(options, list):
            raise as_exception(options)
        return open_state(self.alias, sender=type(self), options=options)

    def _in_force(self) -> "FuturesBackend":
        """The alias's backend of the settings in force, which win."""
        if self._generation != settings_generation() and self.alias in task_backends:
            current = task_backends[self.alias]
            if isinstance(current, FuturesBackend):
                return current
        return self

    def _may_block(self) -> bool:
        """Whether the store, or to make it, may block."""
        state = self._state()
        if state is not None and not state.is_retired:
            return state.store.may_block
        current = self._in_force()
        if current is not self:
            return current._may_block()
        options = self._parse()
        # Where the settings are wrong, that is raised at once.
        return not isinstance(options, list) and getattr(
            options.store, "may_block", True
        )

    @property
    def default_backoff(self) -> Backoff | None:
        """The alias's ``BACKOFF``; None where its settings are wrong."""
        options = self._parse()
        return None if isinstance(options, list) else options.backoff

    @override
    def validate_task(self, task: "Task[..., Any]") -> None:
        """Raise InvalidTask where the backend cannot run such a task."""
        super().validate_task(task)
        remember_function(task)
        timeout = self.options.get("TIMEOUT")
        where = f"TASKS[{self.alias!r}]['OPTIONS']['TIMEOUT']"
        if isinstance(task, LocalTask) and task.timeout is not None:
            timeout, where = task.timeout, "timeout"
        if timeout is not None and not self._can_stop(task.func):
            raise InvalidTask(
                f"{where} of {timeout!r} s cannot be kept for task "
                f"{task.module_path}: {type(self).__name__} cannot stop "
                f"{'a coroutine' if is_async(task.func) else 'a function'}. Worker "
                "processes (ProcessPoolBackend) are killed when their time is over, "
                "and coroutines (async def) are cancelled, on threads too; for "
                "functions on threads there is OPTIONS['TIMEOUT_ON_THREADS'] = "
                "'raise', with the risks that the documentation names."
            )

    def _check_task(self, task: "Task[..., Any]") -> None:
        """As `validate_task`, which takes a third of an enqueue, once for each task.

        Tasks never change, and of the settings only USE_TZ has a say.
        """
        known = self._valid_tasks
        if known.get(id(task)) is task and (
            task.run_after is None or is_aware(task.run_after) or not settings.USE_TZ
        ):
            return
        check_that_it_is_there(task)
        self.validate_task(task)
        if type(self).validate_task is FuturesBackend.validate_task:
            if len(known) >= _VALID_TASKS_AT_MOST:
                known.clear()
            known[id(task)] = task

    def _can_stop(self, function: Callable[..., Any]) -> bool:
        """Whether what runs the tasks can end such a call."""
        factory = self._executor_factory()
        if is_async(function):
            return bool(getattr(factory, "can_stop_coroutines", False))
        if getattr(factory, "can_stop_functions", False):
            return True
        return (
            self.options.get("TIMEOUT_ON_THREADS") == "raise"
            and isinstance(factory, type)  # one's own knows nothing of that option
            and issubclass(factory, ThreadExecutor | DaskExecutor)
        )

    def _executor_factory(self) -> object:
        """What is known of it before all of the settings are looked at."""
        factory = self.options.get("EXECUTOR", self.default_executor)
        if isinstance(factory, str):
            parsed = self._parse()  # imports it
            return None if isinstance(parsed, list) else parsed.executor
        return factory

    @override
    def enqueue[**P, R](  # type: ignore[override]  # see `results._TaskResult`
        self,
        task: "Task[P, R]",
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> LocalTaskResult[R]:
        """Have a task run in the background; returns a handle at once.

        Raises InvalidTask where the backend cannot run it, TypeError for arguments
        that are not JSON, QueueFull, ImproperlyConfigured; then nothing was stored.
        """
        self._check_task(task)
        calls = [arguments_text(task, args or (), kwargs or {})]
        return self._enqueue(task, calls)[0]

    @override
    async def aenqueue[**P, R](  # type: ignore[override]  # see `results._TaskResult`
        self,
        task: "Task[P, R]",
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> LocalTaskResult[R]:
        """As `enqueue`.

        With a store that does not block, such as the memory store, no other thread
        takes part, unless receivers of `task_enqueued` besides Django's own do.
        """
        self._check_task(task)
        calls = [arguments_text(task, args or (), kwargs or {})]
        return (await self._aenqueue(task, calls))[0]

    def enqueue_many[**P, R](
        self,
        task: "Task[P, R]",
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
    ) -> list[LocalTaskResult[R]]:
        """Have a task run once for each pair of `args` and `kwargs`, or not at all.

        The handles come in the order of the calls. All arguments are looked at before
        anything is stored, with a single write to the store. Raises as `enqueue`.
        """
        return self._enqueue(task, self._texts_of(task, calls))

    async def aenqueue_many[**P, R](
        self,
        task: "Task[P, R]",
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
    ) -> list[LocalTaskResult[R]]:
        """As `enqueue_many`, for coroutines."""
        return await self._aenqueue(task, self._texts_of(task, calls))

    def cancel(self, result_id: str, /, *, wait: bool = False) -> bool:
        """Cancel a task, by its result's id (see `LocalTaskResult.cancel`).

        Raises TaskResultDoesNotExist.
        """
        if wait:
            return self.get_result(result_id).cancel(wait=True)
        return self._cancel(result_id)

    async def acancel(self, result_id: str, /, *, wait: bool = False) -> bool:
        """As `cancel`, for coroutines."""
        if wait:
            result = await self.aget_result(result_id)
            return await result.acancel(wait=True)
        return await in_thread(self._cancel, result_id)

    @override
    def get_result(self, result_id: str) -> LocalTaskResult[Any]:
        """The handle of a result, by id. Raises TaskResultDoesNotExist."""
        link = parent_link()
        if link is not None:
            record = link.request(GetRequest(self.alias, result_id))
            assert isinstance(record, Record)  # as the parent answers that
            return handle_of(record)
        with out_of_reach:
            if is_running(self.alias):  # perhaps since before the settings changed
                unfinished = find_unfinished(self.alias, result_id)
                if unfinished is not None:
                    return unfinished
            return self.state.get_result(result_id)

    @override
    async def aget_result(self, result_id: str) -> LocalTaskResult[Any]:
        """As `get_result`; with a store that does not block, on this very thread."""
        if parent_link() is not None or self._may_block():
            return await in_thread(self.get_result, result_id)
        return self.get_result(result_id)

    def get_records(self, result_ids: Sequence[str], /) -> Mapping[str, Record]:
        """What this process's store has of these, by id; with a single look-up.

        For whoever waits for them: what was to be cancelled by a process that has died
        is cancelled by this one.
        """
        return self.state.look_up(result_ids)

    def store_version(self) -> int | None:
        """Another number once another process has changed a result.

        None where its store cannot say that in no time.
        """
        version: Callable[[], int | None] | None = getattr(
            self.state.store, "version", None
        )
        return None if version is None else version()

    def serve(self) -> None:
        """Look after the tasks of a store that outlives processes, from now on.

        As the first request and the first enqueue of a process do. Does not wait. Does
        nothing with another store, nor where the settings are wrong.
        """
        if parent_link() is None and self.outlives_processes:
            self.state.serve()

    @property
    def outlives_processes(self) -> bool:
        """Whether its tasks wait in a store for the next process when one has ended.

        False where the settings are wrong.
        """
        options = self._parse()
        return not isinstance(options, list) and hasattr(options.store, "ownership")

    @override
    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """What is wrong with the alias's settings."""
        parsed = self._parse()
        return as_check_messages(parsed) if isinstance(parsed, list) else []

    def close(self) -> None:
        """End what the alias runs in this process (see `state.shutdown_executor`)."""
        shutdown_executor(self.alias)

    def _parse(self) -> LocalOptions | list[Finding]:
        if self._parsed is None:
            self._parsed = parse_options(
                self.alias,
                self._params,
                backend_name=type(self).__name__,
                default_max_workers=self.default_max_workers(),
                default_executor=self.default_executor,
                has_threads=self.has_threads,
                has_processes=self.has_processes,
                has_event_loop=self.has_event_loop,
                has_cluster=self.has_cluster,
            )
        return self._parsed

    def _texts_of(
        self,
        task: "Task[..., Any]",
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
    ) -> list[str]:
        self._check_task(task)
        return [arguments_text(task, *as_arguments(call)) for call in calls]

    def _enqueue(
        self, task: "Task[..., Any]", calls: Sequence[str]
    ) -> list[LocalTaskResult[Any]]:
        link = parent_link()
        if not calls:
            return []
        if link is not None:
            return self._enqueue_by(link, task, calls)
        spec = task_spec(task)
        while True:
            try:
                if not calls_in_reach:
                    return self.state.enqueue(task, spec, calls)
                with out_of_reach:
                    return self.state.enqueue(task, spec, calls)
            except Retired:
                continue  # the settings have just changed: the alias begins anew

    async def _aenqueue(
        self, task: "Task[..., Any]", calls: Sequence[str]
    ) -> list[LocalTaskResult[Any]]:
        if not calls:
            return []
        spec = task_spec(task)
        while parent_link() is None and not self._may_block():
            try:
                with out_of_reach:
                    return await self.state.aenqueue(task, spec, calls)
            except Retired:
                continue  # as above
        return await in_thread(self._enqueue, task, calls)

    def _enqueue_by(
        self, link: ParentLink, task: "Task[..., Any]", calls: Sequence[str]
    ) -> list[LocalTaskResult[Any]]:
        answer = link.request(
            EnqueueRequest(
                task_spec(task),
                self.alias,
                tuple(calls),
                run_after_of(task),
                metadata_text(task),
            )
        )
        assert isinstance(answer, Enqueued)  # as the parent answers that
        return [handle_of(record, task=task) for record in answer.records]

    def _cancel(self, result_id: str) -> bool:
        link = parent_link()
        if link is not None:
            return bool(link.request(CancelRequest(self.alias, result_id)))
        with out_of_reach:
            return cancel(self.alias, result_id)


def _no_state() -> None:
    return None


class ThreadPoolBackend(FuturesBackend):
    """Runs tasks on threads of this process: for work that waits for I/O."""

    has_threads: ClassVar[bool] = True

    default_executor: ClassVar[ExecutorFactory] = ThreadExecutor


class ProcessPoolBackend(FuturesBackend):
    """Runs tasks in worker processes: for work that keeps a CPU busy.

    A task's module is imported there anew, and what it changes in memory stays there.
    Needs a POSIX system.
    """

    has_processes: ClassVar[bool] = True
    default_executor: ClassVar[ExecutorFactory] = ProcessExecutor

    @override
    @classmethod
    def default_max_workers(cls) -> int:
        return default_process_count()


class EventLoopBackend(FuturesBackend):
    """Runs coroutines on one event loop: for work that awaits, thousands at once.

    The loop has a thread of its own. A function that is no coroutine function runs on
    one of a few threads beside it (``SYNC_THREADS``).
    """

    has_event_loop: ClassVar[bool] = True
    default_executor: ClassVar[ExecutorFactory] = EventLoopExecutor

    @override
    @classmethod
    def default_max_workers(cls) -> int:
        return 1000


class DaskBackend(FuturesBackend):
    """Runs tasks on a Dask cluster: for work that has outgrown one machine.

    Without an ``ADDRESS`` on a cluster of worker processes of its own. Needs the extra
    ``dask``. ``MAX_WORKERS`` is how many tasks the cluster is given at once, which wait
    there for a worker; they are READY until one begins.
    """

    has_threads: ClassVar[bool] = True
    has_cluster: ClassVar[bool] = True
    default_executor: ClassVar[ExecutorFactory] = DaskExecutor

    @override
    @classmethod
    def default_max_workers(cls) -> int:
        return 1000


# A process looks after tasks once it serves.

_served_generation: int | None = None


def serve_all(**_: object) -> None:
    """Have all aliases look after their tasks: at the first request of a process.

    Does nothing later, until the settings change. Does not wait.
    """
    global _served_generation
    if _served_generation == settings_generation():
        return
    _served_generation = settings_generation()
    for alias in task_backends:
        try:
            backend = task_backends[alias]
        except InvalidTaskBackend:  # who uses it hears of that
            continue
        if isinstance(backend, FuturesBackend):
            backend.serve()


def _serve_anew() -> None:
    global _served_generation
    _served_generation = None


request_started.connect(serve_all)
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_serve_anew)
