"""A worker process: what it does from its start to its end."""

import faulthandler
import os
import pickle
import resource
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context
from itertools import count
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any, assert_never, override

import anyio.to_thread
from django.db import connections
from django.utils.module_loading import import_string

from .. import records
from ..async_bridge import RemoteCompletion
from ..backoff import Backoff
from ..context import set_parent_link
from ..records import (
    Answer,
    Enqueued,
    GetRequest,
    MetadataRequest,
    Record,
    Refusal,
)
from ..task_registry import find_backoff
from ..worker import (
    close_connections,
    close_old_connections,
    error_record,
    run_task,
)
from .messages import (
    BootFailed,
    FromChild,
    Lend,
    Ready,
    Reclaim,
    Reply,
    Request,
    Run,
    Stop,
    ToChild,
    Unwatch,
    Watch,
    Watched,
    WornOut,
    pack,
    unpack_to_child,
)
from .pipe import MessagePipe
from .project import Project, see_project

if TYPE_CHECKING:
    from ..results import LocalTaskResult

__all__ = ["BootingLink", "WorkerMain", "backoff_of", "begin_child"]

_REST_S = 0.05


class WorkerMain:
    """What a worker process runs."""

    def __init__(
        self,
        *,
        alias: str,
        parent_pid: int,
        project: Project,
        max_tasks: int | None,
        max_memory_mb: float | None,
    ) -> None:
        self._alias = alias
        self._parent_pid = parent_pid
        self._project = project
        self._max_tasks = max_tasks
        self._max_memory_mb = max_memory_mb

    def _bootstrap(self, parent_sentinel: int) -> int:
        pipe_fd, crash_fd = begin_child(parent_sentinel)
        faulthandler.enable(crash_fd)
        pipe = MessagePipe(socket.socket(fileno=pipe_fd))
        threading.Thread(
            target=_leave_with_parent,
            args=(pipe.fileno(), self._parent_pid),
            name="django-tasks-parent",
            daemon=True,
        ).start()
        link = PipeLink(pipe, alias=self._alias, is_worn_out=self._is_worn_out)
        set_parent_link(BootingLink())
        try:
            see_project(self._project)
        except BaseException as err:
            link.send(BootFailed(error_record(err).traceback))
            return 1
        faulthandler.enable(crash_fd)  # the project may have done so too, elsewhere
        set_parent_link(link)
        os.register_at_fork(after_in_child=link.leave_to_parent)
        with suppress(OSError):  # its parent has given it up: there will be no work
            link.send(Ready())
        link.work()
        sys.stdout.flush()
        sys.stderr.flush()
        return 0

    def _is_worn_out(self, task_count: int) -> bool:
        if self._max_tasks is not None and task_count >= self._max_tasks:
            return True
        return (
            self._max_memory_mb is not None and _peak_memory_mb() > self._max_memory_mb
        )


def begin_child(parent_sentinel: int) -> list[int]:
    """What any child of a fork server does first; the files that it was sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.close(parent_sentinel)
    _let_go_of_server()
    fds = forkserver.get_inherited_fds()
    assert fds is not None  # the server has sent them
    return fds


def _let_go_of_server() -> None:
    """Close the file whose holders keep the fork server alive.

    It is handed to each child. In a process that a task leaves behind it would keep
    the server after all who use it are gone.
    """
    # Private, as in `fork_server`.
    server: object = vars(forkserver)["_forkserver"]
    state: dict[str, Any] = vars(server)
    os.close(state["_forkserver_alive_fd"])
    state["_forkserver_alive_fd"] = None


def _peak_memory_mb() -> float:
    """The most MiB of memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _leave_with_parent(pipe_fd: int, parent_pid: int) -> None:
    """End this process, whatever it does, as soon as its parent has ended.

    The pipe hangs up by then, unless a fork of the parent holds its other end; the
    parent's own death is seen where the system can tell of it.
    """
    poller = select.poll()
    poller.register(pipe_fd, 0)  # hang-ups only: what is to be read is not for us
    if sys.platform == "linux":
        try:
            poller.register(os.pidfd_open(parent_pid), select.POLLIN)
        except ProcessLookupError:
            os._exit(1)
    poller.poll()
    os._exit(1)


class BootingLink:
    """Stands for the link while the project is being imported."""

    def request(self, request: records.Request, /) -> Record | Enqueued | bool:
        raise RuntimeError(
            "A task was enqueued or looked up while a worker process imports the main "
            "module. Put what a script does under \"if __name__ == '__main__':\"."
        )

    def waitable(self, record: Record, /) -> "_ParentsResult":
        raise RuntimeError("A worker process that is starting has nothing to wait for.")


class PipeLink:
    """The child's end of the pipe, and the `ParentLink` of its tasks.

    Whichever thread waits for a message reads, for all of them: usually the main
    thread does, with nobody else about, so that a call costs no change of threads.
    """

    def __init__(
        self, pipe: MessagePipe, *, alias: str, is_worn_out: Callable[[int], bool]
    ) -> None:
        self.alias = alias
        self._pipe = pipe
        self._is_worn_out = is_worn_out
        self._pid = os.getpid()
        self._send_lock = threading.Lock()
        self._arrival = threading.Condition()
        self._is_reading = False
        self._is_over = False
        self._calls: deque[Run] = deque()
        self._replies: dict[int, Answer] = {}
        self._ids = count()
        # Each with the revision after which there will be news.
        self._watched: dict[int, tuple[_ParentsResult, int | None]] = {}
        self._changed: deque[tuple[_ParentsResult, int | None]] = deque()
        self._is_pumping = False

    # Calls.

    def work(self) -> None:
        """Run what the parent sends, until it says Stop."""
        for task_count in count(1):
            if not self._calls:
                self._rest()
            self._read_until(lambda: bool(self._calls) or self._is_over)
            if self._is_over:
                return
            call = self._calls.popleft()
            outcome = run_task(
                call.record,
                host=self,
                context=copy_context(),
                carried=call.context,
                backoff=backoff_of(call),
            )
            if os.getpid() != self._pid:
                os._exit(0)  # a fork that the task made has come back from it
            if self._is_worn_out(task_count):
                self.send(WornOut())
            self.send(outcome)
            close_old_connections()
            del call, outcome

    def _rest(self) -> None:
        """Close the database's connections if no call comes soon."""
        if connections.all(initialized_only=True) and not self._read_until(
            lambda: bool(self._calls) or self._is_over, timeout_s=_REST_S
        ):
            close_connections()

    # What a task asks of its parent.

    def request(self, request: records.Request, /) -> Record | Enqueued | bool:
        request_id = next(self._ids)
        self.send(Request(request_id, request))
        self._read_until(lambda: request_id in self._replies or self._is_over)
        answer = self._replies.pop(request_id, None)
        if answer is None:
            raise EOFError("The parent of this worker process has hung up.")
        if isinstance(answer, Refusal):
            raise _as_exception(answer)
        return answer

    def waitable(self, record: Record, /) -> "_ParentsResult":
        return _ParentsResult(self, record)

    @contextmanager
    def watching(
        self,
        result: "_ParentsResult",
        /,
        *,
        revision: int | None,
        group: int | None = None,
    ) -> Generator[None]:
        """Have the result fetched when the parent's task is finished.

        With a `revision`: when its record has a later one.
        """
        watch_id = next(self._ids)
        record = result.record
        with self._arrival:
            self._watched[watch_id] = (result, revision)
            needs_pump = not self._is_pumping
            self._is_pumping = True
        if needs_pump:
            threading.Thread(
                target=self._pump, name="django-tasks-wait", daemon=True
            ).start()
        self.send(Watch(watch_id, record.alias, record.id, revision, group))
        try:
            yield
        finally:
            with self._arrival:
                was_waiting = self._watched.pop(watch_id, None) is not None
                self._arrival.notify_all()
            if was_waiting:
                self.send(Unwatch(watch_id))

    def _pump(self) -> None:
        """Read while somebody waits for a result, and fetch what has changed."""
        while True:
            self._read_until(
                lambda: bool(self._changed) or not self._watched or self._is_over
            )
            with self._arrival:
                if not self._changed:
                    self._is_pumping = False
                    return
                result, revision = self._changed.popleft()
            result.fetch(revision)

    # The pipe.

    def send(self, message: FromChild, /) -> None:
        """Any thread."""
        data = pack(message)
        with self._send_lock:  # messages must not mix
            self._pipe.send(data)

    def _read_until(
        self, is_there: Callable[[], bool], *, timeout_s: float | None = None
    ) -> bool:
        """Read messages, or let another thread do so, until what is awaited has come.

        False when `timeout_s` seconds passed without any message.
        """
        while True:
            with self._arrival:  # decides who reads
                while self._is_reading and not is_there():
                    self._arrival.wait()
                if is_there():
                    return True
                self._is_reading = True
            message = None
            is_in_time = False
            try:
                is_in_time = timeout_s is None or self._pipe.is_readable(
                    timeout_s=timeout_s
                )
                if is_in_time:
                    message = unpack_to_child(self._pipe.receive())
            except (EOFError, OSError):
                message = Stop()
            finally:
                with self._arrival:
                    self._is_reading = False
                    if message is not None:
                        self._take(message)
                    self._arrival.notify_all()
            if not is_in_time and message is None:
                return False

    def _take(self, message: ToChild) -> None:
        match message:
            case Run():
                self._calls.append(message)
            case Reply():
                self._replies[message.request_id] = message.answer
            case Watched():
                watched = self._watched.pop(message.watch_id, None)
                if watched is not None:
                    self._changed.append(watched)
            case Stop():
                self._is_over = True
            case _:
                assert_never(message)

    def leave_to_parent(self) -> None:
        """In a fork that a task made: the pipe is not its own."""
        faulthandler.disable()  # its report is not the worker's
        set_parent_link(None)
        self._pipe.close()

    # As the host of its tasks, for what `context` may ask of one. The parent lends
    # the slot when it is told of a wait for one result.

    def lend_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        if group is not None:
            self.send(Lend(group))

    def reclaim_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        if group is not None:
            self.send(Reclaim(group))

    @property
    def may_block(self) -> bool:
        return True

    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        self.request(MetadataRequest(result_id, metadata, attempt))

    def is_cancel_requested(self, result_id: str, /) -> bool:
        return False  # it would have been killed


def backoff_of(call: Run) -> Backoff | None:
    """What to ask when the call fails; found, and its errors raised, only then."""
    packed = call.backoff
    if packed is None:
        return None

    def ask(error: BaseException, task_result: "LocalTaskResult[Any]") -> float | None:
        backoff: Backoff = (
            pickle.loads(packed)
            if packed
            else find_backoff(call.record.task, call.record.alias)
        )
        return backoff(error, task_result)

    return ask


class _ParentsResult(RemoteCompletion):
    """A result of the parent's, to be waited for in its child."""

    __slots__ = ("_link",)

    def __init__(self, link: PipeLink, record: Record) -> None:
        super().__init__(record)
        self._link = link

    def fetch(self, revision: int | None) -> None:
        """There is news of it: get its record, and wake who waits."""
        try:
            if not self.latest().is_past(revision):
                raise RuntimeError(
                    f"Task {self.record.id} is {self.record.status.value}, and nothing "
                    "more can be learned of it: there is nothing to wait for."
                )
        except Exception as err:  # the parent refused: whoever waits must know
            self.fail(err)

    @override
    def latest(self) -> Record:
        record = self._link.request(GetRequest(self.record.alias, self.record.id))
        assert isinstance(record, Record)  # as the parent answers that
        if record.is_finished:
            self.finish(record)
        else:
            self.see(record)
        return record

    @override
    async def alatest(self) -> Record:
        # Not on the thread of the task's other sync code, which may take long.
        return await anyio.to_thread.run_sync(self.latest)

    @override
    def wait(
        self,
        timeout_s: float | None,
        /,
        *,
        at_end: Callable[[], None],
        revision: int | None = None,
    ) -> bool:
        with self._watching(revision):
            return super().wait(timeout_s, at_end=at_end, revision=revision)

    @override
    async def wait_async(
        self, *, at_end: Callable[[], None], revision: int | None = None
    ) -> None:
        with self._watching(revision):
            await super().wait_async(at_end=at_end, revision=revision)

    @override
    def subscribe(
        self, wake: Callable[[], None], /, *, group: int
    ) -> Callable[[], None] | None:
        remove = super().subscribe(wake, group=group)
        if remove is None:
            return None
        watch = self._watching(None, group=group)
        watch.__enter__()

        def end() -> None:
            remove()
            watch.__exit__(None, None, None)

        return end

    def _watching(
        self, revision: int | None, *, group: int | None = None
    ) -> AbstractContextManager[None]:
        if self._is_past(revision):
            return nullcontext()
        return self._link.watching(self, revision=revision, group=group)


def _as_exception(refusal: Refusal) -> Exception:
    try:
        error = import_string(refusal.exception_class_path)(refusal.message)
    except Exception:  # the class is not there, or wants other arguments
        error = None
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"{refusal.exception_class_path}: {refusal.message}")
