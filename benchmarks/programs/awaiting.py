"""How long a coroutine takes on another event loop, for one that awaits its value."""

import asyncio
import statistics
import time

from .contenders import begin, start_loop, tell


async def _measure(name: str, samples: int) -> float:
    from . import coroutine_tasks, functions

    loop = start_loop()

    async def run() -> None:
        if name == "bare":
            coroutine = functions.no_op_coroutine()
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))
        else:
            await coroutine_tasks.no_op.enqueue()

    samples_us: list[float] = []
    for _ in range(samples):
        before = time.perf_counter()
        await run()
        samples_us.append((time.perf_counter() - before) * 1e6)
    return statistics.median(samples_us[samples // 10 :])


def main() -> None:
    name, arguments = begin()
    tell({"p50_us": asyncio.run(_measure(name, arguments["samples"]))})


if __name__ == "__main__":
    main()
