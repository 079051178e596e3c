"""What it costs to enqueue, until the task is in its store, while none of them runs."""

import statistics
import time
from typing import Any

from django.tasks import Task

from .contenders import tell, told
from .stores import project

_WARM_UP = 100
_ALIASES = {
    "3": ("memory", "sqlite", "sqlite-full", "database"),
    "db": ("database",),
}


def _p50_us(alias: str, samples: int) -> float:
    from . import store_tasks

    echo = store_tasks.echo.using(backend=alias)
    samples_ns: list[int] = []
    for number in range(_WARM_UP + samples):
        before_ns = time.perf_counter_ns()
        echo.enqueue(number, note="hello")
        samples_ns.append(time.perf_counter_ns() - before_ns)
    return statistics.median(samples_ns[_WARM_UP:]) / 1e3


def _block(alias: str) -> None:
    """Have all threads of an alias wait for something."""
    from . import functions, store_tasks
    from .stores_settings import WORKERS

    block: Task[..., Any] = store_tasks.block.using(backend=alias)
    for _ in range(WORKERS // 2):
        block.enqueue()
        block.enqueue()
        functions.blocked.wait()


def main() -> None:
    name, arguments = told()
    samples: int = arguments["samples"]
    with project(name, "postgresql"):
        from . import functions

        figures: dict[str, float] = {}
        for alias in _ALIASES[name]:
            if name == "3":
                _block(alias)
            figures[f"{alias}_p50_us"] = _p50_us(alias, samples)
        tell(figures)
        functions.released.set()


if __name__ == "__main__":
    main()
