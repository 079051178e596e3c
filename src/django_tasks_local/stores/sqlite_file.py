"""A file of results, kept with `sqlite3`: opening it, and writing in turn.

What SQLite promises, and asks for in turn, stands on its pages on
[WAL](https://www.sqlite.org/wal.html), on
[locking](https://www.sqlite.org/lockingv3.html), and on
[how to corrupt a file](https://www.sqlite.org/howtocorrupt.html).
"""

import os
import sqlite3
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.parse import quote

from ..errors import StoreError

__all__ = ["SqliteFile"]

_APPLICATION_ID = 0x44544C33  # "DTL3"
_BUSY_S = 30.0
_WAL_BYTES = 16 * 1024 * 1024  # left to the file when it has all been taken over


class SqliteFile:
    """One file, and this process's connections to it. Any thread may call any method.

    Made at the first use, with `schema`, whose version stands in the file. Nothing of
    it is left open when the process forks: SQLite's locks do not survive that.
    """

    def __init__(
        self, path: Path, /, *, schema: str, schema_version: int, synchronous: str
    ) -> None:
        self.path: Path = path
        self._schema = schema
        self._schema_version = schema_version
        self._synchronous = synchronous
        self._waiting = deque[_Write]()
        self._make_locks()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._observer: sqlite3.Connection | None = None
        self._is_closed = False
        self._held: list[threading.Lock] = []
        _all_files.add(self)

    def write[R](
        self,
        work: Callable[[sqlite3.Connection], R],
        /,
        *,
        then: Callable[[], None] | None = None,
    ) -> R:
        """What `work` returns, once what it has written is in the file.

        That is written whole or not at all. Works of several threads that come together
        are committed together. Calls `then` once it is written, also where Ctrl-C comes
        just then. Raises what both raise, and StoreError.
        """
        write = _Write(work)
        self._waiting.append(write)
        interruption = None
        try:
            with self._writing:
                if not write.is_done:
                    self._write_all()
        except BaseException as err:  # Ctrl-C
            with suppress(ValueError):
                self._waiting.remove(write)  # so nobody will do it
                raise
            with self._writing:  # so whoever did it has done it
                interruption = err
        if write.error is not None:
            raise write.error
        if then is not None:
            then()
        if interruption is not None:
            raise interruption
        return cast("R", write.result)

    def read(self, query: str, *parameters: object) -> list[tuple[object, ...]]:
        """The rows of a query. Raises StoreError."""
        with self._reading, self._explaining():
            db = self._reader = self._reader or self._open()
            try:
                return db.execute(query, parameters).fetchall()
            except sqlite3.OperationalError as err:
                if "decode" not in str(err):
                    raise
                # Somebody has put other bytes in the place of a text. Who reads the
                # rows sees in which.
                db.text_factory = _text_or_bytes
                try:
                    return db.execute(query, parameters).fetchall()
                finally:
                    db.text_factory = str

    def version(self) -> int:
        """Another number once anybody has written. Raises StoreError."""
        with self._observing, self._explaining():
            db = self._observer = self._observer or self._open()
            (number,) = db.execute("PRAGMA data_version").fetchone()
            return int(number)

    def close(self) -> None:
        """Close it for good. A second call does nothing."""
        with self._writing, self._reading, self._observing:
            self._is_closed = True
            self._close_connections()

    # Writing in turn.

    def _write_all(self) -> None:
        """Do what waits, of whatever thread (the one whose turn it is)."""
        batch: list[_Write] = []
        db = None
        try:
            with self._explaining():
                db = self._writer = self._writer or self._open()
                while self._waiting:
                    batch.append(self._waiting.popleft())
                db.execute("BEGIN IMMEDIATE")
                for write in batch:
                    write.do(db, is_alone=len(batch) == 1)
                db.execute("COMMIT")
        except StoreError as err:
            self._close_writer()
            # Those too that could not even be taken.
            batch += [self._waiting.popleft() for _ in range(len(self._waiting))]
            for write in batch:
                write.error = err
        except BaseException:  # Ctrl-C
            if db is None or db.in_transaction or not all(map(_has_run, batch)):
                self._close_writer()  # which rolls it back
                self._waiting.extendleft(reversed(batch))  # for the next one
                raise
        for write in batch:
            write.is_done = True

    # Its connections.

    def _open(self) -> sqlite3.Connection:
        if self._is_closed:
            raise StoreError(f"The store in {self.path} was closed.")
        if not self.path.exists():
            self._make()
        db = self._connect(self.path)
        try:
            self._check(db)
            db.execute(f"PRAGMA synchronous = {self._synchronous}")
            db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        except BaseException:
            db.close()
            raise
        return db

    def _connect(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(
            # It is made by `_make`, or not at all.
            f"file:{quote(str(path))}?mode=rw",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )

    def _check(self, db: sqlite3.Connection) -> None:
        """Whether it is a file of ours, of this version, and can be shared."""
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID:
            raise StoreError(
                f"{self.path} was not made by django-tasks-local, which leaves it as "
                "it is. Name another file in STORE_OPTIONS['PATH'], or remove this one."
            )
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != self._schema_version:
            raise StoreError(
                f"{self.path} was made by another version of django-tasks-local (its "
                f"schema is {version}, this version's is {self._schema_version}). "
                "Install that version again, or name another file in "
                "STORE_OPTIONS['PATH']."
            )
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{self.path} lies on a file system that processes cannot share it on "
                f"(SQLite's journal mode stays {mode!r} instead of 'wal'), as network "
                "file systems are. Name a file on a local disk in "
                "STORE_OPTIONS['PATH']."
            )

    def _make(self) -> None:
        """Make the file, complete and for its user alone, unless another is faster."""
        directory = self.path.parent
        try:
            number, name = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=directory)
        except OSError as err:
            raise StoreError(
                f"{self.path} cannot be made: {err.strerror}. Its directory has to be "
                "there, and to be writable."
            ) from err
        os.close(number)
        new = Path(name)
        try:
            with closing(self._connect(new)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN; {self._schema}; COMMIT")
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {self._schema_version}")
            with suppress(FileExistsError):
                os.link(new, self.path)
        except OSError as err:
            raise StoreError(f"{self.path} cannot be made: {err.strerror}.") from err
        finally:
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    os.unlink(f"{new}{suffix}")

    @contextmanager
    def _explaining(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as err:
            raise StoreError(f"{self.path}: {_explain(err)}") from err

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        _close(writer)

    def _close_connections(self) -> None:
        self._close_writer()
        _close(self._reader)
        _close(self._observer)
        self._reader = self._observer = None

    def _make_locks(self) -> None:
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._observing = threading.Lock()

    # Around a fork.

    def before_fork(self) -> None:
        """Have nothing open, and nobody who opens it."""
        self._held = [
            lock
            for lock in (self._writing, self._reading, self._observing)
            if lock.acquire(timeout=_BUSY_S)
        ]
        if len(self._held) == 3:
            self._close_connections()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        for lock in self._held:
            lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew, without the threads that have waited."""
        self._waiting.clear()
        self._make_locks()


class _Write:
    """What a thread wants written."""

    __slots__ = ("_work", "error", "has_run", "is_done", "result")

    def __init__(self, work: Callable[[sqlite3.Connection], object]) -> None:
        self._work = work
        self.result: object = None
        self.error: Exception | None = None
        self.has_run = False
        self.is_done = False

    def do(self, db: sqlite3.Connection, *, is_alone: bool) -> None:
        """Do it, within a transaction; what goes wrong with it alone is its own."""
        self.error = None
        if not is_alone:
            db.execute("SAVEPOINT one")
        try:
            self.result = self._work(db)
        except Exception as err:
            if type(err) in (sqlite3.OperationalError, sqlite3.DatabaseError):
                raise  # the file's, or the disk's
            self.error = err
            db.execute("ROLLBACK" if is_alone else "ROLLBACK TO one")
            if is_alone:
                db.execute("BEGIN")
        if not is_alone:
            db.execute("RELEASE one")
        self.has_run = True


def _has_run(write: _Write) -> bool:
    return write.has_run


def _close(db: sqlite3.Connection | None) -> None:
    if db is not None:
        with suppress(sqlite3.Error):
            db.close()


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# By SQLite's primary result codes.
_EXPLANATIONS = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_READONLY: "it cannot be written: the file, its directory or its "
    "disk is read-only for this process",
    sqlite3.SQLITE_PERM: "it cannot be read: this process may not",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: this process has to be able to "
    "read and write the file and its directory",
    sqlite3.SQLITE_CORRUPT: "it is damaged. Move it away, and a new one is made; the "
    "sqlite3 program's '.recover' may save what was in it",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database. Name another file in "
    "STORE_OPTIONS['PATH']",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {_BUSY_S:.0f} "
    "seconds",
    sqlite3.SQLITE_IOERR: "its disk cannot be read or written",
    sqlite3.SQLITE_PROTOCOL: "its file system cannot lock it, as network file systems "
    "cannot",
}


def _explain(err: sqlite3.Error) -> str:
    code = getattr(err, "sqlite_errorcode", 0) & 0xFF
    explanation = _EXPLANATIONS.get(code)
    return f"{explanation} ({err})." if explanation else f"{err}."


_all_files = weakref.WeakSet[SqliteFile]()
_forking: list[SqliteFile] = []


def _before_fork() -> None:
    _forking.extend(_all_files)
    for file in _forking:
        file.before_fork()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().after_fork_in_parent()


def _after_fork_in_child() -> None:
    while _forking:
        _forking.pop().after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
