"""Who lives among the processes that share a database, of one machine or of several."""

import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

from django.db import connections
from django.db.backends.sqlite3.base import DatabaseWrapper as SqliteWrapper
from django.db.models.functions import Now

from ...connections import close_connections
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
    if isinstance(connection, SqliteWrapper) and not connection.is_in_memory_db():
        # All who have the file see what is beside it.
        directory = Path(f"{Path(str(settings['NAME'])).absolute()}-owners")
        return Leases(using, directory=directory, has_rows=False)
    which = repr([str(settings.get(key)) for key in ("HOST", "PORT", "NAME")])
    name = hashlib.sha256(which.encode()).hexdigest()[:16]
    return Leases(using, directory=_own_directory(name), has_rows=True)


def _own_directory(name: str) -> Path | None:
    """One that all of this user's processes know; None where others could meddle."""
    user = os.getuid()
    directory = Path(tempfile.gettempdir()) / f"django-tasks-local-{user}-{name}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError:
        return None
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == user
    return directory if is_ours and not status.st_mode & 0o022 else None


class Leases:
    """Which owners live: by locked files, and by leases where those cannot be seen.

    An `Ownership`. Whoever finds an owner's file knows, at once, whether that lives.
    Of an owner of another machine, or another container, there is no file here: it has
    a row in the database, which it renews every 10 s by the database's clock, and is
    dead when it has not for 30 s. That is believed only by a process which has itself
    reached the database for as long: after an outage everybody's rows are old.
    """

    def __init__(
        self,
        using: str,
        /,
        *,
        directory: Path | None,
        has_rows: bool,
        lease_s: float = _LEASE_S,
    ) -> None:
        """`directory`: of the files; `has_rows`: there may be other directories."""
        self._using = using
        self._files = None if directory is None else LockFiles(directory)
        self._has_rows = has_rows
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._watching_since_s = self._seen_at_s = -lease_s

    def hold(self, owner: str, /) -> None:
        if self._files is not None:
            self._files.hold(owner)
        if self._has_rows:
            self._apart(partial(self._renew_row, owner))
        with self._lock:
            self._held.add(owner)
        self._bury_all()

    def renew(self) -> float | None:
        if not self._has_rows:
            return None
        with self._lock:
            held = list(self._held)
        for owner in held:
            self._apart(partial(self._renew_row, owner))
        return self._lease_s / _RENEWALS

    def is_alive(self, owner: str, /) -> bool:
        with self._lock:
            if owner in self._held:
                return True
        if self._files is not None and (not self._has_rows or self._files.knows(owner)):
            return self._files.is_alive(owner)
        with explaining(self._using):
            rows = OwnerLease.objects.using(self._using).filter(owner=owner)
            if not rows.exists():  # it has released its tasks
                return False
            if time.monotonic() - self._watching_since_s < self._lease_s:
                return True  # nobody could have renewed it, for all that is known
            lease = timedelta(seconds=self._lease_s)
            return not rows.filter(renewed_at__lt=Now() - lease).exists()

    def release(self, owner: str, /) -> None:
        with self._lock:
            if owner not in self._held:
                return
            self._held.discard(owner)
        if self._files is not None:
            self._files.release(owner)
        if self._has_rows:
            self._apart(partial(self._drop_row, owner))

    def bury(self, owner: str, /) -> None:
        if self._files is not None:
            self._files.bury(owner)
        if self._has_rows:
            self._apart(partial(self._drop_row, owner))

    def _bury_all(self) -> None:
        """Keep nothing of those who died with nothing unfinished: nobody adopts them.

        Those of another machine are left for so long that no outage is mistaken.
        """
        if self._files is not None:
            for owner in self._files.dead():
                self.bury(owner)
        if self._has_rows:
            self._apart(self._drop_old_rows)

    def _drop_old_rows(self) -> None:
        rows = OwnerLease.objects.using(self._using)
        rows.filter(renewed_at__lt=Now() - _FORGOTTEN).delete()

    def _renew_row(self, owner: str) -> None:
        rows = OwnerLease.objects.using(self._using)
        if not rows.filter(owner=owner).update(renewed_at=Now()):
            rows.create(owner=owner)
        now_s = time.monotonic()
        if now_s - self._seen_at_s > self._lease_s:
            self._watching_since_s = now_s
        self._seen_at_s = now_s

    def _drop_row(self, owner: str) -> None:
        OwnerLease.objects.using(self._using).filter(owner=owner).delete()

    def _apart(self, work: Callable[[], None]) -> None:
        """Do it whatever becomes of a transaction of the caller's."""
        with explaining(self._using):
            if not connections[self._using].in_atomic_block:
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
