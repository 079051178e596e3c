"""Tasks in worker processes: a thread drives each, over a pipe of its own.

So a call is running exactly when it says so, a process that dies fails the one task
it ran, and no process shares a pipe or a lock with another.
"""

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import assert_never

from django.core.exceptions import ImproperlyConfigured

from ..identity import host_name
from ..options import LocalOptions
from ..protocols import WorkerHost
from ..records import Call, Outcome, Record
from ..worker import error_record, lost_outcome
from .child import WorkerMain
from .fork_server import Alarm, Child, release_server, start_child
from .messages import (
    BootFailed,
    Ready,
    Reply,
    Request,
    Run,
    Stop,
    ToChild,
    Unwatch,
    Watch,
    Watched,
    pack,
    unpack_from_child,
)
from .project import ProjectKey, project_key, take_project
from .slot_threads import SlotThreads

__all__ = ["ProcessExecutor"]

_STOP_S = 1.0
_EXIT_CODE_S = 5.0


class ProcessExecutor:
    """Runs each call in a worker process of its slot. An `ExecutorFactory`.

    A process starts with its slot's first call, and again when it has died or no
    longer sees the project as it is. Raises ImproperlyConfigured on a system without
    fork.
    """

    def __init__(self, options: LocalOptions, /, *, host: WorkerHost) -> None:
        if not hasattr(os, "fork"):
            raise ImproperlyConfigured(
                f"TASKS[{host.alias!r}] runs tasks in worker processes, which needs a "
                "POSIX system."
            )
        self._host = host
        self._lock = threading.Lock()
        self._workers: set[_ProcessWorker] = set()
        self._is_shut_down = False
        self._threads = SlotThreads(
            name=f"django-tasks-{host.alias}",
            permanent=options.max_workers,
            open_worker=self._open_worker,
        )

    def submit(self, call: Call, /) -> Future[Outcome]:
        return self._threads.submit(call)

    def shutdown(self, *, timeout_s: float) -> None:
        with self._lock:
            self._is_shut_down = True
        deadline = time.monotonic() + timeout_s
        self._threads.shutdown(timeout_s=timeout_s)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.kill_if_busy()
        self._threads.shutdown(timeout_s=max(0.0, deadline - time.monotonic()))

    def _open_worker(self, slot: int) -> "_ProcessWorker":
        worker = _ProcessWorker(
            self._host, name=f"{self._host.alias}-{slot}", executor=self
        )
        with self._lock:
            self._workers.add(worker)
        return worker

    def worker_closed(self, worker: "_ProcessWorker") -> None:
        """Called by a worker as its last act."""
        with self._lock:
            self._workers.discard(worker)
            is_last = self._is_shut_down and not self._workers
        if is_last:
            release_server(self)


class _Lost(Exception):
    """The worker process is dead, or as good as."""


class _ProcessWorker:
    """One slot's worker process. All but `kill_if_busy` on the slot's own thread."""

    def __init__(
        self, host: WorkerHost, *, name: str, executor: ProcessExecutor
    ) -> None:
        self._host = host
        self._name = name
        self._executor = executor
        self._child: Child | None = None
        self._key: ProjectKey | None = None
        self._is_busy = False
        self._watches = _Watches(host)

    def run(self, call: Call, /) -> Outcome:
        self._is_busy = True
        try:
            return self._run(call)
        except Exception as err:  # ours: the slot must go on, with another process
            self._drop_child()
            return lost_outcome(call.record.id, error_record(err).traceback)
        finally:
            self._is_busy = False

    def _run(self, call: Call) -> Outcome:
        try:
            child = self._ready_child()
        except (_Lost, OSError, EOFError) as err:
            # Nothing ran; the attempt counts, or this would be tried for ever.
            self._started(call, pid=0 if self._child is None else self._child.pid)
            self._drop_child()
            reason = f"No worker process could be started: {err}"
            return lost_outcome(call.record.id, reason)
        record = self._started(call, pid=child.pid)
        began = time.monotonic()
        self._watches.begin(record.id)
        try:
            _send(child, Run(record))
            return self._converse(child, call.context or copy_context())
        except (_Lost, OSError, EOFError):
            ran_s = time.monotonic() - began
            what = f"running {record.task.path} for {ran_s:.3f} s"
            return lost_outcome(record.id, f"{self._end_of(child)} after {what}.")
        finally:
            self._watches.clear()

    def _started(self, call: Call, *, pid: int) -> Record:
        return self._host.started(
            call.record.id,
            worker_id=f"{host_name()}:{pid}:{self._name}",
            at=time.time(),
        )

    def _ready_child(self) -> Child:
        """A living process that sees the project as it is."""
        key = project_key()
        child = self._child
        if child is not None:
            if self._key is not None and self._key.is_same(key) and child.is_alive():
                return child
            self._stop_child()
        self._key = key
        child = self._child = start_child(
            WorkerMain(
                alias=self._host.alias, parent_pid=os.getpid(), project=take_project()
            ),
            user=self._executor,
        )
        message = unpack_from_child(self._receive(child))
        if isinstance(message, BootFailed):
            raise _Lost(f"it could not see the project.\n{message.traceback}")
        assert isinstance(message, Ready)  # the first thing that a child sends
        return child

    def _receive(self, child: Child) -> bytes:
        try:
            return child.connection.recv_bytes()
        except (EOFError, OSError) as err:
            raise _Lost(f"{self._end_of(child)} while it started.") from err

    def _converse(self, child: Child, context: Context) -> Outcome:
        """Answer what the task asks, until its outcome comes."""
        pipe_fd = child.connection.fileno()
        poller = select.poll()
        poller.register(pipe_fd, select.POLLIN)
        poller.register(child.death_fd, select.POLLIN)
        while True:
            readable = [fd for fd, _ in poller.poll()]
            if pipe_fd in readable:  # first, since a dead process may have sent it
                message = unpack_from_child(child.connection.recv_bytes())
                match message:
                    case Outcome():
                        return message
                    case Request():
                        answer = context.run(self._host.serve, message.request)
                        _send(child, Reply(message.request_id, answer))
                    case Watch():
                        if self._watches.add(message):
                            poller.register(self._watches.fd, select.POLLIN)
                        else:
                            _send(child, Watched(message.watch_id))
                    case Unwatch():
                        self._watches.remove(message.watch_id)
                    case Ready() | BootFailed():
                        raise _Lost
                    case _:
                        assert_never(message)
            elif child.death_fd in readable:
                raise _Lost
            else:
                for watch_id in self._watches.take_finished():
                    _send(child, Watched(watch_id))

    def rest(self) -> None:
        pass

    def close(self) -> None:
        self._stop_child()
        self._watches.close()
        self._executor.worker_closed(self)

    def kill_if_busy(self) -> None:
        """End the process now if it runs a task. Any thread may call it."""
        child = self._child
        if child is not None and self._is_busy:
            child.kill()

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
            child.kill()
            child.close()

    def _end_of(self, child: Child) -> str:
        """How a process ended that did not say so. It is gone afterwards."""
        if child.is_alive():
            child.kill()  # it has closed its pipe, or sends what cannot be read
        code = child.exit_code(timeout_s=_EXIT_CODE_S)
        self._drop_child()
        who = f"Worker process {child.pid}"
        if code is None:
            return f"{who} ended, in a way that is not known,"
        if code >= 0:
            return f"{who} exited with code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"{who} was killed by {name}"


def _send(child: Child, message: ToChild) -> None:
    # Only what the child waits for is ever sent, so that it does not block.
    child.connection.send_bytes(pack(message))


class _Watches:
    """The results that the task in the child waits for."""

    def __init__(self, host: WorkerHost) -> None:
        self._host = host
        self._running_id = ""
        self._alarm: Alarm | None = None
        self._remove: dict[int, Callable[[], None]] = {}
        self._finished: deque[int] = deque()

    @property
    def fd(self) -> int:
        assert self._alarm is not None  # `add` has made it
        return self._alarm.fd

    def add(self, watch: Watch) -> bool:
        """Whether there is anything to wait for; the slot is lent meanwhile."""
        if self._alarm is None:
            self._alarm = Alarm()
        notify = partial(self._is_finished, watch.watch_id, self._alarm)
        remove = self._host.on_finished(watch.alias, watch.result_id, notify)
        if remove is None:
            return False
        self._remove[watch.watch_id] = remove
        self._host.lend_slot(self._running_id)
        return True

    def _is_finished(self, watch_id: int, alarm: Alarm) -> None:
        self._finished.append(watch_id)
        alarm.ring()

    def take_finished(self) -> list[int]:
        """The watches that have come to their end since the last call."""
        if self._alarm is not None:
            self._alarm.reset()
        finished: list[int] = []
        while self._finished:
            watch_id = self._finished.popleft()
            if self.remove(watch_id):
                finished.append(watch_id)
        return finished

    def remove(self, watch_id: int) -> bool:
        remove = self._remove.pop(watch_id, None)
        if remove is None:
            return False
        remove()
        self._host.reclaim_slot(self._running_id)
        return True

    def begin(self, running_id: str) -> None:
        """The task of that id begins."""
        self._running_id = running_id

    def clear(self) -> None:
        """It has ended."""
        for watch_id in list(self._remove):
            self.remove(watch_id)
        self._finished.clear()

    def close(self) -> None:
        self.clear()
        if self._alarm is not None:
            self._alarm.close()
