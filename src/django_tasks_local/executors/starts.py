"""When a worker process may be started, after others could not be."""

import threading
import time
from collections.abc import Callable

__all__ = ["Starts"]

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0


class Starts:
    """Spaces the starts of worker processes while none succeeds.

    A project that cannot be imported would else be imported again and again, once for
    each task. All threads of an executor share one.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._pause_s = 0.0
        self._not_before = clock()
        self._is_over = False

    @property
    def wait_s(self) -> float:
        """How many seconds a start has to wait from now on."""
        return max(0.0, self._not_before - self._clock())

    def wait(self) -> None:
        """Block until a start may be tried, or `end` was called."""
        with self._changed:
            while not self._is_over and self.wait_s > 0:
                self._changed.wait(self.wait_s)

    def failed(self) -> None:
        """The next one waits twice as long as this one had to."""
        with self._changed:
            if self.wait_s > 0:
                return  # of several tried at once another has failed already
            self._pause_s = min(
                max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S
            )
            self._not_before = self._clock() + self._pause_s

    def succeeded(self) -> None:
        """Nothing has to wait."""
        with self._changed:
            self._pause_s = 0.0
            self._not_before = self._clock()
            self._changed.notify_all()

    def end(self) -> None:
        """Nobody waits any more: the executor ends."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
