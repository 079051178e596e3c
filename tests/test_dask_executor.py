"""The executor on a Dask cluster keeps what `TaskExecutor` promises."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import override

import pytest

from django_tasks_local.executors.dask import DaskExecutor
from django_tasks_local.options import ClusterOptions, LocalOptions
from django_tasks_local.testing import ExecutorContract, RecordingHost

from .dask_clusters import DaskCluster


class TestDaskExecutor(ExecutorContract):
    has_own_processes = True
    may_block = False

    @pytest.fixture(autouse=True)
    def _on(self, dask_cluster: DaskCluster) -> None:
        self._address = dask_cluster.address

    @override
    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> DaskExecutor:
        host.transitions_may_block = self.may_block
        options = replace(options, cluster=ClusterOptions(address=self._address))
        return DaskExecutor(options, host=host)

    @pytest.fixture
    def _nannies(self, nothing_left_behind: None, tmp_path: Path) -> Iterator[None]:
        with DaskCluster(tmp_path) as cluster:
            cluster.start_scheduler()
            for _ in range(2):
                cluster.start_worker(threads=1, nanny=True)
            self._address = cluster.address
            yield

    @override
    @pytest.mark.usefixtures("_nannies")
    def test_call_whose_worker_dies_fails_alone(self) -> None:
        """With a worker for each call, and others that take the place of the dead."""
        super().test_call_whose_worker_dies_fails_alone()
