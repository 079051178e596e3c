"""Background tasks for Django with no infrastructure.

Importing the package starts nothing and imports no model. How a task goes::

    enqueue / aenqueue
          v
    backend      validates; arguments become JSON text
          v
    state        store.add(READY) -> signal task_enqueued -> queue  (one per alias)
          v
    task_queue   what is due by priority, then age; the rest by its time  <------+
          v                                                                      |
    dispatcher   into a free slot: executor.submit(call)                         |
          v                                                                      |
    executors    a thread | a child process | an event loop | a Dask cluster     |
          v                                                                      |
    worker       context, connections; calls the function, and the backoff if    |
          v      that fails; outcome = plain data                                |
          v                                                                      |
    dispatcher   store.save; READY for another attempt? -------------------------+
          v      otherwise signals, THEN wakes whoever waits
          v
    results      result.wait() in sync code, `await result` in async code
"""

from .backend import (
    DaskBackend,
    EventLoopBackend,
    ProcessPoolBackend,
    ThreadPoolBackend,
)
from .completed import as_completed
from .context import LocalTaskContext, ResultIdFilter, current_result_id
from .errors import (
    ClusterUnreachable,
    IgnoredOptionsWarning,
    QueueFull,
    TaskCancelled,
    TaskFailed,
    TaskTimeout,
    WorkerLost,
)
from .progress import Progress
from .results import LocalTaskResult, wait
from .setting_types import (
    DaskOptions,
    DaskSetting,
    DaskTLS,
    DjangoBackendSetting,
    EventLoopOptions,
    EventLoopSetting,
    OtherBackendSetting,
    PoolOptions,
    ProcessPoolOptions,
    ProcessPoolSetting,
    TasksSetting,
    ThreadPoolOptions,
    ThreadPoolSetting,
)
from .tasks import LocalTask, task

__all__ = [
    "ClusterUnreachable",
    "DaskBackend",
    "DaskOptions",
    "DaskSetting",
    "DaskTLS",
    "DjangoBackendSetting",
    "EventLoopBackend",
    "EventLoopOptions",
    "EventLoopSetting",
    "IgnoredOptionsWarning",
    "LocalTask",
    "LocalTaskContext",
    "LocalTaskResult",
    "OtherBackendSetting",
    "PoolOptions",
    "ProcessPoolBackend",
    "ProcessPoolOptions",
    "ProcessPoolSetting",
    "Progress",
    "QueueFull",
    "ResultIdFilter",
    "TaskCancelled",
    "TaskFailed",
    "TaskTimeout",
    "TasksSetting",
    "ThreadPoolBackend",
    "ThreadPoolOptions",
    "ThreadPoolSetting",
    "WorkerLost",
    "as_completed",
    "current_result_id",
    "task",
    "wait",
]
