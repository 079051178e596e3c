"""A fork server of our own, which starts worker processes.

`multiprocessing` has one for the whole process, and using it, or a context of any
kind, fixes the start method that the project's own code may yet want to choose. This
one leaves all of that alone. A child is not a `multiprocessing.Process` either: it may
be started from a daemonic process, and nothing of `multiprocessing` joins, counts or
ends it.
"""

import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import FileIO
from multiprocessing import forkserver
from multiprocessing.connection import Connection, Pipe
from typing import Any, Protocol, cast

__all__ = ["Alarm", "Child", "ChildMain", "release_server", "start_child"]

_PRELOAD = "django_tasks_local.executors.child"


class ChildMain(Protocol):
    """What a child runs: picklable, of an importable module."""

    def _bootstrap(self, parent_sentinel: int) -> int:
        """Run; return the exit code. `multiprocessing.spawn` calls it by this name.

        The child's end of the pipe is the first of the file descriptors that
        `multiprocessing.forkserver.get_inherited_fds` gives.
        """
        ...


class Child:
    """A worker process, and this process's end of the pipe to it.

    Files are held as objects, not as numbers: a number may be another file's by the
    time that it is used. Only `kill` may be called from any thread.
    """

    def __init__(self, connection: "Connection[Any, Any]", status: FileIO) -> None:
        self.connection = connection
        self._status = status
        self._pidfd: FileIO | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self.pid = 0

    def take_pid(self) -> None:
        """Learn from the server which process it is. Raises EOFError, OSError."""
        self.pid = _read_number(self._status)
        if sys.platform == "linux":
            with suppress(ProcessLookupError):  # dead and gone: its pipe says so
                self._pidfd = FileIO(os.pidfd_open(self.pid))

    @property
    def death_fd(self) -> int:
        """A file descriptor that becomes readable when the process is dead.

        Not the pipe's, which a grandchild may hold open.
        """
        return (self._pidfd or self._status).fileno()

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return not _is_readable(self.death_fd, timeout_s=0.0)

    def exit_code(self, *, timeout_s: float) -> int | None:
        """The exit code, negative for a signal; None if it cannot be known in time."""
        if not _is_readable(self._status.fileno(), timeout_s=timeout_s):
            return None
        try:
            return _read_number(self._status)
        except (EOFError, OSError):
            return None  # the server is gone, and the answer with it

    def kill(self) -> None:
        """End the process now, if it has not ended."""
        with self._lock:  # the process may be closed by its own thread meanwhile
            if self._is_closed:
                return
            with suppress(ProcessLookupError):
                if self._pidfd is not None:
                    signal.pidfd_send_signal(self._pidfd.fileno(), signal.SIGKILL)
                elif self.pid:
                    os.kill(self.pid, signal.SIGKILL)

    def close_in_fork(self) -> None:
        """The same in a fork of this process, where the process is not a child."""
        self._lock = threading.Lock()  # the old one's holder may not be here
        self.close()

    def close(self) -> None:
        """Let go of the pipe and of what tells about the process, which ends by it."""
        with self._lock:
            self._is_closed = True
            self.connection.close()
            self._status.close()
            if self._pidfd is not None:
                self._pidfd.close()


class Alarm:
    """Wakes a thread that polls, from other threads."""

    def __init__(self) -> None:
        read_end, write_end = os.pipe()
        self._read_end, self._write_end = FileIO(read_end), FileIO(write_end, "w")
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        _held.add(self)

    @property
    def fd(self) -> int:
        """Readable once the alarm was rung."""
        return self._read_end.fileno()

    def ring(self) -> None:
        """Any thread. One that is full rings already; a closed one is for nobody."""
        with suppress(ValueError):
            self._write_end.write(b"\0")

    def reset(self) -> None:
        """Be silent again."""
        self._read_end.read(65536)

    def close_in_fork(self) -> None:
        """As `close`, in a fork of this process."""
        self.close()

    def close(self) -> None:
        """Let go of its files. A second call does nothing."""
        self._read_end.close()
        self._write_end.close()


def _read_number(file: FileIO) -> int:
    data = b""
    while len(data) < forkserver.SIGNED_STRUCT.size:
        more = file.read(forkserver.SIGNED_STRUCT.size - len(data))
        if not more:
            raise EOFError("The fork server has ended.")
        data += more
    number: int = forkserver.SIGNED_STRUCT.unpack(data)[0]
    return number


def _is_readable(fd: int, *, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


# One server a process, for all aliases, while any of them has worker processes.

_server = forkserver.ForkServer()
# Held while a server or child comes to be, and while the process forks, so that no
# fork keeps a file that nobody knows of.
_lock = threading.Lock()
_users: "weakref.WeakSet[object]" = weakref.WeakSet()
_held: "weakref.WeakSet[Child | Alarm]" = weakref.WeakSet()


def start_child(main: ChildMain, /, *, user: object) -> Child:
    """Start a worker process. The server lives until `release_server(user)`.

    Raises OSError or EOFError when none can be started.
    """
    data = pickle.dumps({"sys_path": list(sys.path)}) + pickle.dumps(main)
    with _lock:
        _users.add(user)
        ours, theirs = Pipe(duplex=True)
        try:
            with _sigint_blocked(), _start_method_kept():
                status_fd, data_fd = _connect([theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = Child(ours, FileIO(status_fd))
        _held.add(child)
        try:
            with open(data_fd, "wb") as file:
                file.write(data)
            child.take_pid()
        except BaseException:
            child.close()
            raise
    return child


def _connect(fds: list[int]) -> tuple[int, int]:
    _server.set_forkserver_preload([_PRELOAD])
    try:
        return _server.connect_to_new_process(fds)
    except (ConnectionError, FileNotFoundError):
        # The server was killed and not yet missed: now it will be started again.
        return _server.connect_to_new_process(fds)


def release_server(user: object, /) -> None:
    """End the server when nobody else uses it. The user's children are gone."""
    with _lock:
        _users.discard(user)
        if not _users:
            _stop(_server)


def _stop(server: forkserver.ForkServer) -> None:
    # As its own `_stop`, which waits for as long as a grandchild holds its pipe.
    # Typeshed leaves out the attributes, which are the same since Python 3.4.
    state = vars(server)
    pid, address = state["_forkserver_pid"], state["_forkserver_address"]
    if pid is None:
        return
    os.close(state["_forkserver_alive_fd"])
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    if isinstance(address, str) and not address.startswith("\0"):
        with suppress(FileNotFoundError):
            os.unlink(address)
    state.update(
        _forkserver_pid=None, _forkserver_address=None, _forkserver_alive_fd=None
    )


@contextmanager
def _sigint_blocked() -> Generator[None]:
    # The server and its children are born with the mask of the thread that starts it,
    # so that Ctrl-C does not meet a child that is not yet ready to ignore it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _start_method_kept() -> Generator[None]:
    # Preparing the server's preload asks for the start method, which fixes it.
    # Typeshed does not know that it is None where none was chosen.
    before = cast("str | None", multiprocessing.get_start_method(allow_none=True))
    try:
        yield
    finally:
        if before is None:
            # Not documented, but what `force` is for: none is chosen any more.
            multiprocessing.set_start_method(None, force=True)


def _after_fork_in_child() -> None:
    """Hold none of the files of the parent's server and children.

    They are not this process's, and would outlive the parent.
    """
    global _server, _lock, _users, _held
    alive_fd = vars(_server)["_forkserver_alive_fd"]
    if alive_fd is not None:
        os.close(alive_fd)
    for held in list(_held):
        held.close_in_fork()
    _server = forkserver.ForkServer()
    _lock = threading.Lock()
    _users = weakref.WeakSet()
    _held = weakref.WeakSet()


os.register_at_fork(
    before=lambda: _lock.acquire(),  # noqa: PLW0108  # whichever lock it is by then
    after_in_parent=lambda: _lock.release(),  # noqa: PLW0108
    after_in_child=_after_fork_in_child,
)
