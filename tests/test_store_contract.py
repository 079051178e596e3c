"""Every store keeps what `ResultStore` promises."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from django_tasks_local.options import LocalOptions
from django_tasks_local.stores.memory import MemoryStore
from django_tasks_local.stores.sqlite import SqliteStore
from django_tasks_local.testing import OwnedResultStoreContract, ResultStoreContract

from .shared_store import OwnedStore, SharedStore


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


class TestOwnedStore(OwnedResultStoreContract):
    """The one of the tests' own whose tasks are adopted."""

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self._path = tmp_path / "results"

    def make_store(self, options: LocalOptions, /, *, alias: str) -> OwnedStore:
        options = replace(options, store_options={"PATH": self._path})
        return OwnedStore(options, alias=alias)


class TestSqliteStore(OwnedResultStoreContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self._path = tmp_path / "results"

    def make_store(self, options: LocalOptions, /, *, alias: str) -> SqliteStore:
        options = replace(options, store_options={"PATH": self._path})
        return SqliteStore(options, alias=alias)

    def corrupt(self, result_id: str, column: str, value: str, /) -> bool:
        with closing(sqlite3.connect(self._path, autocommit=True)) as db:
            query = f"UPDATE result SET {column} = ? WHERE id = ?"
            return db.execute(query, (value, result_id)).rowcount == 1
