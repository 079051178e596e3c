"""A web server that recycles its workers, and those who visit it."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .ledger import Answer

__all__ = ["Site", "running_site", "visiting"]

_VISITORS = 6
_LONGEST_PAUSE_MS = 40
_ANSWER_S = 50.0
_END_S = 60.0
_GUNICORN = [
    *(sys.executable, "-m", "gunicorn", "chaos.site:application", "--workers=4"),
    *("--threads=4", "--max-requests=40", "--max-requests-jitter=20"),
    *("--no-control-socket", "--bind=fd://{fd}"),
]


@dataclass(slots=True)
class Site:
    """A web server."""

    address: str
    pid: int
    log: list[str] = field(default_factory=list)
    """The lines that its processes have written to standard error."""

    @property
    def recycled(self) -> int:
        """How many of its workers have ended before it did."""
        return sum("Autorestarting worker" in line for line in self.log)

    @property
    def complaints(self) -> list[str]:
        """What its processes should not have had to say."""
        wrong = re.compile("warn|error|exception|traceback|fatal", re.IGNORECASE)
        return [line for line in self.log if wrong.search(line)]


@contextmanager
def running_site() -> Generator[Site]:
    """A web server, which is stopped afterwards."""
    # It listens already: requests wait until the server has come up.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        fd = listener.fileno()
        process = subprocess.Popen(
            [part.format(fd=fd) for part in _GUNICORN],
            env={**os.environ, "CHAOS_WORKERS": "2"},
            pass_fds=[fd],
            stderr=subprocess.PIPE,
            text=True,
        )
        site = Site("http://{}:{}".format(*listener.getsockname()), process.pid)
    assert process.stderr is not None
    reader = threading.Thread(target=site.log.extend, args=(process.stderr,))
    reader.start()
    try:
        yield site
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        finally:
            process.kill()
        reader.join()
        process.stderr.close()


@contextmanager
def visiting(
    site: Site, *, seed: int, take: Callable[[Answer], None]
) -> Generator[list[str]]:
    """Visitors, one request after another until the end; and what went wrong."""
    over = threading.Event()
    faults: list[str] = []

    def visit(name: str) -> None:
        chance = random.Random(f"{name} {seed}")
        number = 0
        while not over.is_set():
            number += 1
            kind = chance.choice(("sync", "async"))
            pause_ms = chance.randrange(_LONGEST_PAUSE_MS)
            token = f"{name}-{number}"
            url = f"{site.address}/{kind}/{token}/{pause_ms}"
            try:
                with urllib.request.urlopen(url, timeout=_ANSWER_S) as response:
                    answer = json.load(response)
            except OSError as err:
                faults.append(f"A request for {token!r} failed: {err!r}")
            else:
                take(
                    Answer(
                        token,
                        answer["id"],
                        answer["value"],
                        answer["errors"],
                        answer["worker_ids"],
                    )
                )

    threads = [
        threading.Thread(target=visit, args=(f"visitor-{number}",))
        for number in range(_VISITORS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield faults
    finally:
        over.set()
        for thread in threads:
            thread.join()
