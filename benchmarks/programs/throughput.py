"""How many tasks that do nothing run in a second, enqueued by one thread."""

import statistics
import time
from collections import deque
from typing import Any

from django.tasks import Task

from .contenders import Contender, begin, contender, tell

_ROUNDS = 3


def _run(pool: Contender, task: "Task[..., Any]", count: int) -> float:
    """The seconds that it takes to run a task `count` times."""
    # Tasks begin in turn: when the last is over, only some before it may not be.
    last = deque[Any](maxlen=20)
    began_at = time.perf_counter()
    for _ in range(count):
        last.append(pool.submit(task))
    while last:
        pool.wait(last.pop())
    return time.perf_counter() - began_at


def _no_op(alias: str) -> "Task[..., Any]":
    if alias == "coroutines":
        from . import coroutine_tasks

        return coroutine_tasks.no_op
    from . import tasks

    return tasks.no_op


def main() -> None:
    name, arguments = begin()
    alias, count = arguments["alias"], arguments["count"]
    task = _no_op(alias)
    pool = contender(name, alias)
    _run(pool, task, count // 5)
    rounds_s = [_run(pool, task, count) for _ in range(_ROUNDS)]
    tell({"per_s": count / statistics.median(rounds_s)})


if __name__ == "__main__":
    main()
