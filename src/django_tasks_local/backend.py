"""Django's contract for task backends, kept thinly over an alias's state."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, override

import anyio.to_thread
from asgiref.sync import sync_to_async
from django.core.checks import CheckMessage
from django.tasks import task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import DEFAULT_TASK_QUEUE_NAME, Task

from .async_bridge import is_in_trio
from .checks import as_check_messages, as_exception
from .context import current_result_id, is_running, parent_link
from .dispatcher import Retired
from .executors.processes import ProcessExecutor
from .executors.threads import ThreadExecutor
from .json_text import encode_arguments
from .options import (
    Finding,
    LocalOptions,
    default_process_count,
    parse_options,
    parse_queues,
)
from .protocols import ExecutorFactory, ParentLink
from .records import EnqueueRequest, GetRequest
from .results import LocalTaskResult, handle_of
from .state import (
    ExecutorState,
    find_unfinished,
    open_state,
    settings_generation,
    shutdown_executor,
)
from .tasks import LocalTask, task_spec

__all__ = [
    "FuturesBackend",
    "ProcessPoolBackend",
    "ThreadPoolBackend",
    "current_result_id",
]


class FuturesBackend(BaseTaskBackend):
    """What the backends of this library have in common.

    Making one starts nothing and never raises over settings: what is wrong with them
    is told by `check`, and by the first enqueue as ImproperlyConfigured.
    """

    task_class: type["Task[..., Any]"] = LocalTask
    supports_defer: bool = False
    supports_async_task: bool = True
    supports_get_result: bool = True
    supports_priority: bool = True

    has_processes: ClassVar[bool] = False
    """The options of worker processes (`ProcessPoolOptions`) are among its own."""
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
        if self._generation != settings_generation() and self.alias in task_backends:
            current = task_backends[self.alias]  # the settings in force win
            if isinstance(current, FuturesBackend) and current is not self:
                return current.state
        options = self._parse()
        if isinstance(options, list):
            raise as_exception(options)
        return open_state(
            self.alias,
            lambda: ExecutorState(alias=self.alias, sender=type(self), options=options),
        )

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
        arguments = self._validate(task, args, kwargs)
        link = parent_link()
        if link is not None:
            return self._enqueue_by(link, task, arguments)
        spec = task_spec(task)
        while True:
            try:
                return self.state.enqueue(task, spec, arguments)
            except Retired:
                continue  # the settings have just changed: the alias begins anew

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
        if parent_link() is not None or self.state.store.may_block:
            return await _in_thread(self.enqueue, task, args, kwargs)
        arguments = self._validate(task, args, kwargs)
        spec = task_spec(task)
        while True:
            try:
                return await self.state.aenqueue(task, spec, arguments)
            except Retired:
                continue  # as above

    @override
    def get_result(self, result_id: str) -> LocalTaskResult[Any]:
        """The handle of a result, by id. Raises TaskResultDoesNotExist."""
        link = parent_link()
        if link is not None:
            return handle_of(link.request(GetRequest(self.alias, result_id)))
        if is_running(self.alias):  # perhaps since before the settings changed
            unfinished = find_unfinished(self.alias, result_id)
            if unfinished is not None:
                return unfinished
        return self.state.get_result(result_id)

    @override
    async def aget_result(self, result_id: str) -> LocalTaskResult[Any]:
        """As `get_result`; with a store that does not block, on this very thread."""
        if parent_link() is not None or self.state.store.may_block:
            return await _in_thread(self.get_result, result_id)
        return self.get_result(result_id)

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
                has_processes=self.has_processes,
            )
        return self._parsed

    def _validate(
        self,
        task: "Task[..., Any]",
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> str:
        """The arguments' JSON text, of a task that this backend can run."""
        self.validate_task(task)
        try:
            return encode_arguments(args or (), kwargs or {})
        except TypeError as err:
            raise TypeError(
                f"The arguments of task {task.module_path} must be JSON: {err}"
            ) from err

    def _enqueue_by(
        self, link: ParentLink, task: "Task[..., Any]", arguments: str
    ) -> LocalTaskResult[Any]:
        run_after = task.run_after
        record = link.request(
            EnqueueRequest(
                task_spec(task),
                self.alias,
                arguments,
                None if run_after is None else run_after.timestamp(),
            )
        )
        return handle_of(record, task=task)


def _no_state() -> None:
    return None


async def _in_thread[**P, R](
    function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run a blocking call of an async method on another thread."""
    if is_in_trio():  # where Django's own crossing does not work
        return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs))
    return await sync_to_async(function)(*args, **kwargs)


class ThreadPoolBackend(FuturesBackend):
    """Runs tasks on threads of this process: for work that waits for I/O."""

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
