"""How long a process takes to answer, one call at a time.

Once for what an executor is given and gives back, and once for a whole task, from its
enqueue to its result: stored, signalled and looked after.
"""

import statistics
import time
from collections.abc import Callable

from .contenders import begin, contender, tell


def _p50_us(call: Callable[[int], int], samples: int) -> float:
    samples_s: list[float] = []
    for number in range(samples):
        before = time.perf_counter()
        value = call(number)
        samples_s.append(time.perf_counter() - before)
        assert value == number
    del samples_s[: len(samples_s) // 10]  # the processes started
    return statistics.median(samples_s) * 1e6


def _executor_p50_us(samples: int) -> float:
    """That of this version's executor alone."""
    from django_tasks_local.executors.processes import ProcessExecutor
    from django_tasks_local.state import get_executor_state
    from django_tasks_local.testing import RecordingHost

    from . import functions

    options = get_executor_state("processes-2").options
    host = RecordingHost(alias="processes-2")
    executor = ProcessExecutor(options, host=host)

    def call(number: int) -> int:
        outcome = executor.submit(host.make_call(functions.echo, [number])).result()
        return int(outcome.value or "")  # JSON

    p50_us = _p50_us(call, samples)
    executor.shutdown(timeout_s=1.0)
    return p50_us


def main() -> None:
    name, arguments = begin()
    from . import tasks

    samples = arguments["samples"]
    pool = contender(name, "processes-2")
    task_p50_us = _p50_us(
        lambda number: pool.wait(pool.submit(tasks.echo, number)), samples
    )
    figures = {"task_p50_us": task_p50_us}
    if name == "3":
        figures["call_p50_us"] = _executor_p50_us(samples)
    elif name == "bare":
        figures["call_p50_us"] = task_p50_us
    tell(figures)


if __name__ == "__main__":
    main()
