"""A result's changes as an event stream, which a page follows with an EventSource.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, override

import anyio
from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connections
from django.http import HttpResponse, StreamingHttpResponse
from django.tasks import TaskResultStatus, task_backends
from django.tasks.backends.dummy import DummyBackend
from django.tasks.exceptions import TaskResultDoesNotExist

from .async_bridge import is_in_event_loop
from .context import lending_slot
from .protocols import Waitable
from .records import Record
from .results import LocalTaskResult, handle_of, refuse_to_block, to_handle

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.tasks.base import TaskResult

__all__ = ["event_stream"]

_HEADERS = {
    # It is somebody's own, and of this moment; and nobody on the way may hold it back
    # to compress it.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx
    # Django's GZipMiddleware leaves alone what names an encoding. It would hold events
    # back (before Django 6.1) and keep a compressor for each stream.
    "Content-Encoding": "identity",
}
_CONTENT_TYPE = "text/event-stream"
_HEARTBEAT = b":\n\n"
_PAUSE_S = 0.05  # at most 20 events a second
_encode = json.JSONEncoder(separators=(",", ":"), default=datetime.isoformat).encode


def event_stream(
    result: "TaskResult[..., Any]",
    *,
    request: "HttpRequest | None" = None,
    include_return_value: bool = False,
    heartbeat_s: float = 15.0,
) -> HttpResponse | StreamingHttpResponse:
    """Return a response that tells a page of each change of a result.

    For any backend's result, and for sync and async views under ASGI and WSGI alike.
    The first event is the result as it is; then comes one for each change of its status
    or its metadata, where changes that come close upon each other may be one; the
    stream ends after the one that says that it is finished, or when its backend no
    longer knows the result. Each event's data is a JSON object with the handle's
    ``id``, ``status``, ``is_finished``, ``metadata`` and ``progress``; ``error``, the
    name of the class of what a FAILED task has raised, or None; and, with
    `include_return_value`, ``return_value``, None before there is one.

    With the `request`, a page that connects again is not told what it knows, and gets
    "204 No Content", which stops its EventSource, once it knows the end; a HEAD request
    is answered without a stream. Without, a page would come back after the end again
    and again, unless it closes its EventSource.

    Every `heartbeat_s` seconds without an event a comment is sent. Who leaves is
    noticed at once under ASGI, and under WSGI with the next event or comment. Raises
    RuntimeError for an unfinished result of a DummyBackend, where nothing ever runs,
    and NotImplementedError where the backend keeps no results.
    """
    if not heartbeat_s > 0:
        raise ValueError(f"heartbeat_s must be more than 0, got {heartbeat_s!r}.")
    handle = to_handle(result)
    if not handle.is_finished:
        _check_that_it_can_change(handle)
    known_id = "" if request is None else request.headers.get("Last-Event-ID", "")
    if handle.is_finished and known_id:
        data = _data_of(handle, include_return_value=include_return_value)
        if _id_of(data) == known_id:
            return HttpResponse(status=204, headers={"Cache-Control": "no-store"})
    if request is not None and request.method == "HEAD":
        # Nothing of it would be sent, and under WSGI nobody would notice who leaves.
        return HttpResponse(content_type=_CONTENT_TYPE, headers=_HEADERS)
    return _EventStream(
        _Chunks(
            handle,
            known_id=known_id,
            include_return_value=include_return_value,
            heartbeat_s=heartbeat_s,
        )
    )


def _check_that_it_can_change(handle: LocalTaskResult[Any]) -> None:
    backend = task_backends[handle.backend]
    name = f"TASKS[{handle.backend!r}] is a {type(backend).__name__}, which"
    if isinstance(backend, DummyBackend):
        raise RuntimeError(
            f"Task {handle.id} never runs: {name} only keeps what was enqueued."
        )
    if not backend.supports_get_result:
        raise NotImplementedError(
            f"Task {handle.id} cannot be followed: {name} keeps no results."
        )


class _EventStream(StreamingHttpResponse):
    """Serves whoever consumes it, an event loop or a thread.

    Which of them does is not known where it is made: under WSGI an async view runs on
    an event loop, and under ASGI a sync view does not.
    """

    _is_content_async: bool | None

    def __init__(self, chunks: "_Chunks") -> None:
        super().__init__(chunks, content_type=_CONTENT_TYPE, headers=_HEADERS)
        self._is_content_async = None

    # https://github.com/python/mypy/issues/15900 (as of mypy 2.4)
    @property  # type: ignore[explicit-override]
    @override
    def is_async(self) -> bool:
        """Whether whoever asks has to consume it asynchronously."""
        # Once a middleware has wrapped the content, that is one or the other.
        if self._is_content_async is not None:
            return self._is_content_async
        return is_in_event_loop() or _is_called_from_event_loop()

    # In Django it is an attribute, which its own code assigns.
    @is_async.setter
    def is_async(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, is_async: bool
    ) -> None:
        self._is_content_async = is_async


def _is_called_from_event_loop() -> bool:
    """Whether an event loop has this thread do something, such as run a middleware."""
    # As asgiref's own AsyncToSync finds out. The loop stays there when it has ended.
    loop = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    return loop is not None and loop.is_running()


class _Wait(NamedTuple):
    """Until the record has a later revision, or, where None, until it is finished."""

    timeout_s: float
    revision: int | None


class _Chunks:
    """What is sent, for ``for`` and for ``async for``.

    Nothing has to be closed: who waits for the task does so within one step only.
    """

    __slots__ = (
        "_handle",
        "_heartbeat_s",
        "_include_return_value",
        "_known_id",
        "_steps",
        "_waitable",
    )

    _waitable: Waitable
    _steps: Iterator[bytes | _Wait] | None

    def __init__(
        self,
        handle: LocalTaskResult[Any],
        *,
        known_id: str,
        include_return_value: bool,
        heartbeat_s: float,
    ) -> None:
        self._handle = handle
        self._known_id = known_id
        self._include_return_value = include_return_value
        self._heartbeat_s = heartbeat_s
        self._steps = None

    def __iter__(self) -> "_Chunks":
        return self

    def __next__(self) -> bytes:
        refuse_to_block("use 'async for … in response'")
        try:
            if self._steps is None:
                _let_connections_go()
                waitable = self._handle.open_waitable()
                if not waitable.record.is_finished:
                    waitable.latest()
                self._begin(waitable)
            for step in self._steps or ():
                if isinstance(step, bytes):
                    return step
                with lending_slot() as reclaim_slot:
                    self._waitable.wait(
                        step.timeout_s, at_end=reclaim_slot, revision=step.revision
                    )
        except TaskResultDoesNotExist:
            self._steps = iter(())
        raise StopIteration

    def __aiter__(self) -> "_Chunks":
        return self

    async def __anext__(self) -> bytes:
        try:
            if self._steps is None:
                await sync_to_async(_let_connections_go)()
                waitable = await self._handle.aopen_waitable()
                if not waitable.record.is_finished:
                    await waitable.alatest()
                self._begin(waitable)
            for step in self._steps or ():
                if isinstance(step, bytes):
                    return step
                with (
                    anyio.move_on_after(step.timeout_s),
                    lending_slot() as reclaim_slot,
                ):
                    await self._waitable.wait_async(
                        at_end=reclaim_slot, revision=step.revision
                    )
        except TaskResultDoesNotExist:
            self._steps = iter(())
        raise StopAsyncIteration

    def _begin(self, waitable: Waitable) -> None:
        self._waitable = waitable
        self._steps = _steps(
            waitable,
            known_id=self._known_id,
            include_return_value=self._include_return_value,
            heartbeat_s=self._heartbeat_s,
        )


def _steps(
    waitable: Waitable,
    *,
    known_id: str,
    include_return_value: bool,
    heartbeat_s: float,
) -> Iterator[bytes | _Wait]:
    """What to send, and what to wait for in between."""
    if known_id:
        # The headers go out with the first chunk, and an event may be long in coming.
        yield _HEARTBEAT
    next_at = 0.0
    while True:
        record = waitable.record
        pause_s = next_at - time.monotonic()
        if pause_s > 0 and not record.is_finished:
            yield _Wait(pause_s, revision=None)  # the end is told at once
            record = waitable.record
        data = _data_of(handle_of(record), include_return_value=include_return_value)
        event_id = _id_of(data)
        if event_id != known_id:
            known_id = event_id
            yield f"id: {event_id}\ndata: {data}\n\n".encode()
            next_at = time.monotonic() + _PAUSE_S
        if record.is_finished:
            return
        while not _is_past(waitable.record, record):
            yield _Wait(heartbeat_s, revision=record.revision)
            if not _is_past(waitable.record, record):
                yield _HEARTBEAT


def _is_past(record: Record, other: Record) -> bool:
    return record.is_finished or record.revision > other.revision


def _data_of(handle: LocalTaskResult[Any], *, include_return_value: bool) -> str:
    """What an event says, as JSON text."""
    record, progress = handle.record, handle.progress
    is_failed = record.status is TaskResultStatus.FAILED and record.errors
    error = record.errors[-1].exception_class_path if is_failed else ""
    text = _encode(
        {
            "id": record.id,
            "status": record.status.value,
            "is_finished": record.is_finished,
            "progress": progress and progress._asdict(),
            "error": error.rpartition(".")[2] or None,
        }
    )
    # What is JSON text already need not be decoded.
    text = f'{text[:-1]},"metadata":{record.metadata}'
    if include_return_value:
        text += f',"return_value":{_strict(record.value or "null")}'
    return text + "}"


def _strict(text: str) -> str:
    """JSON as browsers read it. Other backends let numbers pass that it lacks."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda name: None))


def _id_of(data: str) -> str:
    """The same for the same data, in any process and after any restart.

    A revision would not do: results of other backends have none.
    """
    return blake2b(data.encode(), digest_size=12).hexdigest()


def _let_connections_go() -> None:
    """Close this thread's database connections, as at the end of a request.

    The view has used them, and a stream can be open for hours.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:  # as tests have it
            connection.close_if_unusable_or_obsolete()
