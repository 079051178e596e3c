"""Tasks on threads of this process."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context

from ..errors import TaskCancelled
from ..identity import this_process
from ..interruption import InterruptibleCall
from ..options import LocalOptions
from ..protocols import WorkerHost
from ..records import Call, Interruption, Outcome
from ..worker import (
    close_connections,
    is_async,
    run_task,
    stopped_outcome,
    tidy_connections,
)
from .slot_threads import SlotThreads

__all__ = ["ThreadExecutor"]


class ThreadExecutor:
    """Runs each call on a thread, in the enqueuer's context. An `ExecutorFactory`.

    Coroutines can be stopped: they are cancelled. Functions can where the options say
    that an exception may be raised in their thread.
    """

    option_names: Sequence[str] = ()
    can_stop_coroutines = True
    can_stop_functions = False

    def __init__(self, options: LocalOptions, /, *, host: WorkerHost) -> None:
        self._host = host
        self._options = options
        # Those that can be stopped, by their results' ids.
        self._calls: dict[str, InterruptibleCall] = {}
        self._threads = SlotThreads(
            name=f"django-tasks-{host.alias}",
            permanent=options.max_workers,
            open_worker=self._open_worker,
            tidies_first=host.may_block,
        )

    def submit(self, call: Call, /) -> Future[Outcome]:
        return self._threads.submit(call)

    def run(self, call: Call, done: Callable[[Outcome], None], /) -> None:
        self._threads.run(call, done)

    def interrupt(
        self, result_id: str, /, *, attempt: int, reason: Interruption
    ) -> bool:
        call = self._calls.get(result_id)
        return call is not None and call.attempt == attempt and call.interrupt(reason)

    def shutdown(self, *, timeout_s: float) -> None:
        self._threads.shutdown(timeout_s=timeout_s)

    def _open_worker(self, slot: int) -> "_ThreadWorker":
        return _ThreadWorker(
            self._host,
            slot,
            self._calls,
            raises_in_threads=self._options.raises_in_threads,
        )


class _ThreadWorker:
    """One slot's thread."""

    def __init__(
        self,
        host: WorkerHost,
        slot: int,
        calls: dict[str, InterruptibleCall],
        *,
        raises_in_threads: bool,
    ) -> None:
        self._host = host
        self._calls = calls
        self._raises = raises_in_threads
        self._worker_id = f"{this_process()}:{host.alias}-{slot}"
        self.is_spent = False

    def run(self, call: Call, /) -> Outcome:
        is_coroutine = call.function is not None and is_async(call.function)
        if is_coroutine or (self._raises and call.timeout_s is not None):
            return self._run_interruptible(call, is_coroutine=is_coroutine)
        return self._run(call, None)

    def _run_interruptible(self, call: Call, *, is_coroutine: bool) -> Outcome:
        interruptible = InterruptibleCall(
            attempt=len(call.record.worker_ids) + 1,
            timeout_s=call.timeout_s,
            is_coroutine=is_coroutine,
        )
        self._calls[call.record.id] = interruptible
        try:
            return self._run(call, interruptible)
        finally:
            del self._calls[call.record.id]
            self.is_spent = interruptible.is_struck

    def _run(self, call: Call, interruptible: InterruptibleCall | None) -> Outcome:
        record = self._host.started(
            call.record.id, worker_id=self._worker_id, at=time.time()
        )
        if record is None:
            return stopped_outcome(call.record.id, TaskCancelled())
        return run_task(
            record,
            host=self._host,
            function=call.function,
            context=call.context or copy_context(),
            backoff=call.backoff,
            interruptible=interruptible,
        )

    def tidy(self, *, rests: bool) -> None:
        # Where it is spent, nobody knows what state they are in.
        tidy_connections(rests=rests or self.is_spent)

    def close(self) -> None:
        close_connections()
