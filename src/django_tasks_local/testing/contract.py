"""What the suites have in common: an alias, its options, threads that begin at once."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..connections import close_connections
from ..executors.threads import ThreadExecutor
from ..options import LocalOptions
from ..protocols import ExecutorFactory, ResultStoreFactory
from ..stores.memory import MemoryStore

__all__ = ["ALIAS", "in_threads", "options_for"]

ALIAS = "contract"


def options_for(
    *,
    max_workers: int = 2,
    store: ResultStoreFactory = MemoryStore,
    executor: ExecutorFactory = ThreadExecutor,
) -> LocalOptions:
    """An alias's options, as the settings would give them."""
    return LocalOptions(
        max_workers=max_workers,
        max_results=None,
        max_pending=None,
        shutdown_timeout_s=10.0,
        store=store,
        store_options={},
        executor=executor,
        executor_options={},
    )


def in_threads[R](functions: Sequence[Callable[[], R]], *, timeout_s: float) -> list[R]:
    """What the functions return that begin at the same time, a thread each."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], R]) -> R:
        barrier.wait(timeout_s)
        try:
            return function()
        finally:  # Django knows nothing of these threads
            close_connections()

    with ThreadPoolExecutor(len(functions)) as threads:
        futures = [threads.submit(run, function) for function in functions]
        return [future.result(timeout_s) for future in futures]
