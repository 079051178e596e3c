"""A task from its enqueue to its end, and how each change of its record is decided."""

from collections.abc import Callable
from contextvars import Context
from typing import Any

from django.tasks.base import Task

from .async_bridge import Completion
from .backoff import Backoff
from .errors import StoreError
from .logs import log_error, log_exception
from .options import LocalOptions
from .protocols import ResultStore
from .records import Record, Timestamp
from .tasks import LocalTask

__all__ = ["Job", "Records"]

_NO_CONTEXT = Context()


class Job(Completion):
    """What this process has of a task that it runs.

    `record` is a finished one only when everybody who has to know has been told.
    """

    __slots__ = (
        "context",
        "deadline_s",
        "has_place",
        "is_decided",
        "is_pushed",
        "is_put_off",
        "is_queued",
        "is_start_in_doubt",
        "lent",
        "slot",
        "spare_context",
        "task",
    )

    def __init__(
        self, record: Record, *, task: "Task[..., Any]", context: Context
    ) -> None:
        super().__init__(record)
        self.task: Task[..., Any] = task
        self.context: Context = context
        """What the next attempt, or the one that runs, runs in."""
        self.spare_context: Context | None = None
        """What the attempt after that one would run in."""
        self.slot: int | None = None
        """The slot it runs on, once it runs."""
        self.has_place: bool = False
        """It counts among those that wait."""
        self.is_pushed: bool = False
        self.is_queued: bool = False
        self.is_put_off: bool = False
        """Its start could not be saved: it has not begun."""
        self.is_start_in_doubt: bool = False
        """The store may have kept such a start, though it did not say so."""
        self.is_decided: bool = False
        """How it ends is known."""
        self.deadline_s: float | None = None
        """When its attempt's time is over, by the monotonic clock."""
        self.lent: int = 0

    def decide(self) -> bool:
        """Whether who asks may end the task: only the first one may."""
        with self._lock:
            if self.is_decided:
                return False
            self.is_decided = True
            return True

    def put_off(self, until: Timestamp, /) -> None:
        """It is due then, though nobody else is told."""
        with self._lock:
            self.is_put_off = False
            self.record: Record = self.record._replace(due_at=until)

    def let_go(self) -> None:
        """A handle that is kept should not keep the enqueuer's context."""
        self.context = _NO_CONTEXT
        self.spare_context = None

    def timeout_s(self, options: LocalOptions, /) -> float | None:
        """The seconds that each attempt may take."""
        task = self.task
        if isinstance(task, LocalTask) and task.timeout is not None:
            return task.timeout
        return options.timeout_s

    def backoff(self, options: LocalOptions, /, *, attempts: int) -> Backoff | None:
        """What says when the next attempt is; None when so many are all there are."""
        task = self.task
        backoff, most = options.backoff, options.max_attempts
        if isinstance(task, LocalTask):
            backoff = task.backoff or backoff
            most = task.max_attempts or most
        return backoff if attempts < most else None


class Records:
    """The records of an alias's tasks: changed so that of two that race one wins."""

    def __init__(self, store: ResultStore, *, alias: str, is_owned: bool):
        self._store = store
        self._alias = alias
        self._is_owned = is_owned
        # Ends that the store has failed to save, where others would take the task for
        # one that never ended.
        self._missed: dict[str, Record] = {}

    def change[*T](
        self,
        job: Job,
        change: Callable[[Record, *T], Record | None],
        /,
        *args: *T,
        must_be_saved: bool = False,
    ) -> Record | None:
        """Save what `change` makes of the latest record; None where that is nothing.

        `change`, which is given the `args` too, may be called several times. Once a
        task is finished, or about to be, nothing changes any more. A finished record
        is left for `Job.finish`. What the store raises is logged, and let out only
        where it `must_be_saved`.
        """
        record = job.record
        while not job.is_decided:
            changed = change(record, *args)
            if changed is None:
                return None
            other = self._save(job, changed, must_be_saved)
            if other is not None:
                if other.owner != changed.owner:
                    self._disown(job)
                    return None
                record = other
            elif changed.is_finished:
                return changed if job.decide() else None
            else:  # the task may have ended since, but with this saved before
                job.see(changed)
                return changed
        return None

    def save_missed(self) -> None:
        """Save the ends that the store has failed to save. Raises what it raises."""
        for record in list(self._missed.values()):
            kept = self._store.get([record.id]).get(record.id)
            if (
                kept is None
                or kept.is_finished
                or kept.owner != record.owner
                or self._save_anew(record, kept)
            ):
                self._missed.pop(record.id, None)  # two may be at it

    def _disown(self, job: Job) -> None:
        """Another process has taken this one for dead, and the task over."""
        log_error(
            "TASKS[%r]: result %s has been taken over by another process, which saw "
            "no sign of life of this one",
            self._alias,
            job.record.id,
        )
        if job.decide():
            job.fail(RuntimeError(f"Task {job.record.id} is another process's now."))

    def _save_anew(self, record: Record, other: Record) -> bool:
        """Save what a store that has failed before has missed."""
        return self._store.save([record._replace(revision=other.revision + 1)])[0]

    def _save(self, job: Job, record: Record, must_be_saved: bool) -> Record | None:
        """The other record that is there now, where somebody was faster.

        A store that fails, or has lost the record, has no say: the task goes on. Where
        it has ended meanwhile, the record that was not saved.
        """
        try:
            if self._store.save([record])[0]:
                return None
            other = self._store.get([record.id]).get(record.id)
            if other is not None:
                is_anothers = other.owner != record.owner
                if is_anothers or other.is_past(record.revision - 1):
                    return other
                if self._save_anew(record, other):
                    return None
        except Exception:  # a store's
            log_exception(
                "TASKS[%r]: the store failed to save result %s as %s",
                self._alias,
                record.id,
                record.status,
            )
            if must_be_saved:
                raise
            self._note_missed(record)
            return record if job.is_decided else None
        if job.is_decided:  # it may have been forgotten already
            return record
        log_error(
            "TASKS[%r]: the store refused to save result %s as %s",
            self._alias,
            record.id,
            record.status,
        )
        if other is not None:
            if must_be_saved:
                raise StoreError(f"Result {record.id} could not be saved.")
            self._note_missed(record)
        return None

    def _note_missed(self, record: Record) -> None:
        if self._is_owned and record.is_finished:
            self._missed[record.id] = record
