"""A process that sets the project up once, and forks worker processes from then on."""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import forkserver
from stat import S_ISFIFO, S_ISSOCK

from django.db import connections

from ..context import set_parent_link
from ..worker import error_record
from .child import BootingLink, begin_child
from .messages import BootFailed, Ready, pack
from .pipe import MessagePipe
from .project import Project, see_project

__all__ = ["TemplateMain"]

_LINGER_S = 0.5
_END_S = 1


class TemplateMain:
    """What a template runs, which is a child of the fork server.

    It sees the project as any worker process does, and then serves as a fork server
    itself. Its forks share what it has, so it refuses when that cannot be shared.
    """

    def __init__(self, project: Project) -> None:
        self._project = project

    def _bootstrap(self, parent_sentinel: int) -> int:
        pipe_fd, report_fd, listener_fd, alive_fd = begin_child(parent_sentinel)
        os.close(report_fd)  # each fork has its own
        pipe = MessagePipe(socket.socket(fileno=pipe_fd))
        _end_by_signal_at_hang_up(pipe_fd)
        set_parent_link(BootingLink())
        before = _connected_files()
        reason: str | None
        try:
            see_project(self._project)
            connections.close_all()
            gc.collect()  # connections of threads that have ended
            reason = _what_cannot_be_shared(before)
        except BaseException as err:
            reason = error_record(err).traceback
        # What is still to be written would be written by each fork.
        for file in (sys.stdout, sys.stderr):
            with suppress(Exception):  # it may be closed, or not there at all
                file.flush()
        pipe.send(pack(Ready() if reason is None else BootFailed(reason)))
        pipe.close()
        if reason is not None:
            return 1
        gc.freeze()  # or the first collection of each fork would copy it all
        try:
            forkserver.main(listener_fd, alive_fd, [])
        except SystemExit:  # the parent has ended, or wants no more of it
            # What the project does at its exit must not keep this process.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_END_S)
            return 0
        return 1


def _end_by_signal_at_hang_up(pipe_fd: int) -> None:
    """Have the system end this process when its parent ends.

    A thread, which is what worker processes have for that, must not be here. As long
    as the pipe is open only its hang-up sends the signal: the parent writes nothing.
    """
    fcntl.fcntl(pipe_fd, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(pipe_fd, fcntl.F_GETFL)
    fcntl.fcntl(pipe_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    # No signal tells of a hang-up before that: the parent may have been killed while
    # the server was still starting, with this process's fork already asked for.
    poller = select.poll()
    poller.register(pipe_fd, 0)
    if poller.poll(0):
        os._exit(1)


def _what_cannot_be_shared(connected_before: set[tuple[int, int]]) -> str | None:
    """Why this process must not be forked, if so."""
    if _thread_count() > 1:
        names = [
            thread.name
            for thread in threading.enumerate()
            if thread is not threading.main_thread()
        ]
        return f"it leaves threads running ({', '.join(names) or 'not of Python'})"
    if _connected_files() - connected_before:
        return "it leaves a socket or a pipe open"
    return None


def _thread_count() -> int:
    if sys.platform != "linux":
        return threading.active_count()
    # A thread that was joined may take a moment more until the system has ended it.
    until = time.monotonic() + _LINGER_S
    while True:
        count = len(os.listdir("/proc/self/task"))
        if threading.active_count() > 1 or count == 1 or time.monotonic() > until:
            return count
        time.sleep(0.001)


def _connected_files() -> set[tuple[int, int]]:
    """The pipes and sockets that are open, but for those that send single datagrams.

    Those go to the system's log, and may well be shared.
    """
    found: set[tuple[int, int]] = set()
    for name in os.listdir("/dev/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:  # the listing's own
            continue
        if S_ISFIFO(status.st_mode) or (
            S_ISSOCK(status.st_mode) and not _is_of_datagrams(int(name))
        ):
            found.add((status.st_dev, status.st_ino))
    return found


def _is_of_datagrams(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        return duplicate.type == socket.SOCK_DGRAM
