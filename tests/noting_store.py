"""A store of a project's own that notes what it is asked to keep."""

import time
from collections.abc import Callable, Sequence
from typing import override

from django_tasks_local.options import LocalOptions
from django_tasks_local.records import Record
from django_tasks_local.state import get_executor_state
from django_tasks_local.stores.memory import MemoryStore


class NotingStore(MemoryStore):
    """For ``OPTIONS["STORE"]``."""

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        super().__init__(options, alias=alias)
        self.added: list[list[Record]] = []
        """What each call of `add` was given."""
        self.saved: list[tuple[float, Record]] = []
        """What was saved, and when by the monotonic clock."""

    @override
    def add(
        self, records: Sequence[Record], /, *, on_visible: Callable[[], None]
    ) -> None:
        self.added.append(list(records))
        super().add(records, on_visible=on_visible)

    @override
    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        now = time.monotonic()
        taken = super().save(records)
        self.saved.extend((now, record) for record in records)
        return taken


def store_of(alias: str) -> NotingStore:
    """The store of an alias whose settings name this one."""
    store = get_executor_state(alias).store
    assert isinstance(store, NotingStore)
    return store
