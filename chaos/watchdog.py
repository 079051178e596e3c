"""Ends a run that hangs, and shows where."""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .processes import children_of, marked
from .visitors import Site

__all__ = ["Watchdog"]

_STALL_S = 60.0
_LOOK_S = 1.0


class Watchdog:
    """Ends the process when `progress` says the same for a minute.

    All threads' stacks are shown before, here and in the web workers.
    """

    def __init__(self, progress: Callable[[], object]) -> None:
        self._progress = progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog")
        self.site: Site | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen: object = None
        stalled_s = 0.0
        while not self._over.wait(_LOOK_S):
            # For the case that no thread of Python's can run any more.
            faulthandler.dump_traceback_later(2 * _STALL_S, exit=True)
            now = self._progress()
            stalled_s = stalled_s + _LOOK_S if now == seen else 0.0
            seen = now
            if stalled_s > _STALL_S:
                self._bite(now)

    def _bite(self, progress: object) -> None:
        print(f"Nothing has happened for {_STALL_S:.0f} s: {progress}", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        if self.site is not None:
            for pid in children_of(self.site.pid):
                os.kill(pid, signal.SIGUSR2)
            self._over.wait(_LOOK_S)  # until they have told
            print("".join(self.site.log), file=sys.stderr)
        for pid in marked():
            os.kill(pid, signal.SIGKILL)
        os._exit(2)
