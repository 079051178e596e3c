"""A file of results, opened with `sqlite3`: made if need be, checked, and shared.

What SQLite promises, and asks for in turn, stands on its pages on
[WAL](https://www.sqlite.org/wal.html), on
[locking](https://www.sqlite.org/lockingv3.html), and on
[how to corrupt a file](https://www.sqlite.org/howtocorrupt.html).
"""

import os
import sqlite3
import stat
import time
from pathlib import Path
from urllib.parse import quote

from ..errors import StoreError

__all__ = ["BUSY_S", "Connection", "Identity", "Opener", "explain", "identity_of"]

BUSY_S = 30.0
"""So long who finds the file locked waits for it."""
_BUSY_PAUSE_S = 0.01

_APPLICATION_ID = 0x44544C33  # "DTL3"
_PAGE_BYTES = 2048
_WAL_BYTES = 16 * 1024 * 1024  # left to the file when it has all been taken over

type Identity = tuple[int, int]
"""Another one where another file has taken a file's place."""


class Connection(sqlite3.Connection):
    """A connection that knows which file it has opened."""

    identity: Identity | None = None


class Opener:
    """Opens one file. Raises StoreError, and what `sqlite3` raises."""

    def __init__(
        self, path: Path, /, *, schema: str, schema_version: int, synchronous: str
    ) -> None:
        self._path = path
        self._schema = schema
        self._schema_version = schema_version
        self._synchronous = synchronous

    def open(self) -> Connection:
        """A new connection, which any thread may use in its turn."""
        identity = self._make()
        db = sqlite3.connect(
            # `_make` makes it, or nobody does.
            f"file://{quote(os.fsencode(self._path))}?mode=rw",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
            factory=Connection,
        )
        try:
            db.identity = identity
            self._fill(db)
            self._check(db)
            self._share(db)
            db.execute(f"PRAGMA synchronous = {self._synchronous}")
            db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_BYTES // _PAGE_BYTES}")
        except BaseException:
            db.close()
            raise
        return db

    def _make(self) -> Identity | None:
        """See to it that there is a file: an empty one, for its user alone."""
        identity = identity_of(self._path)
        if identity is not None:
            return identity
        try:
            # Not by `open`: whoever closes a file loses SQLite's locks of it.
            os.mknod(self._path, 0o600 | stat.S_IFREG)
        except FileExistsError:
            pass  # another was faster
        except OSError as err:
            raise StoreError(
                f"{self._path} cannot be made: {err.strerror}. Its directory has to be "
                "there, and to be writable."
            ) from err
        return identity_of(self._path)

    def _fill(self, db: sqlite3.Connection) -> None:
        """Make the tables in an empty file, unless another is faster."""
        if not _is_empty(db):
            return
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("BEGIN IMMEDIATE")
        if _is_empty(db):
            for statement in self._schema.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {self._schema_version}")
        db.execute("COMMIT")

    def _check(self, db: sqlite3.Connection) -> None:
        """Whether it is a file of ours, and of this version."""
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID:
            raise StoreError(
                f"{self._path} was not made by django-tasks-local, which leaves it as "
                "it is. Name another file in STORE_OPTIONS['PATH'], or remove this one."
            )
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != self._schema_version:
            raise StoreError(
                f"{self._path} was made by another version of django-tasks-local (its "
                f"schema is {version}, this version's is {self._schema_version}). "
                "Install that version again, or name another file in "
                "STORE_OPTIONS['PATH']."
            )

    def _share(self, db: sqlite3.Connection) -> None:
        """Have all use WAL, from the first one on."""
        until_s = time.monotonic() + BUSY_S
        while True:
            try:
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as err:
                # For another one who opens the new file, SQLite does not wait here.
                if err.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                if time.monotonic() > until_s:
                    raise
                time.sleep(_BUSY_PAUSE_S)
            else:
                break
        if mode != "wal":
            raise StoreError(
                f"{self._path}: {_UNSHARED} (SQLite's journal mode stays {mode!r})."
            )


def identity_of(path: Path) -> Identity | None:
    """Of the file that is there; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_empty(db: sqlite3.Connection) -> bool:
    """Whether nobody has ever put anything into the file."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return (tables, application_id, version) == (0, 0, 0)


_UNSHARED = (
    "it lies on a file system on which processes cannot share it, as network file "
    "systems are. Name a file on a local disk in STORE_OPTIONS['PATH']"
)
# By SQLite's result codes, the primary ones or those that say more.
_EXPLANATIONS = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_READONLY: "it cannot be written: the file, its directory or its "
    "disk is read-only for this process",
    sqlite3.SQLITE_PERM: "it cannot be read: this process may not",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: this process has to be able to "
    "read and write the file and its directory",
    sqlite3.SQLITE_CORRUPT: "it is damaged. Move it away, with the files '-wal' and "
    "'-shm' beside it, and a new one is made; the sqlite3 program's '.recover' may "
    "save what was in it",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database. Name another file in "
    "STORE_OPTIONS['PATH']",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {BUSY_S:.0f} seconds",
    sqlite3.SQLITE_TOOBIG: "what was to be kept in it is too large",
    sqlite3.SQLITE_IOERR: "its disk cannot be read or written",
    sqlite3.SQLITE_IOERR_SHMSIZE: "its disk cannot be written, or is full",
    **dict.fromkeys(
        (
            sqlite3.SQLITE_PROTOCOL,
            sqlite3.SQLITE_IOERR_LOCK,
            sqlite3.SQLITE_IOERR_RDLOCK,
            sqlite3.SQLITE_IOERR_UNLOCK,
            sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
            sqlite3.SQLITE_IOERR_SHMOPEN,
            sqlite3.SQLITE_IOERR_SHMMAP,
            sqlite3.SQLITE_IOERR_SHMLOCK,
        ),
        _UNSHARED,
    ),
}


def explain(err: sqlite3.Error) -> str:
    """What is wrong with the file, in words."""
    code = getattr(err, "sqlite_errorcode", 0)
    explanation = _EXPLANATIONS.get(code) or _EXPLANATIONS.get(code & 0xFF)
    return f"{explanation} ({err})." if explanation else f"{err}."
