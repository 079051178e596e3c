"""What a task that does nothing costs: in time, and in CPU time of all who take part.

All are enqueued by one thread, as fast as it can, and then all are waited for. Where
several processes can share a store, two do so as well. What a task costs that works for
some time is measured too: such tasks do not follow each other as closely.
"""

import subprocess
import sys
import time
from typing import Any

from django.tasks import Task

from .contenders import tell, told
from .cpu_time import counted
from .level_partner import run
from .levels import level

_LONGER = 19
"""Times what a task costs that does nothing."""
_WORK_US = 1.5e6
"""Of all tasks that work, together."""


def _per_s_of_two(no_op: "Task[..., Any]", alias: str, count: int) -> float:
    """Beside another process that does the same on the same store."""
    command = [sys.executable, "-m", "benchmarks.programs.level_partner"]
    with subprocess.Popen(
        [*command, alias, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as partner:
        assert partner.stdin is not None
        assert partner.stdout is not None
        partner.stdout.readline()
        began_at = time.perf_counter()
        partner.stdin.write("go\n")
        partner.stdin.flush()
        run(no_op, count)
        partner.stdout.readline()
        return 2 * count / (time.perf_counter() - began_at)


def main() -> None:
    _, arguments = told()
    alias: str = arguments["alias"]
    count: int = arguments["count"]
    name: str = arguments["level"]
    with level(name) as dask:
        from . import store_tasks

        no_op = store_tasks.no_op.using(backend=alias)
        spin = store_tasks.spin.using(backend=alias)
        run(no_op, count // 5)
        with counted(count, dask, has_database=name == "database") as figures:
            run(no_op, count)
        work_us = _LONGER * figures["all_us"]
        longer = round(_WORK_US / work_us)
        with counted(longer, dask, has_database=name == "database") as spun:
            run(spin, longer, work_us)
        figures["longer_us"] = spun["all_us"] - work_us
        if name in ("sqlite", "database"):
            figures["two_per_s"] = _per_s_of_two(no_op, alias, count)
        tell(figures)


if __name__ == "__main__":
    main()
