"""Every store keeps what `ResultStore` promises."""

from dataclasses import replace
from pathlib import Path

import pytest

from django_tasks_local.options import LocalOptions
from django_tasks_local.stores.memory import MemoryStore
from django_tasks_local.stores.sqlite import SqliteStore
from django_tasks_local.testing import ResultStoreContract

from .shared_store import SharedStore


class TestMemoryStore(ResultStoreContract):
    def make_store(self, options: LocalOptions, /, *, alias: str) -> MemoryStore:
        return MemoryStore(options, alias=alias)

    def test_is_this_processs_own(self) -> None:
        assert not MemoryStore.is_shared
        assert not MemoryStore.is_durable
        assert not MemoryStore.may_block


class TestSharedStore(ResultStoreContract):
    """The one that the tests of the poller use."""

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self._path = tmp_path / "results"

    def make_store(self, options: LocalOptions, /, *, alias: str) -> SharedStore:
        options = replace(options, store_options={"PATH": self._path})
        return SharedStore(options, alias=alias)


class TestSqliteStore(ResultStoreContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self._path = tmp_path / "results"

    def make_store(self, options: LocalOptions, /, *, alias: str) -> SqliteStore:
        options = replace(options, store_options={"PATH": self._path})
        return SqliteStore(options, alias=alias)
