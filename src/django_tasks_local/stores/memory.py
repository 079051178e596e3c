"""Results in this process's memory, until it ends."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..locks import give_way
from ..options import LocalOptions
from ..records import Record, Timestamp

__all__ = ["MemoryStore"]


class MemoryStore:
    """The default store: this process only, nothing to set up, nothing to wait for."""

    option_names: Sequence[str] = ()
    is_shared = False
    is_durable = False
    may_block = False

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        # Ids of finished records, those that finished first coming first.
        self._finished: deque[str] = deque()

    def add(
        self, records: Sequence[Record], /, *, on_visible: Callable[[], None]
    ) -> None:
        if len(records) == 1:
            record = records[0]
            # Setting it is atomic: of two that add the same id at once, one sees it.
            if (
                record.id in self._records
                or self._records.setdefault(record.id, record) is not record
            ):
                raise _already_there(record)
            on_visible()
            return
        give_way(self._lock)
        with self._lock:  # decides whether all of the ids are new
            added: dict[str, Record] = {}
            for record in records:
                if record.id in self._records or record.id in added:
                    raise _already_there(record)
                added[record.id] = record
            self._records.update(added)
        on_visible()

    def get(self, ids: Iterable[str], /) -> Mapping[str, Record]:
        records = self._records
        # Each look-up is atomic, and records never change.
        found = ((result_id, records.get(result_id)) for result_id in ids)
        return {result_id: record for result_id, record in found if record is not None}

    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        give_way(self._lock)
        with self._lock:  # decides which of two changes to one record wins
            return [self._replace(record) for record in records]

    def _replace(self, record: Record) -> bool:
        kept = self._records.get(record.id)
        if kept is None or kept.revision != record.revision - 1:
            return False
        self._records[record.id] = record
        if record.is_finished:
            self._finished.append(record.id)
        return True

    def unfinished(self) -> Iterator[Record]:
        give_way(self._lock)
        with self._lock:  # nobody may change the dict while it is copied
            records = list(self._records.values())
        return (record for record in records if not record.is_finished)

    def discard(
        self,
        *,
        finished_before: Timestamp | None = None,
        keep: int | None = None,
        limit: int | None = None,
    ) -> int:
        if finished_before is None and (keep is None or len(self._finished) <= keep):
            return 0
        give_way(self._lock)
        with self._lock:  # decides which records are the oldest
            excess = 0 if keep is None else len(self._finished) - keep
            count = 0
            while self._finished and count != limit:
                if count >= excess and (
                    finished_before is None
                    or not self._is_oldest_from_before(finished_before)
                ):
                    break
                del self._records[self._finished.popleft()]
                count += 1
            return count

    def _is_oldest_from_before(self, at: Timestamp) -> bool:
        finished_at = self._records[self._finished[0]].finished_at
        return finished_at is not None and finished_at < at

    def close(self) -> None:
        give_way(self._lock)
        with self._lock:
            self._records.clear()
            self._finished.clear()


def _already_there(record: Record) -> ValueError:
    return ValueError(f"There is a record of id {record.id!r} already.")
