"""Tasks on a Dask cluster: what the process does that they come from.

No call begins before this process has said that it may: a worker asks first. So the
store knows of each start before the function runs, and whatever Dask runs again by
itself, after a worker has died, is told to leave it.
"""

import asyncio
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing import current_process
from types import ModuleType
from typing import TYPE_CHECKING, Any

from django.conf import ENVIRONMENT_VARIABLE
from django.core.exceptions import ImproperlyConfigured

from ..errors import ClusterUnreachable, TaskCancelled
from ..identity import new_result_id
from ..logs import log_exception, log_warning
from ..options import LocalOptions, default_process_count, is_count
from ..protocols import WorkerHost
from ..records import Call, Interruption, Outcome, Record, Timestamp
from ..worker import error_record, lost_outcome, stopped_outcome
from .dask_calls import DaskCall, Errands
from .dask_messages import (
    Answer,
    Ask,
    Begin,
    BootFailed,
    Decline,
    Interrupt,
    Payload,
    Refused,
    ToWorker,
    Unanswered,
    pack,
    pack_payload,
    unpack_from_worker,
    unpack_result,
)
from .deployment import this_deployment
from .messages import pack as pack_run
from .messages import run_message
from .project import find_main, take_project

if TYPE_CHECKING:
    from distributed import Future as DaskFuture

    from .dask_cluster import Connection, OwnCluster

__all__ = ["DaskExecutor"]

_LOOK_S = 1.0
_INTERVAL_S = 0.01
_HANDED_IN_TIMES = 3
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_END_S = 1.0
_OPEN_S = 5.0
_SILENT = "it does not answer"
_GUARD = (
    "In a script, all that it does has to stand under \"if __name__ == '__main__':\", "
    "since each worker of its own cluster imports it too."
)
_FAILED = "TASKS[%r]: what goes to the Dask scheduler has failed"
_NOBODY = "dask"  # as a worker's address, where none is known
_SHUT_DOWN = "Its alias was shut down before the task could run."
_BROKEN = "What goes to the Dask scheduler has failed; the log of its process says how."
_SHUT_DOWN_MEANWHILE = "Its alias was shut down before the task came to its end."


class DaskExecutor:
    """Runs each call on a worker of a Dask cluster. An `ExecutorFactory`.

    Without an address it starts a cluster of its own, for which ``EXECUTOR_OPTIONS``
    may say ``N_WORKERS`` (how many processes; as many as there are CPUs, at most 10)
    and ``THREADS_PER_WORKER`` (1).
    """

    option_names: Sequence[str] = ("N_WORKERS", "THREADS_PER_WORKER")
    can_stop_coroutines = True
    can_stop_functions = False

    def __init__(self, options: LocalOptions, /, *, host: WorkerHost) -> None:
        # As multiprocessing itself asks where it is to start a process.
        is_being_imported = getattr(current_process(), "_inheriting", False)
        if options.cluster.address is None and is_being_imported:
            raise ImproperlyConfigured(f"A worker imports this script. {_GUARD}")
        find_main()  # while the main module still runs
        self._host = host
        self._options = options
        self._name = f"django-tasks-{host.alias}"
        self._session = new_result_id()
        self._errands = Errands(
            host, name=f"{self._name}-host", count=options.sync_threads
        )
        self._lock = threading.Lock()
        self._inbox = deque[DaskCall]()
        # Those that have not ended, by their results' ids.
        self._calls: dict[str, DaskCall] = {}
        # Those of them that have never begun.
        self._waiting = set[str]()
        self._thread: threading.Thread | None = None
        self._ends_at: float | None = None
        self._unreachable_since: float | None = None
        self._why = "it has not answered yet"
        # What follows is the loop's thread's own.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._numbers = count(1)
        self._by_key: dict[str, DaskCall] = {}
        self._by_token: dict[str, DaskCall] = {}
        self._connection: Connection | None = None
        self._own: OwnCluster | None = None
        self._is_lost = False
        self._is_told = False
        self._follows = set[asyncio.Task[None]]()

    @staticmethod
    def find_wrong_options(given: Mapping[str, object], /) -> Iterator[tuple[str, str]]:
        """The names of options with wrong values, and what would be accepted."""
        for name in DaskExecutor.option_names:
            if not is_count(given.get(name, 1)):
                yield name, "an integer of at least 1"

    # Any thread.

    def submit(self, call: Call, /) -> Future[Outcome]:
        future: Future[Outcome] = Future()

        def resolve(outcome: Outcome) -> None:  # whose callbacks may take long
            self._errands.run_in_thread(partial(future.set_result, outcome))

        self.run(call, resolve)
        return future

    def run(self, call: Call, done: Callable[[Outcome], None], /) -> None:
        reason = self._put(DaskCall(call, done))
        if reason is not None:
            done(lost_outcome(call.record.id, reason))

    def _put(self, call: DaskCall) -> str | None:
        """Why it cannot run, where it cannot."""
        with self._lock:  # decides whether calls are still taken, and who starts what
            if self._ends_at is not None:
                return _SHUT_DOWN
            if self._thread is None:
                thread = threading.Thread(
                    target=self._work, name=f"{self._name}-dask", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as err:
                    # The interpreter is ending, or the system has no thread left.
                    return str(err)
                self._thread = thread
            # Once more the same one, where Ctrl-C came while it was put here.
            call = self._calls.setdefault(call.id, call)
            if call.token is None and call.attempt == 1:
                self._waiting.add(call.id)
            self._inbox.append(call)
        self._wake()
        return None

    def check_reachable(self) -> None:
        """Raise ClusterUnreachable where the cluster has been away for too long."""
        since, why = self._unreachable_since, self._why
        connection, options = self._connection, self._options.cluster
        if since is None and connection is not None:
            since, why = connection.unanswered_since, _SILENT
        if since is None or (options.address is None and not self._is_told):
            return  # one's own may take long to start
        away_s = time.monotonic() - since
        if away_s > options.connect_timeout_s:
            raise ClusterUnreachable(
                f"TASKS[{self._host.alias!r}]: {self._scheduler} has not been reached "
                f"for {away_s:.0f} s ({why}), and no task is taken until it is."
            )

    def waiting_count(self) -> int:
        return len(self._waiting)

    def interrupt(
        self, result_id: str, /, *, attempt: int, reason: Interruption
    ) -> bool:
        call = self._calls.get(result_id)
        if call is None or call.attempt != attempt:
            return False
        can_stop = call.is_coroutine or (
            reason is Interruption.TIMEOUT and self._raises(call)
        )
        with self._lock:  # decides whose reason it is
            if call.token is None or call.is_over or call.reason is not None:
                return False
            if can_stop:
                call.reason = reason
            elif reason is not Interruption.CANCEL:
                return False
        self._tell_soon(call, Interrupt(reason))
        return can_stop

    def withdraw(self, result_id: str, /) -> None:
        """The task was cancelled: a call that has not begun need not do so."""
        call = self._calls.get(result_id)
        if call is not None:
            call.is_withdrawn = True  # where there is no loop yet
            self._call_soon(self._withdraw, call)

    def shutdown(self, *, timeout_s: float) -> None:
        ends_at = time.monotonic() + timeout_s
        with self._lock:
            self._ends_at = min(self._ends_at or ends_at, ends_at)
            thread = self._thread
        if thread is not None:
            self._wake()
            if thread is not threading.current_thread() and timeout_s > 0:
                thread.join(timeout_s + _END_S)
        # What is to end at once tells the host so, for which they are needed.
        if timeout_s > 0 or thread is None or not thread.is_alive():
            self._errands.shutdown(timeout_s=max(0.0, ends_at - time.monotonic()))

    def _raises(self, call: DaskCall) -> bool:
        return self._options.raises_in_threads and call.call.timeout_s is not None

    def _wake(self) -> None:
        self._call_soon(self._changed.set)

    def _call_soon[*T](self, function: Callable[[*T], object], *args: *T) -> None:
        loop = self._loop
        if loop is not None:  # or it sees at its start what there is
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(function, *args)

    # The thread of the connection: its event loop.

    def _work(self) -> None:
        try:
            # They take a second to import, which only this thread should wait for.
            from . import dask_cluster

            this_deployment()
            asyncio.run(self._main(dask_cluster))
        except BaseException:  # the next call starts another thread
            log_exception(_FAILED, self._host.alias)
        finally:
            with self._lock:  # past this a call finds no thread, or was seen here
                self._thread = self._loop = self._connection = None
                calls = list(self._calls.values())
                self._inbox.clear()
            for call in calls:
                reason = _shut_down(call) if self._ends_at else _BROKEN
                call.is_starting = False
                self._end(call, lost_outcome(call.id, reason))
            if self._ends_at is not None:  # `shutdown` may not have waited for this
                self._errands.shutdown(timeout_s=_END_S)

    async def _main(self, dask: ModuleType) -> None:
        self._changed = asyncio.Event()  # this loop's, where one has failed before
        self._is_lost = False
        self._loop = asyncio.get_running_loop()
        self._unreachable_since = time.monotonic()
        try:
            pause_s = _FIRST_PAUSE_S
            while not self._is_at_end():
                if await self._connect(dask):
                    pause_s = _FIRST_PAUSE_S
                    try:
                        await self._serve()
                    except Exception:  # Dask's: the thread must go on
                        log_exception(_FAILED, self._host.alias)
                    if not self._is_at_end():
                        self._why = "the connection was lost"
                        self._tell_outage()
                    await self._hang_up()
                else:
                    await self._wait_for([], pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            for follow in self._follows:
                follow.cancel()
            if self._own is not None:
                await self._own.close()
                self._own = None

    async def _wait_for(
        self, tasks: "Sequence[asyncio.Task[None]]", limit_s: float
    ) -> None:
        """Wait until one is done, at most so long, and not past the time to end."""
        until = time.monotonic() + limit_s
        while not (self._is_at_end() or any(task.done() for task in tasks)):
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            self._changed.clear()
            if self._ends_at is not None:
                left_s = min(left_s, max(0.0, self._ends_at - time.monotonic()))
            changed = asyncio.create_task(self._changed.wait())
            await asyncio.wait(
                [changed, *tasks],
                timeout=left_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            changed.cancel()

    def _is_at_end(self) -> bool:
        """Whether there is nothing more to do, or no time left for it."""
        is_idle = self._ends_at is not None and not self._calls
        return is_idle or self._is_out_of_time()

    def _is_out_of_time(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    async def _connect(self, dask: ModuleType) -> bool:
        try:
            if self._options.cluster.address is None and self._own is None:
                given = self._options.executor_options
                self._own = dask.OwnCluster(
                    n_workers=_number(given, "N_WORKERS", default_process_count()),
                    threads_per_worker=_number(given, "THREADS_PER_WORKER", 1),
                )
            connection = self._connection = dask.Connection(
                self._options.cluster,
                name=self._name,
                session=self._session,
                own=self._own,
                take=self._take,
                worker_left=self._worker_left,
                lost=self._connection_lost,
            )
            if self._own is None:
                await self._open(connection)
            else:
                await connection.open()  # which starts it, and may take long
        except Exception as err:  # whatever Dask or the network raise: it is not there
            self._why = str(err) or type(err).__name__
            if self._own is not None:
                self._why += f" {_GUARD}"
            if not self._is_at_end():
                self._tell_outage()
            await self._hang_up()
            if self._own is not None:  # the next time with another one
                await self._own.close()
                self._own = None
            return False
        self._is_lost = self._is_told = False
        self._unreachable_since = None
        return True

    async def _open(self, connection: "Connection") -> None:
        """Connect to who answers in time: anything may listen there."""
        opening = asyncio.create_task(connection.open())
        await self._wait_for([opening], _OPEN_S)
        if opening.cancel():
            await asyncio.wait([opening], timeout=_END_S)
            raise TimeoutError(_SILENT)
        await opening

    def _tell_outage(self) -> None:
        """Once, however often it is tried."""
        if not self._is_told:
            self._is_told = True
            log_warning(
                "TASKS[%r]: %s cannot be reached: %s",
                self._host.alias,
                self._scheduler,
                self._why,
            )

    @property
    def _scheduler(self) -> str:
        address = self._options.cluster.address
        if address is None:
            return "the Dask cluster of this process's own"
        return f"the Dask scheduler at {address}"

    def _connection_lost(self) -> None:
        self._is_lost = True
        self._changed.set()

    async def _hang_up(self) -> None:
        """The connection is over: what has begun is lost, and what has not waits."""
        connection = self._connection
        if self._unreachable_since is None:
            silent_since = None if connection is None else connection.unanswered_since
            self._unreachable_since = silent_since or time.monotonic()
        self._connection = None  # only now: who enqueues looks at both
        for call in list(self._by_key.values()):
            if call.token is None:
                self._take_back(call)
            else:
                self._lose(call, "The connection to the Dask scheduler was lost")
        if connection is not None:
            await connection.close()

    async def _serve(self) -> None:
        """Hand in what comes, for as long as the connection lasts."""
        connection = self._connection
        assert connection is not None  # as it was just made
        while connection.is_open and not self._is_lost:
            self._changed.clear()
            handed_in_s = time.monotonic() if self._hand_in(connection) else 0.0
            if self._is_at_end():
                await self._give_up()
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._patience_s())
            if self._inbox:
                # Dask's client sends nothing sooner, and a message for several calls
                # costs it, and the scheduler, much less than one for each.
                early_s = handed_in_s + _INTERVAL_S - time.monotonic()
                await asyncio.sleep(max(0.0, early_s))

    def _patience_s(self) -> float:
        if self._ends_at is None:
            return _LOOK_S
        return min(_LOOK_S, max(0.0, self._ends_at - time.monotonic()))

    async def _give_up(self) -> None:
        """End what still runs, as far as it can be."""
        for call in list(self._by_token.values()):
            self.interrupt(call.id, attempt=call.attempt, reason=Interruption.SHUTDOWN)
        until = time.monotonic() + _END_S
        while any(call.reason for call in self._by_token.values()):
            self._changed.clear()
            with suppress(TimeoutError):
                left_s = max(0.0, until - time.monotonic())
                await asyncio.wait_for(self._changed.wait(), left_s)
            if time.monotonic() >= until:
                break
        for call in list(self._calls.values()):
            self._end(call, lost_outcome(call.id, _shut_down(call)))

    # From the inbox to Dask.

    def _hand_in(self, connection: "Connection") -> bool:
        """Whether anything was there."""
        batches: dict[int, list[tuple[DaskCall, str, bytes]]] = {}
        taken = set[DaskCall]()  # after Ctrl-C one may be there twice
        while self._inbox:
            call = self._inbox.popleft()
            if call.is_withdrawn:
                self._withdraw(call)
            if call.is_over or call.future is not None or call in taken:
                continue
            taken.add(call)
            key = call.next_key(f"{self._session[:8]}.{next(self._numbers)}")
            try:
                payload = self._payload(call, key)
            except Exception as err:  # a value's own code
                error = error_record(err)
                self._end(call, Outcome(call.id, time.time(), None, error))
                continue
            priority = call.call.record.task.priority
            batches.setdefault(priority, []).append((call, key, payload))
        for priority, batch in batches.items():
            self._submit(connection, priority, batch)
        return bool(batches)

    def _submit(
        self,
        connection: "Connection",
        priority: int,
        batch: Sequence[tuple[DaskCall, str, bytes]],
    ) -> None:
        payloads = [(key, payload) for _, key, payload in batch]
        try:
            futures = connection.submit(payloads, priority=priority)
        except Exception as err:  # Dask's
            if not connection.is_open:
                self._why = str(err) or type(err).__name__
                self._inbox.extend(call for call, _, _ in batch)
                self._connection_lost()
            elif len(batch) == 1:
                call, _, _ = batch[0]
                self._end(call, Outcome(call.id, time.time(), None, error_record(err)))
            else:  # it may be one of them only
                for each in batch:
                    self._submit(connection, priority, [each])
            return
        for (call, key, _), future in zip(batch, futures, strict=True):
            call.key, call.future = key, future
            self._by_key[key] = call
            follow = asyncio.create_task(self._follow(call, future))
            self._follows.add(follow)
            follow.add_done_callback(self._follows.discard)

    def _payload(self, call: DaskCall, key: str) -> bytes:
        run = run_message(
            call.call,
            call.call.record,
            call.context,
            carries=self._options.context_vars,
        )
        return pack_payload(
            Payload(
                key=key,
                session=self._session,
                deployment=this_deployment(),
                settings_module=os.environ.get(ENVIRONMENT_VARIABLE),
                project=pickle.dumps(take_project()) if self._own else None,
                run=pack_run(run),
                is_coroutine=call.is_coroutine,
                timeout_s=call.call.timeout_s,
                raises_in_threads=self._options.raises_in_threads,
            )
        )

    async def _follow(self, call: DaskCall, future: "DaskFuture[bytes]") -> None:
        """See to a Dask task that ends without its outcome having come before."""
        error = await future.exception()
        if call.future is not future:  # it has come, or was handed in again
            return
        if future.status == "error":
            if call.token is None and call.times_handed_in < _HANDED_IN_TIMES:
                # Workers may have died of others that they were given with it.
                self._take_back(call)
                return
            text = "Dask could not run the task."
            if error is not None:  # as where the future says so
                text += f"\n{error_record(error).traceback}"
            self._fail_to_begin(call, _NOBODY, lost_outcome(call.id, text))
        elif future.status == "finished":
            answer: Answer = Unanswered()
            try:
                answer = unpack_result(await future.result())
            except Exception as err:
                log_warning(
                    "TASKS[%r]: what result %s returned could not be fetched: %s",
                    self._host.alias,
                    call.id,
                    err,
                )
            if call.future is future:
                self._see(call, answer)
        elif self._connection is not None and self._connection.is_open:
            # Somebody has cancelled it, or restarted the workers.
            if call.token is None:
                self._take_back(call)
            else:
                self._lose(call, "Dask was told to forget the task")
        else:
            self._connection_lost()

    def _see(self, call: DaskCall, answer: Answer) -> None:
        match answer:
            case Outcome():
                self._end(call, answer)
            case BootFailed():
                text = f"A Dask worker could not see the project.\n{answer.traceback}"
                self._fail_to_begin(call, answer.worker, lost_outcome(call.id, text))
            case Refused():
                difference = this_deployment().difference_from(answer.deployment)
                error = ImproperlyConfigured(
                    f"A Dask worker has refused the task: {difference}. Deploy the "
                    "same on both, and start the worker again."
                )
                self._fail_to_begin(
                    call, answer.worker, stopped_outcome(call.id, error)
                )
            case _ if call.token is None:  # Unanswered: nobody has been told to begin
                self._take_back(call)
            case _:
                self._lose(call, "Its outcome has not come, though Dask ran the task")

    def _fail_to_begin(self, call: DaskCall, worker: str, outcome: Outcome) -> None:
        """Nothing ran; the attempt counts, or this would be tried for ever."""
        if call.token is not None:
            self._end(call, outcome)
            return
        call.token = ""

        def fail() -> None:
            try:
                self._host.started(call.id, worker_id=worker, at=time.time())
            except BaseException:  # as in `_start`
                log_exception(_FAILED, self._host.alias)
            self._call_soon(self._end, call, outcome)

        self._errands.run(fail)

    def _take_back(self, call: DaskCall) -> None:
        """It has not begun, and is to be handed in again."""
        self._let_go(call)
        self._inbox.append(call)
        self._changed.set()

    def _withdraw(self, call: DaskCall) -> None:
        if call.token is None:
            self._end(call, stopped_outcome(call.id, TaskCancelled()))

    def _lose(self, call: DaskCall, reason: str) -> None:
        if not call.token:  # it could not begin, which is being told
            return
        if call.is_starting:  # it has an attempt only when its start was saved
            call.lost = reason
            return
        ran_s = time.time() - call.began_at
        task = call.call.record.task
        text = f"{reason} while {call.worker} ran {task.path} for {ran_s:.3f} s."
        self._end(call, lost_outcome(call.id, text))

    def _let_go(self, call: DaskCall) -> None:
        """Dask need not keep anything of it."""
        self._by_key.pop(call.key, None)
        future, call.future = call.future, None
        if future is not None:
            with suppress(Exception):  # its client is closed
                future.release()

    def _end(self, call: DaskCall, outcome: Outcome) -> None:
        with self._lock:  # past this it cannot be interrupted
            if call.is_over:
                return
            call.is_over = True
            self._calls.pop(call.id, None)
            self._waiting.discard(call.id)
        self._let_go(call)
        if call.token:
            self._by_token.pop(call.token, None)
        self._errands.finish(call, outcome)
        self._changed.set()

    # What the workers say.

    def _worker_left(self, address: str) -> None:
        for call in list(self._by_token.values()):
            if call.worker == address:
                self._lose(call, "The worker left the cluster")

    def _take(self, content: Sequence[Any]) -> None:
        session, token, worker, packed = content
        if session != self._session:
            return
        message = unpack_from_worker(packed)
        if isinstance(message, Ask):
            self._take_question(message, token, worker)
            return
        call = self._by_token.get(token)
        if call is None:
            self._send(worker, token, Decline())
        elif isinstance(message, Outcome):
            self._end(call, message)
        else:
            self._errands.serve(call, message, partial(self._tell_soon, call))

    def _take_question(self, ask: Ask, token: str, worker: str) -> None:
        """A worker asks whether it may begin: the first one may."""
        call = self._by_key.get(ask.key)
        if call is not None and call.token is None and self._is_out_of_time():
            self._send(worker, token, Decline())  # as nothing begins any more
        elif call is None or (call.token is not None and call.token != token):
            self._send(worker, token, Decline())
            if call is not None and call.token:
                # Dask runs it again, so that it has lost the first.
                self._lose(call, "Dask has given it to another worker")
        elif call.token is None:
            with self._lock:  # past this it can be interrupted
                call.token, call.worker, call.began_at = token, worker, ask.at
                self._waiting.discard(call.id)
            self._by_token[token] = call
            call.is_starting = True
            self._errands.run(partial(self._start, call, ask.at))
        elif call.beginning is not None:  # the answer was lost
            self._tell(call, call.beginning)

    def _start(self, call: DaskCall, at: Timestamp) -> None:
        record = None
        try:
            record = self._host.started(call.id, worker_id=call.worker, at=at)
        except BaseException:  # a host's that does not keep its promise
            log_exception(_FAILED, self._host.alias)
        self._call_soon(self._answer, call, record)

    def _answer(self, call: DaskCall, record: Record | None) -> None:
        call.is_starting = False
        if call.is_over:
            self._send(call.worker, call.token or "", Decline())
        elif record is None:
            self._tell(call, Decline())
            self._end(call, stopped_outcome(call.id, TaskCancelled()))
        else:
            if self._host.is_cancel_requested(call.id):
                record = record._replace(is_cancel_requested=True)
            call.beginning = Begin(record._replace(arguments=""))
            if call.lost:
                self._lose(call, call.lost)
            self._tell(call, call.beginning)

    def _tell(self, call: DaskCall, message: ToWorker) -> None:
        if call.token and not call.is_over:
            self._send(call.worker, call.token, message)

    def _tell_soon(self, call: DaskCall, message: ToWorker) -> None:
        self._call_soon(self._tell, call, message)

    def _send(self, worker: str, token: str, message: ToWorker) -> None:
        if self._connection is not None:
            self._connection.send(worker, token, pack(message))


def _shut_down(call: DaskCall) -> str:
    return _SHUT_DOWN if call.token is None else _SHUT_DOWN_MEANWHILE


def _number(given: Mapping[str, object], name: str, default: int) -> int:
    value = given.get(name, default)
    assert isinstance(value, int)  # as `find_wrong_options` has seen
    return value
