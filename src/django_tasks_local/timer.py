"""Has something done when it is time: what waits until then runs on no other thread."""

import threading
import time
from collections.abc import Callable

from .logs import log_exception

__all__ = ["Timer"]


class Timer:
    """Calls `ring` when it is time, on a thread that exists only while that is awaited.

    `ring` does what is due, and returns in how many seconds it wants to be called again
    at the latest; None for not at all. It is called by the timer's own daemon thread
    only, and may itself call the timer's methods. Times are those of a clock that
    nobody sets (`time.monotonic`).
    """

    def __init__(
        self,
        ring: Callable[[], float | None],
        /,
        *,
        name: str,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        """`at_end` is called by each thread before it ends."""
        self._ring = ring
        self._at_end = at_end
        self._name = name
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._ring_at: float | None = None  # no thread: None
        self._has_ended = False

    def wake_in(self, seconds: float, /) -> bool:
        """Have `ring` called in that many seconds at the latest; at once from 0 down.

        Any thread may call it, and does not wait. False when nothing will ring: `end`
        was called, or no thread can be started.
        """
        ring_at = time.monotonic() + seconds
        planned = self._ring_at
        if planned is not None and planned <= ring_at and not self._has_ended:
            return True  # that ring has yet to begin: it sees what is there now
        with self._lock:  # decides whether the thread wakes early enough by itself
            if self._has_ended:
                return False
            if self._thread is None:
                return self._start(ring_at)
            if self._ring_at is None or ring_at < self._ring_at:
                self._ring_at = ring_at
                self._changed.notify()
            return True

    def end(self, *, timeout_s: float = 0.0) -> None:
        """Let no other ring begin, and the thread end. May be called twice.

        A ring that has begun goes on; it is waited for `timeout_s` seconds at most.
        """
        with self._lock:
            self._has_ended = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _start(self, ring_at: float) -> bool:
        """Start a thread. With the lock held, so that nobody counts on it too early."""
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is ending, or the system has no thread left.
            return False
        self._thread = thread
        self._ring_at = ring_at
        return True

    def _work(self) -> None:
        seconds = None
        while self._wait(seconds):
            try:
                seconds = self._ring()
            except BaseException:  # the thread must not die: others count on it
                seconds = None
                log_exception("Timer %r: what it calls has failed", self._name)
        if self._at_end is not None:
            self._at_end()

    def _wait(self, seconds: float | None) -> bool:
        """Block until it is time, in `seconds` at the latest; False: end the thread."""
        ring_at = None if seconds is None else time.monotonic() + seconds
        with self._lock:  # decides whether to ring, to wait, or to end the thread
            if self._thread is not threading.current_thread():
                return False  # Ctrl-C came while it was started: nobody counts on it
            if self._ring_at is None or (
                ring_at is not None and ring_at < self._ring_at
            ):
                self._ring_at = ring_at
            while self._ring_at is not None and not self._has_ended:
                patience_s = self._ring_at - time.monotonic()
                if patience_s <= 0:
                    self._ring_at = None
                    return True
                self._changed.wait(min(patience_s, threading.TIMEOUT_MAX))
            self._thread = self._ring_at = None
            return False
