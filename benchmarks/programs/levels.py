"""The levels that a project can go through: each a way to run the same task."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import django

from .cluster import Cluster, cluster
from .stores import project

__all__ = ["level"]


@contextmanager
def level(name: str) -> Generator[Cluster | None]:
    """Set Django up for one of them; the cluster, where there is one."""
    match name:
        case "dask":
            with cluster() as dask:
                django.setup()
                yield dask
        case "sqlite":
            with project("3", None):
                yield None
        case "database":
            with project("3", "postgresql"):
                yield None
        case _:
            os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.programs.settings"
            django.setup()
            yield None
