"""Tasks on any executor of `concurrent.futures`, one that a project brings along.

What such an executor can do is small: it calls a function somewhere and gives a Future.
So its processes are sent plain data and send plain data back, once each; what only a
host in this process could do for a running task, nobody does there.
"""

import inspect
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextvars import copy_context
from itertools import count
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .. import records
from ..context import set_parent_link
from ..errors import TaskCancelled
from ..identity import this_process
from ..logs import log_exception
from ..options import LocalOptions
from ..protocols import Waitable, WorkerHost
from ..records import Call, Enqueued, Interruption, Outcome, Record
from ..worker import (
    close_connections,
    error_record,
    lost_outcome,
    run_task,
    stopped_outcome,
    tidy_connections,
)
from .messages import Run, pack, run_message, unpack_from_child, unpack_to_child
from .parents_results import backoff_of
from .project import ProjectKey, find_main, join_project, project_key, take_project
from .slot_threads import SlotThreads

__all__ = ["ExecutorAdapter"]

_SUBMITS = 3


class ExecutorAdapter:
    """An `ExecutorFactory` of whatever `make` makes, such as a pool of processes.

    `make` is called with the alias's options at the first task, and again when the
    executor has broken, was shut down by somebody else, or the project has changed. It
    should have room for ``options.max_workers`` calls at once; processes are not to be
    forks of this one.
    """

    def __init__(self, make: Callable[[LocalOptions], Executor], /) -> None:
        self._make = make

    def __call__(
        self, options: LocalOptions, /, *, host: WorkerHost
    ) -> "PlainExecutor":
        """The executor of an alias."""
        return PlainExecutor(options, host=host, make=self._make)


class PlainExecutor:
    """Runs each call on an executor of `concurrent.futures`; a thread waits for it.

    A call has begun when it is handed over. It cannot be ended.
    """

    def __init__(
        self,
        options: LocalOptions,
        /,
        *,
        host: WorkerHost,
        make: Callable[[LocalOptions], Executor],
    ) -> None:
        find_main()  # while the main module still runs
        self._host = host
        self._options = options
        self._pool = _Pool(lambda: make(options))
        # What runs on a thread of this process finds its call by these.
        global _home
        _home = this_process()
        self._token = f"{this_process()}:{next(_tokens)}"
        self._calls: dict[str, Call] = {}
        self._given_up: Future[None] = Future()
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
        return False

    def shutdown(self, *, timeout_s: float) -> None:
        self._threads.shutdown(timeout_s=timeout_s)
        is_busy = bool(self._calls)
        if not self._given_up.done():
            self._given_up.set_result(None)
        self._pool.end(is_busy=is_busy)
        _executors.pop(self._token, None)

    def _open_worker(self, slot: int) -> "_SlotWorker":
        return _SlotWorker(self, slot)

    def run_on(self, slot: int, call: Call, /) -> Outcome:
        """Have a call run, and wait for it, on its slot's thread."""
        result_id = call.record.id
        record = self._host.started(
            result_id,
            worker_id=f"{this_process()}:{self._host.alias}-{slot}",
            at=time.time(),
        )
        if record is None:
            return stopped_outcome(result_id, TaskCancelled())
        try:
            context = call.context or copy_context()
            carries = self._options.context_vars
            run = pack(run_message(call, record, context, carries=carries))
        except Exception as err:  # a value's own code
            return Outcome(result_id, time.time(), None, error_record(err))
        _executors[self._token] = self
        self._calls[result_id] = call._replace(record=record)
        began = time.monotonic()
        try:
            return self._answer_of(*self._pool.submit(self._token, result_id, run))
        except BaseException as err:  # whatever the executor, or `make`, raises
            ran_s = time.monotonic() - began
            return lost_outcome(
                result_id,
                f"The executor of TASKS[{self._host.alias!r}] failed after running "
                f"{record.task.path} for {ran_s:.3f} s.\n{error_record(err).traceback}",
            )
        finally:
            del self._calls[result_id]

    def _answer_of(
        self, executor: Executor, future: "Future[bytes | Outcome]"
    ) -> Outcome:
        # Not the executor's own Future may be waited for without end: it may never do
        # anything about it once it is shut down.
        ends: list[Future[Any]] = [future, self._given_up]
        wait(ends, return_when=FIRST_COMPLETED)
        if self._given_up.done():  # what comes now comes too late
            raise RuntimeError("The call was still running when the alias was ended.")
        try:
            answer = future.result()
        except BrokenExecutor:
            # Here, not in a callback, which the standard library may call while it
            # holds a lock of the executor's.
            self._pool.drop(executor)
            raise
        if isinstance(answer, Outcome):
            return answer
        outcome = unpack_from_child(answer)
        assert isinstance(outcome, Outcome)  # the only thing that `run_call` packs
        return outcome

    def run_here(self, result_id: str, /) -> Outcome:
        """Run a call on this thread, which is one of the executor's."""
        call = self._calls[result_id]
        try:
            return run_task(
                call.record,
                host=self._host,
                function=call.function,
                context=call.context or copy_context(),
                backoff=call.backoff,
            )
        finally:
            close_connections()  # nobody tells when the thread rests


class _SlotWorker:
    """One slot's thread."""

    is_spent = False

    def __init__(self, executor: PlainExecutor, slot: int) -> None:
        self._executor = executor
        self._slot = slot

    def run(self, call: Call, /) -> Outcome:
        return self._executor.run_on(self._slot, call)

    def tidy(self, *, rests: bool) -> None:
        tidy_connections(rests=rests)  # receivers of signals may use this thread's

    def close(self) -> None:
        close_connections()


class _Pool:
    """The project's executor, made when it is needed. Any thread may call any method.

    Its lock is held while one is made, so that there is one at a time.
    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self._key: ProjectKey | None = None
        self._project: tuple[str, bytes] = "", b""
        self._is_over = False

    def submit(
        self, token: str, result_id: str, run: bytes
    ) -> "tuple[Executor, Future[bytes | Outcome]]":
        for turn in count(1):
            executor, project = self._ready()
            try:
                future = executor.submit(run_call, token, result_id, *project, run)
            except (BrokenExecutor, RuntimeError):
                # It has broken since its last call, or somebody has shut it down.
                self.drop(executor)
                if turn == _SUBMITS:
                    raise
            else:
                _have_it_look(executor)
                return executor, future
        raise AssertionError  # pragma: no cover  # the loop has no end

    def _ready(self) -> tuple[Executor, tuple[str, bytes]]:
        key = project_key()
        with self._lock:  # decides which executor is the one
            if self._is_over:
                raise RuntimeError("The alias was shut down.")
            former = None
            if self._key is None or not self._key.is_same(key):
                former, self._executor = self._executor, None
                self._key = key
                name = f"{this_process()}:{next(_tokens)}"
                self._project = name, pickle.dumps(take_project())
            if self._executor is None:
                self._executor = self._make()
            ready = self._executor, self._project
        if former is not None and former is not ready[0]:
            former.shutdown(wait=False)  # its calls end
        return ready

    def drop(self, executor: Executor, /) -> None:
        """It is of no use any more: the next call gets another one."""
        with self._lock:
            if self._executor is not executor:
                return
            self._executor = None
        executor.shutdown(wait=False)

    def end(self, *, is_busy: bool) -> None:
        """End its processes; at once where calls still run, for which nobody waits."""
        with self._lock:
            self._is_over = True
            executor, self._executor = self._executor, None
        if executor is None:
            return
        try:
            if is_busy:
                _kill(executor)
            else:
                executor.shutdown(wait=True)
        except Exception:  # another library's
            log_exception("An executor could not be shut down")


def _have_it_look(executor: Any) -> None:
    """Have the standard library's pool see the end of a process that is new to it.

    Its thread waits for the processes that there were when it last woke, which it does
    at a submit before that has started another: one that dies of its first call would
    be noticed at the next call only (CPython 3.12 to 3.13). There is no public way.
    """
    if isinstance(executor, ProcessPoolExecutor):
        wakeup: Any = getattr(executor, "_executor_manager_thread_wakeup", None)
        lock: Any = getattr(executor, "_shutdown_lock", None)
        if wakeup is not None and lock is not None:
            with lock:  # as its own code does
                wakeup.wakeup()


def _kill(executor: Any) -> None:
    """End an executor, and what it runs where that is possible."""
    if hasattr(executor, "kill_workers"):  # the standard library's from 3.14 on
        executor.kill_workers()
        return
    if "kill_workers" in inspect.signature(executor.shutdown).parameters:  # loky's
        executor.shutdown(wait=True, kill_workers=True)
        return
    # Until Python 3.14 there is no public way to end the standard library's processes.
    processes: Mapping[int, Any] | None = getattr(executor, "_processes", None)
    for process in [*(processes or {}).values()]:
        process.kill()
    executor.shutdown(wait=bool(processes), cancel_futures=True)


# In the executor's processes, or on its threads.

_tokens = count()
_executors: dict[str, PlainExecutor] = {}
_home = ""  # the process that makes them
_joined: str | None = None


def run_call(
    token: str, result_id: str, project_id: str, project: bytes, run: bytes
) -> bytes | Outcome:
    """What an executor calls: run a task, and say what came of it."""
    home, _, _ = token.rpartition(":")
    if home == _home == this_process():
        executor = _executors.get(token)
        if executor is None:
            return lost_outcome(result_id, "The alias was shut down.")
        return executor.run_here(result_id)
    try:
        if home == _home:
            raise ImproperlyConfigured(
                "The executor forks the process, whose other threads, locks and "
                "connections a fork must not use. Have it start its processes in "
                "another way: mp_context=multiprocessing.get_context('forkserver')."
            )
        message = unpack_to_child(run)
        assert isinstance(message, Run)
        _join(project_id, project)
    except BaseException as err:
        return pack(lost_outcome(result_id, error_record(err).traceback))
    outcome = run_task(
        message.record,
        host=_NO_HOST,
        context=copy_context(),
        carried=message.context,
        backoff=backoff_of(message),
    )
    close_connections()
    sys.stdout.flush()
    sys.stderr.flush()
    return pack(outcome)


def _join(project_id: str, project: bytes) -> None:
    """Have this process see the project, at its first call."""
    global _joined
    if _joined == project_id:
        return
    join_project(pickle.loads(project))
    set_parent_link(_NoLink())
    _joined = project_id


class _NoLink:
    """Stands where a worker process of our own has the way to its parent."""

    def request(self, request: records.Request, /) -> Record | Enqueued | bool:
        raise RuntimeError(
            "A task that runs in a process of another executor cannot enqueue, look up "
            "or cancel tasks of this library: nothing leads from there to the process "
            "that has them. Tasks on ProcessPoolBackend's own processes can."
        )

    def waitable(self, record: Record, /) -> Waitable:
        raise RuntimeError(
            "A task that runs in a process of another executor cannot wait for tasks."
        )


class _NoHost:
    """A host that nobody is: what its task tells is known at the task's end."""

    may_block = False

    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        """Comes with the outcome."""

    def is_cancel_requested(self, result_id: str, /) -> bool:
        return False

    def lend_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        """There is nothing to wait for."""

    def reclaim_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        """Likewise."""


_NO_HOST = _NoHost()
