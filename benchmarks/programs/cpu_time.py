"""The CPU time that tasks take, in all the processes that have a part in it."""

import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from django.db import connection

from .cluster import Cluster

__all__ = ["counted"]

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

type Spent = dict[str, dict[int, float]]
"""Seconds, by what a process is for and its id."""


@contextmanager
def counted(
    count: int, dask: Cluster | None = None, *, has_database: bool = False
) -> Generator[dict[str, float]]:
    """Figures of the block, there when it has ended: of each of so many tasks."""
    figures: dict[str, float] = {}
    before = _spent(dask, has_database=has_database)
    began_at = time.perf_counter()
    yield figures
    figures["per_s"] = count / (time.perf_counter() - began_at)
    after = _spent(dask, has_database=has_database)
    us = {part: _between(before.get(part, {}), after[part]) * 1e6 for part in after}
    figures.update({f"{part}_us": each / count for part, each in us.items()})
    figures["all_us"] = sum(us.values()) / count


def _between(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    return sum(spent_s - before.get(pid, 0.0) for pid, spent_s in after.items())


def _spent(dask: Cluster | None, *, has_database: bool) -> Spent:
    processes = {"client": {os.getpid()}}
    if dask is not None:
        processes["scheduler"] = {dask.scheduler.pid}
    if has_database:
        processes["database"] = _of_postgresql()
    processes["workers"] = _descendants() - processes.get("scheduler", set())
    spent: Spent = {}
    for part, pids in processes.items():
        spent[part] = {}
        for pid in pids:
            with suppress(OSError):  # it has ended meanwhile
                spent[part][pid] = _cpu_s(pid)
    return spent


def _cpu_s(pid: int) -> float:
    """What a process has had, in all its threads."""
    if pid == os.getpid():
        return time.process_time()
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def _stat(pid: int) -> list[str]:
    """What the system knows of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def _descendants() -> set[int]:
    """Of this process."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parents[int(path.name)] = int(_stat(int(path.name))[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def _of_postgresql() -> set[int]:
    """The server's processes that serve this run, and those that write for all."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "OR backend_type IN ('walwriter', 'background writer', 'checkpointer')"
        )
        return {pid for (pid,) in cursor.fetchall()}
