"""Executors of other makers, as a project names them in its settings."""

import sys
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from multiprocessing import get_context
from typing import Any, override

import loky

from django_tasks_local.executors.plain import ExecutorAdapter
from django_tasks_local.options import LocalOptions


class Kept(Executor):
    """A pool that many may use one after the other: no use of it is its end."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    @override
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(fn, *args, **kwargs)

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


def pool_of_processes(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))


def pool_of_loky(workers: int) -> Executor:
    pool: Executor = loky.ProcessPoolExecutor(workers)
    return pool


def _pool_of_threads(options: LocalOptions) -> Executor:
    return ThreadPoolExecutor(sys.maxsize)  # no limit: tasks may wait for tasks


reused: list[Executor] = []
"""What `reusable` has got, in order."""


def _reusable_pool(options: LocalOptions) -> Executor:
    reused.append(loky.get_reusable_executor(max_workers=options.max_workers))
    return reused[-1]


def _fail_to_make(options: LocalOptions) -> Executor:
    raise OSError("no pool for you")


def _pool_of_forks(options: LocalOptions) -> Executor:
    return ProcessPoolExecutor(options.max_workers, mp_context=get_context("fork"))


processes = ExecutorAdapter(lambda options: pool_of_processes(options.max_workers))
loky_processes = ExecutorAdapter(lambda options: pool_of_loky(options.max_workers))
lent: list[Executor] = []
"""What `kept` uses, of the test's own."""
kept = ExecutorAdapter(lambda options: Kept(lent[0]))
reusable = ExecutorAdapter(_reusable_pool)
threads = ExecutorAdapter(_pool_of_threads)
broken = ExecutorAdapter(_fail_to_make)
forks = ExecutorAdapter(_pool_of_forks)
