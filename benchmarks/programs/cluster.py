"""A Dask cluster on this machine, made for a run and taken away.

What `tests` starts: a scheduler and workers by Dask's own command line.
"""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from django_tasks_local.state import drain
from tests.dask_clusters import DaskCluster, DaskProcess

__all__ = ["WORKERS", "Cluster", "cluster"]

WORKERS = 2


class Cluster(NamedTuple):
    """What runs, each in a process of its own."""

    address: str
    scheduler: DaskProcess
    workers: list[DaskProcess]


@contextmanager
def cluster(threads: int = 4) -> Generator[Cluster]:
    """Start it for a project of its own, in which Django is still to be set up.

    With so many threads for each worker.
    """
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.programs.cluster_settings"
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as directory,
        DaskCluster(Path(directory)) as processes,
    ):
        scheduler = processes.start_scheduler()
        workers = [processes.start_worker(threads=threads)[0] for _ in range(WORKERS)]
        os.environ["BENCHMARKS_SCHEDULER"] = processes.address
        try:
            yield Cluster(processes.address, scheduler, workers)
        finally:  # before it goes
            drain()
