"""Tasks on threads of this process."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import copy_context

from ..identity import this_process
from ..options import LocalOptions
from ..protocols import WorkerHost
from ..records import Call, Outcome
from ..worker import close_connections, close_old_connections, run_task
from .slot_threads import SlotThreads

__all__ = ["ThreadExecutor"]


class ThreadExecutor:
    """Runs each call on a thread, in the enqueuer's context. An `ExecutorFactory`."""

    option_names: Sequence[str] = ()

    def __init__(self, options: LocalOptions, /, *, host: WorkerHost) -> None:
        self._host = host
        self._threads = SlotThreads(
            name=f"django-tasks-{host.alias}",
            permanent=options.max_workers,
            open_worker=self._open_worker,
        )

    def submit(self, call: Call, /) -> Future[Outcome]:
        return self._threads.submit(call)

    def shutdown(self, *, timeout_s: float) -> None:
        self._threads.shutdown(timeout_s=timeout_s)

    def _open_worker(self, slot: int) -> "_ThreadWorker":
        return _ThreadWorker(self._host, slot)


class _ThreadWorker:
    def __init__(self, host: WorkerHost, slot: int) -> None:
        self._host = host
        self._worker_id = f"{this_process()}:{host.alias}-{slot}"

    def run(self, call: Call, /) -> Outcome:
        record = self._host.started(
            call.record.id, worker_id=self._worker_id, at=time.time()
        )
        return run_task(
            record,
            host=self._host,
            function=call.function,
            context=call.context or copy_context(),
        )

    def tidy(self) -> None:
        close_old_connections()

    def rest(self) -> None:
        close_connections()

    def close(self) -> None:
        close_connections()
