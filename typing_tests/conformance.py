"""Implementations fit their Protocols."""

from collections.abc import AsyncIterable, Awaitable, Hashable, Iterable
from pathlib import Path
from typing import override

from django.tasks import TaskResult
from django.tasks.backends.base import BaseTaskBackend

from django_tasks_local import (
    LocalTaskResult,
    ProcessPoolBackend,
    TaskFailed,
    ThreadPoolBackend,
    as_completed,
)
from django_tasks_local.async_bridge import Completion
from django_tasks_local.dispatcher import Dispatcher
from django_tasks_local.executors.child import PipeLink
from django_tasks_local.executors.event_loop import EventLoopExecutor
from django_tasks_local.executors.processes import ProcessExecutor
from django_tasks_local.executors.threads import ThreadExecutor
from django_tasks_local.jobs import Job
from django_tasks_local.options import LocalOptions
from django_tasks_local.poller import PolledResult
from django_tasks_local.protocols import (
    CallbackExecutor,
    ExecutorFactory,
    OwnedResultStore,
    Ownership,
    ParentLink,
    ResultStore,
    ResultStoreFactory,
    SlotLender,
    TaskExecutor,
    TaskHost,
    Waitable,
    WorkerHost,
)
from django_tasks_local.records import Record
from django_tasks_local.stores.lock_files import LockFiles
from django_tasks_local.stores.memory import MemoryStore
from django_tasks_local.stores.sqlite import SqliteStore
from django_tasks_local.testing import (
    ExecutorContract,
    OwnedResultStoreContract,
    RecordingHost,
    ResultStoreContract,
)


def executors(options: LocalOptions, host: WorkerHost) -> None:
    _a: TaskExecutor = ThreadExecutor(options, host=host)
    _b: TaskExecutor = ProcessExecutor(options, host=host)
    _c: TaskExecutor = EventLoopExecutor(options, host=host)
    _d: CallbackExecutor = ThreadExecutor(options, host=host)
    _e: CallbackExecutor = ProcessExecutor(options, host=host)
    _f: CallbackExecutor = EventLoopExecutor(options, host=host)


_threads: ExecutorFactory = ThreadExecutor
_processes: ExecutorFactory = ProcessExecutor
_event_loop: ExecutorFactory = EventLoopExecutor


def stores(options: LocalOptions) -> None:
    _a: ResultStore = MemoryStore(options, alias="default")
    _b: OwnedResultStore = SqliteStore(options, alias="default")


def ownerships(directory: Path) -> None:
    _a: Ownership = LockFiles(directory)


_memory: ResultStoreFactory = MemoryStore
_sqlite: ResultStoreFactory = SqliteStore


def hosts(dispatcher: Dispatcher, link: PipeLink) -> None:
    _a: WorkerHost = dispatcher
    _b: WorkerHost = RecordingHost()
    _c: SlotLender = link
    _d: ParentLink = link
    _e: TaskHost = link
    _f: TaskHost = dispatcher


def waitables(record: Record, job: Job) -> None:
    _a: Waitable = Completion(record)
    _b: Waitable = job
    _c: Waitable = PolledResult(record)


def handles(handle: LocalTaskResult[int]) -> None:
    _a: Awaitable[int] = handle
    _b: Hashable = handle
    _c: TaskResult[..., int] = handle
    _d: Iterable[LocalTaskResult[int]] = as_completed([handle])
    _e: AsyncIterable[LocalTaskResult[int]] = as_completed([handle])


def backends() -> None:
    _a: BaseTaskBackend = ThreadPoolBackend("default", {})
    _b: BaseTaskBackend = ProcessPoolBackend("default", {})


def errors(error: TaskFailed) -> None:
    _a: str = error.exception_class_path
    _b: str = error.traceback


class OwnExecutorTests(ExecutorContract):
    @override
    def make_executor(
        self, options: LocalOptions, /, *, host: WorkerHost
    ) -> TaskExecutor:
        return ThreadExecutor(options, host=host)


class OwnStoreTests(ResultStoreContract):
    @override
    def make_store(self, options: LocalOptions, /, *, alias: str) -> MemoryStore:
        return MemoryStore(options, alias=alias)


class OwnOwnedStoreTests(OwnedResultStoreContract):
    @override
    def make_store(self, options: LocalOptions, /, *, alias: str) -> SqliteStore:
        return SqliteStore(options, alias=alias)


# What does not fit.

_no_executor: ExecutorFactory = MemoryStore  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
_no_store: ResultStoreFactory = ThreadExecutor  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
