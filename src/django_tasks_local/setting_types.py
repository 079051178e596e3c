"""The types of what a user writes in ``TASKS``."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from os import PathLike
from typing import Literal, NotRequired, TypedDict

from .backoff import Backoff
from .protocols import ExecutorFactory, ResultStoreFactory

__all__ = [
    "DaskOptions",
    "DaskSetting",
    "DaskTLS",
    "DjangoBackendSetting",
    "EventLoopOptions",
    "EventLoopSetting",
    "OtherBackendSetting",
    "PoolOptions",
    "ProcessPoolOptions",
    "ProcessPoolSetting",
    "TasksSetting",
    "ThreadPoolOptions",
    "ThreadPoolSetting",
]


class PoolOptions(TypedDict, total=False):
    """The ``OPTIONS`` that all backends have. All may be left out."""

    MAX_WORKERS: int
    """How many tasks run at once (threads: 10; processes: the CPUs, at most 10; an
    event loop: 1000)."""
    MAX_RESULTS: int | None
    """How many finished results are kept, None for all (in memory 1000; in a store
    that outlives the process None)."""
    RESULT_TTL: float | timedelta | None
    """How long a finished result is kept, in seconds, None for any time (in memory
    None; in a store that outlives the process 7 days)."""
    MAX_PENDING: int | None
    """How many tasks may wait before an enqueue raises QueueFull (None: no limit)."""
    SHUTDOWN_TIMEOUT: float
    """Seconds that are given to tasks at exit (30.0)."""
    MAX_ATTEMPTS: int
    """How often a task runs at most, as long as it fails (1)."""
    BACKOFF: str | Backoff
    """What says when a failed task runs again, or its dotted path (`exponential()`)."""
    TIMEOUT: float | None
    """How many seconds an attempt may take, None for any (None)."""
    STORE: str | ResultStoreFactory
    """``"memory"``, ``"sqlite"`` or ``"database"``, or a `ResultStoreFactory` or its
    dotted path (``"memory"``)."""
    STORE_OPTIONS: Mapping[str, object]
    """What the store takes ({})."""
    EXECUTOR: str | ExecutorFactory
    """An `ExecutorFactory` of your own or its dotted path."""
    EXECUTOR_OPTIONS: Mapping[str, object]
    """What an executor of your own takes ({})."""


class ThreadPoolOptions(PoolOptions, total=False):
    """The ``OPTIONS`` of a thread backend. All may be left out."""

    TIMEOUT_ON_THREADS: Literal["raise"] | None
    """``"raise"``: functions may have a time limit, which is kept by raising an
    exception in their thread from outside (None)."""


class ProcessPoolOptions(PoolOptions, total=False):
    """The ``OPTIONS`` of a process backend. All may be left out."""

    MAX_TASKS_PER_CHILD: int | None
    """After how many tasks a worker process is replaced, None for never (None)."""
    MAX_MEMORY_PER_CHILD_MB: float | None
    """After the task during which it had more than so many MiB in memory (None)."""
    IDLE_TIMEOUT: float | None
    """After how many seconds without work it ends, None for never (60.0)."""
    CONTEXT: Sequence[str]
    """Dotted paths of the `ContextVar` objects whose values tasks see as well ([])."""


class EventLoopOptions(PoolOptions, total=False):
    """The ``OPTIONS`` of an event loop backend. All may be left out."""

    LOOP: Literal["asyncio", "uvloop"]
    """Whose event loop it is: for uvloop's, install the extra (``"asyncio"``)."""
    SYNC_THREADS: int
    """How many threads run the sync code of its tasks, the ORM's among it (10)."""
    SLOW_CALLBACK_S: float | None
    """After how many seconds a task that blocks the loop is named in a WARNING, None
    for never (0.5 where DEBUG is on, else None)."""


class DaskTLS(TypedDict):
    """What shows a Dask cluster who we are, and us that it is the right one: paths."""

    CA_FILE: str | PathLike[str]
    """The certificate of who has signed all others."""
    CERT: str | PathLike[str]
    """This process's own certificate, which the cluster has to accept."""
    KEY: str | PathLike[str]
    """Its private key."""


class DaskOptions(PoolOptions, total=False):
    """The ``OPTIONS`` of a Dask backend. All may be left out."""

    ADDRESS: str | None
    """The scheduler's, ``"tcp://host:port"`` or ``"tls://host:port"``; None for a
    cluster of this process's own, on this machine (None)."""
    TLS: DaskTLS | None
    """For an address ``"tls://…"`` (None)."""
    CONNECT_TIMEOUT: float
    """After how many seconds during which the scheduler cannot be reached an enqueue
    raises `ClusterUnreachable` (10.0)."""
    TIMEOUT_ON_THREADS: Literal["raise"] | None
    """As on threads, in the threads of Dask's workers (None)."""
    CONTEXT: Sequence[str]
    """Dotted paths of the `ContextVar` objects whose values tasks see as well ([])."""


class ThreadPoolSetting(TypedDict):
    """An alias that runs tasks on threads."""

    BACKEND: Literal[
        "django_tasks_local.ThreadPoolBackend",
        "django_tasks_local.backend.ThreadPoolBackend",
    ]
    QUEUES: NotRequired[Sequence[str]]
    OPTIONS: NotRequired[ThreadPoolOptions]


class ProcessPoolSetting(TypedDict):
    """An alias that runs tasks in worker processes."""

    BACKEND: Literal[
        "django_tasks_local.ProcessPoolBackend",
        "django_tasks_local.backend.ProcessPoolBackend",
    ]
    QUEUES: NotRequired[Sequence[str]]
    OPTIONS: NotRequired[ProcessPoolOptions]


class EventLoopSetting(TypedDict):
    """An alias that runs coroutines on an event loop."""

    BACKEND: Literal[
        "django_tasks_local.EventLoopBackend",
        "django_tasks_local.backend.EventLoopBackend",
    ]
    QUEUES: NotRequired[Sequence[str]]
    OPTIONS: NotRequired[EventLoopOptions]


class DaskSetting(TypedDict):
    """An alias that runs tasks on a Dask cluster."""

    BACKEND: Literal[
        "django_tasks_local.DaskBackend",
        "django_tasks_local.backend.DaskBackend",
    ]
    QUEUES: NotRequired[Sequence[str]]
    OPTIONS: NotRequired[DaskOptions]


class DjangoBackendSetting(TypedDict):
    """An alias of Django's own backends."""

    BACKEND: Literal[
        "django.tasks.backends.immediate.ImmediateBackend",
        "django.tasks.backends.dummy.DummyBackend",
    ]
    QUEUES: NotRequired[Sequence[str]]
    OPTIONS: NotRequired[Mapping[str, object]]


class OtherBackendSetting(TypedDict):
    """An alias of any other backend, whose options no type checker knows.

    Not part of `TasksSetting`, whose mistakes it would hide: a project that needs it
    writes ``TASKS: dict[str, ThreadPoolSetting | OtherBackendSetting]``.
    """

    BACKEND: str
    QUEUES: NotRequired[Sequence[str]]
    OPTIONS: NotRequired[Mapping[str, object]]


type TasksSetting = dict[
    str,
    ThreadPoolSetting
    | ProcessPoolSetting
    | EventLoopSetting
    | DaskSetting
    | DjangoBackendSetting,
]
"""The type of the ``TASKS`` setting."""
