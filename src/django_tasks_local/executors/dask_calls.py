"""The calls that are on a Dask cluster, and what their tasks ask of the host."""

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, assert_never

from ..logs import log_exception
from ..protocols import WorkerHost
from ..records import Call, Interruption, Outcome, Timestamp
from ..worker import is_async
from .dask_messages import Ask, Begin, FromWorker, ToWorker
from .messages import Lend, Reclaim, Reply, Request, Unwatch, Watch
from .requests import TaskRequests
from .sync_threads import SyncThreads, Work

if TYPE_CHECKING:
    from distributed import Future as DaskFuture

__all__ = ["DaskCall", "Errands"]

_FAILED = "TASKS[%r]: what a task on the Dask cluster wants has failed"


class DaskCall:
    """A call on its way."""

    __slots__ = (
        "attempt",
        "began_at",
        "beginning",
        "call",
        "context",
        "done",
        "future",
        "id",
        "is_asking",
        "is_coroutine",
        "is_over",
        "is_starting",
        "is_withdrawn",
        "key",
        "lost",
        "questions",
        "reason",
        "replies",
        "requests",
        "times_handed_in",
        "token",
        "worker",
    )

    def __init__(self, call: Call, done: Callable[[Outcome], None]) -> None:
        self.call: Call = call
        self.done: Callable[[Outcome], None] = done
        self.id: str = call.record.id
        self.attempt: int = len(call.record.worker_ids) + 1
        self.context: Context = call.context or copy_context()
        self.is_coroutine: bool = call.function is not None and is_async(call.function)
        self.key: str = ""
        self.times_handed_in: int = 0
        self.future: DaskFuture[bytes] | None = None
        self.token: str | None = None
        """Of the one run of it that may begin; None: none has asked yet."""
        self.worker: str = ""
        self.began_at: Timestamp = 0.0
        self.beginning: Begin | None = None
        self.reason: Interruption | None = None
        self.is_over: bool = False
        self.is_withdrawn: bool = False
        self.is_starting: bool = False
        """Its start is being saved."""
        self.lost: str = ""
        """Why its worker is lost that was seen meanwhile."""
        self.replies: dict[int, Reply] = {}
        """To its task, which may ask for them again."""
        self.requests: TaskRequests | None = None
        self.questions: deque[Callable[[], None]] = deque()
        self.is_asking: bool = False

    def next_key(self, suffix: str) -> str:
        """Dask's name for it, which it has once: the task's path and its result's id.

        With the suffix behind them wherever the task may have been handed in before, by
        this process or by one that has died since: Dask would take it for the same one
        until it has forgotten that.

        Dask puts tasks into groups by how their names begin (`dask.utils.key_split`).
        By the times that those of a group have taken it gives new ones to workers, and
        it forgets no group: so the id alone is no name.
        """
        self.times_handed_in += 1
        record = self.call.record
        name = f"{record.task.path}-{self.id}"
        is_as_enqueued = record.revision == 0 and record.due_at == record.run_after
        if is_as_enqueued and self.times_handed_in == 1:
            return name
        return f"{name}-{suffix}"


class Errands:
    """What the host is told and asked: on one of a few threads, where it may block.

    Any thread may call any method, none of which waits unless no thread can be started.
    """

    def __init__(self, host: WorkerHost, *, name: str, count: int) -> None:
        self._host = host
        self._threads = SyncThreads(name=name, count=count)
        self._lock = threading.Lock()

    def run(self, function: Callable[[], None], /) -> None:
        """Call it, here and now where that does not block."""
        if self._host.transitions_may_block:
            self.run_in_thread(function)
        else:
            function()

    def run_in_thread(self, function: Callable[[], None], /) -> None:
        """Call it, soon and not here."""

        def run() -> None:
            try:
                function()
            except BaseException:  # the thread has others to serve
                log_exception(_FAILED, self._host.alias)

        try:
            self._threads.submit(Work(run, run), is_errand=True)
        except RuntimeError:  # no thread can be started: better so than never
            run()

    def serve(
        self,
        call: DaskCall,
        message: FromWorker,
        tell: Callable[[ToWorker], None],
    ) -> None:
        """Do what a task asks for, after what it has asked before; `tell` it."""
        if call.requests is None:
            call.requests = TaskRequests(self._host)
            call.requests.begin(call.id)
        self._run_in_turn(call, partial(self._serve, call, message, tell))

    def finish(self, call: DaskCall, outcome: Outcome) -> None:
        """Tell the host how it has ended, after what its task has asked."""
        if call.requests is None:
            self.run(partial(call.done, outcome))
        else:
            self._run_in_turn(call, partial(self._finish, call, outcome))

    def shutdown(self, *, timeout_s: float) -> None:
        """End the threads, for which it waits so long."""
        self._threads.shutdown(timeout_s=timeout_s)

    def _run_in_turn(self, call: DaskCall, function: Callable[[], None]) -> None:
        """One after the other for each call, in a thread."""
        with self._lock:  # decides whether a thread is there already
            call.questions.append(function)
            if call.is_asking:
                return
            call.is_asking = True
        self.run_in_thread(partial(self._run_turns, call))

    def _run_turns(self, call: DaskCall) -> None:
        while True:
            with self._lock:  # decides whether another thread has to come
                if not call.questions:
                    call.is_asking = False
                    return
                function = call.questions.popleft()
            try:
                function()
            except BaseException:  # a store's, or a host's: the next one may do
                log_exception(_FAILED, self._host.alias)

    @staticmethod
    def _finish(call: DaskCall, outcome: Outcome) -> None:
        assert call.requests is not None  # or this would not be asked for
        try:
            call.requests.clear()
        finally:
            call.done(outcome)

    @staticmethod
    def _serve(
        call: DaskCall, message: FromWorker, tell: Callable[[ToWorker], None]
    ) -> None:
        requests = call.requests
        assert requests is not None  # or this would not be asked for
        match message:
            case Request():
                reply = call.replies.get(message.request_id)
                if reply is None:  # it asks again where the reply was lost
                    answer = requests.serve(message.request, call.context)
                    reply = Reply(message.request_id, answer)
                    call.replies[message.request_id] = reply
                tell(reply)
            case Watch():
                requests.watch(message, tell)
            case Unwatch():
                requests.unwatch(message.watch_id)
            case Lend():
                requests.lend(message.group)
            case Reclaim():
                requests.reclaim(message.group)
            case Ask() | Outcome():
                raise AssertionError("These are no questions.")
            case _:
                assert_never(message)
