"""The database store, on each kind of database."""

from dataclasses import replace

import pytest

from django_tasks_local.options import LocalOptions
from django_tasks_local.stores.database.store import DatabaseStore
from django_tasks_local.testing import ResultStoreContract


class TestContract(ResultStoreContract):
    @pytest.fixture(autouse=True)
    def _each_database(self, using: str) -> None:
        self._using = using

    def make_store(self, options: LocalOptions, /, *, alias: str) -> DatabaseStore:
        options = replace(options, store_options={"USING": self._using})
        return DatabaseStore(options, alias=alias)
