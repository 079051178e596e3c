"""What a process and its child say to each other over their pipe."""

import pickle
from collections.abc import Mapping
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, NamedTuple

from django.tasks.base import TaskResultStatus

from .. import records
from ..backoff import Backoff
from ..records import Answer, Call, Outcome, Record, TaskSpec

__all__ = [
    "BootFailed",
    "FromChild",
    "Lend",
    "Ready",
    "Reclaim",
    "Reply",
    "Request",
    "Run",
    "Stop",
    "ToChild",
    "Unwatch",
    "Watch",
    "Watched",
    "WornOut",
    "pack",
    "run_message",
    "unpack_from_child",
    "unpack_to_child",
]


class Run(NamedTuple):
    """Run this task."""

    record: Record
    context: Mapping[str, bytes]
    """Values of context variables, pickled, by the variables' dotted paths."""
    backoff: bytes | None
    """What to ask when it fails, pickled; empty where it has to be looked up by the
    task's path. None: nothing, it is the last attempt."""


class Stop(NamedTuple):
    """There is nothing more to do."""


class Reply(NamedTuple):
    """The answer to a `Request`."""

    request_id: int
    answer: Answer


class Watched(NamedTuple):
    """A result that was watched has come so far, or cannot."""

    watch_id: int


class Ready(NamedTuple):
    """The child sees the project."""


class BootFailed(NamedTuple):
    """The child could not get so far."""

    traceback: str


class WornOut(NamedTuple):
    """The child should be replaced, once its task's outcome has come."""


class Request(NamedTuple):
    """A task asks something of its parent, and waits for the `Reply`."""

    request_id: int
    request: records.Request


class Watch(NamedTuple):
    """A task waits for a result of its parent's."""

    watch_id: int
    alias: str
    result_id: str
    revision: int | None
    """It waits for a later one; None: for the end."""
    group: int | None
    """The group that it belongs to; None: the slot is lent for it alone."""


class Lend(NamedTuple):
    """A task waits for any of a group that it watches."""

    group: int


class Reclaim(NamedTuple):
    """It does so no longer."""

    group: int


class Unwatch(NamedTuple):
    """It does so no longer."""

    watch_id: int


_ANY, _RUN, _OUTCOME = range(3)

_TASK, _STATUS = Record._fields.index("task"), Record._fields.index("status")

_dumps = partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL)

type ToChild = Run | Reply | Watched | Stop
type FromChild = (
    Ready | BootFailed | Outcome | WornOut | Request | Watch | Unwatch | Lend | Reclaim
)


def pack(message: ToChild | FromChild, /) -> bytes:
    """A message's bytes. Pickle, since both ends of the pipe are this program's own.

    The two messages that every call needs go as plain tuples: pickling and unpickling
    their classes takes five times as long.
    """
    if isinstance(message, Run):
        fields: list[object] = list(message.record)
        fields[_TASK] = tuple(message.record.task)
        fields[_STATUS] = None
        return _dumps((_RUN, (fields, message.context, message.backoff)))
    if isinstance(message, Outcome):
        return _dumps((_OUTCOME, tuple(message)))
    return _dumps((_ANY, message))


def unpack_from_child(data: bytes, /) -> FromChild:
    """The message that a child packed."""
    kind, content = pickle.loads(data)
    if kind != _OUTCOME:
        message: FromChild = content
        return message
    return Outcome._make(content)


def unpack_to_child(data: bytes, /) -> ToChild:
    """The message that a parent packed."""
    kind, content = pickle.loads(data)
    if kind != _RUN:
        message: ToChild = content
        return message
    fields, context, backoff = content
    fields[_TASK] = TaskSpec._make(fields[_TASK])
    fields[_STATUS] = TaskResultStatus.RUNNING  # as it is when its worker is told
    return Run(Record._make(fields), context, backoff)


def run_message(
    call: Call,
    record: Record,
    context: Context,
    /,
    *,
    carries: Mapping[str, ContextVar[Any]],
) -> Run:
    """The message that has a call run, with what of its context goes along.

    Raises TypeError where a value of one of the variables cannot be pickled.
    """
    carried: dict[str, bytes] = {}
    for path, variable in carries.items():
        if variable in context:
            try:
                carried[path] = pickle.dumps(context[variable])
            except Exception as err:
                raise TypeError(
                    f"The value of the context variable {path} cannot be pickled, "
                    f"as CONTEXT has it: {err}"
                ) from err
    return Run(record, carried, _packed(call.backoff))


def _packed(backoff: Backoff | None) -> bytes | None:
    if backoff is None:
        return None
    try:
        return pickle.dumps(backoff)
    except Exception:  # a lambda's: the worker finds it where the task is
        return b""
