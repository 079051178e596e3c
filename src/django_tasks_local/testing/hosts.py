"""A host that stands in for a dispatcher, above an executor that is tested alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import NamedTuple

from ..identity import new_result_id, this_process
from ..json_text import encode_arguments
from ..records import (
    Answer,
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

__all__ = ["RecordingHost", "Start"]


class Start(NamedTuple):
    """What an executor told its host at the start of a call."""

    result_id: str
    worker_id: str
    at: Timestamp


class RecordingHost:
    """A `WorkerHost` for tests: makes calls, and keeps what it is told of them."""

    def __init__(self, *, alias: str = ALIAS) -> None:
        self.alias = alias
        self.starts: list[Start] = []
        """What `started` was called with, in order."""
        self.may_block = False
        self.metadata: list[str] = []
        """What `save_metadata` was called with, in order."""
        self.cancel_requested: set[str] = set()
        """The ids of which `is_cancel_requested` says so."""
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
    ) -> Call:
        """A call of a module-level function, as a dispatcher would submit it."""
        path = f"{function.__module__}.{function.__qualname__}"
        record = Record(
            id=new_result_id(),
            task=TaskSpec(path, 0, "default", self.alias, takes_context),
            alias=self.alias,
            arguments=encode_arguments(args, kwargs or {}),
            run_after=None,
            owner=this_process(),
            enqueued_at=time.time(),
        )
        call = Call(record, slot, function, copy_context())
        self._calls[record.id] = call
        return call

    def starts_of(self, call: Call, /) -> list[Start]:
        """What `started` was called with for that call."""
        return [start for start in self.starts if start.result_id == call.record.id]

    # WorkerHost.

    def started(self, result_id: str, /, *, worker_id: str, at: Timestamp) -> Record:
        self.starts.append(Start(result_id, worker_id, at))
        call = self._calls[result_id]
        return apply_start(call.record, worker_id=worker_id, at=at)

    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        self.metadata.append(metadata)

    def is_cancel_requested(self, result_id: str, /) -> bool:
        return result_id in self.cancel_requested

    def serve(self, request: EnqueueRequest | GetRequest | CancelRequest, /) -> Answer:
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
