"""Waiting for what other processes bring on, by looking it up again and again.

One poller for each alias, which looks for all who wait in this process at once.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import override

from django.tasks import task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.backends.dummy import DummyBackend

from .async_bridge import RemoteCompletion
from .connections import close_connections
from .foreign_results import aget_result, get_result, record_of
from .interruption import out_of_reach
from .records import Record
from .timer import Timer

__all__ = ["PolledResult"]

_FIRST_POLL_S = 0.01
_LONGEST_POLL_S = 0.5


class PolledResult(RemoteCompletion):
    """The `Waitable` of a result that nothing in this process brings to its end.

    Whoever waits with it has looked it up first: what is finished already needs no
    poller.
    """

    __slots__ = ()

    @override
    def latest(self) -> Record:
        """Look it up."""
        record = self.record
        with out_of_reach:  # Django's look-up takes a lock that all threads need
            backend = task_backends[record.alias]
        return self.take(record_of(get_result(backend, record.id)))

    @override
    async def alatest(self) -> Record:
        """The same without blocking."""
        record = self.record
        backend = task_backends[record.alias]
        return self.take(record_of(await aget_result(backend, record.id)))

    def take(self, record: Record, /) -> Record:
        """Take what a look-up has found, and wake whom it wakes; the latest record."""
        if not record.owner:  # of a backend that counts no revisions
            kept = self.record
            record = record._replace(revision=kept.revision)
            if record == kept:
                return kept
            record = record._replace(revision=kept.revision + 1)
        if record.is_finished:
            self.finish(record)
        else:
            self.see(record)
        return self.record

    def hear(self, seen: Record | BaseException, /) -> bool:
        """Take what a look-up has found or raised; whether that is news."""
        if isinstance(seen, BaseException):
            self.fail(seen)
            return True
        before = self.record
        return self.take(seen) is not before

    def check_that_it_ever_runs(self) -> None:
        """Raise RuntimeError where there is nothing to wait for."""
        record = self.record
        if isinstance(task_backends[record.alias], DummyBackend):
            raise RuntimeError(
                f"Task {record.id} never runs: TASKS[{record.alias!r}] is a "
                "DummyBackend, which only keeps what was enqueued."
            )

    @override
    def add_waiter(
        self, wake: Callable[[], None], /, *, revision: int | None = None
    ) -> bool:
        """As `Completion.add_waiter`; raises RuntimeError where no thread can start."""
        if not super().add_waiter(wake, revision=revision):
            return False
        try:
            with out_of_reach:
                _poller_of(self.record.alias).add(self)
        except BaseException:
            self.remove_waiter(wake)
            raise
        return True

    @override
    def remove_waiter(self, wake: Callable[[], None], /) -> None:
        super().remove_waiter(wake)
        if not self.is_waited_for:
            with out_of_reach:
                _poller_of(self.record.alias).discard(self)

    @override
    def wait(
        self,
        timeout_s: float | None,
        /,
        *,
        at_end: Callable[[], None],
        revision: int | None = None,
    ) -> bool:
        """As `Completion.wait`; looks once more at the end of a time limit."""
        if super().wait(timeout_s, at_end=at_end, revision=revision):
            return True
        if timeout_s is None or timeout_s <= 0:
            return False
        return self.latest().is_past(revision)


class _Poller:
    """Looks up, with one query a round, what is waited for under an alias.

    Its thread exists while somebody waits, and some milliseconds longer, since who has
    seen a change often waits for the next. Any thread may call any method.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._lock = threading.Lock()
        # Several of one id where it has several handles.
        self._waited_for: dict[str, set[PolledResult]] = {}
        self._pause_s = _FIRST_POLL_S
        self._timer = Timer(self._look, name=f"django-tasks-{alias}-poll")
        # What the last look was for, and what it has seen: the timer's.
        self._version: int | None = None
        self._looked_for: set[str] = set()
        self._looked_at_s = 0.0

    def add(self, result: PolledResult, /) -> None:
        """Somebody waits for it from now on: look soon."""
        with self._lock:
            self._waited_for.setdefault(result.record.id, set()).add(result)
            self._pause_s = _FIRST_POLL_S
        if not self._timer.wake_in(_FIRST_POLL_S):
            raise RuntimeError(
                f"Result {result.record.id} cannot be waited for: no thread can be "
                "started that would look it up."
            )

    def discard(self, result: PolledResult, /) -> None:
        """Perhaps nobody waits for it any more."""
        with self._lock:  # decides whether another waiter came first
            is_over = self._drop(result) and not self._waited_for
        if is_over:  # then the thread ends soon
            self._timer.wake_in(_FIRST_POLL_S)

    def _look(self) -> float | None:
        """Look up what is waited for; in how many seconds again (the timer's)."""
        with self._lock:
            for result in [*chain.from_iterable(self._waited_for.values())]:
                self._drop(result)
            waited_for = {
                result_id: tuple(results)
                for result_id, results in self._waited_for.items()
            }
            self._pause_s = min(self._pause_s * 2, _LONGEST_POLL_S)
        if not waited_for:
            close_connections()
            return None
        version = _store_version(self._alias)
        # It says when something has changed: then it can be asked often.
        if version is not None and not self._has_to_look(version, set(waited_for)):
            return _FIRST_POLL_S
        count = len(waited_for)
        has_news = goes_on = False
        for number, (result_id, seen) in enumerate(
            _look_up(self._alias, list(waited_for)), 1
        ):
            goes_on |= isinstance(seen, Record) and not seen.is_finished
            if isinstance(seen, BaseException) or (number == count and not goes_on):
                # Before anybody is told, who may drop the test database next.
                close_connections()
            for result in waited_for[result_id]:
                has_news |= result.hear(seen)
        with self._lock:
            if has_news or version is not None:
                self._pause_s = _FIRST_POLL_S
            return self._pause_s

    def _has_to_look(self, version: int, ids: set[str]) -> bool:
        """Whether there may be news since the last look (the timer's)."""
        now_s = time.monotonic()
        if (
            version == self._version
            and ids <= self._looked_for
            and now_s < self._looked_at_s + _LONGEST_POLL_S
        ):
            return False
        self._version, self._looked_for, self._looked_at_s = version, ids, now_s
        return True

    def _drop(self, result: PolledResult) -> bool:
        """Forget it, with the lock held, unless somebody waits for it."""
        result_id = result.record.id
        results = self._waited_for.get(result_id, set())
        if result.is_waited_for or result not in results:
            return False
        results.remove(result)
        if not results:
            del self._waited_for[result_id]
        return True


def _store_version(alias: str) -> int | None:
    """The number of a store that changes with its records; None where it has none."""
    try:
        version: Callable[[], int | None] | None = getattr(
            task_backends[alias], "store_version", None
        )
        return None if version is None else version()
    except Exception:  # whoever waits gets it from the look-up
        return None


def _look_up(
    alias: str, ids: Sequence[str]
) -> Iterator[tuple[str, Record | BaseException]]:
    """Each id with its record, or with what was raised for it."""
    try:
        backend = task_backends[alias]
        get_records: Callable[[Sequence[str]], Mapping[str, Record]] | None = getattr(
            backend, "get_records", None
        )
        found: Mapping[str, Record] = {}
        if get_records is not None:
            found = get_records(ids)
    except BaseException as err:  # whoever waits gets it, whatever it is
        yield from ((result_id, err) for result_id in ids)
        return
    for result_id in ids:
        yield result_id, found.get(result_id) or _look_one_up(backend, result_id)


def _look_one_up(backend: BaseTaskBackend, result_id: str) -> Record | BaseException:
    try:
        return record_of(get_result(backend, result_id))
    except BaseException as err:  # as above; the others' waiters have no part in it
        return err


# The pollers of this process, by alias.

_lock = threading.Lock()
_pollers: dict[str, _Poller] = {}


def _poller_of(alias: str) -> _Poller:
    with _lock:
        poller = _pollers.get(alias)
        if poller is None:
            poller = _pollers[alias] = _Poller(alias)
        return poller


def _begin_anew() -> None:
    """In a fork, where no thread of the parent's looks anything up."""
    global _lock, _pollers
    _lock = threading.Lock()
    _pollers = {}


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_begin_anew)
