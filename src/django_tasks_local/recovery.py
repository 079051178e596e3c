"""Who owns an unfinished task, and taking over those of owners that have died.

For stores whose tasks outlive the process that runs them. Each state is an owner of
its own, which holds a lock or a lease for as long as it lives. Once it serves, it looks
after the others': one thread an alias does all of this.
"""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from typing import TYPE_CHECKING, Protocol, cast

from .connections import close_connections
from .logs import log_exception, log_info
from .protocols import OwnedResultStore, ResultStore
from .records import Record
from .timer import Timer

if TYPE_CHECKING:
    from .protocols import Ownership

__all__ = ["Recovery", "TaskOwner", "owned_store"]

# A cancel request of another process is seen after so many seconds at the latest, and
# that an owner has died.
_LOOK_S = 0.5
# Where each look is a query of a database's.
_SLOW_LOOK_S = 0.9
_FAILING_S = 2.0
_LEAVE_S = 1.0
_CLAIMED_AT_ONCE = 200


def owned_store(store: ResultStore, /) -> OwnedResultStore | None:
    """The store, if its tasks can be taken over."""
    # Its other methods are there then, which nobody can check at run time.
    return cast("OwnedResultStore", store) if hasattr(store, "ownership") else None


class TaskOwner(Protocol):
    """What recovery needs of the one who runs an alias's tasks in this process."""

    @property
    def has_tasks(self) -> bool:
        """Whether any of its tasks waits or runs."""
        ...

    def adopt(self, records: Sequence[Record], /, *, owner: str) -> int:
        """Take over tasks of a dead owner's; how many these were."""
        ...

    def heed_cancel_request(self, record: Record, /) -> None:
        """Another process wants one of its own tasks to stop."""
        ...

    def save_missed(self) -> None:
        """Save the ends that the store has failed to save.

        Raises what the store raises.
        """
        ...

    def see_to_own(self, *, owner: str) -> None:
        """Mend what a store that failed has left of its own tasks.

        Raises what the store raises.
        """
        ...


class Recovery:
    """Holds an owner's name, and looks after its tasks and those of dead owners."""

    def __init__(
        self, store: OwnedResultStore, *, alias: str, owner: str, tasks: TaskOwner
    ) -> None:
        self._store = store
        self._alias = alias
        self._owner = owner
        self._tasks = tasks
        self._lock = threading.Lock()
        # Held while somebody leaves: who comes second may be about to end the process.
        self._leaving = threading.Lock()
        # By id, what somebody waits for who knows of no owner that would cancel it.
        self._to_cancel: dict[str, Record] = {}
        self.adopted_count: int = 0
        """How many tasks of dead owners it has taken over."""
        self._is_held = False
        self._is_serving = False
        self._has_ended = False
        self._is_failing = False
        self._renew_at_s: float | None = None
        self._timer = Timer(self._look, name=f"django-tasks-{alias}-recovery")

    def hold(self) -> None:
        """From now on others see that this owner lives.

        Raises StoreError where that cannot be had.
        """
        if not self._is_held:
            with self._lock:  # it is held once
                self._hold()

    def _hold(self) -> None:
        if not self._is_held and not self._has_ended:
            ownership = self._store.ownership
            ownership.hold(self._owner)
            self._note_renewal(ownership)
            self._is_held = True

    def serve(self) -> None:
        """Look after tasks from now on, those of dead owners among them.

        Does not wait. A second call does nothing.
        """
        if not self._is_serving:
            self._is_serving = True
            self._timer.wake_in(0.0)

    def adopt(self) -> int:
        """Take over what dead owners have left, now; how many tasks these were.

        Raises StoreError.
        """
        self.hold()
        count = sum(map(self._adopt_from, list(self._dead_owners())))
        if count:
            log_info("TASKS[%r]: %d tasks of ended processes", self._alias, count)
        return count

    def is_orphan(self, record: Record, /) -> bool:
        """Whether nobody who lives sees to an unfinished task."""
        return not self._store.ownership.is_alive(record.owner)

    def take(self, record: Record, /) -> bool:
        """Take over this one; False where another one was faster."""
        self.hold()
        return self._tasks.adopt([record], owner=self._owner) == 1

    def cancel_orphans_soon(self, records: Sequence[Record], /) -> None:
        """Have those cancelled, of tasks to be cancelled, that nobody else sees to.

        Does not wait. Whoever looks after all tasks does so anyway.
        """
        if records and not self._is_serving:
            with self._lock:
                self._to_cancel.update((record.id, record) for record in records)
            self._timer.wake_in(0.0)

    def end(self) -> None:
        """Look after nothing more. May be called twice."""
        self._timer.end()

    def release(self) -> None:
        """Leave what is unfinished to others.

        A second call waits for the first, for so long as the end of a process may take.
        """
        self.end()
        if not self._leaving.acquire(timeout=_LEAVE_S):
            return
        try:
            with self._lock:
                self._has_ended = True
            if self._is_held:
                self._leave()
        finally:
            self._leaving.release()

    def _leave(self) -> None:
        try:
            with self._logging_errors():
                self._tasks.save_missed()
        finally:  # also where Ctrl-C ends that
            with self._logging_errors():
                self._store.ownership.release(self._owner)
            self._is_held = False

    @contextmanager
    def _logging_errors(self) -> Generator[None]:
        try:
            yield
        except Exception:  # a store's
            log_exception("TASKS[%r]: leaving %s", self._alias, self._owner)

    def _adopt_from(self, owner: str) -> int:
        count = 0
        for records in batched(self._store.owned_by(owner), _CLAIMED_AT_ONCE):
            adopted = self._tasks.adopt(records, owner=self._owner)
            count += adopted
            with self._lock:  # at once: they may run already, and somebody may ask
                self.adopted_count += adopted
            self._heed_cancel_requests()  # which do not wait until all are taken
        if owner not in self._store.owners():
            self._store.ownership.bury(owner)
        return count

    def _heed_cancel_requests(self) -> None:
        if self._tasks.has_tasks:
            for record in self._store.cancel_requests(self._owner):
                self._tasks.heed_cancel_request(record)

    def _dead_owners(self) -> Iterator[str]:
        for owner in self._store.owners():
            if owner != self._owner and not self._store.ownership.is_alive(owner):
                yield owner

    def _look(self) -> float | None:
        """Do what is due (the timer's)."""
        if not self._is_serving:
            self._cancel_orphans()
            return None
        try:
            if self._renew_at_s is not None and time.monotonic() >= self._renew_at_s:
                self._note_renewal(self._store.ownership)
            self._tasks.see_to_own(owner=self._owner)
            self._heed_cancel_requests()
            self.adopt()
            pause_s = _LOOK_S if self._store.version() is not None else _SLOW_LOOK_S
            self._is_failing = False
        except Exception:  # a store's that is away: it may come back
            if self._has_ended:  # or was closed meanwhile
                return None
            if not self._is_failing:
                log_exception("TASKS[%r]: tasks are not looked after", self._alias)
            self._is_failing = True
            pause_s = _FAILING_S
        finally:
            close_connections()
        return pause_s

    def _cancel_orphans(self) -> None:
        with self._lock:
            records, self._to_cancel = list(self._to_cancel.values()), {}
        try:
            self.hold()  # who holds nothing knows nothing of other machines
            self._tasks.save_missed()
            for record in records:
                if self.is_orphan(record):
                    self.take(record)
            self._is_failing = False
        except Exception:  # a store's; who waits has it tried again
            if not self._is_failing and not self._has_ended:
                log_exception("TASKS[%r]: tasks are not cancelled", self._alias)
            self._is_failing = True
        finally:
            close_connections()

    def _note_renewal(self, ownership: "Ownership") -> None:
        due_s = ownership.renew()
        self._renew_at_s = None if due_s is None else time.monotonic() + due_s
