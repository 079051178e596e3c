"""What a task in another process asks of its alias, and how it is answered here."""

from collections.abc import Callable
from contextvars import Context

from .. import records
from ..identity import is_of_this_process
from ..protocols import WorkerHost
from ..records import Answer, Enqueued, GetRequest, MetadataRequest, Record
from ..worker import refusal_of
from .messages import Watch, Watched

__all__ = ["TaskRequests"]


class TaskRequests:
    """Answers a task that runs in another process, for the alias that it belongs to.

    It may serve one task after the other: `begin` and `clear`. One thread at a time
    calls what there is. Who waits is in `_waiting`, and who has lent the slot in
    `_lent`; what ends a watch takes it out of both, and only one can.
    """

    def __init__(self, host: WorkerHost) -> None:
        self._host = host
        self._running_id = ""
        self._waiting: dict[int, Callable[[], None] | None] = {}
        self._lent: set[int] = set()
        self._groups: set[int] = set()  # those that the slot is lent for
        # What the task holds handles of, once it has finished, whatever the store
        # forgets meanwhile; and what takes back that we are told.
        self._finished: dict[str, Record] = {}
        self._kept: dict[str, Callable[[], None]] = {}

    def begin(self, running_id: str) -> None:
        """The task of that id begins."""
        self._running_id = running_id

    def serve(self, request: records.Request, context: Context) -> Answer:
        """Do what the task asks for, in its context."""
        if isinstance(request, MetadataRequest):
            return self._save_metadata(request)
        if isinstance(request, GetRequest):
            finished = self._finished.get(request.result_id)
            if finished is not None:
                return finished
        answer = context.run(self._host.serve, request)
        if isinstance(answer, Enqueued):
            for each in answer.records:
                self._keep(each)
        elif isinstance(answer, Record):
            self._keep(answer)
        return answer

    def _save_metadata(self, request: MetadataRequest) -> Answer:
        try:
            self._host.save_metadata(
                request.result_id, request.metadata, attempt=request.attempt
            )
        except Exception as err:  # the task gets it
            return refusal_of(err)
        return True

    def watch(self, watch: Watch, send: Callable[[Watched], None]) -> None:
        """Have it told when the result is finished; lend the slot meanwhile.

        `send` is called once at most, on any thread; it must not block nor raise.
        """
        watch_id = watch.watch_id

        def tell(record: Record | None) -> None:
            if self.unwatch(watch_id):
                if watch.group is not None:
                    self.reclaim(watch.group)
                if record is not None and record.is_finished:
                    self._finished[record.id] = record
                send(Watched(watch_id))

        self._waiting[watch_id] = None
        if watch.result_id in self._finished:
            tell(None)
            return
        remove = self._host.on_change(
            watch.alias, watch.result_id, tell, revision=watch.revision
        )
        if remove is None:
            tell(None)
            return
        if watch.group is None:
            self._host.lend_slot(self._running_id)
            self._lent.add(watch_id)
        if watch_id in self._waiting:
            self._waiting[watch_id] = remove
        if watch_id not in self._waiting:  # it was told meanwhile
            self.unwatch(watch_id)

    def lend(self, group: int) -> None:
        """The task waits for any result of a group."""
        self._host.lend_slot(self._running_id)
        self._groups.add(group)

    def reclaim(self, group: int) -> None:
        """It does so no longer, or one is finished; once for each `lend`."""
        try:
            self._groups.remove(group)
        except KeyError:
            return
        self._host.reclaim_slot(self._running_id)

    def unwatch(self, watch_id: int) -> bool:
        """The wait is over; False where it was before."""
        try:
            self._lent.remove(watch_id)
        except KeyError:
            pass
        else:
            self._host.reclaim_slot(self._running_id)
        try:
            remove = self._waiting.pop(watch_id)
        except KeyError:
            return False
        if remove is not None:
            remove()
        return True

    def clear(self) -> None:
        """The task has ended."""
        for watch_id in list(self._waiting):
            self.unwatch(watch_id)
        for group in list(self._groups):
            self.reclaim(group)
        for remove in self._kept.values():
            remove()
        self._kept.clear()
        self._finished.clear()

    def _keep(self, record: Record) -> None:
        """The task has got a handle, which must not lose its outcome."""
        if record.id in self._kept:
            return
        if not is_of_this_process(record.owner) and not record.is_finished:
            return  # it would be looked up again and again, with nobody waiting

        def take(finished: Record) -> None:
            self._finished[record.id] = finished

        remove = self._host.on_change(record.alias, record.id, take)
        if remove is not None:
            self._kept[record.id] = remove
        elif record.is_finished:
            self._finished[record.id] = record
        else:  # it has ended just now
            found = self._host.serve(GetRequest(record.alias, record.id))
            if isinstance(found, Record) and found.is_finished:
                self._finished[record.id] = found
