"""A fork server of our own, which starts worker processes.

`multiprocessing` has one for the whole process, and using it, or a context of any
kind, fixes the start method that the project's own code may yet want to choose. This
one leaves all of that alone. A child is not a `multiprocessing.Process` either: it may
be started from a daemonic process, and nothing of `multiprocessing` joins, counts or
ends it.
"""

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
from tempfile import mkstemp
from typing import Protocol

from .pipe import MessagePipe

__all__ = ["Child", "ChildMain", "release_server", "start_child"]

# What each child would else import for itself: most of the time of its start. None of
# it needs settings, opens a connection or starts a thread.
_PRELOAD = (
    "django_tasks_local.executors.child",
    "django.urls",
    "django.utils.log",
    "django.views.debug",
    "django.db.backends.base.base",
)


_LONGEST_REPORT = 20_000


class _Preload(list[str]):
    """The names of modules to preload, which does not look as if it held any.

    For a list that does, `ForkServer` also prepares the import of the main module, and
    by asking for the start method fixes it. This one is only written into the server's
    command line, which is all that is wanted.
    """

    def __bool__(self) -> bool:
        return False


class ChildMain(Protocol):
    """What a child runs: picklable, of an importable module."""

    def _bootstrap(self, parent_sentinel: int) -> int:
        """Run; return the exit code. `multiprocessing.spawn` calls it by this name.

        The child's end of the pipe is the first of the file descriptors that
        `multiprocessing.forkserver.get_inherited_fds` gives; the second is a file for
        what `faulthandler` has to say, which `Child.crash_report` reads.
        """
        ...


class Child:
    """A worker process, and this process's end of the pipe to it.

    A thread waits for the process's end and then hangs the pipe up, so that who reads
    from it knows at once, even where a grandchild holds the other end. Files are held
    as objects, not as numbers: a number may be another file's by the time that it is
    used.
    """

    def __init__(self, pipe: MessagePipe, status: FileIO, report: FileIO) -> None:
        self._pipe = pipe
        self._status = status
        self._report = report
        self._pidfd: FileIO | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._exit_code: int | None = None
        self._has_ended = threading.Event()
        self._send_lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self.pid: int = 0

    def watch(self) -> None:
        """Learn from the server which process it is, and wait for its end.

        Raises EOFError or OSError when that cannot be done.
        """
        self.pid = _read_number(self._status)
        if sys.platform == "linux":
            with suppress(ProcessLookupError):  # it is gone: the server tells
                self._pidfd = FileIO(os.pidfd_open(self.pid))
        watcher = threading.Thread(
            target=self._wait_for_end, name=f"django-tasks-{self.pid}", daemon=True
        )
        # Early releases of Python 3.12 start no thread while they are ending. The
        # pipe's own end has to do then.
        with suppress(RuntimeError):
            watcher.start()
            self._watcher = watcher

    def _wait_for_end(self) -> None:
        try:
            self._exit_code = _read_number(self._status)
        except EOFError:
            # The server has ended, which alone knew the exit code.
            if self._pidfd is not None:
                _is_readable(self._pidfd.fileno(), timeout_s=None)
        self._has_ended.set()
        with suppress(OSError):
            self._pipe.hang_up()

    def send(self, data: bytes, /) -> None:
        """Any thread. Raises OSError when the process has ended."""
        with self._send_lock:  # messages must not mix
            self._pipe.send(data)

    def receive(self) -> bytes:
        """One thread. Raises EOFError or OSError when the process has ended."""
        return self._pipe.receive()

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        if self._has_ended.is_set():
            return False
        pidfd = self._pidfd
        return pidfd is None or not _is_readable(pidfd.fileno(), timeout_s=0.0)

    def exit_code(self, *, timeout_s: float) -> int | None:
        """The exit code, negative for a signal; None if it cannot be known in time."""
        if self._watcher is not None:
            self._has_ended.wait(timeout_s)
        elif _is_readable(self._status.fileno(), timeout_s=timeout_s):
            self._wait_for_end()
        return self._exit_code

    def crash_report(self) -> str:
        """What the process wrote of its own end. The thread that receives."""
        self._report.seek(0)
        text = self._report.read(_LONGEST_REPORT) or b""
        return text.decode(errors="replace").strip()

    def kill(self) -> None:
        """End the process now, if it has not ended. Any thread."""
        with self._lock:  # the process may be closed by its own thread meanwhile
            if self._is_closed or self._has_ended.is_set():
                return
            with suppress(ProcessLookupError):
                if self._pidfd is not None:
                    signal.pidfd_send_signal(self._pidfd.fileno(), signal.SIGKILL)
                elif self.pid:
                    os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process, if it has not ended, and let go of its files."""
        self.kill()
        if self._watcher is not None:
            self._watcher.join()
        self._close_files()

    def close_in_fork(self) -> None:
        """Let go of the files in a fork of this process: the child is not its own."""
        self._lock = threading.Lock()  # the old one's holder may not be here
        self._close_files()

    def _close_files(self) -> None:
        with self._lock:
            self._is_closed = True
            self._pipe.close()
            self._status.close()
            self._report.close()
            if self._pidfd is not None:
                self._pidfd.close()


def _open_report() -> FileIO:
    if hasattr(os, "memfd_create"):  # no directory need be writable then
        return FileIO(os.memfd_create("django-tasks-crash"), "r+")
    fd, path = mkstemp()
    os.unlink(path)
    return FileIO(fd, "r+")


def _read_number(file: FileIO) -> int:
    data = b""
    while len(data) < forkserver.SIGNED_STRUCT.size:
        more = file.read(forkserver.SIGNED_STRUCT.size - len(data))
        if not more:
            raise EOFError("The fork server has ended.")
        data += more
    number: int = forkserver.SIGNED_STRUCT.unpack(data)[0]
    return number


def _is_readable(fd: int, *, timeout_s: float | None) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


# One server a process, for all aliases, while any of them has worker processes.

_server = forkserver.ForkServer()
# Held while a server or child comes to be, and while the process forks, so that no
# fork keeps a file that nobody knows of.
_lock = threading.Lock()
_users: "weakref.WeakSet[object]" = weakref.WeakSet()
_held: "weakref.WeakSet[Child]" = weakref.WeakSet()


def start_child(main: ChildMain, /, *, user: object) -> Child:
    """Start a worker process. The server lives until `release_server(user)`.

    Raises OSError or EOFError when none can be started.
    """
    data = pickle.dumps({"sys_path": list(sys.path)}) + pickle.dumps(main)
    with _lock:
        _users.add(user)
        ours, theirs = MessagePipe.pair()
        report = _open_report()
        try:
            with _sigint_blocked():
                status_fd, data_fd = _connect([theirs.fileno(), report.fileno()])
        except BaseException:
            ours.close()
            report.close()
            raise
        finally:
            theirs.close()
        child = Child(ours, FileIO(status_fd), report)
        _held.add(child)
        try:
            with open(data_fd, "wb") as file:
                file.write(data)
            child.watch()
        except BaseException:
            child.close()
            raise
    return child


def _connect(fds: list[int]) -> tuple[int, int]:
    # The database drivers that this process has found to be there.
    drivers = [
        name
        for name in list(sys.modules)
        if name.startswith("django.db.backends.") and name.endswith(".base")
    ]
    _server.set_forkserver_preload(_Preload([*_PRELOAD, *drivers]))
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


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(
        before=lambda: _lock.acquire(),  # noqa: PLW0108  # whichever lock it is by then
        after_in_parent=lambda: _lock.release(),  # noqa: PLW0108
        after_in_child=_after_fork_in_child,
    )
