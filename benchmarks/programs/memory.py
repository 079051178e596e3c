"""What a waiting task and a kept result take, as `tracemalloc` counts it."""

import gc
import os
import tracemalloc
from typing import Any

from .contenders import begin, contender, tell

_WARM_UP = 500


def main() -> None:
    name, arguments = begin()
    from . import functions, tasks

    count: int = arguments["count"]
    threads = contender(name, "keeping")
    for number in range(_WARM_UP):
        threads.wait(threads.submit(tasks.echo, number, note="hello"))
    threads.submit(tasks.block)
    threads.submit(tasks.block)
    functions.blocked.wait()
    held: list[Any] = [None] * count
    numbers = list(range(_WARM_UP, _WARM_UP + count))  # the caller's own
    gc.collect()
    tracemalloc.start()

    def bytes_each() -> float:
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        return traced / count

    last: Any = None
    for index, number in enumerate(numbers):
        last = threads.submit(tasks.echo, number, note="hello")
        if arguments["is_held"]:
            held[index] = last
    figures = {"pending_bytes": bytes_each()}
    functions.released.set()
    threads.wait(last)
    tell({**figures, "kept_bytes": bytes_each()})
    os._exit(0)


if __name__ == "__main__":
    main()
