"""Every store keeps what `ResultStore` promises."""

from django_tasks_local.options import LocalOptions
from django_tasks_local.stores.memory import MemoryStore
from django_tasks_local.testing import ResultStoreContract


class TestMemoryStore(ResultStoreContract):
    def make_store(self, options: LocalOptions, /, *, alias: str) -> MemoryStore:
        return MemoryStore(options, alias=alias)

    def test_is_this_processs_own(self) -> None:
        assert not MemoryStore.is_shared
        assert not MemoryStore.is_durable
        assert not MemoryStore.may_block
