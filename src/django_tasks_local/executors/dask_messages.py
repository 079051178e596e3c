"""What a process and the Dask workers that run its tasks say to each other.

A call goes out as a Dask task with one opaque argument, its *payload*. Everything else
goes as Dask's events: up under one of a few topics, and down under the topic that has
the worker's address for its name, which the scheduler forgets with the worker. Pickle
crosses, as it does in every Dask cluster: the settings name this one.
"""

import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from zlib import crc32

from ..records import Interruption, Outcome, Record, Timestamp
from .deployment import Deployment
from .messages import Lend, Reclaim, Reply, Request, Unwatch, Watch, Watched

__all__ = [
    "Answer",
    "Ask",
    "Begin",
    "BootFailed",
    "Decline",
    "FromWorker",
    "Interrupt",
    "Payload",
    "Refused",
    "Sent",
    "ToWorker",
    "Unanswered",
    "content_of",
    "event_down",
    "event_up",
    "pack",
    "pack_payload",
    "pack_result",
    "topic_of",
    "unpack_from_worker",
    "unpack_payload",
    "unpack_result",
    "unpack_to_worker",
]

_MARK = "django-tasks-local"
_FORMAT = 1
_TOPICS = 64


class Payload(NamedTuple):
    """What a Dask worker is given."""

    key: str
    """Dask's name for the task."""
    session: str
    """Of whom the task is: he alone answers."""
    deployment: Deployment
    settings_module: str | None
    project: bytes | None
    """For a worker on the same machine: the project as its client sees it, packed."""
    run: bytes
    """A `Run`, packed."""
    is_coroutine: bool
    timeout_s: float | None
    raises_in_threads: bool


# Up.


class Ask(NamedTuple):
    """May I begin? The worker waits for `Begin` or `Decline`."""

    key: str
    at: Timestamp


type FromWorker = Ask | Outcome | Request | Watch | Unwatch | Lend | Reclaim


# Down.


class Begin(NamedTuple):
    """The attempt begins, with this record, but for its arguments."""

    record: Record


class Decline(NamedTuple):
    """Nothing more is wanted of the call."""


class Interrupt(NamedTuple):
    """The call is to stop."""

    reason: Interruption


type ToWorker = Begin | Decline | Interrupt | Reply | Watched


# What the Dask task returns.


class Sent(NamedTuple):
    """The outcome has gone up as an event, or none is wanted."""


class BootFailed(NamedTuple):
    """The worker could not get so far."""

    worker: str
    traceback: str


class Refused(NamedTuple):
    """The worker has something else deployed."""

    worker: str
    deployment: Deployment


class Unanswered(NamedTuple):
    """The worker has not begun, as Dask had told it to let go of the task."""


type Answer = Sent | Outcome | BootFailed | Refused | Unanswered


def topic_of(session: str, /) -> str:
    """The topic of the events for a session; one of a few, or they would never go."""
    return f"{_MARK}-{crc32(session.encode()) % _TOPICS}"


def pack_payload(payload: Payload, /) -> bytes:
    """Its bytes, whose beginning every version can read."""
    head = (_FORMAT, tuple(payload.deployment), payload.key, payload.session)
    return pickle.dumps((head, pickle.dumps(tuple(payload))))


def unpack_payload(data: bytes, /) -> Payload | Deployment:
    """The payload, or what its sender has deployed where this one cannot read it."""
    (number, deployment, *_), rest = pickle.loads(data)
    if number != _FORMAT:
        return Deployment(*deployment)
    fields = list(pickle.loads(rest))
    place = Payload._fields.index("deployment")
    fields[place] = Deployment._make(fields[place])
    return Payload._make(fields)


def pack_result(answer: Answer, /) -> bytes:
    """What a Dask task returns; nothing at all for the usual one."""
    return b"" if isinstance(answer, Sent) else pack(answer)


def unpack_result(data: bytes, /) -> Answer:
    """The other way."""
    if not data:
        return Sent()
    answer: Answer = pickle.loads(data)
    return answer


def pack(message: FromWorker | ToWorker | Answer, /) -> bytes:
    """The bytes of a message."""
    return pickle.dumps(message)


def unpack_from_worker(data: bytes, /) -> FromWorker:
    """A message of a worker's."""
    message: FromWorker = pickle.loads(data)
    return message


def unpack_to_worker(data: bytes, /) -> ToWorker:
    """A message for a worker."""
    message: ToWorker = pickle.loads(data)
    return message


# Events, of which Dask takes what msgpack can carry.


def event_up(session: str, token: str, worker: str, packed: bytes, /) -> list[object]:
    """A worker's message about the call that has that token."""
    return [_MARK, session, token, worker, packed]


def event_down(messages: Sequence[tuple[str, bytes]], /) -> list[object]:
    """Messages for workers, each with the token of the call that it is for."""
    return [_MARK, messages]


def content_of(event: tuple[float, Any], /) -> Sequence[Any] | None:
    """What stands in an event after its mark; None: it is somebody else's."""
    message = event[1]
    if isinstance(message, list | tuple):
        fields = cast("Sequence[Any]", message)
        if fields and fields[0] == _MARK:
            return fields[1:]
    return None
