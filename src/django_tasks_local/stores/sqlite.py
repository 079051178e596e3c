"""Results in one file, which every process of a machine sees and which outlives all."""

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import batched
from pathlib import Path
from typing import ClassVar, cast, override

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.tasks.base import TaskResultStatus

from ..logs import log_error
from ..options import LocalOptions
from ..records import Record, Timestamp
from .lock_files import LockFiles
from .rows import CHANGING, COLUMNS, changing_of, readable_records, row_of
from .sqlite_file import SqliteFile

__all__ = ["SqliteStore"]

_NAME = "django-tasks-local.sqlite3"
_SYNCHRONOUS = {"normal": "NORMAL", "full": "FULL"}
_AT_ONCE = 200
_UNREADABLE = "UNREADABLE"
_STATUSES = frozenset((*TaskResultStatus.values, _UNREADABLE))

_SCHEMA_VERSION = 1
# `finish` numbers an alias's finished records in the order in which they finished.
_SCHEMA = """
    CREATE TABLE result (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        task_path TEXT NOT NULL,
        priority INTEGER NOT NULL,
        queue_name TEXT NOT NULL,
        task_backend TEXT NOT NULL,
        takes_context INTEGER NOT NULL,
        alias TEXT NOT NULL,
        arguments TEXT NOT NULL,
        run_after REAL,
        enqueued_at REAL NOT NULL,
        owner TEXT NOT NULL,
        status TEXT NOT NULL,
        started_at REAL,
        last_attempted_at REAL,
        finished_at REAL,
        value TEXT,
        errors TEXT NOT NULL,
        worker_ids TEXT NOT NULL,
        metadata TEXT NOT NULL,
        due_at REAL,
        is_cancel_requested INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        finish INTEGER
    );
    CREATE INDEX unfinished ON result (alias, owner) WHERE finish IS NULL;
    CREATE INDEX to_be_cancelled ON result (alias, owner)
        WHERE finish IS NULL AND is_cancel_requested;
    CREATE INDEX finished ON result (alias, finish, status, finished_at)
        WHERE finish IS NOT NULL;
    CREATE TABLE unreadable (
        number INTEGER PRIMARY KEY,
        alias TEXT NOT NULL,
        noticed_at REAL NOT NULL,
        reason TEXT NOT NULL,
        content TEXT NOT NULL
    );
"""

_ROW = f"number, {', '.join(COLUMNS)}"
_ADD = (
    f"INSERT INTO result ({', '.join(COLUMNS)})"
    f" VALUES ({', '.join('?' * len(COLUMNS))})"
)
_WHERE = " WHERE id = ? AND alias = ? AND revision = ?"
# Where those stay as they are, `unfinished` and `to_be_cancelled` need not be written.
_MOSTLY_SAME = ("owner", "is_cancel_requested")
_SAME = "".join(f" AND {name} = ?" for name in _MOSTLY_SAME)


def _setting(names: Iterable[str]) -> str:
    return f"UPDATE result SET {', '.join(f'{name} = ?' for name in names)}"


_OTHERS = [name for name in CHANGING if name not in _MOSTLY_SAME]
_CHANGE_OTHERS = _setting(_OTHERS) + _WHERE + _SAME
_SET = _setting(CHANGING)
_CHANGE = _SET + _WHERE
_FINISH = (
    f"{_SET}, finish = (SELECT coalesce(max(finish), 0) + 1 FROM result"
    f" WHERE alias = ? AND finish IS NOT NULL){_WHERE} AND finish IS NULL"
)
_GET = f"SELECT {_ROW} FROM result WHERE alias = ? AND id = ?"
_GET_MANY = (
    f"SELECT {_ROW} FROM result WHERE alias = ?"
    " AND id IN (SELECT value FROM json_each(?))"
)
# Their numbers first: to sort the records again for each few would take for ever.
_UNFINISHED_NUMBERS = "SELECT number FROM result WHERE alias = ? AND finish IS NULL"
_UNFINISHED = (
    f"SELECT {_ROW} FROM result WHERE +alias = ? AND finish IS NULL"  # by number
    " AND number IN (SELECT value FROM json_each(?)) ORDER BY number"
)
_OWNED_BY = (
    f"SELECT {_ROW} FROM result WHERE alias = ? AND owner = ? AND finish IS NULL"
    " AND number > ? AND number <= ? ORDER BY number LIMIT ?"
)
_OWNED_BY_BYTES = (
    f"SELECT {_ROW} FROM result WHERE alias = ? AND finish IS NULL"
    " AND CAST(owner AS BLOB) = ?"
)
_TO_BE_CANCELLED = (
    f"SELECT {_ROW} FROM result WHERE alias = ? AND owner = ? AND finish IS NULL"
    " AND is_cancel_requested"
)
# From one owner to the next, however many records each has.
_OWNERS = """
    WITH RECURSIVE each (owner) AS (
        SELECT min(owner) FROM result WHERE alias = ? AND finish IS NULL
        UNION ALL
        SELECT (
            SELECT min(owner) FROM result
            WHERE alias = ? AND finish IS NULL AND owner > each.owner
        )
        FROM each WHERE owner IS NOT NULL
    )
    SELECT owner FROM each WHERE owner IS NOT NULL
"""
_COUNTS = f"""
    SELECT status, count(*) FROM result
    WHERE alias = ? AND finish IS NULL GROUP BY status
    UNION ALL
    SELECT status, count(*) FROM result
    WHERE alias = ? AND finish IS NOT NULL GROUP BY status
    UNION ALL
    SELECT '{_UNREADABLE}', count(*) FROM unreadable WHERE alias = ?
"""
# A time that is none is as old as can be.
_FINISHED = """
    SELECT number, finish <= ?, finished_at < ? OR typeof(finished_at) <> 'real'
    FROM result WHERE alias = ? AND finish IS NOT NULL ORDER BY finish LIMIT ?
"""
_LAST_IN_EXCESS = """
    SELECT finish FROM result WHERE alias = ? AND finish IS NOT NULL
    ORDER BY finish DESC LIMIT 1 OFFSET ?
"""
# Another one may have its number by now.
_DELETE = """
    DELETE FROM result WHERE number = ? AND CAST(id AS BLOB) = CAST(? AS BLOB)
"""
_SET_ASIDE = """
    INSERT INTO unreadable (alias, noticed_at, reason, content) VALUES (?, ?, ?, ?)
"""


class SqliteStore:
    """For ``"STORE": "sqlite"``: an `OwnedResultStore` in a file of SQLite's.

    ``STORE_OPTIONS``: ``PATH``, by default ``django-tasks-local.sqlite3`` beside the
    module of the settings; relative ones are so to the working directory, and links
    are followed when the store is made. And
    ``DURABILITY``: with ``"full"`` what returns has reached the disk, with ``"normal"``
    (the default) it survives the process, but perhaps not a loss of power.

    Several aliases may share a file. It is made at the first use, with mode 0600, and
    carries the version of its schema. Methods raise StoreError where it cannot be used,
    and try again at the next call.
    """

    option_names: ClassVar[Sequence[str]] = ("PATH", "DURABILITY")
    is_shared: bool = True
    is_durable: bool = True
    may_block: bool = True
    is_in_transaction: bool = False

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        given = options.store_options
        self._alias = alias
        self._path = _path_of(given.get("PATH"), alias=alias)
        self._file = SqliteFile(
            self._path,
            schema=_SCHEMA,
            schema_version=_SCHEMA_VERSION,
            synchronous=_SYNCHRONOUS[str(given.get("DURABILITY", "normal"))],
        )
        self._ownership = _Owners(self._file)

    @staticmethod
    def find_wrong_options(given: Mapping[str, object], /) -> Iterator[tuple[str, str]]:
        """The names of options with wrong values, and what would be accepted."""
        path = given.get("PATH", _NAME)
        if not isinstance(path, str | Path) or not str(path):
            yield "PATH", "a path"
        if given.get("DURABILITY", "normal") not in ("normal", "full"):
            yield "DURABILITY", "'normal' or 'full'"

    @property
    def ownership(self) -> LockFiles:
        """Who lives: a locked file for each, in a directory beside the file."""
        return self._ownership

    def add(
        self, records: Sequence[Record], /, *, on_visible: Callable[[], None]
    ) -> None:
        """See `ResultStore`."""
        rows = list(map(row_of, records))

        def add(db: sqlite3.Connection) -> None:
            try:
                if len(rows) == 1:
                    db.execute(_ADD, rows[0])
                else:
                    db.executemany(_ADD, rows)
            except sqlite3.IntegrityError:
                raise ValueError("One of these ids is there already.") from None

        self._file.write(add, then=on_visible, is_single=len(rows) == 1)

    def get(self, ids: Iterable[str], /) -> Mapping[str, Record]:
        """See `ResultStore`."""
        wanted = [result_id for result_id in ids if result_id.isascii()]
        if not wanted:
            return {}
        if len(wanted) == 1:
            rows = self._file.read(_GET, self._alias, wanted[0])
        else:
            rows = self._file.read(_GET_MANY, self._alias, json.dumps(wanted))
        return {record.id: record for record in self._readable(rows)}

    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        """See `ResultStore`."""
        if len(records) == 1:
            return [self._file.write(self._change(records[0]), is_single=True)]
        changes = list(map(self._change, records))

        def save(db: sqlite3.Connection) -> list[bool]:
            return [change(db) for change in changes]

        return self._file.write(save) if changes else []

    def _change(self, record: Record) -> Callable[[sqlite3.Connection], bool]:
        """What saves it, and says whether it was the next change."""
        which = (record.id, self._alias, record.revision - 1)
        changing = changing_of(record)
        if record.is_finished:
            values = (*changing, self._alias, *which)
            return partial(_has_changed, ((_FINISH, values),))
        owner, *others, is_cancel_requested, revision = changing
        same = (owner, is_cancel_requested)
        return partial(
            _has_changed,
            (
                (_CHANGE_OTHERS, (*others, revision, *which, *same)),
                (_CHANGE, (*changing, *which)),
            ),
        )

    def unfinished(self) -> Iterator[Record]:
        """See `ResultStore`."""
        rows = self._file.read(_UNFINISHED_NUMBERS, self._alias)
        # The table's INTEGER PRIMARY KEY, which is nothing else in any row.
        return self._numbered(sorted(cast("int", number) for (number,) in rows))

    def _numbered(self, numbers: Sequence[int]) -> Iterator[Record]:
        for some in batched(numbers, _AT_ONCE):
            rows = self._file.read(_UNFINISHED, self._alias, json.dumps(some))
            yield from self._readable(rows, is_finished=False)

    def discard(
        self,
        *,
        finished_before: Timestamp | None = None,
        keep: int | None = None,
        limit: int | None = None,
    ) -> int:
        """See `ResultStore`."""
        if finished_before is None and keep is None:
            return 0

        def discard(db: sqlite3.Connection) -> int:
            last_in_excess = (0,)
            if keep is not None:
                row = db.execute(_LAST_IN_EXCESS, (self._alias, keep)).fetchone()
                last_in_excess = row or last_in_excess
            rows = db.execute(
                _FINISHED,
                (
                    *last_in_excess,
                    finished_before,
                    self._alias,
                    -1 if limit is None else limit,
                ),
            )
            doomed: list[tuple[int]] = []
            for number, is_in_excess, is_old in rows:
                if not is_in_excess and (finished_before is None or not is_old):
                    break
                doomed.append((number,))
            db.executemany("DELETE FROM result WHERE number = ?", doomed)
            return len(doomed)

        return self._file.write(discard)

    def close(self) -> None:
        """See `ResultStore`."""
        self._file.close()

    def owners(self) -> Sequence[str]:
        """See `OwnedResultStore`."""
        rows = self._file.read(_OWNERS, self._alias, self._alias)
        owners: list[str] = []
        for (owner,) in rows:
            if isinstance(owner, str):
                owners.append(owner)
            else:  # somebody has changed it, so nobody would ever see to its tasks
                self._readable(self._file.read(_OWNED_BY_BYTES, self._alias, owner))
        return owners

    def owned_by(self, owner: str, /) -> Iterator[Record]:
        """See `OwnedResultStore`."""
        # A few at once: who is slow must not keep the file from being tidied up.
        ((last,),) = self._file.read("SELECT coalesce(max(number), 0) FROM result")
        return self._owned_by(owner, last)

    def _owned_by(self, owner: str, last: object) -> Iterator[Record]:
        after: object = 0
        while rows := self._file.read(
            _OWNED_BY, self._alias, owner, after, last, _AT_ONCE
        ):
            yield from self._readable(rows, is_finished=False)
            after = rows[-1][0]

    def cancel_requests(self, owner: str, /) -> Sequence[Record]:
        """See `OwnedResultStore`."""
        rows = self._file.read(_TO_BE_CANCELLED, self._alias, owner)
        return self._readable(rows, is_finished=False)

    def counts(self) -> Mapping[str, int]:
        """See `OwnedResultStore`."""
        counts = Counter[str]()
        for status, count in self._file.read(_COUNTS, *[self._alias] * 3):
            assert isinstance(count, int)
            counts[str(status) if status in _STATUSES else _UNREADABLE] += count
        return +counts

    def version(self) -> int | None:
        """See `OwnedResultStore`."""
        return self._file.version()

    def _readable(
        self, rows: Sequence[Sequence[object]], *, is_finished: bool | None = None
    ) -> list[Record]:
        return readable_records(
            rows, is_finished=is_finished, set_aside=self._set_aside
        )

    def _set_aside(self, row: Sequence[object], reason: str) -> None:
        def set_aside(db: sqlite3.Connection) -> bool:
            if db.execute(_DELETE, row[:2]).rowcount == 0:  # somebody was faster
                return False
            content = ascii(dict(zip(("number", *COLUMNS), row, strict=True)))
            db.execute(_SET_ASIDE, (self._alias, time.time(), ascii(reason), content))
            return True

        if self._file.write(set_aside):
            log_error(
                "TASKS[%r]: %s: result %r cannot be read and was set aside, in the "
                "table 'unreadable': %s",
                self._alias,
                self._path,
                row[1],
                reason,
            )


def _has_changed(
    ways: tuple[tuple[str, tuple[object, ...]], ...], db: sqlite3.Connection
) -> bool:
    """Whether one of these ways to change a row did, where those before it did not."""
    return any(db.execute(*way).rowcount == 1 for way in ways)


class _Owners(LockFiles):
    """Those of a file that can be used."""

    def __init__(self, file: SqliteFile) -> None:
        super().__init__(Path(f"{file.path}-owners"))
        self._file = file

    @override
    def hold(self, owner: str, /) -> None:
        self._file.version()  # or it says what is wrong with the file
        super().hold(owner)
        self.bury_all()  # those who died with nothing unfinished: nobody adopts them


def _path_of(given: object, *, alias: str) -> Path:
    if isinstance(given, str | Path):
        return _real(given)
    directory = _settings_directory()
    if directory is None:
        raise ImproperlyConfigured(
            f"TASKS[{alias!r}]['OPTIONS']['STORE'] is 'sqlite' and the settings are no "
            "module, beside which its file could be: name one in "
            "STORE_OPTIONS['PATH']."
        )
    return _real(directory / _NAME)


def _real(path: str | Path) -> Path:
    """Where it leads now, whatever becomes of links: all who have the file agree."""
    return Path(os.path.realpath(path))


def _settings_directory() -> Path | None:
    holder: object = settings
    while holder is not None:
        module: object = getattr(holder, "SETTINGS_MODULE", None)
        if isinstance(module, str):
            file = getattr(import_module(module), "__file__", None)
            return None if file is None else Path(file).absolute().parent
        # Those that are overridden, as in tests, are inside.
        inside = vars(holder)
        holder = inside.get("_wrapped") or inside.get("default_settings")
    return None
