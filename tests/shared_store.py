"""A store of a project's own that processes share: a file, kept by sqlite3."""

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import override

from django.tasks.base import TaskResultStatus

from django_tasks_local.options import LocalOptions
from django_tasks_local.records import ErrorRecord, Record, TaskSpec, Timestamp
from django_tasks_local.state import get_executor_state
from django_tasks_local.stores.lock_files import LockFiles

_TABLE = """
    CREATE TABLE IF NOT EXISTS record (
        number INTEGER PRIMARY KEY,
        id TEXT UNIQUE NOT NULL,
        alias TEXT NOT NULL,
        revision INTEGER NOT NULL,
        finish INTEGER,
        finished_at REAL,
        text TEXT NOT NULL
    )
"""
_NEXT_FINISH = "(SELECT 1 + coalesce(max(finish), 0) FROM record)"


class SharedStore:
    """For ``OPTIONS["STORE"]``, with the file's path in ``STORE_OPTIONS["PATH"]``."""

    option_names: Sequence[str] = ("PATH",)
    is_shared = True
    is_durable = True
    may_block = True

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        self._alias = alias
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            str(options.store_options["PATH"]),
            isolation_level=None,
            check_same_thread=False,
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(_TABLE)

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, *parameters: object) -> list[Record]:
        with self._lock:
            rows = self._db.execute(query, parameters).fetchall()
        return [_decode(text) for (text,) in rows]

    def add(
        self, records: Sequence[Record], /, *, on_visible: Callable[[], None]
    ) -> None:
        with self._transaction() as db:
            for record in records:
                try:
                    db.execute(
                        "INSERT INTO record (id, alias, revision, text)"
                        " VALUES (?, ?, ?, ?)",
                        (record.id, self._alias, record.revision, json.dumps(record)),
                    )
                except sqlite3.IntegrityError:
                    raise ValueError(f"{record.id} is there already.") from None
        on_visible()

    def get(self, ids: Iterable[str], /) -> Mapping[str, Record]:
        found = self._rows(
            "SELECT text FROM record WHERE alias = ?"
            " AND id IN (SELECT value FROM json_each(?))",
            self._alias,
            json.dumps(list(ids)),
        )
        return {record.id: record for record in found}

    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        with self._transaction() as db:
            return [self._save(db, record) for record in records]

    def _save(self, db: sqlite3.Connection, record: Record) -> bool:
        cursor = db.execute(
            "UPDATE record SET revision = ?, text = ?, finished_at = ?,"
            f" finish = CASE WHEN ? THEN {_NEXT_FINISH} END"
            " WHERE id = ? AND alias = ? AND revision = ?",
            (
                record.revision,
                json.dumps(record),
                record.finished_at,
                record.is_finished,
                record.id,
                self._alias,
                record.revision - 1,
            ),
        )
        return cursor.rowcount == 1

    def unfinished(self) -> Iterator[Record]:
        return iter(
            self._rows(
                "SELECT text FROM record WHERE alias = ? AND finish IS NULL"
                " ORDER BY number",
                self._alias,
            )
        )

    def discard(
        self,
        *,
        finished_before: Timestamp | None = None,
        keep: int | None = None,
        limit: int | None = None,
    ) -> int:
        with self._transaction() as db:
            rows: list[tuple[int, float]] = db.execute(
                "SELECT number, finished_at FROM record"
                " WHERE alias = ? AND finish IS NOT NULL ORDER BY finish",
                (self._alias,),
            ).fetchall()
            excess = 0 if keep is None else len(rows) - keep
            count = 0
            for number, finished_at in rows:
                is_old = finished_before is not None and finished_at < finished_before
                if count == limit or (count >= excess and not is_old):
                    break
                db.execute("DELETE FROM record WHERE number = ?", (number,))
                count += 1
            return count

    def forget(self, result_id: str) -> None:
        """What no store should do: lose a record."""
        with self._transaction() as db:
            db.execute("DELETE FROM record WHERE id = ?", (result_id,))

    def close(self) -> None:
        with self._lock:
            self._db.close()


class OwnedStore(SharedStore):
    """One whose tasks others take over."""

    is_in_transaction = False

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        super().__init__(options, alias=alias)
        path = str(options.store_options["PATH"])
        self.ownership: LockFiles = self._files_in(Path(f"{path}-owners"))

    def _files_in(self, directory: Path) -> LockFiles:
        return LockFiles(directory)

    def owners(self) -> Sequence[str]:
        return list({record.owner for record in self.unfinished()})

    def owned_by(self, owner: str, /) -> Iterator[Record]:
        return (record for record in self.unfinished() if record.owner == owner)

    def cancel_requests(self, owner: str, /) -> Sequence[Record]:
        return [each for each in self.owned_by(owner) if each.is_cancel_requested]

    def counts(self) -> Mapping[str, int]:
        query = "SELECT text FROM record WHERE alias = ?"
        return Counter(record.status.value for record in self._rows(query, self._alias))

    def version(self) -> int | None:
        with self._lock:
            (number,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(number)


class SlowToLeave(OwnedStore):
    """One whose owners need as long to leave as the test wants."""

    @override
    def _files_in(self, directory: Path) -> LockFiles:
        self.files: SlowFiles = SlowFiles(directory)
        return self.files


class SlowFiles(LockFiles):
    def __init__(self, directory: Path, /) -> None:
        super().__init__(directory)
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    @override
    def release(self, owner: str, /) -> None:
        self.has_begun.set()
        self.may_end.wait()
        super().release(owner)


class SlowToLook(OwnedStore):
    """One that says who owns its tasks when the test wants."""

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        super().__init__(options, alias=alias)
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    @override
    def owners(self) -> Sequence[str]:
        self.has_begun.set()
        self.may_end.wait()
        return super().owners()


class SlowToAdopt(OwnedStore):
    """One that tells when the test wants of all but the first of a dead owner's."""

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        super().__init__(options, alias=alias)
        self.may_go_on = threading.Semaphore(0)

    @override
    def owned_by(self, owner: str, /) -> Iterator[Record]:
        is_dead = not self.ownership.is_alive(owner)
        for number, record in enumerate(super().owned_by(owner)):
            if is_dead and number:
                self.may_go_on.acquire()
            yield record


class CountingStore(SharedStore):
    """Counts its look-ups, and fails when it is told to."""

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        super().__init__(options, alias=alias)
        self.looked_up: list[tuple[str, int]] = []
        """Of each look-up the name of its thread, and of how many ids it was."""
        self.on_look_up: Callable[[list[str]], None] = lambda ids: None
        """Called before each look-up, by its thread."""

    @override
    def get(self, ids: Iterable[str], /) -> Mapping[str, Record]:
        wanted = list(ids)
        self.looked_up.append((threading.current_thread().name, len(wanted)))
        self.on_look_up(wanted)
        return super().get(wanted)


def store_of(alias: str) -> CountingStore:
    """The store of an alias whose settings name this one."""
    store = get_executor_state(alias).store
    assert isinstance(store, CountingStore)
    return store


def _decode(text: str) -> Record:
    record = Record(*json.loads(text))
    return record._replace(
        task=TaskSpec(*record.task),
        status=TaskResultStatus(record.status),
        errors=tuple(ErrorRecord(*error) for error in record.errors),
        worker_ids=tuple(record.worker_ids),
    )
