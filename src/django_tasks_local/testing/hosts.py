"""A host that stands in for a dispatcher, above an executor that is tested alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import NamedTuple

from ..backoff import Backoff
from ..identity import new_owner, new_result_id
from ..json_text import encode_arguments, encode_metadata
from ..records import (
    Call,
    CancelRequest,
    EnqueueRequest,
    GetRequest,
    Record,
    Refusal,
    TaskSpec,
    Timestamp,
    apply_start,
)
from .contract import ALIAS

__all__ = ["RecordingHost", "SavedMetadata", "Start"]


class Start(NamedTuple):
    """What an executor told its host at the start of a call."""

    result_id: str
    worker_id: str
    at: Timestamp


class SavedMetadata(NamedTuple):
    """What a running task had saved as its metadata."""

    result_id: str
    metadata: str
    """JSON text: an object."""
    attempt: int


class RecordingHost:
    """A `WorkerHost` for tests: makes calls, and keeps what it is told of them."""

    def __init__(self, *, alias: str = ALIAS) -> None:
        self.alias = alias
        self.may_block = False
        """As a store's: then coroutines call `save_metadata` on another thread."""
        self.transitions_may_block = False
        """Then an executor must not call `started` on an event loop's thread."""
        self.cancelled: set[str] = set()
        """Ids of tasks that were cancelled while they waited: `started` gives None."""
        self.cancel_requested: set[str] = set()
        """Ids of tasks that have been asked to stop while they run."""
        self.at_start: Callable[[str], None] | None = None
        """Called by `started` with the id, once an attempt has begun."""
        self.starts: list[Start] = []
        """What `started` was called with, in order."""
        self.saved: list[SavedMetadata] = []
        """What `save_metadata` was called with, in order."""
        self.requests: list[EnqueueRequest | GetRequest | CancelRequest] = []
        """What `serve` was asked; each was refused."""
        self.lent: list[str] = []
        """The ids that `lend_slot` was called with, in order."""
        self.reclaimed: list[str] = []
        """The ids that `reclaim_slot` was called with, in order."""
        self._calls: dict[str, Call] = {}

    def make_call(
        self,
        function: Callable[..., object],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        slot: int = 0,
        takes_context: bool = False,
        attempt: int = 1,
        metadata: Mapping[str, object] | None = None,
        backoff: Backoff | None = None,
        timeout_s: float | None = None,
    ) -> Call:
        """A call of a module-level function, as a dispatcher would submit it.

        Before attempt 2 the task had one of a worker named ``"1"``, and so on.
        """
        path = f"{function.__module__}.{function.__qualname__}"
        record = Record(
            id=new_result_id(),
            task=TaskSpec(path, 0, "default", self.alias, takes_context),
            alias=self.alias,
            arguments=encode_arguments(args, kwargs or {}),
            run_after=None,
            owner=new_owner(),
            enqueued_at=time.time(),
            worker_ids=tuple(str(number) for number in range(1, attempt)),
            metadata=encode_metadata({**(metadata or {})}),
        )
        call = Call(record, slot, function, copy_context(), backoff, timeout_s)
        self._calls[record.id] = call
        return call

    def starts_of(self, call: Call, /) -> list[Start]:
        """What `started` was called with for that call."""
        return [start for start in self.starts if start.result_id == call.record.id]

    def saved_by(self, call: Call, /) -> list[SavedMetadata]:
        """What `save_metadata` was called with for that call."""
        return [saved for saved in self.saved if saved.result_id == call.record.id]

    # WorkerHost.

    def started(
        self, result_id: str, /, *, worker_id: str, at: Timestamp
    ) -> Record | None:
        self.starts.append(Start(result_id, worker_id, at))
        if result_id in self.cancelled:
            return None
        if self.at_start is not None:
            self.at_start(result_id)
        call = self._calls[result_id]
        return apply_start(call.record, worker_id=worker_id, at=at)

    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        self.saved.append(SavedMetadata(result_id, metadata, attempt))

    def is_cancel_requested(self, result_id: str, /) -> bool:
        return result_id in self.cancel_requested

    def serve(
        self, request: EnqueueRequest | GetRequest | CancelRequest, /
    ) -> Record | Refusal:
        self.requests.append(request)
        return Refusal("builtins.LookupError", "A RecordingHost has no results.")

    def on_change(
        self,
        alias: str,
        result_id: str,
        notify: Callable[[Record], None],
        /,
        *,
        revision: int | None = None,
    ) -> Callable[[], None] | None:
        return None

    def lend_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        self.lent.append(result_id)

    def reclaim_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        self.reclaimed.append(result_id)
