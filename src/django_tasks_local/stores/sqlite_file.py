"""A file of results, kept with `sqlite3`: reading it, and writing in turn."""

import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

from ..errors import StoreError
from .sqlite_opening import (
    BUSY_S,
    Connection,
    Identity,
    Opener,
    explain,
    identity_of,
)

__all__ = ["SqliteFile"]

_LOOK_S = 0.1


class SqliteFile:
    """One file, and this process's connections to it. Any thread may call any method.

    Made at the first use, with `schema`, whose version stands in the file. Nothing of
    it is left open when the process forks: SQLite's locks do not survive that.

    Where the file is removed, or another one takes its place, that is noticed within a
    tenth of a second. What is written until then goes where the old one has gone.
    """

    def __init__(
        self, path: Path, /, *, schema: str, schema_version: int, synchronous: str
    ) -> None:
        self.path: Path = path
        self._opener = Opener(
            path,
            schema=schema,
            schema_version=schema_version,
            synchronous=synchronous,
        )
        self._to_be_parted = 0
        self._begin()
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._observer: Connection | None = None
        self._observers = 0
        self._identity: Identity | None = None
        self._looks_at_s = 0.0  # at its path again, by the monotonic clock
        self._is_closed = False
        self._is_lost = False
        _all_files[id(self)] = self

    def write[R](
        self,
        work: Callable[[sqlite3.Connection], R],
        /,
        *,
        then: Callable[[], None] | None = None,
        is_single: bool = False,
    ) -> R:
        """What `work` returns, once what it has written is in the file.

        That is written whole or not at all. Works of several threads that come together
        are committed together. Calls `then` once it is written, also where Ctrl-C comes
        just then. Raises what both raise, and StoreError.

        With `is_single`, one statement of `work` at most writes anything: SQLite itself
        does that whole or not at all, without a transaction around it.
        """
        write = _Write(work, is_single=is_single)
        interruption = None
        try:
            if self._waiting or self._alone or not self._has_turn(write):
                self._waiting.append(write)
            else:
                self._write_some(write, [write])
            while not write.is_done:
                # Who is woken for a turn may find that another has come first, and has
                # done all that waits: between its waking and its running again lies a
                # wait for the interpreter, during which nobody would write.
                if not self._alone and self._has_turn(write):
                    self._write_some(write)
                else:
                    write.woken.acquire()
            error = write.error
        except BaseException as err:  # Ctrl-C
            if self._take_back(write) or write.error is not None:
                raise
            interruption = err
            error = None
        # From here on to `then` nothing is called, so that no Ctrl-C comes.
        if error is not None:
            if isinstance(error, StoreError):  # others get it too
                raise StoreError(str(error)) from error.__cause__
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self.path}: {explain(error)}") from error
            raise error
        if then is not None:
            then()
        if interruption is not None:
            raise interruption
        return cast("R", write.result)  # `work`'s

    def read(self, query: str, *parameters: object) -> list[tuple[object, ...]]:
        """The rows of a query. Raises StoreError."""
        with self._reading, self._explaining():
            db = self._reader = self._usable(self._reader)
            try:
                return _rows(db, query, parameters)
            except sqlite3.Error:
                self._reader = None
                self._looks_at_s = 0.0
                _close(db)
                raise

    def version(self) -> int:
        """Another number once anybody has written. Raises StoreError."""
        with self._observing, self._explaining():
            before, self._observer = self._observer, self._usable(self._observer)
            if self._observer is not before:
                self._observers += 1
            (number,) = self._observer.execute("PRAGMA data_version").fetchone()
            # The number says nothing to those who have seen another connection's.
            return (self._observers << 32) + int(number)

    def close(self) -> None:
        """Close it for good. A second call does nothing."""
        turn = _Turn()
        try:
            self._alone.append(turn)
            while not self._has_turn(turn):
                turn.woken.acquire()
            with self._reading, self._observing:
                self._is_closed = True
                self._close_connections()
            self._end_turn(turn)
        except BaseException:  # Ctrl-C
            self._end_turn(turn)
            raise

    # Writing in turn. Ctrl-C may come between any two lines of it: then what has been
    # committed is done, and all else waits again.
    #
    # Whoever comes while nobody has the turn takes it, and does what is in `_waiting`.
    # The others wait to be woken: with what they want done, or for a turn. Each at a
    # lock of its own: at one for all, each would be woken for its turn at it, though
    # nothing was left to do. As the turn is but an entry with a name, ending one twice
    # does no harm.

    def _write_some(self, turn: "_Write", writes: "Sequence[_Write]" = ()) -> None:
        """Do `writes`, all that waits, and what comes meanwhile; then end the turn.

        Where that raises, the turn is still to be ended (`_take_back`).

        In one transaction: where one of several fails, nothing is written, and each of
        them is done by itself at the next calls.
        """
        if turn.is_done:  # by another, just now
            self._end_turn(turn)
            return
        limit = None
        if self._to_be_parted:
            limit = 1
            self._to_be_parted -= 1
        batch = _Batch(writes)
        db = None
        must_be_parted = False
        try:
            try:
                db = self._writer = self._usable(self._writer)
                if self._waiting and not (limit and writes):
                    batch.take(self._waiting, limit)
                if db.in_transaction:  # as several interrupts at once may leave it
                    db.execute("ROLLBACK")
                # Only one's own: where Ctrl-C comes, its result is not known.
                if batch.writes == [turn] and turn.is_single:
                    batch.changes_before = db.total_changes
                    limit = 1
                else:
                    db.execute("BEGIN IMMEDIATE")
                for write in batch.writes:
                    if not write.do(db):
                        if db.in_transaction:
                            db.execute("ROLLBACK")
                        must_be_parted = len(batch.writes) > 1
                        break
                    if limit is None and self._waiting:
                        batch.take(self._waiting)
                else:
                    if db.in_transaction:
                        batch.has_run = True
                        try:
                            db.execute("COMMIT")
                        except sqlite3.Error:
                            batch.has_run = False
                            raise
            except (sqlite3.Error, StoreError) as err:
                batch.changes_before = None  # a closed connection does not tell them
                self._close_writer()
                # For those too that could not even be taken.
                batch.take(self._waiting)
                batch.error = err
            if not must_be_parted:
                batch.is_done = True
                self._end_turn(turn, batch.writes)
        except BaseException:
            if db is not None and batch.is_in_file(db):
                batch.is_done = True
            if batch.is_done:
                self._end_turn(turn, batch.writes)
            else:
                self._close_writer()  # which rolls it back
                self._waiting.extendleft(reversed(batch.writes))
            raise
        if must_be_parted:
            # Not by `reversed`: after that call a Ctrl-C could come.
            rest = batch.writes[::-1]
            self._waiting.extendleft(rest)
            self._to_be_parted = len(rest)
            self._end_turn(turn)

    def _take_back(self, write: "_Write") -> bool:
        """Whether nobody has done it, nor will."""
        try:
            if self._forget(write):
                return True
            # Whoever has taken it has to be through with it.
            self._alone.append(write)
            while not write.is_done and not self._has_turn(write):
                write.woken.acquire()
            if write.is_done:
                return False
            self._forget(write)  # it was put back, or has never waited
            return True
        finally:
            self._end_turn(write)

    def _forget(self, write: "_Write") -> bool:
        """Whether it was still to be taken."""
        try:
            self._waiting.remove(write)
        except ValueError:
            return False
        return True

    def _has_turn(self, turn: "_Turn") -> bool:
        """Whether it is its turn, from now on if it was nobody's."""
        return self._turn.setdefault("whose", turn) is turn  # at once

    def _end_turn(self, turn: "_Turn", done: "Sequence[_Turn]" = ()) -> None:
        """Wake those that are done, after whoever may be the next."""
        if self._alone:
            with suppress(ValueError):
                self._alone.remove(turn)
        if self._turn.get("whose") is turn:
            del self._turn["whose"]
        waiting = self._alone or self._waiting
        if waiting:
            with suppress(IndexError):  # it has gone just now
                waiting[0].wake()
        for each in done:
            if each is not turn:
                each.wake()

    # Its connections.

    def _usable(self, db: Connection | None) -> Connection:
        """The connection, or a new one where the file is not the same any more."""
        now_s = time.monotonic()
        if now_s >= self._looks_at_s:
            self._identity = identity_of(self.path)
            self._looks_at_s = now_s + _LOOK_S
        if db is not None and db.identity == self._identity:
            return db
        _close(db)
        return self._open()

    def _open(self) -> Connection:
        if self._is_closed:
            raise StoreError(f"The store in {self.path} was closed.")
        if self._is_lost:
            raise StoreError(
                f"{self.path} cannot be used in this process, which was forked while "
                f"its parent had been using it for {BUSY_S:.0f} seconds."
            )
        db = self._opener.open()
        self._identity = db.identity
        return db

    @contextmanager
    def _explaining(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as err:
            raise StoreError(f"{self.path}: {explain(err)}") from err

    def _close_writer(self) -> None:
        self._looks_at_s = 0.0
        _close(self._writer)
        self._writer = None  # only now, or after Ctrl-C nobody would close it

    def _close_connections(self) -> None:
        self._close_writer()
        _close(self._reader)
        _close(self._observer)
        self._reader = self._observer = None

    def _begin(self) -> None:
        self._turn: dict[str, _Turn] = {}
        self._waiting: deque[_Write] = deque()
        # Those who want nobody to write meanwhile.
        self._alone: deque[_Turn] = deque()
        self._to_be_parted = 0
        self._reading = threading.Lock()
        self._observing = threading.Lock()

    # Around a fork.

    def before_fork(self, held: list[Callable[[], None]]) -> None:
        """Have nothing open, and nobody who opens it; adds what ends that."""
        turn = _Turn()
        held.append(partial(self._end_turn, turn))
        self._alone.append(turn)
        until_s = time.monotonic() + BUSY_S
        while not self._has_turn(turn):
            if not turn.woken.acquire(timeout=max(0.0, until_s - time.monotonic())):
                return
        for lock in (self._reading, self._observing):
            if not lock.acquire(timeout=BUSY_S):
                return
            held.append(lock.release)
        self._close_connections()

    def after_fork_in_child(self) -> None:
        """Begin anew, without the threads that have waited."""
        self._begin()
        if self._writer or self._reader or self._observer:
            # They are the parent's. To close them could take its locks away, and what
            # SQLite knows of the file is wrong here.
            _parents.extend((self._writer, self._reader, self._observer))
            self._writer = self._reader = self._observer = None
            self._is_lost = True


class _Batch:
    """What is written in one transaction."""

    __slots__ = ("changes_before", "error", "has_run", "is_done", "writes")

    def __init__(self, writes: "Sequence[_Write]") -> None:
        self.writes: list[_Write] = [*writes]
        self.error: sqlite3.Error | StoreError | None = None
        self.changes_before: int | None = None
        """Of a single write without a transaction."""
        self.has_run = False
        self.is_done = False
        for write in writes:
            write.batch = self

    def is_in_file(self, db: sqlite3.Connection) -> bool:
        """Whether it was committed, wherever Ctrl-C has come."""
        if self.changes_before is not None:  # SQLite counts those that are committed
            return db.total_changes > self.changes_before
        return self.has_run and not db.in_transaction

    def take(self, waiting: "deque[_Write]", limit: int | None = None) -> None:
        """Take all that wait, or so many."""
        count = len(self.writes)
        some = islice(
            iter(waiting.popleft, None), len(waiting) if limit is None else limit
        )
        with suppress(IndexError):  # one was taken back just now
            # In one call, within which no Ctrl-C comes: or one could be lost.
            self.writes.extend(some)
        for write in self.writes[count:]:
            write.batch = self


class _Turn:
    """What a thread has that wants to write, or that nobody does meanwhile."""

    __slots__ = ("woken",)

    def __init__(self) -> None:
        self.woken = threading.Lock()
        self.woken.acquire()

    def wake(self) -> None:
        """Have its thread look how it stands, if it waits."""
        with suppress(RuntimeError):  # it was woken before
            self.woken.release()


class _Write(_Turn):
    """What a thread wants written."""

    __slots__ = ("_error", "_work", "batch", "is_single", "result")

    def __init__(
        self, work: Callable[[sqlite3.Connection], object], *, is_single: bool
    ) -> None:
        super().__init__()
        self.is_single = is_single
        self._work = work
        self._error: Exception | None = None
        self.batch: _Batch | None = None
        self.result: object = None

    @property
    def is_done(self) -> bool:
        """Whether it is in the file, or has failed."""
        return self.batch is not None and self.batch.is_done

    @property
    def error(self) -> Exception | None:
        """Why it has failed."""
        batch_error = None if self.batch is None else self.batch.error
        return batch_error or self._error

    def do(self, db: sqlite3.Connection) -> bool:
        """Do it. False where it fails and the file does not."""
        self._error = None
        try:
            self.result = self._work(db)
        except Exception as err:
            if type(err) in (sqlite3.OperationalError, sqlite3.DatabaseError):
                raise  # the file's, or the disk's
            self._error = err
            return False
        return True


def _close(db: sqlite3.Connection | None) -> None:
    if db is not None:
        with suppress(sqlite3.Error):
            db.close()


def _rows(
    db: sqlite3.Connection, query: str, parameters: tuple[object, ...]
) -> list[tuple[object, ...]]:
    try:
        return db.execute(query, parameters).fetchall()
    except sqlite3.OperationalError as err:
        if "decode" not in str(err):
            raise
        # Somebody has put other bytes in the place of a text. Who reads the rows sees
        # in which.
        db.text_factory = _text_or_bytes
        try:
            return db.execute(query, parameters).fetchall()
        finally:
            db.text_factory = str


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# By their ids: of these the references can be listed while another thread adds one.
_all_files = weakref.WeakValueDictionary[int, SqliteFile]()
# Of the threads that are forking: what lets others go on.
_forking: dict[int, list[Callable[[], None]]] = {}
# Connections that nobody here may touch.
_parents: list[Connection | None] = []


def _files() -> list[SqliteFile]:
    found = [reference() for reference in _all_files.valuerefs()]
    # In one order, so that two who fork at once do not wait for each other.
    return sorted((file for file in found if file is not None), key=id)


def _before_fork() -> None:
    held = _forking[threading.get_ident()] = []
    for file in _files():
        file.before_fork(held)


def _after_fork_in_parent() -> None:
    for let_go in _forking.pop(threading.get_ident(), ()):
        let_go()


def _after_fork_in_child() -> None:
    _forking.clear()
    for file in _files():
        file.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
