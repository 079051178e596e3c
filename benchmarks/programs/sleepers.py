"""How long thousands of tasks take that only wait, as for answers over the network.

2.0 has no coroutines: there a thread sleeps.
"""

import statistics
import time
from typing import Any

from django.tasks import Task

from .contenders import Contender, begin, contender, tell


def _run(pool: Contender, task: "Task[..., Any]", count: int) -> float:
    """The seconds that it takes until all of them have been waited for."""
    began_at = time.perf_counter()
    for each in [pool.submit(task) for _ in range(count)]:
        pool.wait(each)
    return time.perf_counter() - began_at


def main() -> None:
    name, arguments = begin()
    count = arguments["count"]
    if name == "2.0":  # most of a minute each time, and always the same
        from . import tasks

        pool, task, rounds = contender(name, "threads-10"), tasks.sleep_on_thread, 1
        _run(pool, task, 10)
    else:
        from . import coroutine_tasks

        pool, task, rounds = contender(name, "coroutines"), coroutine_tasks.sleep, 5
        _run(pool, task, count)
    total_s = statistics.median(_run(pool, task, count) for _ in range(rounds))
    tell({"total_ms": total_s * 1e3, "per_s": count / total_s})


if __name__ == "__main__":
    main()
