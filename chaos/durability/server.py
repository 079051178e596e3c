"""A web server, all of whose processes can be killed at once."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.leftovers import descendants

__all__ = ["Server", "listening", "running"]

_END_S = 90.0
_GUNICORN = [
    *(sys.executable, "-m", "gunicorn", "chaos.durability.site:application"),
    *("--worker-class=gthread", "--workers=2", "--threads=4", "--no-control-socket"),
    *("--log-level=warning", "--graceful-timeout=60", "--bind=fd://{fd}"),
]


class Server:
    """Gunicorn with two workers, in a process group of its own."""

    def __init__(self, listener: socket.socket, *, log: Path, preloads: bool) -> None:
        fd = listener.fileno()
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [
                    *(part.format(fd=fd) for part in _GUNICORN),
                    *(["--preload"] if preloads else []),
                ],
                pass_fds=[fd],
                stderr=file,
                start_new_session=True,
            )

    def kill(self) -> set[int]:
        """End it at once; which processes that were."""
        pids = {self._process.pid, *descendants(self._process.pid)}
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return pids

    def stop(self) -> None:
        """Have it end in good order, its tasks with it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_END_S)


@contextmanager
def listening() -> Generator[socket.socket]:
    """A socket that outlives the servers: requests wait there for the next one."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield listener


@contextmanager
def running(
    listener: socket.socket, *, log: Path, preloads: bool = False
) -> Generator[Server]:
    """A server, which is gone afterwards."""
    server = Server(listener, log=log, preloads=preloads)
    try:
        yield server
    except BaseException:
        server.kill()
        raise
