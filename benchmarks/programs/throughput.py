"""How many tasks that do nothing run in a second, enqueued by one thread."""

import statistics
import time
from collections import deque
from typing import Any

from .contenders import Contender, begin, contender, tell

_ROUNDS = 3


def _run(pool: Contender, count: int) -> float:
    """The seconds that it takes to run `count` tasks."""
    from . import tasks

    # Tasks begin in turn: when the last is over, only some before it may not be.
    last = deque[Any](maxlen=20)
    began_at = time.perf_counter()
    for _ in range(count):
        last.append(pool.submit(tasks.no_op))
    while last:
        pool.wait(last.pop())
    return time.perf_counter() - began_at


def main() -> None:
    name, arguments = begin()
    pool = contender(name, arguments["alias"])
    count = arguments["count"]
    _run(pool, count // 5)
    tell(
        {"per_s": count / statistics.median(_run(pool, count) for _ in range(_ROUNDS))}
    )


if __name__ == "__main__":
    main()
