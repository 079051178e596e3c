"""Tasks in worker processes: a thread drives each, over a pipe of its own.

So a call is running exactly when it says so, a process that dies fails the one task
it ran, and no process shares a pipe or a lock with another.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import assert_never

from django.core.exceptions import ImproperlyConfigured

from ..errors import TaskCancelled
from ..identity import host_name
from ..interruption import stop_error
from ..options import LocalOptions
from ..protocols import WorkerHost
from ..records import (
    Call,
    Interruption,
    Outcome,
    Record,
)
from ..worker import (
    close_connections,
    error_record,
    lost_outcome,
    stopped_outcome,
    tidy_connections,
)
from .child import WorkerMain
from .fork_server import Child, give_up_set_up, release_server, start_child
from .messages import (
    BootFailed,
    Lend,
    Ready,
    Reclaim,
    Reply,
    Request,
    Stop,
    ToChild,
    Unwatch,
    Watch,
    Watched,
    WornOut,
    pack,
    run_message,
    unpack_from_child,
)
from .project import ProjectKey, find_main, project_key, take_project
from .requests import TaskRequests
from .slot_threads import SlotThreads
from .starts import Starts

__all__ = ["ProcessExecutor"]

_STOP_S = 1.0
_EXIT_CODE_S = 5.0


class ProcessExecutor:
    """Runs each call in a worker process of its slot. An `ExecutorFactory`.

    A process starts with its slot's first call, and again when it has died, is worn
    out, or no longer sees the project as it is; it ends when it is idle for long.
    Raises ImproperlyConfigured on a system without fork.
    """

    option_names: Sequence[str] = ()
    can_stop_coroutines = True
    can_stop_functions = True

    def __init__(self, options: LocalOptions, /, *, host: WorkerHost) -> None:
        if not hasattr(os, "fork"):
            raise ImproperlyConfigured(
                f"TASKS[{host.alias!r}] runs tasks in worker processes, which needs a "
                "POSIX system."
            )
        find_main()  # while the main module still runs
        self._host = host
        self._options = options
        self._lock = threading.Lock()
        self._workers: set[_ProcessWorker] = set()
        self._starts = Starts()
        self._threads = SlotThreads(
            name=f"django-tasks-{host.alias}",
            permanent=options.max_workers,
            open_worker=self._open_worker,
            idle_timeout_s=options.idle_timeout_s,
        )

    def submit(self, call: Call, /) -> Future[Outcome]:
        return self._threads.submit(call)

    def run(self, call: Call, done: Callable[[Outcome], None], /) -> None:
        self._threads.run(call, done)

    def interrupt(
        self, result_id: str, /, *, attempt: int, reason: Interruption
    ) -> bool:
        with self._lock:
            workers = list(self._workers)
        return any(
            worker.interrupt(result_id, attempt=attempt, reason=reason)
            for worker in workers
        )

    def shutdown(self, *, timeout_s: float) -> None:
        self._starts.end()
        self._threads.shutdown(timeout_s=timeout_s)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.kill_if_busy()

    def _open_worker(self, slot: int) -> "_ProcessWorker":
        worker = _ProcessWorker(
            self._host,
            self._options,
            name=f"{self._host.alias}-{slot}",
            starts=self._starts,
            on_close=self._worker_closed,
        )
        with self._lock:
            self._workers.add(worker)
        return worker

    def _worker_closed(self, worker: "_ProcessWorker") -> None:
        with self._lock:
            self._workers.discard(worker)


class _Lost(Exception):
    """The worker process is dead, or as good as."""


class _ProcessWorker:
    """One slot's worker process.

    All but `interrupt` and `kill_if_busy` is called on the slot's own thread.
    """

    is_spent = False

    def __init__(
        self,
        host: WorkerHost,
        options: LocalOptions,
        *,
        name: str,
        starts: Starts,
        on_close: Callable[["_ProcessWorker"], None],
    ) -> None:
        self._host = host
        self._options = options
        self._name = name
        self._starts = starts
        self._on_close = on_close
        self._child: Child | None = None
        self._is_worn_out = False
        self._worker_id = ""
        self._key: ProjectKey | None = None
        self._is_busy = False
        self._is_given_up = False
        self._has_rested = False
        self._requests = TaskRequests(host)
        self._lock = threading.Lock()
        self._running: tuple[str | None, int] = None, 0
        self._interruption: Interruption | None = None

    def run(self, call: Call, /) -> Outcome:
        self._is_busy = True
        try:
            return self._run(call)
        except BaseException as err:  # the slot must go on, with another process
            self._drop_child()
            return lost_outcome(call.record.id, error_record(err).traceback)
        finally:
            self._is_busy = False

    def _run(self, call: Call) -> Outcome:
        try:
            child = self._ready_child()
        except (_Lost, OSError, EOFError) as err:
            # Nothing ran; the attempt counts, or this would be tried for ever.
            self._started(call)
            self._drop_child()
            reason = f"No worker process could be started: {err}"
            return lost_outcome(call.record.id, reason)
        self._let_interrupt(call.record.id, attempt=len(call.record.worker_ids) + 1)
        try:
            record = self._started(call)
            if record is None:
                return stopped_outcome(call.record.id, TaskCancelled())
            return self._run_in(child, call, record)
        finally:
            self._let_interrupt(None)

    def _run_in(self, child: Child, call: Call, record: Record) -> Outcome:
        context = call.context or copy_context()
        try:
            carries = self._options.context_vars
            run = run_message(call, record, context, carries=carries)
        except Exception as err:  # a value's own code
            return Outcome(record.id, time.time(), None, error_record(err))
        began = time.monotonic()
        self._requests.begin(record.id)
        try:
            _send(child, run)
            return self._converse(child, context)
        except (_Lost, OSError, EOFError):
            ran_s = time.monotonic() - began
            what = f"running {record.task.path} for {ran_s:.3f} s"
            end = self._end_of(child, f"after {what}.")
            if self._interruption is not None:
                error = stop_error(self._interruption, timeout_s=call.timeout_s)
                return stopped_outcome(record.id, error)
            return lost_outcome(record.id, end)
        finally:
            self._requests.clear()

    def _let_interrupt(self, result_id: str | None, *, attempt: int = 0) -> None:
        """From now on that attempt can be stopped; None: nothing can."""
        with self._lock:  # past this the child has been killed, or will not be
            self._running = result_id, attempt
            was_interrupted = self._interruption is not None
            self._interruption = None
        if was_interrupted:
            self._drop_child()  # whether it had finished its task before or not

    def interrupt(self, result_id: str, *, attempt: int, reason: Interruption) -> bool:
        """Kill the process if it runs that call. Any thread may call it."""
        with self._lock:
            child = self._child
            if (
                self._running != (result_id, attempt)
                or self._interruption is not None
                or child is None
            ):
                return False
            self._interruption = reason
            child.kill()
            return True

    def _name_worker(self, pid: int) -> None:
        self._worker_id = f"{host_name()}:{pid}:{self._name}"

    def _started(self, call: Call) -> Record | None:
        return self._host.started(
            call.record.id, worker_id=self._worker_id, at=time.time()
        )

    def _ready_child(self) -> Child:
        """A living process that sees the project as it is."""
        key = project_key()
        child = self._child
        if child is not None:
            is_alive = not self._has_rested or child.is_alive()
            self._has_rested = False
            if is_alive and self._key is not None and self._key.is_same(key):
                return child
            self._stop_child()
        self._starts.wait()
        try:
            child = self._start_child(key)
        except BaseException:
            self._starts.failed()
            raise
        self._starts.succeeded()
        return child

    def _start_child(self, key: ProjectKey) -> Child:
        self._key = key
        self._name_worker(0)
        project = take_project()
        child = self._child = start_child(
            WorkerMain(
                alias=self._host.alias,
                parent_pid=os.getpid(),
                project=project,
                max_tasks=self._options.max_tasks_per_child,
                max_memory_mb=self._options.max_memory_per_child_mb,
            ),
            project=project,
            user=self,
        )
        if self._is_given_up:
            child.kill()
        self._name_worker(child.pid)
        message = unpack_from_child(self._receive(child))
        if isinstance(message, BootFailed):
            raise _Lost(f"it could not see the project.\n{message.traceback}")
        assert isinstance(message, Ready)  # the first thing that a child sends
        return child

    def _receive(self, child: Child) -> bytes:
        try:
            return child.receive()
        except (EOFError, OSError) as err:
            raise _Lost(self._end_of(child, "while it started.")) from err

    def _converse(self, child: Child, context: Context) -> Outcome:
        """Answer what the task asks, until its outcome comes."""
        while True:
            message = unpack_from_child(child.receive())
            match message:
                case Outcome():
                    return message
                case WornOut():
                    self._is_worn_out = True
                case Request():
                    answer = self._requests.serve(message.request, context)
                    _send(child, Reply(message.request_id, answer))
                case Watch():
                    self._requests.watch(message, partial(self._send_watched, child))
                case Unwatch():
                    self._requests.unwatch(message.watch_id)
                case Lend():
                    self._requests.lend(message.group)
                case Reclaim():
                    self._requests.reclaim(message.group)
                case Ready() | BootFailed():
                    raise _Lost
                case _:
                    assert_never(message)

    def _send_watched(self, child: Child, message: Watched) -> None:
        with suppress(OSError):  # it has ended
            # On whichever thread a task has ended: an event loop's, perhaps.
            child.send_soon(pack(message))

    def tidy(self, *, rests: bool) -> None:
        tidy_connections(rests=rests)  # receivers of signals may use this thread's
        if self._is_worn_out:
            self._stop_child()
        if rests:
            self._has_rested = True

    def close(self) -> None:
        self._stop_child()
        close_connections()
        release_server(self)
        self._on_close(self)

    def kill_if_busy(self) -> None:
        """End the process now if it runs a task. Any thread may call it."""
        if self._is_busy:
            self._is_given_up = True  # before it is looked whether there is a child
            child = self._child
            if child is not None:
                child.kill()
            else:
                give_up_set_up(self)

    def _stop_child(self) -> None:
        """Let a process that has nothing to do end by itself."""
        child = self._child
        if child is None:
            return
        with suppress(OSError):  # it has ended
            _send(child, Stop())
        child.exit_code(timeout_s=_STOP_S)
        self._drop_child()

    def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()
        self._is_worn_out = False

    def _end_of(self, child: Child, when: str) -> str:
        """How a process ended that did not say so. It is gone afterwards."""
        if child.is_alive():
            child.kill()  # it has closed its pipe, or sends what cannot be read
        code = child.exit_code(timeout_s=_EXIT_CODE_S)
        report = child.crash_report()
        self._drop_child()
        text = f"Worker process {child.pid} {_how_it_ended(code)} {when}"
        return f"{text}\n{report}" if report else text


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "ended, in a way that is not known,"
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def _send(child: Child, message: ToChild) -> None:
    # Only what the child waits for is ever sent, so that it does not block.
    child.send(pack(message))
