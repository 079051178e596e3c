"""How many tasks that do nothing a Dask cluster runs in a second, from one process.

All are enqueued and then all are waited for. Beside `DaskBackend` stands Dask's own
client, which submits the same calls one by one and gathers what they return: once under
the keys that it makes, once under plain UUIDs.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from uuid import uuid4

from .cluster import cluster
from .contenders import begin, tell, told
from .cpu_time import counted

type Run = Callable[[int], None]


@contextmanager
def _with_the_library() -> Generator[Run]:
    from . import tasks

    no_op = tasks.no_op.using(backend="keeping")

    def run(count: int) -> None:
        handles: list[Any] = [no_op.enqueue() for _ in range(count)]
        for handle in handles:
            handle.wait()

    yield run


@contextmanager
def _with_dask(address: str, *, has_plain_keys: bool) -> Generator[Run]:
    from . import functions

    dask: Any = import_module("distributed")
    with dask.Client(address) as client:

        def run(count: int) -> None:
            futures = [
                client.submit(
                    functions.no_op,
                    pure=False,
                    key=str(uuid4()) if has_plain_keys else None,
                )
                for _ in range(count)
            ]
            client.gather(futures)

        yield run


def main() -> None:
    name, arguments = told()
    count: int = arguments["counts"][name]
    with cluster(arguments["threads"]) as dask:
        begin()
        with (
            _with_the_library()
            if name == "3"
            else _with_dask(dask.address, has_plain_keys=name == "dask-uuid")
        ) as run:
            run(count // 10)
            with counted(count, dask) as figures:
                run(count)
            tell(figures)


if __name__ == "__main__":
    main()
