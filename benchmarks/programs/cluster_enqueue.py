"""What it costs to enqueue for a Dask cluster whose scheduler runs, or stands still.

It is stopped by SIGSTOP: its connections stay open, and nothing answers.
"""

import signal
import statistics
import time
from typing import Any

from .cluster import Cluster, cluster
from .contenders import begin, tell, told

_ROUNDS = 3


def _enqueue(no_op: Any, count: int) -> tuple[list[int], list[Any]]:
    """How many ns each took, and the handles."""
    samples_ns: list[int] = []
    handles: list[Any] = []
    for _ in range(count):
        before_ns = time.perf_counter_ns()
        handle = no_op.enqueue()
        samples_ns.append(time.perf_counter_ns() - before_ns)
        handles.append(handle)
    return samples_ns, handles


def _measure(no_op: Any, dask: Cluster, count: int, *, is_stopped: bool) -> list[int]:
    if is_stopped:
        dask.scheduler.interrupt(signal.SIGSTOP)
    try:
        samples_ns, handles = _enqueue(no_op, count)
    finally:
        dask.scheduler.interrupt(signal.SIGCONT)
    for handle in handles:
        handle.wait()
    return samples_ns


def main() -> None:
    _, arguments = told()
    count: int = arguments["samples"]
    with cluster() as dask:
        begin()
        from . import tasks

        _measure(tasks.no_op, dask, count // 5, is_stopped=False)
        samples_ns: dict[str, list[int]] = {"running": [], "stopped": []}
        for _ in range(_ROUNDS):
            for state, samples in samples_ns.items():
                is_stopped = state == "stopped"
                samples += _measure(tasks.no_op, dask, count, is_stopped=is_stopped)
        figures: dict[str, float] = {}
        for state, samples in samples_ns.items():
            figures[f"{state}_p50_us"] = statistics.median(samples) / 1e3
            figures[f"{state}_p99_us"] = statistics.quantiles(samples, n=100)[-1] / 1e3
        tell(figures)


if __name__ == "__main__":
    main()
