"""Who lives among the processes that share a database, of one machine or of several."""

import hashlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, override

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SqliteWrapper
from django.db.models.functions import Now
from django.db.models.sql.compiler import SQLCompiler

from ...connections import close_connections
from ...errors import StoreError
from ...logs import log_exception
from ...timer import Timer
from ..lock_files import LockFiles
from .errors import explaining
from .models import OwnerLease

__all__ = ["Leases", "leases_of"]

_LEASE_S = 30.0
_RENEWALS = 3  # in that time
_FORGOTTEN = timedelta(days=1)


def leases_of(using: str, /) -> "Leases":
    """The leases of a database's owners."""
    connection = connections[using]
    settings = connection.settings_dict
    which = repr([str(settings.get(key)) for key in ("HOST", "PORT", "NAME")])
    name = hashlib.sha256(which.encode()).hexdigest()[:16]
    # One that all of this user's processes know.
    directory = Path(tempfile.gettempdir(), f"django-tasks-local-{os.getuid()}-{name}")
    if isinstance(connection, SqliteWrapper):
        if not connection.is_in_memory_db():
            # All who have the file see what is beside it, by whatever links they go.
            directory = Path(f"{os.path.realpath(str(settings['NAME']))}-owners")
        return Leases(using, directory=directory, has_rows=False)
    return Leases(using, directory=directory, has_rows=True)


class _UtcNow(Now):
    """The database's time, which no server's summer time changes."""

    @override
    def as_mysql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> tuple[str, tuple[str | int, ...]]:
        template = "UTC_TIMESTAMP(6)"  # the others keep the time zone, or have none
        return self.as_sql(compiler, connection, template=template, **extra)


class Leases:
    """Which owners live: by locked files, and by leases where those cannot be seen.

    An `Ownership`. Whoever finds an owner's file knows, at once, whether that lives.
    Of an owner of another machine, or another container, there is no file here: it has
    a row in the database, which it renews every 10 s by the database's clock, and is
    dead when it has not for 30 s. That is believed only by a process which has itself
    renewed its rows in time since: after an outage everybody's are old.
    """

    def __init__(
        self,
        using: str,
        /,
        *,
        directory: Path,
        has_rows: bool,
        lease_s: float = _LEASE_S,
    ) -> None:
        """`directory`: of the files; `has_rows`: there may be other directories."""
        self._using = using
        self._files = LockFiles(directory)
        self._has_rows = has_rows
        self._lease_s = lease_s
        self._lock = threading.Lock()
        # Held, by who holds no other lock, while the rows of all are written anew.
        self._renewal = threading.Lock()
        self._held: set[str] = set()
        self._watching_since_s = self._seen_at_s = -math.inf
        # On a thread of its own: whatever else an alias does may take long.
        self._timer = Timer(
            self._renew, name="django-tasks-lease", at_end=close_connections
        )

    def hold(self, owner: str, /) -> None:
        self._files.hold(owner)
        if self._has_rows:
            self._apart(partial(self._renew_rows, [owner]))
        with self._lock:
            self._held.add(owner)
        if self._has_rows:
            self._timer.wake_in(self._lease_s / _RENEWALS)
        self._bury_all()

    def renew(self) -> float | None:
        return None

    def _renew(self) -> float | None:
        """Say that all live who are held (the timer's)."""
        try:
            with self._renewal, explaining(self._using):
                with self._lock:
                    held = list(self._held)
                if not held:
                    return None
                self._renew_rows(held)
        except StoreError:
            log_exception("Database %r: nobody sees that this lives", self._using)
        finally:
            close_connections()
        return self._lease_s / _RENEWALS

    def is_alive(self, owner: str, /) -> bool:
        with self._lock:
            if owner in self._held:
                return True
        if not self._has_rows or self._files.knows(owner):
            return self._files.is_alive(owner)
        with explaining(self._using):
            rows = OwnerLease.objects.using(self._using).filter(owner=owner)
            if not rows.exists():  # it has released its tasks
                return False
            now_s = time.monotonic()
            if (
                now_s - self._watching_since_s < self._lease_s
                or now_s - self._seen_at_s > self._lease_s / 2
            ):
                return True  # for all that is known, nobody could have renewed it
            lease = timedelta(seconds=self._lease_s)
            return not rows.filter(renewed_at__lt=_UtcNow() - lease).exists()

    def release(self, owner: str, /) -> None:
        with self._renewal:  # which could bring the row back
            try:
                with self._lock:
                    if owner not in self._held:
                        return
                    self._held.discard(owner)
                    is_over = not self._held
                if is_over:
                    self._timer.wake_in(0.0)  # it has nothing left to do
                # The row first: whoever finds the file knows, whatever becomes of it.
                if self._has_rows:
                    self._apart(partial(self._drop_row, owner))
            except BaseException:
                self._files.unlock(owner)
                raise
            self._files.release(owner)

    def bury(self, owner: str, /) -> None:
        self._files.bury(owner)
        if self._has_rows:
            self._apart(partial(self._drop_row, owner))

    def _bury_all(self) -> None:
        """Keep nothing of those who died with nothing unfinished: nobody adopts them.

        Those of another machine are left for so long that no outage is mistaken.
        """
        for owner in self._files.dead():
            self.bury(owner)
        if self._has_rows:
            self._apart(self._drop_old_rows)

    def _drop_old_rows(self) -> None:
        rows = OwnerLease.objects.using(self._using)
        rows.filter(renewed_at__lt=_UtcNow() - _FORGOTTEN).delete()

    def _renew_rows(self, owners: Sequence[str]) -> None:
        rows = OwnerLease.objects.using(self._using)
        for owner in owners:
            if not rows.filter(owner=owner).update(renewed_at=_UtcNow()):
                rows.create(owner=owner, renewed_at=_UtcNow())
        now_s = time.monotonic()
        if now_s - self._seen_at_s > self._lease_s / 2:
            self._watching_since_s = now_s
        self._seen_at_s = now_s

    def _drop_row(self, owner: str) -> None:
        OwnerLease.objects.using(self._using).filter(owner=owner).delete()

    def _apart(self, work: Callable[[], None]) -> None:
        """Do it whatever becomes of a transaction of the caller's."""
        with explaining(self._using):
            connection = connections[self._using]
            if not connection.in_atomic_block and connection.get_autocommit():
                work()
                return
            errors: list[Exception] = []

            def run() -> None:
                try:
                    work()
                except Exception as err:  # the caller's
                    errors.append(err)
                finally:
                    close_connections()

            thread = threading.Thread(target=run, name="django-tasks-lease")
            thread.start()
            thread.join()
            for err in errors:
                raise err
