"""What a process and its child say to each other over their pipe."""

import pickle
from typing import NamedTuple

from ..records import EnqueueRequest, GetRequest, Outcome, Record, Refusal

__all__ = [
    "BootFailed",
    "FromChild",
    "Ready",
    "Reply",
    "Request",
    "Run",
    "Stop",
    "ToChild",
    "Unwatch",
    "Watch",
    "Watched",
    "pack",
    "unpack_from_child",
    "unpack_to_child",
]


class Run(NamedTuple):
    """Run this task."""

    record: Record


class Stop(NamedTuple):
    """There is nothing more to do."""


class Reply(NamedTuple):
    """The answer to a `Request`."""

    request_id: int
    answer: Record | Refusal


class Watched(NamedTuple):
    """A result that was watched is finished, or cannot be."""

    watch_id: int


class Ready(NamedTuple):
    """The child sees the project."""


class BootFailed(NamedTuple):
    """The child could not get so far."""

    traceback: str


class Request(NamedTuple):
    """A task asks something of its parent, and waits for the `Reply`."""

    request_id: int
    request: EnqueueRequest | GetRequest


class Watch(NamedTuple):
    """A task waits for a result of its parent's."""

    watch_id: int
    alias: str
    result_id: str


class Unwatch(NamedTuple):
    """It does so no longer."""

    watch_id: int


type ToChild = Run | Reply | Watched | Stop
type FromChild = Ready | BootFailed | Outcome | Request | Watch | Unwatch


def pack(message: ToChild | FromChild, /) -> bytes:
    """A message's bytes. Pickle, since both ends of the pipe are this program's own."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def unpack_from_child(data: bytes, /) -> FromChild:
    """The message that a child packed."""
    message: FromChild = pickle.loads(data)
    return message


def unpack_to_child(data: bytes, /) -> ToChild:
    """The message that a parent packed."""
    message: ToChild = pickle.loads(data)
    return message
