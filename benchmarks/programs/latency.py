"""How soon a task on a thread starts, and how soon who awaits it goes on."""

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .contenders import Library, begin, tell


async def _measure(name: str, samples: int) -> dict[str, float]:
    from . import tasks

    executor = ThreadPoolExecutor(2)
    nap = Library("threads-2").task(tasks.nap)

    async def run() -> tuple[float, float]:
        if name == "bare":
            return await asyncio.wrap_future(executor.submit(tasks.nap.func))
        # To type checkers, a result of Django's own, which cannot be awaited.
        handle: Any = await nap.aenqueue()
        began_at, ended_at = await handle
        return began_at, ended_at

    starts_us: list[float] = []
    wakes_us: list[float] = []
    for _ in range(samples):
        before = time.perf_counter()
        began_at, ended_at = await run()
        after = time.perf_counter()
        starts_us.append((began_at - before) * 1e6)
        wakes_us.append((after - ended_at) * 1e6)
    return {
        **_percentiles("start", starts_us[samples // 10 :]),
        **_percentiles("wake", wakes_us[samples // 10 :]),
    }


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {f"{name}_p50_us": cuts[49], f"{name}_p99_us": cuts[98]}


def main() -> None:
    name, arguments = begin()
    tell(asyncio.run(_measure(name, arguments["samples"])))


if __name__ == "__main__":
    main()
