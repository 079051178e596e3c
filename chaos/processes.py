"""The processes of a run, found by what ``/proc`` tells of them."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "MARK",
    "children_of",
    "find_servers",
    "find_workers",
    "is_running",
    "marked",
]

MARK = "CHAOS_RUN"
"""In the environment of all processes of a run, whoever their parent is by now."""


def mark() -> None:
    """Have all processes that this one starts be found by `marked`."""
    os.environ[MARK] = secrets.token_hex(8)


def marked() -> set[int]:
    """The living processes of this run.

    But for multiprocessing's trackers of resources, which live as long as the process
    that they serve.
    """
    wanted = f"{MARK}={os.environ[MARK]}".encode()
    return {
        pid
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
        if wanted in _read(pid, "environ").split(b"\0")
        and is_running(pid)
        and b"resource_tracker" not in _read(pid, "cmdline")
    }


def find_servers(pid: int) -> set[int]:
    """The fork servers of a process and of those that descend from it."""
    return set(_find_servers(pid))


def _find_servers(pid: int) -> Iterator[int]:
    for child in children_of(pid):
        if b"multiprocessing.forkserver" in _read(child, "cmdline"):
            yield child
        else:
            yield from _find_servers(child)


def find_workers(server: int) -> list[int]:
    """The living worker processes, which the server's templates have forked."""
    return [
        pid
        for template in children_of(server)
        for pid in children_of(template)
        if is_running(pid)
    ]


def children_of(pid: int) -> list[int]:
    """The children of all threads of a process."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []
    return [
        child
        for thread in threads
        for child in map(int, _read(pid, f"task/{thread}/children").split())
    ]


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has buried yet has."""
    state = _read(pid, "stat").rpartition(b")")[2].split()[:1]
    return state not in ([], [b"Z"], [b"X"])


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""
