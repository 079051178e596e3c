"""Who waits, who runs on which slot, and until when: decided under one lock."""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

from .errors import QueueFull
from .jobs import Job
from .locks import give_way
from .records import Timestamp
from .task_queue import DueHeap, TaskQueue

__all__ = ["Retired", "Slots"]

# A change of the wall clock is noticed after so many seconds, and that there is nothing
# to ring for any more.
_CLOCK_S = 1.0

# How long who waits for all to end may take to see that some never came.
_ABANDONED_S = 0.1

_RELEASED_AT_ONCE = 1000  # or who enqueues would wait for a million of them


class Retired(Exception):
    """Nothing new is taken: another one has taken this one's place."""


class Slots:
    """The tasks of an alias that are not finished, and the room for those that run.

    Any thread may call any method; nothing slow happens in one, and no other lock is
    taken. A task leaves the queue only into a free slot. Those that get one are
    appended to a list of the caller's, who has to have them run: so none is lost where
    Ctrl-C comes just then.
    """

    def __init__(
        self, *, alias: str, max_workers: int, max_pending: int | None
    ) -> None:
        self._alias = alias
        self._max_workers = max_workers
        self._max_pending = max_pending
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._jobs: dict[str, Job] = {}
        self._queue = TaskQueue[Job]()
        self._pending = 0  # places taken: those in the queue and on their way there
        self._running = 0
        self._lent = 0
        self._free_slots: list[int] = []  # a heap: low numbers are used first
        self._slot_count = 0
        self._deadlines = DueHeap[Job]()
        self._is_retired = False
        self._runs_until: Timestamp = math.inf
        # Those of tasks that were not stored after all, as is seen at a moment when no
        # lock may be taken.
        self._abandoned: deque[Sequence[Job]] = deque()

    # From its enqueue to its slot.

    def admit(
        self,
        jobs: Sequence[Job],
        /,
        *,
        is_limited: bool = True,
        waiting_elsewhere: int = 0,
    ) -> None:
        """Take places in the queue for tasks that are about to be stored.

        For all or none. Raises QueueFull where there are not as many, unless that is
        not to be asked, and Retired once `retire` was called. `waiting_elsewhere` is
        how many tasks that have slots count among those that wait.
        """
        limit = self._max_pending if is_limited else None
        give_way(self._lock)
        with self._lock:  # decides who gets the last place
            self._withdraw_abandoned()
            if self._is_retired:
                raise Retired
            pending = self._pending + waiting_elsewhere
            if limit is not None and pending + len(jobs) > limit:
                more = f", {len(jobs)} more would be," if len(jobs) > 1 else ","
                raise QueueFull(
                    f"{pending} tasks are waiting{more} and "
                    f"TASKS[{self._alias!r}]['OPTIONS']['MAX_PENDING'] is {limit}."
                )
            self._pending += len(jobs)
            for job in jobs:
                job.has_place = True
                self._jobs[job.record.id] = job

    def withdraw(self, jobs: Sequence[Job], /) -> None:
        """Give the places back, of tasks that were not stored after all.

        Of those that were pushed in spite of that nothing is taken back. `settle` is
        to come.
        """
        give_way(self._lock)
        with self._lock:
            self._withdraw(jobs)

    def abandon(self, jobs: Sequence[Job], /) -> None:
        """The same, by whoever may hold any lock just now: their places come later."""
        for job in jobs:
            self._jobs.pop(job.record.id, None)  # atomic
        self._abandoned.append(jobs)

    def push(
        self, jobs: Sequence[Job], due: list[Job], late: list[Job], /
    ) -> float | None:
        """Put admitted tasks, which are stored now, into their places.

        The seconds until the first of them is due, where they are deferred. Those that
        are due too late for a retired one are appended to `late`.
        """
        first_s = None
        give_way(self._lock)
        with self._lock:
            for job in jobs:
                job.is_pushed = True
                wait_s = self._put(job, late)
                if wait_s is not None and (first_s is None or wait_s < first_s):
                    first_s = wait_s
            self._take_due(due)
            if self._is_retired:
                self._ended.notify_all()  # who waits looks for when they are due
        return first_s

    def put_back(self, job: Job, /) -> None:
        """A task that has got a slot could not be handed over."""
        with self._lock:
            self._free_slot(job)
            if not job.is_decided:
                job.has_place = True
                self._pending += 1
                self._put(job, [])

    def drop(self, job: Job, /) -> None:
        """A task is not to run any more: `forget` and `settle` are to come.

        Its slot, if it has one, is its call's until that ends.
        """
        give_way(self._lock)
        with self._lock:
            self._drop(job)

    # On its slot.

    def find(self, result_id: str, /) -> Job | None:
        """The task of that id, until it is finished."""
        return self._jobs.get(result_id)

    def forget(self, job: Job, /) -> None:
        """A task is finished."""
        self._jobs.pop(job.record.id, None)

    def settle(self) -> bool:
        """Tell who waits for all to end; whether a retired one has nothing left."""
        give_way(self._lock)
        with self._lock:
            return self._settle()

    def set_deadline(self, job: Job, timeout_s: float, /) -> float:
        """The time of a task's attempt begins; in how many seconds to ring."""
        give_way(self._lock)
        with self._lock:
            job.deadline_s = time.monotonic() + timeout_s
            self._deadlines.push(job, at=job.deadline_s)
        return min(timeout_s, _CLOCK_S)

    def lend(self, result_id: str, due: list[Job], /) -> None:
        """A running task waits for another: something else may run meanwhile."""
        give_way(self._lock)
        with self._lock:
            job = self._jobs.get(result_id)
            if job is None or job.slot is None:
                return
            job.lent += 1
            if job.lent == 1:
                self._lent += 1
                self._take_due(due)

    def reclaim(self, result_id: str, /) -> None:
        """It goes on."""
        give_way(self._lock)
        with self._lock:
            job = self._jobs.get(result_id)
            if job is None or not job.lent:
                return
            job.lent -= 1
            if job.lent == 0:
                self._lent -= 1

    def free(self, job: Job, due: list[Job], /) -> bool:
        """An attempt has ended, and with it the task; then as `settle`."""
        give_way(self._lock)
        with self._lock:  # decides what the slot does next, and whether all is done
            self._free_slot(job)
            self._take_due(due)
            return self._settle()

    def free_for_another(
        self, job: Job, due: list[Job], late: list[Job], /
    ) -> tuple[float | None, bool]:
        """An attempt has ended, and the task runs again, in so many seconds.

        It is appended to `late` where that is too late for a retired one. And then as
        `settle`.
        """
        give_way(self._lock)
        with self._lock:
            self._free_slot(job)
            wait_s = self._put(job, late)
            self._take_due(due)
            return wait_s, self._settle()

    def ring(self, due: list[Job], /) -> tuple[list[tuple[Job, int]], float | None]:
        """It is time: which attempts take too long, and in how many seconds to ring.

        Waiting goes by the monotonic clock, deciding about tasks by the wall's.
        """
        give_way(self._lock)
        with self._lock:
            self._queue.release(time.time(), at_most=_RELEASED_AT_ONCE)
            self._take_due(due)
            overdue = self._deadlines.pop_due(time.monotonic())
            for job in overdue:
                job.deadline_s = None
            next_s: list[float] = []
            if self._queue.next_due is not None:
                next_s.append(min(self._queue.next_due - time.time(), _CLOCK_S))
            if self._deadlines.next_at is not None:
                next_s.append(min(self._deadlines.next_at - time.monotonic(), _CLOCK_S))
            attempts = [(job, len(job.record.worker_ids)) for job in overdue]
            return attempts, min(next_s, default=None)

    # All of them.

    def unfinished_ids(self) -> list[str]:
        """The ids of the tasks that wait or run, the oldest first."""
        give_way(self._lock)
        with self._lock:
            self._withdraw_abandoned()
            return list(self._jobs)

    def running_ids(self) -> list[str]:
        """Those of the tasks that run."""
        give_way(self._lock)
        with self._lock:
            return [
                result_id
                for result_id, job in self._jobs.items()
                if job.slot is not None
            ]

    @property
    def has_any(self) -> bool:
        """Whether any task waits or runs."""
        return bool(self._jobs)

    def is_idle(self, *, until: Timestamp) -> bool:
        """Whether no task runs, or waits for anything but a time after `until`."""
        give_way(self._lock)
        with self._lock:
            return self._is_idle(until)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until `is_idle` until then; False after `timeout_s` seconds."""
        until = time.time() + timeout_s
        ends_at = time.monotonic() + timeout_s
        with self._ended:
            while not self._is_idle(until):
                left_s = ends_at - time.monotonic()
                if left_s <= 0:
                    return False
                # Nobody tells of those that are abandoned on their way.
                are_on_their_way = len(self._jobs) > len(self._queue) + self._running
                self._ended.wait(
                    min(left_s, _ABANDONED_S) if are_on_their_way else left_s
                )
            return True

    def retire(self, late: list[Job], /, *, runs_until: Timestamp) -> bool:
        """Take no new ones; those due after `runs_until` are `late`. As `settle`."""
        give_way(self._lock)
        with self._lock:  # decides whether there is anything to wait for
            self._is_retired = True
            self._runs_until = runs_until
            late += self._take_late()
            return self._settle()

    def run_nothing_again(self) -> None:
        """From now on a task that would run again is late."""
        with self._lock:
            self._runs_until = -math.inf

    def drain(self, waiting: list[Job], /) -> None:
        """Take all that wait out of the queue."""
        give_way(self._lock)
        with self._lock:
            waiting += self._taken(self._queue.drain())

    # Under the lock.

    def _withdraw(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if not job.is_pushed:
                self._drop(job)
                self._jobs.pop(job.record.id, None)

    def _withdraw_abandoned(self) -> None:
        while self._abandoned:
            self._withdraw(self._abandoned.popleft())

    def _put(self, job: Job, late: list[Job]) -> float | None:
        """Queue a task that nobody has cancelled; the seconds until it is due."""
        if job.is_decided:
            return None
        priority, due_at = job.record.task.priority, job.record.due_at
        if due_at is not None and due_at > self._runs_until:
            late.append(job)
            return None
        job.is_queued = True
        if due_at is not None:
            wait_s = due_at - time.time()
            if wait_s > 0:
                self._queue.defer(job, priority=priority, due_at=due_at)
                return min(wait_s, _CLOCK_S)
        self._queue.push(job, priority=priority)
        return None

    def _take_due(self, due: list[Job]) -> None:
        """Give free slots to the tasks that are next."""
        queue = self._queue
        while queue.ready_count and self._running - self._lent < self._max_workers:
            job = queue.pop()
            job.is_queued = False
            if job.has_place:
                job.has_place = False
                self._pending -= 1
            self._running += 1
            if self._free_slots:
                job.slot = heappop(self._free_slots)
            else:
                job.slot = self._slot_count
                self._slot_count += 1
            due.append(job)

    def _free_slot(self, job: Job) -> None:
        if job.slot is not None:
            self._running -= 1
            heappush(self._free_slots, job.slot)
            job.slot = None
        if job.lent:
            job.lent = 0
            self._lent -= 1
        if job.deadline_s is not None:
            job.deadline_s = None
            self._deadlines.discard(job)

    def _drop(self, job: Job) -> None:
        if job.is_queued:
            job.is_queued = False
            self._queue.remove(job)
        if job.has_place:
            job.has_place = False
            self._pending -= 1

    def _take_late(self) -> Sequence[Job]:
        if self._runs_until == math.inf:
            return ()
        return self._taken(self._queue.drain_deferred(self._runs_until))

    @staticmethod
    def _taken(jobs: Sequence[Job]) -> Sequence[Job]:
        for job in jobs:
            job.is_queued = False
        return jobs

    def _settle(self) -> bool:
        self._withdraw_abandoned()
        if self._has_only_deferred():
            self._ended.notify_all()
            return self._is_retired and not self._jobs
        return False

    def _is_idle(self, until: Timestamp) -> bool:
        self._withdraw_abandoned()
        next_due = self._queue.next_due
        return self._has_only_deferred() and (next_due is None or next_due > until)

    def _has_only_deferred(self) -> bool:
        return not self._running and len(self._jobs) == self._queue.deferred_count
