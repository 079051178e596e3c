"""What a process has of threads, children, files and waiters, to be counted."""

import gc
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django_tasks_local import LocalTaskResult
from django_tasks_local.async_bridge import Completion


def our_threads() -> list[threading.Thread]:
    """The threads that the library has started and that have not ended."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("django-tasks")
    ]


def join_new_threads(before: set[threading.Thread]) -> None:
    """Block until those of the library's threads have ended that were not there."""
    for _ in range(3):  # one that ends may have started another in its place
        for thread in set(our_threads()) - before:
            # It may just be being started, and cannot be joined before it is.
            started: threading.Event = thread._started  # type: ignore[attr-defined]
            started.wait(10)
            thread.join(10)


def descendants(pid: int | None = None) -> set[int]:
    """The living processes that descend from this one.

    But for multiprocessing's tracker of resources, which lives as long as its process.
    """
    return set(_descendants(os.getpid() if pid is None else pid))


def _descendants(pid: int) -> Iterator[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return
    for thread in threads:
        try:
            children = (thread / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in map(int, children):
            yield from _descendants(child)
            if not is_gone(child) and b"resource_tracker" not in _command(child):
                yield child


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it not yet buried."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def wait_until_gone(pid: int, *, timeout_s: float = 10.0) -> bool:
    """Block until a process has ended; False after `timeout_s` seconds."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def open_files() -> set[tuple[int, str]]:
    """This process's file descriptors, and what they stand for."""
    found: set[tuple[int, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def kept_waiters(handle: LocalTaskResult[Any]) -> list[Callable[[], None]]:
    """What a task of this process still has to wake at its end."""
    completion = handle._waitable
    assert isinstance(completion, Completion)
    return list(completion._waiters or ())


def objects_and_memory_blocks() -> tuple[int, int]:
    """How many objects somebody still keeps, and how many pieces of memory."""
    gc.collect()
    return len(gc.get_objects()), sys.getallocatedblocks()
