"""How long a few short tasks take on a Dask cluster that runs long ones as well.

The long ones have begun on all threads but one. Beside `DaskBackend` stands Dask's own
client: once under the keys that it makes, which name the function, and once under plain
UUIDs.
"""

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from uuid import uuid4

from . import functions
from .cluster import WORKERS, cluster
from .contenders import begin, tell, told

_THREADS = 2  # of each worker
_SHORT = 10
_WARM_UP = 200
_BEGUN_S = 0.5

type Submit = Callable[[Callable[[], None]], Callable[[], object]]
"""Has a function run; what it returns waits for that."""


@contextmanager
def _with_the_library() -> Generator[Submit]:
    from . import tasks

    of = {functions.no_op: tasks.no_op, functions.take_long: tasks.take_long}

    def submit(function: Callable[[], None]) -> Callable[[], object]:
        handle: Any = of[function].enqueue()
        return lambda: handle.wait()

    yield submit


@contextmanager
def _with_dask(address: str, *, has_plain_keys: bool) -> Generator[Submit]:
    dask: Any = import_module("distributed")
    with dask.Client(address) as client:

        def submit(function: Callable[[], None]) -> Callable[[], object]:
            key = str(uuid4()) if has_plain_keys else None
            future = client.submit(function, pure=False, key=key)
            return lambda: future.result()

        yield submit


def _short_ms(submit: Submit) -> float:
    long = [submit(functions.take_long) for _ in range(WORKERS * _THREADS - 1)]
    time.sleep(_BEGUN_S)
    began_at = time.perf_counter()
    for wait in [submit(functions.no_op) for _ in range(_SHORT)]:
        wait()
    took_s = time.perf_counter() - began_at
    for wait in long:
        wait()
    return took_s * 1e3


def main() -> None:
    name, arguments = told()
    with cluster(_THREADS) as dask:
        begin()
        with (
            _with_the_library()
            if name == "3"
            else _with_dask(dask.address, has_plain_keys=name == "dask-uuid")
        ) as submit:
            for wait in [submit(functions.no_op) for _ in range(_WARM_UP)]:
                wait()
            rounds = range(arguments["rounds"])
            tell({"short_ms": statistics.median(_short_ms(submit) for _ in rounds)})


if __name__ == "__main__":
    main()
