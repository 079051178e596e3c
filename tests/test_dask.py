"""Tasks on a Dask cluster: real schedulers and real workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import override
from dataclasses import replace

import pytest

from django_tasks_local.executors.dask import DaskExecutor
from django_tasks_local.options import ClusterOptions, LocalOptions
from django_tasks_local.testing import ExecutorContract, RecordingHost

from .dask_clusters import DaskCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler, and two workers with several threads each."""
    with DaskCluster(tmp_path_factory.mktemp("dask")) as cluster:
        cluster.start_scheduler()
        cluster.start_worker(threads=4)
        cluster.start_worker(threads=4)
        yield cluster


class TestDaskExecutor(ExecutorContract):
    has_own_processes = True

    @pytest.fixture(autouse=True)
    def _on(self, request: pytest.FixtureRequest) -> None:
        own = "_nannies" in request.fixturenames
        cluster = request.getfixturevalue("_nannies" if own else "cluster")
        self._address = cluster.address

    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> DaskExecutor:
        options = replace(options, cluster=ClusterOptions(address=self._address))
        return DaskExecutor(options, host=host)

    @pytest.fixture
    def _nannies(self, tmp_path: Path) -> Iterator[DaskCluster]:
        with DaskCluster(tmp_path) as cluster:
            cluster.start_scheduler()
            for _ in range(2):
                cluster.start_worker(threads=1, nanny=True)
            yield cluster

    @override
    @pytest.mark.usefixtures("_nannies")
    def test_call_whose_worker_dies_fails_alone(self) -> None:
        """With a worker for each call, and others that take the place of the dead."""
        super().test_call_whose_worker_dies_fails_alone()
