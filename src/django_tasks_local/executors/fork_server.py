"""A fork server of our own, which starts worker processes.

`multiprocessing` has one for the whole process, and using it, or a context of any
kind, fixes the start method that the project's own code may yet want to choose. This
one leaves all of that alone. A child is not a `multiprocessing.Process` either: it may
be started from a daemonic process, and nothing of `multiprocessing` joins, counts or
ends it.

The server knows nothing of the project. A child that needs it is forked by a template,
which is a child of the server that has set the project up.
"""

import os
import pickle
import select
import signal
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from itertools import count
from multiprocessing import forkserver, process, reduction, resource_tracker, util
from tempfile import mkstemp
from typing import Protocol

from ..logs import log_warning
from .messages import BootFailed, unpack_from_child
from .pipe import MessagePipe
from .project import Foundation, Project
from .template import TemplateMain

__all__ = ["Child", "ChildMain", "give_up_set_up", "release_server", "start_child"]

# What each child would else import for itself: most of the time of its start. None of
# it needs settings, opens a connection or starts a thread.
_PRELOAD = (
    "django_tasks_local.executors.template",
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
        self._outbox: deque[bytes] = deque()
        self._sender: threading.Thread | None = None
        self._watcher: threading.Thread | None = None
        self.pid: int = 0
        self.at_close: Callable[[], None] | None = None

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

    def send_soon(self, data: bytes, /) -> None:
        """As `send`, a short message, but never blocks.

        What the process does not take now another thread sends once it does. That
        messages come in order is promised only where none had to wait so.
        """
        if self._send_lock.acquire(blocking=False):  # another may be on its way
            try:
                if self._pipe.send_at_once(data):
                    return
            finally:
                self._send_lock.release()
        with self._lock:  # decides whether there is a thread that sends it
            self._outbox.append(data)
            if self._sender is not None or self._is_closed:
                return
            sender = threading.Thread(
                target=self._empty_outbox,
                name=f"django-tasks-{self.pid}-send",
                daemon=True,
            )
            with suppress(RuntimeError):  # no thread can be started
                sender.start()
                self._sender = sender
                return
        self._empty_outbox()  # better so than never

    def _empty_outbox(self) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    self._sender = None
                    return
                data = self._outbox.popleft()
            with suppress(OSError):  # the process has ended
                self.send(data)

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
        sender = self._sender
        if sender is not None:
            with suppress(OSError):
                self._pipe.hang_up()
            sender.join()
        self._close_files()
        at_close, self.at_close = self.at_close, None
        if at_close is not None:
            at_close()

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
# That of the project as it was seen last; and those too that still have children, which
# serve again where the project is seen so again.
_current: "_Template | None" = None
_templates: "set[_Template]" = set()
_numbers = count()
_is_cold = False
_STOP_S = 1.0


def start_child(
    main: ChildMain, /, *, user: object, project: Project | None = None
) -> Child:
    """Start a worker process. The server lives until `release_server(user)`.

    With a `project`, it is a fork of a process that sees that, if there can be one.
    Raises OSError or EOFError when none can be started.
    """
    data = pickle.dumps({"sys_path": list(sys.path)}) + pickle.dumps(main)
    with _lock:
        _users.add(user)
    template = None if project is None else _claim_template(project, user)
    if template is not None:
        with suppress(OSError, EOFError):  # it has just died: the next is another's
            return _fork(template, data)
    with _lock:
        return _start_by_server(data)


def _find_temp_dir() -> str:
    """Multiprocessing's directory for sockets, which only this user can enter."""
    path = util.get_temp_dir()
    if not os.path.isdir(path):  # something has cleaned up there
        config: dict[str, object] = vars(process.current_process())["_config"]
        config["tempdir"] = None
        path = util.get_temp_dir()  # which makes another now
    return path


def _start_by_server(data: bytes, *fds: int) -> Child:
    # With the lock held.
    _find_temp_dir()  # the server's socket is made there
    try:
        return _start(_connect, data, *fds)
    except (EOFError, ConnectionError, FileNotFoundError, ChildProcessError):
        # The server was killed, at any moment until now, and is perhaps not missed
        # yet: its socket is closed before `waitpid` tells of its end.
        _stop(_server)
        return _start(_connect, data, *fds)


def _start(
    connect: Callable[[list[int]], tuple[int, int]], data: bytes, *fds: int
) -> Child:
    # With the lock held.
    ours, theirs = MessagePipe.pair()
    report = _open_report()
    try:
        with _sigint_blocked():
            status_fd, data_fd = connect([theirs.fileno(), report.fileno(), *fds])
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
    return _server.connect_to_new_process(fds)


class _Template:
    """A process of the server's that has set the project up, and forks children.

    It ends with its last user; earlier, when another has taken its place and its last
    child has ended, which it alone can tell the exit code of.
    """

    def __init__(self, foundation: Foundation, address: str) -> None:
        self.foundation = foundation
        self.address = address
        self.process: Child | None = None
        self.alive: FileIO | None = None
        """It ends when this is closed."""
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.claims = 0
        """The children that it has or is about to have."""
        self.is_decided = threading.Event()
        self.is_ready = False
        self.is_given_up = False
        self._problem = ""

    def begin(self, project: Project) -> None:
        """Start it, with the lock held. That it cannot be is told afterwards."""
        try:
            self._begin(project)
        except Exception as err:  # the others that wait for it must not wait for ever
            self._problem = f"no process could be started ({err!r})"

    def _begin(self, project: Project) -> None:
        data = pickle.dumps({"sys_path": list(sys.path)})
        data += pickle.dumps(TemplateMain(project))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            alive_fd, our_fd = os.pipe()
            self.alive = FileIO(our_fd, "wb")
            try:
                self.process = _start_by_server(data, listener.fileno(), alive_fd)
            finally:
                os.close(alive_fd)

    def await_set_up(self) -> str | None:
        """Block until it has set the project up; what went wrong, if anything did."""
        if self.process is None:
            return self._problem
        try:
            message = unpack_from_child(self.process.receive())
        except (EOFError, OSError):
            code = self.process.exit_code(timeout_s=_STOP_S)
            return f"it ended with exit code {code}"
        except Exception as err:  # the others that wait must not wait for ever
            return f"it said what cannot be read ({err!r})"
        return message.traceback if isinstance(message, BootFailed) else None

    def serves(self, project: Project) -> bool:
        """Whether its forks see that, or will when it has set the project up."""
        has_failed = self.is_decided.is_set() and not self.is_ready
        return (
            self.foundation == project.foundation
            and not has_failed
            and not self.is_given_up
            and self.process is not None
            and self.process.is_alive()
        )

    def close_files(self) -> None:
        """Let it end by itself. May be called twice."""
        if self.alive is not None:
            self.alive.close()

    def end(self) -> None:
        """End it, once it has no children, without the lock."""
        self.close_files()
        if self.process is not None:
            self.process.exit_code(timeout_s=_STOP_S)
            self.process.close()
        with suppress(FileNotFoundError):
            os.unlink(self.address)


def _claim_template(project: Project, user: object) -> _Template | None:
    """A template that sees the project, for one child; None if there can be none."""
    with _lock:  # decides who makes it
        if _is_cold:
            return None
        template = _find_template(project)
        is_new = template is None
        if template is None:
            template = _begin_template(project)
        template.users.add(user)
        template.claims += 1
        unused = _take_unused()  # whose place it has taken
    if is_new:
        _await_set_up(template)
    else:
        template.is_decided.wait()
    for each in unused:
        each.end()
    if template.is_ready:
        return template
    _unclaim(template)
    return None


def _find_template(project: Project) -> _Template | None:
    # With the lock held.
    global _current
    for template in _templates:
        if template.serves(project):
            _current = template
            return template
    return None


def _begin_template(project: Project) -> _Template:
    # With the lock held.
    global _current
    name = f"template-{os.getpid()}-{next(_numbers)}"
    template = _Template(project.foundation, os.path.join(_find_temp_dir(), name))
    _templates.add(template)
    _current = template
    template.begin(project)
    return template


def _await_set_up(template: _Template) -> None:
    """Called by who has made it; the others wait until that is decided."""
    global _current, _is_cold
    reason = template.await_set_up()
    with _lock:
        is_first = not _is_cold
        if reason is not None:
            _is_cold = _is_cold or not template.is_given_up
            if _current is template:
                _current = None
    template.is_ready = reason is None
    template.is_decided.set()
    if reason is not None and is_first and not template.is_given_up:
        log_warning(
            "Each worker process sets the project up for itself, because that cannot "
            "be done once for all of them: %s",
            reason.strip(),
        )


def give_up_set_up(user: object, /) -> None:
    """End a template that still sets the project up, if no other user waits for it."""
    with _lock:
        for template in _templates:
            template.users.discard(user)
            if template.users or template.is_decided.is_set():
                continue
            template.is_given_up = True
            if template.process is not None:
                template.process.kill()


def _unclaim(template: _Template) -> None:
    with _lock:
        template.claims -= 1
        unused = _take_unused()
    for each in unused:
        each.end()


def _take_unused() -> list[_Template]:
    # With the lock held.
    global _current
    if _current is not None and not _current.users:
        _current = None
    unused = [each for each in _templates if each is not _current and not each.claims]
    for each in unused:
        _templates.discard(each)
        each.close_files()
    return unused


def _fork(template: _Template, data: bytes) -> Child:
    """A child of a template that was claimed. Raises OSError or EOFError."""
    try:
        with _lock:
            child = _start(partial(_connect_to, template.address), data)
    except BaseException:
        _unclaim(template)
        raise
    child.at_close = partial(_unclaim, template)
    return child


def _connect_to(address: str, fds: list[int]) -> tuple[int, int]:
    # As `ForkServer.connect_to_new_process`, of a server that is not its own child.
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        status_fd, their_status_fd = os.pipe()
        their_data_fd, data_fd = os.pipe()
        tracker_fd = resource_tracker.getfd()
        assert tracker_fd is not None  # that function has started it
        # The third is for what a server lives as long as. This one does not live as
        # long as its children, so it is given what a child has anyway.
        sent = [their_data_fd, their_status_fd, their_data_fd, tracker_fd, *fds]
        try:
            reduction.sendfds(client, sent)
        except BaseException:
            os.close(status_fd)
            os.close(data_fd)
            raise
        finally:
            os.close(their_status_fd)
            os.close(their_data_fd)
    return status_fd, data_fd


def release_server(user: object, /) -> None:
    """End the server when nobody else uses it. The user's children are gone."""
    with _lock:
        _users.discard(user)
        for template in _templates:
            template.users.discard(user)
        unused = _take_unused()
    for template in unused:
        template.end()
    with _lock:
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
    with suppress(ChildProcessError):  # somebody else has waited for it
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
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
    global _server, _lock, _users, _held, _current, _templates
    alive_fd = vars(_server)["_forkserver_alive_fd"]
    if alive_fd is not None:
        os.close(alive_fd)
    for held in list(_held):
        held.close_in_fork()
    for template in _templates:
        template.close_files()
    _current, _templates = None, set()
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
