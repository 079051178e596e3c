"""The seams: what an executor and a result store must do, and no more.

Provisional until three stores and four executors have passed the contract suites in
`django_tasks_local.testing`; until then a release may change a signature, and says so
in the changelog. Implementations need not inherit from these classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from .records import (
    Answer,
    Call,
    CancelRequest,
    Enqueued,
    EnqueueRequest,
    GetRequest,
    Interruption,
    Outcome,
    Record,
    Request,
    Timestamp,
)

if TYPE_CHECKING:
    from .options import LocalOptions

__all__ = [
    "CallbackExecutor",
    "DistantExecutor",
    "ExecutorFactory",
    "OwnedResultStore",
    "Ownership",
    "ParentLink",
    "ResultStore",
    "ResultStoreFactory",
    "SlotLender",
    "TaskExecutor",
    "TaskHost",
    "Waitable",
    "WorkerHost",
]


class SlotLender(Protocol):
    """Takes the slot of a task that waits for another, and gives it back."""

    def lend_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        """The running task waits for another: something else may run meanwhile.

        A `group` is a wait for any of the results that have been subscribed to for it
        (`Waitable.subscribe`).

        What does, runs in a slot of its own, beyond `max_workers` if need be.
        May be called again before `reclaim_slot`; as many of each belong together.
        A task that is no longer running has no slot to lend: nothing happens.
        """
        ...

    def reclaim_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        """The running task goes on. Never blocks.

        The alias runs one task more than it has slots until one of them ends.
        """
        ...


class TaskHost(SlotLender, Protocol):
    """What a running task has of the alias that runs it. Any thread may call it."""

    @property
    def may_block(self) -> bool:
        """Whether `save_metadata` may wait for a disk, a network or a process."""
        ...

    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        """Let others see this JSON text as the running task's metadata.

        Raises RuntimeError where that attempt does not run any more. What a store
        raises is logged, as for any change of a record.
        """
        ...

    def is_cancel_requested(self, result_id: str, /) -> bool:
        """Whether the running task has been asked to stop."""
        ...


class WorkerHost(TaskHost, Protocol):
    """The way up from a worker: what an executor tells, and asks of, its alias.

    Any thread may call any of these, and none of them raises, but for `save_metadata`.
    """

    @property
    def alias(self) -> str:
        """The alias that the executor works for."""
        ...

    @property
    def transitions_may_block(self) -> bool:
        """Whether `started`, and the callbacks of a call's Future, may wait.

        For a disk or a network, or in a project's receivers of Django's task signals:
        then they are not to be called on an event loop's thread.
        """
        ...

    def started(
        self, result_id: str, /, *, worker_id: str, at: Timestamp
    ) -> Record | None:
        """A worker is about to run the call: an attempt begins.

        Saves the record as RUNNING and sends `task_started`; returns once its
        receivers have. To be called on the call's own slot, before the function runs
        and before anything of the call reaches a worker that may die of it. The
        record that comes back is what the task should see. None where the task was
        cancelled before: then it must not run, and what its Outcome says is ignored.
        """
        ...

    def serve(self, request: EnqueueRequest | GetRequest | CancelRequest, /) -> Answer:
        """Do for a task in another process what it could have done here.

        May block for as long as a store does.
        """
        ...

    def on_change(
        self,
        alias: str,
        result_id: str,
        notify: Callable[[Record], None],
        /,
        *,
        revision: int | None = None,
    ) -> Callable[[], None] | None:
        """Have `notify` called once, when a result is finished, wherever it runs.

        With a `revision`: as soon as its record has a later one. Returns what takes
        that back, or None where there is nothing to wait for: it is so already, or
        the result is unknown. `notify` is called from another thread with the latest
        record, which is as old as before where no more can be learned of it; it must
        not block and must not raise. May block as a look-up does.
        """
        ...


class TaskExecutor(Protocol):
    """Runs calls, each on the slot that it names.

    All slots may be in use at once, those beyond `max_workers` included, which exist
    while tasks wait for tasks: none of them may wait for another to become free.
    """

    def submit(self, call: Call, /) -> Future[Outcome]:
        """Begin a call, soon.

        Any thread may call it, the one that has just resolved the last Future of the
        same slot included, from that Future's callback. Never blocks and never
        raises. The Future resolves with an Outcome whatever happens, never with an
        exception, and is never cancelled; its callbacks may take long.
        """
        ...

    def interrupt(
        self, result_id: str, /, *, attempt: int, reason: Interruption
    ) -> bool:
        """End a call that runs; its Outcome still comes.

        `attempt` counts from 1: another attempt of the same task is left alone. False
        where it does not run, or this executor cannot end such a call. Any thread may
        call it; it does not wait. A call that ends by itself just then has the
        Outcome that it has.
        """
        ...

    def shutdown(self, *, timeout_s: float) -> None:
        """End the workers; a call that still runs has `timeout_s` seconds left.

        After that, processes are killed, and their calls' Outcomes arrive as those of
        a lost worker; threads, which cannot be, are abandoned. No `submit` comes
        after it. Any thread may call it; a second call does what is left to do.
        """
        ...


class CallbackExecutor(TaskExecutor, Protocol):
    """An executor that can do without Futures, which cost more than a small task."""

    def run(self, call: Call, done: Callable[[Outcome], None], /) -> None:
        """As `submit`, with `done` called in the place of resolving a Future.

        Once, with the Outcome, on any thread, perhaps before `run` returns. It may take
        long, and never raises an Exception.
        """
        ...


class DistantExecutor(TaskExecutor, Protocol):
    """An executor that hands its calls on to somebody who may be away, or busy."""

    def check_reachable(self) -> None:
        """Raise where no task should be taken at present.

        What it raises is what the enqueue raises. Any thread may call it; it does not
        block.
        """
        ...

    def waiting_count(self) -> int:
        """How many tasks have never begun that it has: they count for ``MAX_PENDING``.

        Any thread may call it; it does not block.
        """
        ...

    def withdraw(self, result_id: str, /) -> None:
        """A task was cancelled: a call that has not begun need not do so.

        Its Outcome comes sooner, and is ignored. Any thread may call it; it does not
        wait, and does nothing where there is no such call.
        """
        ...


class ExecutorFactory(Protocol):
    """Makes the executor of an alias, at its first enqueue in a process.

    Should start nothing by itself: a worker is due when its slot is first used. May
    have an attribute `option_names`, a sequence of strings: then any other name in
    ``EXECUTOR_OPTIONS`` is an error of the settings. And attributes
    `can_stop_functions` and `can_stop_coroutines`, which are True where `interrupt`
    ends such calls: without them their tasks cannot have a time limit.
    """

    def __call__(self, options: "LocalOptions", /, *, host: WorkerHost) -> TaskExecutor:
        """`options` are the alias's checked settings."""
        ...


class ResultStore(Protocol):
    """Keeps the records of one alias. Any thread may call any method, at once."""

    is_shared: bool
    """Other processes see the same records."""
    is_durable: bool
    """The records outlive this process."""
    may_block: bool
    """Calls may wait for a disk or a network, so that a coroutine must not make them
    on its loop's thread."""

    def add(
        self, records: Sequence[Record], /, *, on_visible: Callable[[], None]
    ) -> None:
        """Keep new records, all or none.

        Calls `on_visible` once others can see them: before it returns, or, for a
        store that joins a transaction, when that commits; after a rollback never, and
        the store lets go of it then, which is how that is noticed. It may use the
        store. What it raises, the user's Ctrl-C among it, is let through,
        and the records stay. Raises ValueError when one of the ids is there already,
        or twice among these.
        """
        ...

    def get(self, ids: Iterable[str], /) -> Mapping[str, Record]:
        """The records that are there, by id; the others are left out."""
        ...

    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        """Put each record in the place of its predecessor.

        A record is taken where the kept one's revision is one less than its own, and
        refused otherwise, so that of two that race one wins; says for each which.
        """
        ...

    def unfinished(self) -> Iterator[Record]:
        """The records that are not finished, the oldest first.

        Those that were there at the call. There may be too many to be held at once, so
        one that changes meanwhile comes as it was or as it is, or, when it is finished
        by then, perhaps not at all.
        """
        ...

    def discard(
        self,
        *,
        finished_before: Timestamp | None = None,
        keep: int | None = None,
        limit: int | None = None,
    ) -> int:
        """Forget finished records, those that finished first going first.

        Goes on while one is older than `finished_before`, or more than `keep` are
        left, and until `limit` are gone; None means no such condition. Returns how
        many went. Never forgets an unfinished one.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections. A second call does nothing."""
        ...


class Ownership(Protocol):
    """Tells which owners of tasks live. Any thread may call any method.

    An owner is a name (`Record.owner`) that is used once: it lives from `hold` until
    `release`, or until its process ends, in whatever way.
    """

    def hold(self, owner: str, /) -> None:
        """From now on others see that it lives.

        Raises StoreError where that cannot be had.
        """
        ...

    def renew(self) -> float | None:
        """Say so again, for all that are held; in how many seconds that is due again.

        None: it need not be said again. Raises as `hold`.
        """
        ...

    def is_alive(self, owner: str, /) -> bool:
        """Whether somebody holds it. False only where that is certain."""
        ...

    def release(self, owner: str, /) -> None:
        """It owns nothing any more. A second call does nothing."""
        ...

    def bury(self, owner: str, /) -> None:
        """A dead one has no unfinished task any more: keep nothing of it."""
        ...


class OwnedResultStore(ResultStore, Protocol):
    """A store whose unfinished tasks others see to when their owner has died."""

    @property
    def ownership(self) -> Ownership:
        """Which of the owners live."""
        ...

    @property
    def is_in_transaction(self) -> bool:
        """Whether what this thread saves may become part of a transaction of its own.

        Then it is seen when that is committed, and never after a rollback.
        """
        ...

    def owners(self) -> Sequence[str]:
        """Those who have unfinished tasks, each once.

        Quick, however many tasks wait.
        """
        ...

    def owned_by(self, owner: str, /) -> Iterator[Record]:
        """Its unfinished records, the oldest first, as in `unfinished`.

        A record that cannot be read is set aside for good and logged, once.
        """
        ...

    def cancel_requests(self, owner: str, /) -> Sequence[Record]:
        """Those of its unfinished records that have been asked to stop. Quick."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many records there are: by status, and ``"UNREADABLE"`` ones."""
        ...

    def version(self) -> int | None:
        """Another number once another process has changed something.

        None: that cannot be known so quickly that it may be asked a hundred times a
        second.
        """
        ...


class ResultStoreFactory(Protocol):
    """Makes the store of an alias, at its first use in a process.

    May have an attribute `option_names`, as an `ExecutorFactory`, for
    ``STORE_OPTIONS``. And `may_block`, as a class of stores has: where it is False, a
    coroutine calls the factory on its loop's thread.
    """

    def __call__(self, options: "LocalOptions", /, *, alias: str) -> ResultStore:
        """`options` are the alias's checked settings."""
        ...


class Waitable(Protocol):
    """What a handle waits with. Any thread may call any method."""

    @property
    def record(self) -> Record:
        """The latest record that was seen here."""
        ...

    def latest(self) -> Record:
        """The record as it is now. May block where it has to be fetched."""
        ...

    async def alatest(self) -> Record:
        """The same without blocking."""
        ...

    def wait(
        self,
        timeout_s: float | None,
        /,
        *,
        at_end: Callable[[], None],
        revision: int | None = None,
    ) -> bool:
        """Block until `record` is finished; False after `timeout_s` seconds.

        With a `revision`: until it has a later one. Where a task of this process is
        waited for, whoever ends the wait calls `at_end` before anything else is
        started. It must not block and must not raise.

        Raises what makes it impossible to see the end.
        """
        ...

    async def wait_async(
        self, *, at_end: Callable[[], None], revision: int | None = None
    ) -> None:
        """The same without end and without blocking, under asyncio and trio."""
        ...

    def subscribe(
        self, wake: Callable[[], None], /, *, group: int
    ) -> Callable[[], None] | None:
        """Have `wake` called once, by another thread, when `record` is finished.

        Or when it turns out that its end cannot be seen, which `wait` then raises. The
        `group` is a number of those that one waiter waits for, of its own choice.

        Returns what takes that back, or None where it is so already. Does not block.
        `wake` must not block and must not raise.
        """
        ...


class ParentLink(Protocol):
    """What a worker process has of the process whose tasks it runs."""

    def request(self, request: Request, /) -> Record | Enqueued | bool:
        """Have the parent do it. Blocks; raises what the parent's code raised."""
        ...

    def waitable(self, record: Record, /) -> Waitable:
        """What waits for a task of the parent's."""
        ...
