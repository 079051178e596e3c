"""What a coroutine that sleeps takes, as `tracemalloc` counts it."""

import asyncio
import gc
import os
import tracemalloc

from .contenders import begin, contender, start_loop, tell

_WARM_UP = 500


def _create_tasks(count: int) -> set[asyncio.Task[None]]:
    """Bare ones, made on their loop's thread, as asyncio makes them."""
    from . import functions

    loop = start_loop()
    running: set[asyncio.Task[None]] = set()  # as asyncio's documentation asks for

    def create_tasks() -> None:
        for _ in range(count):
            running.add(loop.create_task(functions.hold()))

    loop.call_soon_threadsafe(create_tasks)
    return running


def main() -> None:
    name, arguments = begin()
    from . import coroutine_tasks, functions

    count: int = arguments["count"]
    pool = contender(name, "coroutines")
    for _ in range(_WARM_UP):
        pool.wait(pool.submit(coroutine_tasks.no_op))
    gc.collect()
    tracemalloc.start()
    running = _create_tasks(count) if name == "bare" else None
    if running is None:
        for _ in range(count):
            pool.submit(coroutine_tasks.hold)
    functions.wait_until_held(count)
    gc.collect()
    traced, _ = tracemalloc.get_traced_memory()
    tell({"running_bytes": traced / count})
    os._exit(0)  # what runs need not end


if __name__ == "__main__":
    main()
