"""A lock for short critical sections that many threads run through."""

import threading
import time
from collections.abc import Callable

__all__ = ["BargingLock"]


class BargingLock:
    """A mutex that a running thread may take before one that has waited longer.

    A contended `threading.Lock` is handed to a thread that still has to wait for the
    interpreter (the GIL). The running thread then finds the lock taken at its next
    use and has to give way, and so on: once two threads have met, they change places
    at each use (a lock convoy), which took twice the time of all the rest of a small
    task. Here who finds the lock taken lets others run and tries again.

    For sections that only move data: nobody may block while holding it.
    """

    __slots__ = ("_take", "release")

    def __init__(self) -> None:
        lock = threading.Lock()
        self._take = lock.acquire
        self.release: Callable[[], None] = lock.release

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; without `blocking`, False where it is taken."""
        while not self._take(False):
            if not blocking:
                return False
            time.sleep(0)  # gives the interpreter to another thread
        return True

    def __enter__(self) -> None:
        while not self._take(False):
            time.sleep(0)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.release()
