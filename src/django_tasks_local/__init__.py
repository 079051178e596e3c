"""Background tasks for Django with no infrastructure.

Importing the package starts nothing and imports no model. How a task goes::

    enqueue / aenqueue
          v
    backend      validates; arguments become JSON text
          v
    state        store.add(READY) -> signal task_enqueued -> queue  (one per alias)
          v
    task_queue   by priority, then age
          v
    dispatcher   into a free slot: executor.submit(call)
          v
    executors    a thread | a child process
          v
    worker       context, connections; calls the function; outcome = plain data
          v
    dispatcher   store.save, signals, THEN wakes whoever waits
          v
    results      result.wait() in sync code, `await result` in async code
"""

from .backend import ProcessPoolBackend, ThreadPoolBackend
from .context import LocalTaskContext, ResultIdFilter, current_result_id
from .errors import QueueFull, TaskFailed, WorkerLost
from .options import (
    DjangoBackendSetting,
    OtherBackendSetting,
    PoolOptions,
    ProcessPoolOptions,
    ProcessPoolSetting,
    TasksSetting,
    ThreadPoolSetting,
)
from .results import LocalTaskResult, wait
from .tasks import LocalTask, task

__all__ = [
    "DjangoBackendSetting",
    "LocalTask",
    "LocalTaskContext",
    "LocalTaskResult",
    "OtherBackendSetting",
    "PoolOptions",
    "ProcessPoolBackend",
    "ProcessPoolOptions",
    "ProcessPoolSetting",
    "QueueFull",
    "ResultIdFilter",
    "TaskFailed",
    "TasksSetting",
    "ThreadPoolBackend",
    "ThreadPoolSetting",
    "WorkerLost",
    "current_result_id",
    "task",
    "wait",
]
