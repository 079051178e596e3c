"""Stores of a project's own that block."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, override

from django_tasks_local.options import LocalOptions
from django_tasks_local.records import Record
from django_tasks_local.stores.memory import MemoryStore


class BlockingStore(MemoryStore):
    """Blocks whenever it is asked for anything, and says so."""

    may_block = True

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        time.sleep(0)
        super().__init__(options, alias=alias)

    @override
    def add(
        self, records: Sequence[Record], /, *, on_visible: Callable[[], None]
    ) -> None:
        time.sleep(0)
        super().add(records, on_visible=on_visible)

    @override
    def get(self, ids: Iterable[str], /) -> Mapping[str, Record]:
        time.sleep(0)
        return super().get(ids)

    @override
    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        time.sleep(0)
        return super().save(records)

    @override
    def unfinished(self) -> Iterator[Record]:
        time.sleep(0)
        return super().unfinished()

    @override
    def discard(self, **conditions: Any) -> int:
        time.sleep(0)
        return super().discard(**conditions)

    @override
    def close(self) -> None:
        time.sleep(0)
        super().close()


class LyingStore(BlockingStore):
    """Says that it does not."""

    may_block = False
