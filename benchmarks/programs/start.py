"""How long a new worker process takes until it has run its first task.

In a project with Django's own apps. A bare executor's process is spawned, and sets
Django up first.
"""

import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress

import django

from .contenders import begin, contender, tell


def _own_ms(samples: int) -> list[float]:
    """That of this version, in the place of one that has just died."""
    from django_tasks_local import TaskFailed

    from . import tasks

    pool = contender("3", "processes-1")
    samples_ms: list[float] = []
    for number in range(samples):
        with suppress(TaskFailed):  # the first time it starts the fork server too
            pool.wait(pool.submit(tasks.end_process))
        before = time.perf_counter()
        assert pool.wait(pool.submit(tasks.echo, number)) == number
        samples_ms.append((time.perf_counter() - before) * 1e3)
    return samples_ms


def _bare_ms(samples: int) -> list[float]:
    from . import functions

    spawn = multiprocessing.get_context("spawn")
    samples_ms: list[float] = []
    for number in range(samples):
        before = time.perf_counter()
        with ProcessPoolExecutor(1, spawn, initializer=django.setup) as pool:
            assert pool.submit(functions.echo, number).result() == number
            samples_ms.append((time.perf_counter() - before) * 1e3)
    return samples_ms


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.programs.full_settings"
    name, arguments = begin()
    measure = _own_ms if name == "3" else _bare_ms
    tell({"p50_ms": statistics.median(measure(arguments["samples"]))})


if __name__ == "__main__":
    main()
