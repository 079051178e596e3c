"""What the process takes that enqueues for a Dask cluster, as tasks come and go.

They come a thousand at a time, and the next when those have ended. What is resident is
asked of the system, after a collection.
"""

import gc
import os
from pathlib import Path
from typing import Any

from .cluster import cluster
from .contenders import begin, tell, told

_AT_ONCE = 1_000
_BYTES_A_PAGE = os.sysconf("SC_PAGE_SIZE")


def _resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * _BYTES_A_PAGE / 1e6


def _run(no_op: Any) -> None:
    handles = [no_op.enqueue() for _ in range(_AT_ONCE)]
    for handle in handles:
        handle.wait()


def main() -> None:
    _, arguments = told()
    with cluster():
        begin()
        from . import tasks

        ran = 0
        figures: dict[str, float] = {}
        for count in arguments["counts"]:
            while ran < count:
                _run(tasks.no_op)
                ran += _AT_ONCE
            figures[f"resident_mb at {count}"] = _resident_mb()
        tell(figures)


if __name__ == "__main__":
    main()
