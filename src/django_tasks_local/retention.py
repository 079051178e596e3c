"""Which finished results are forgotten, and when."""

import time

from .connections import close_connections
from .logs import log_exception
from .options import LocalOptions
from .protocols import ResultStore
from .timer import Timer

__all__ = ["Retention"]

_AT_ONCE = 500  # or who saves something meanwhile would wait for long
_BETWEEN_S = 0.05
_OFTEN_S = 10.0
_MARGIN_S = 0.01  # between two clocks


class Retention:
    """Has a store forget what ``MAX_RESULTS`` and ``RESULT_TTL`` do not keep.

    By number as soon as a task has ended, where that costs nothing; otherwise by a
    thread that exists only while something may have to go.
    """

    def __init__(self, store: ResultStore, *, alias: str, options: LocalOptions):
        self._store = store
        self._alias = alias
        self._keep = options.max_results
        self._ttl_s = options.result_ttl_s
        self._is_prompt = self._keep is not None and not _is_slow(store)
        self._is_late = self._ttl_s is not None or (
            self._keep is not None and not self._is_prompt
        )
        self._begins = self._is_late and _is_slow(store)
        self._until_s = 0.0
        self._timer = Timer(self._prune, name=f"django-tasks-{alias}-prune")

    def begin(self) -> None:
        """What others have left here may have to go. A second call does nothing."""
        if self._begins:
            self._begins = False
            self.note_end()

    def note_end(self) -> None:
        """A task has ended."""
        if self._is_prompt:
            try:
                self._store.discard(keep=self._keep)
            except Exception:  # a store's; the next task's end tries again
                log_exception("TASKS[%r]: old results stay in the store", self._alias)
        if self._is_late:
            self._until_s = time.monotonic() + (self._ttl_s or 0.0) + _MARGIN_S
            self._timer.wake_in(self._pause_s)

    def prune(self) -> int:
        """Forget what is not to be kept, all of it, now; how many went."""
        total = 0
        while count := self._discard():
            total += count
        return total

    def end(self) -> None:
        """Forget nothing more. May be called twice."""
        self._timer.end()

    @property
    def _pause_s(self) -> float:
        return _OFTEN_S if self._ttl_s is None else min(self._ttl_s, _OFTEN_S)

    def _prune(self) -> float | None:
        """Forget a few (the timer's)."""
        # Before they are looked for: or the last one could come of age in between.
        left_s = self._until_s - time.monotonic()
        try:
            if self._discard() == _AT_ONCE:
                return _BETWEEN_S
        except Exception:  # a store's, likewise
            log_exception("TASKS[%r]: old results stay in the store", self._alias)
        finally:
            close_connections()
        # Until the last one that has ended here may go.
        return max(self._pause_s, min(left_s, 3600.0)) if left_s > 0 else None

    def _discard(self) -> int:
        before = None if self._ttl_s is None else time.time() - self._ttl_s
        if before is None and self._keep is None:
            return 0
        return self._store.discard(
            finished_before=before, keep=self._keep, limit=_AT_ONCE
        )


def _is_slow(store: ResultStore) -> bool:
    """Whether it is one of those that others use too, and whose disk is waited for."""
    return store.is_shared and store.may_block and hasattr(store, "ownership")
