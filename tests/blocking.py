"""Finds what the library does on an event loop's thread that blocks it."""

import traceback
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

from blockbuster import BlockBuster, BlockingError

# What may block there, and why.
ALLOWED = [
    # It lets other threads run until one of them has left a lock which it holds for
    # as long as it takes to move data. It never sleeps.
    ("time.sleep", "django_tasks_local/locks.py", "give_way"),
    # Where a log goes is for the project to say: to a file, or into a queue.
    ("io.TextIOWrapper.write", "logging/__init__.py", "emit"),
    ("io.BufferedWriter.write", "logging/__init__.py", "emit"),
    # A task in a worker process tells the parent in a few dozen bytes that it waits, or
    # does no longer. The pipe takes hundreds of these also while the parent does not
    # read, and going to a thread and back would take ten times as long.
    ("socket.socket.sendall", "executors/child.py", "watching"),
    ("socket.socket.sendall", "executors/child.py", "lend_slot"),
    ("socket.socket.sendall", "executors/child.py", "reclaim_slot"),
    # With MSG_DONTWAIT, which blockbuster does not look at.
    ("socket.socket.send", "executors/pipe.py", "send_at_once"),
    # The tests' own way to stand still, also where a task should not.
    ("socket.socket.connect", "tests/gates.py", "pass_gate"),
    ("socket.socket.sendall", "tests/gates.py", "pass_gate"),
    ("socket.socket.recv", "tests/gates.py", "pass_gate"),
]
# What may do anything: Dask's own client, on whose loop nothing else runs. When it
# connects it runs a program, and reads files.
ALLOWED_WHOLLY = [
    ("distributed/versions.py", "get_versions"),
    ("distributed/security.py", "get_connection_args"),
    ("distributed/security.py", "temporary"),
    ("distributed/deploy/spec.py", "_start"),
    ("distributed/deploy/spec.py", "_correct_state_internal"),
]
_FRAMES = 20


@contextmanager
def noting_blocking_calls() -> Generator[list[str]]:
    """Gives a list, which gets the stack of each blocking call on a running loop.

    Of those that have a function of the library among their callers. Each raises as
    well, but that may be caught where it is raised. Only asyncio's loops and their
    like (uvloop) are seen, not trio's.
    """
    noted: list[str] = []

    class NotedBlockingError(BlockingError):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            stack = traceback.format_stack(limit=_FRAMES)
            noted.append("".join([f"{self}\n", *stack]))

    with (
        mock.patch("blockbuster.blockbuster.BlockingError", NotedBlockingError),
        _finding_blocking_calls(),
    ):
        yield noted


@contextmanager
def _finding_blocking_calls() -> Generator[None]:
    blocking = _block_buster()
    if blocking.functions["time.sleep"].activated:  # by whoever is around this
        yield
        return
    blocking.activate()
    try:
        yield
    finally:
        blocking.deactivate()


@cache  # to make one takes longer than most tests
def _block_buster() -> BlockBuster:
    blocking = BlockBuster("django_tasks_local")
    for name, file, function in ALLOWED:
        blocking.functions[name].can_block_in(file, function)
    for file, function in ALLOWED_WHOLLY:
        for each in blocking.functions.values():
            each.can_block_in(file, function)
    return blocking
