"""How the locks are taken that many threads run through."""

import threading
import time

__all__ = ["give_way"]


def give_way(lock: threading.Lock, /) -> None:
    """Let other threads run while a lock is taken. To be called before taking it.

    A contended lock is handed to a thread that still has to wait for the interpreter
    (the GIL). The running thread then finds the lock taken at its next use and has to
    give way, and so on: once two threads have met, they change places at each use (a
    lock convoy), which took twice the time of all the rest of a small task. Who gives
    way first hardly ever meets another.

    It is not part of a lock's own ``__enter__``: only a lock written in C is sure to
    be released when a signal's handler raises, as Ctrl-C does.
    """
    while lock.locked():
        time.sleep(0)
