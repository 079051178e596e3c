"""From the end of a task in one process to who awaits it in another."""

import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from django.tasks import task_backends

from .contenders import tell, told
from .stores import project

_WARM_UP = 5
_LEAST_S, _MOST_S = 0.05, 0.15
"""How long a task takes: long enough to be looked for, and not in step with that."""


@contextmanager
def _elsewhere(alias: str) -> Generator[Callable[[float], str]]:
    """Another process, which enqueues and runs a task of so many seconds; its id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.programs.store_enqueuer", alias],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def enqueue(seconds: float) -> str:
        print(seconds, file=stdin, flush=True)
        return stdout.readline().strip()

    try:
        yield enqueue
    finally:
        stdin.close()
        process.wait()


async def _late_ms(alias: str, result_id: str) -> float:
    # To type checkers, a result of Django's own, which cannot be awaited.
    handle: Any = await task_backends[alias].aget_result(result_id)
    ended_at: float = await handle  # which may have been before: that was late, too
    return (time.monotonic() - ended_at) * 1e3


def main() -> None:
    name, arguments = told()
    alias: str = arguments["alias"]
    numbers = random.Random(0)
    with (
        project(name, arguments.get("engine")),
        _elsewhere(alias) as enqueue,
        asyncio.Runner() as runner,
    ):
        late_ms: list[float] = []
        for _ in range(_WARM_UP + arguments["samples"]):
            result_id = enqueue(numbers.uniform(_LEAST_S, _MOST_S))
            late_ms.append(runner.run(_late_ms(alias, result_id)))
        cuts = statistics.quantiles(late_ms[_WARM_UP:], n=100)
        tell({"p50_ms": cuts[49], "p99_ms": cuts[98]})


if __name__ == "__main__":
    main()
