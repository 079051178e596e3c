"""Who lives, told by locks that the kernel lets go of when their process ends."""

import fcntl
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from ..errors import StoreError

__all__ = ["LockFiles"]

_SUFFIX = ".lock"


class LockFiles:
    """A file for each owner that lives, in one directory. An `Ownership`.

    Whoever can open the files can tell: the processes of one machine, in containers
    too where they share the directory. A file is locked as long as its owner lives,
    and goes with it, or later by `bury`; the directory goes with the last one.
    """

    def __init__(self, directory: Path, /) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        _all_files.add(self)

    def hold(self, owner: str, /) -> None:
        path = self._path(owner)
        with self._lock:
            if owner in self._held:  # Ctrl-C came before that could be noted
                return
        try:
            # Under its name it is always locked, or its owner has died.
            new = path.with_suffix(".new")
            file = self._make(new)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with self._lock:
                    self._held[owner] = file
                os.rename(new, path)
            except BaseException:
                with self._lock:
                    self._held.pop(owner, None)
                new.unlink(missing_ok=True)
                self.bury(owner)
                os.close(file)
                raise
        except OSError as err:
            raise StoreError(
                f"{path} cannot be made and locked, by which other processes see that "
                f"this one lives: {err}"
            ) from err

    def _make(self, new: Path) -> int:
        while True:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._check()
            # The last one of others may have taken the directory away since.
            with suppress(FileNotFoundError):
                return os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def _check(self) -> None:
        """Whether nobody else can take files away there, as in a shared directory."""
        with suppress(FileNotFoundError):  # the next round makes it again
            status = os.stat(self._directory, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise StoreError(
                    f"{self._directory} belongs to somebody else. Remove it, or run "
                    "all processes as one user."
                )

    def renew(self) -> float | None:
        return None

    def is_alive(self, owner: str, /) -> bool:
        with self._lock:
            if owner in self._held:
                return True
        return _is_locked(self._path(owner))

    def knows(self, owner: str, /) -> bool:
        """Whether its file is here, so that `is_alive` is certain either way."""
        return self._path(owner).exists()

    def release(self, owner: str, /) -> None:
        with self._lock:
            file = self._held.pop(owner, None)
        if file is not None:
            self.bury(owner)
            os.close(file)

    def unlock(self, owner: str, /) -> None:
        """Leave its file there, which says that it has died."""
        with self._lock:
            file = self._held.pop(owner, None)
        if file is not None:
            os.close(file)

    def bury(self, owner: str, /) -> None:
        with suppress(OSError):
            self._path(owner).unlink()
        with suppress(OSError):  # others have files there
            self._directory.rmdir()

    def bury_all(self) -> None:
        """Keep nothing of any dead one, whatever it has left unfinished.

        For a store to which an owner without a file is a dead one.
        """
        for owner in self.dead():
            self.bury(owner)

    def dead(self) -> Iterator[str]:
        """Those who have died and left their file."""
        for path in self._directory.glob(f"*{_SUFFIX}"):
            if not _is_locked(path):
                yield unquote(path.name.removesuffix(_SUFFIX))

    def _path(self, owner: str) -> Path:
        return self._directory / f"{quote(owner, safe=':')}{_SUFFIX}"

    def forget(self) -> None:
        """In a fork: the locks are the parent's, and must not outlive it here."""
        self._lock = threading.Lock()
        for file in self._held.values():
            with suppress(OSError):
                os.close(file)
        self._held = {}


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:  # somebody else's, of whom nothing is known
        return True
    try:
        # Shared, so that of two that look at once each sees what is so.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


_all_files = weakref.WeakSet[LockFiles]()


def _forget_all() -> None:
    for files in _all_files:
        files.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_all)
