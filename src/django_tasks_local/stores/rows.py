"""A record as a row of plain columns, for stores that keep tables."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import cast

from django.tasks.base import TaskResultStatus

from ..json_text import NO_ARGUMENTS, decode_value
from ..records import ErrorRecord, Record, TaskSpec

__all__ = [
    "CHANGING",
    "COLUMNS",
    "changing_of",
    "readable_records",
    "record_of_row",
    "row_of",
]

type Column = str | int | float | bool | None

COLUMNS = (
    "id",
    "task_path",
    "priority",
    "queue_name",
    "task_backend",
    "takes_context",
    "alias",
    "arguments",
    "run_after",
    "enqueued_at",
    "owner",
    "status",
    "started_at",
    "last_attempted_at",
    "finished_at",
    "value",
    "errors",
    "worker_ids",
    "metadata",
    "due_at",
    "is_cancel_requested",
    "revision",
)
"""The columns, in the order of `row_of`."""

CHANGING = COLUMNS[10:]
"""Those that a change of the record may change: `changing_of`."""

_NONE = "[]"


def row_of(record: Record, /) -> tuple[Column, ...]:
    """The record's columns."""
    return (
        record.id,
        *record.task,
        record.alias,
        record.arguments,
        record.run_after,
        record.enqueued_at,
        *changing_of(record),
    )


def changing_of(record: Record, /) -> tuple[Column, ...]:
    """Those of them that a change of the record may change."""
    return (
        record.owner,
        record.status.value,
        record.started_at,
        record.last_attempted_at,
        record.finished_at,
        record.value,
        # ASCII only: no database refuses it.
        json.dumps(record.errors) if record.errors else _NONE,
        _text_of_ids(record.worker_ids) if record.worker_ids else _NONE,
        record.metadata,
        record.due_at,
        record.is_cancel_requested,
        record.revision,
    )


@lru_cache(maxsize=256)  # those of slots come again and again
def _text_of_ids(worker_ids: tuple[str, ...]) -> str:
    return json.dumps(worker_ids)


def readable_records[R: Sequence[object]](
    rows: Iterable[R],
    /,
    *,
    is_finished: bool | None,
    set_aside: Callable[[R, str], None],
) -> list[Record]:
    """The records of those rows, each with its number before it, that are such.

    And that are finished, or are not, where it is known. `set_aside` is given each of
    the others, and what is wrong with it.
    """
    records: list[Record] = []
    for row in rows:
        try:
            record = record_of_row(row[1:])
            if is_finished is not None and record.is_finished is not is_finished:
                raise ValueError(f"its status is {record.status.value}")
        except (ValueError, RecursionError) as err:
            set_aside(row, f"{type(err).__name__}: {err}")
        else:
            records.append(record)
    return records


def record_of_row(row: Sequence[object], /) -> Record:
    """The record of a row. Raises ValueError where it holds what no record does."""
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} columns instead of {len(COLUMNS)}")
    (
        result_id,
        task_path,
        priority,
        queue_name,
        task_backend,
        takes_context,
        alias,
        arguments,
        run_after,
        enqueued_at,
        owner,
        status,
        started_at,
        last_attempted_at,
        finished_at,
        value,
        errors,
        worker_ids,
        metadata,
        due_at,
        is_cancel_requested,
        revision,
    ) = row
    record = Record(
        _text(result_id),
        TaskSpec(
            _text(task_path),
            _whole(priority),
            _text(queue_name),
            _text(task_backend),
            bool(_whole(takes_context)),
        ),
        _text(alias),
        _arguments(arguments),
        _time(run_after),
        _text(owner),
        _known_time(enqueued_at),
        TaskResultStatus(_text(status)),
        _time(started_at),
        _time(last_attempted_at),
        _time(finished_at),
        None if value is None else _json_text(value),
        _errors(errors),
        _worker_ids(worker_ids),
        _json_text(metadata, dict),
        _due_time(due_at),
        bool(_whole(is_cancel_requested)),
        _whole(revision),
    )
    if record.is_finished and record.finished_at is None:
        raise ValueError("it is finished, but not at any time")
    if record.finished_at is not None and not record.is_finished:
        raise ValueError(f"it was finished, and is {record.status.value}")
    if record.status is TaskResultStatus.SUCCESSFUL and record.value is None:
        raise ValueError("it is successful, but has no value")
    return record


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _known_time(value: object) -> float:
    # From year 1 to 9999, which is what a datetime can say.
    if isinstance(value, int | float) and -62135596800 <= value < 253402300800:
        return float(value)
    raise ValueError(f"{value!r} is not a time")


def _time(value: object) -> float | None:
    return None if value is None else _known_time(value)


def _due_time(value: object) -> float | None:
    """A backoff may have named a time that no datetime can say."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return _time(value)


# What most records have, and what need not be parsed.
_PARSED = {"{}": dict, "null": object}


def _json_text(value: object, kind: type = object) -> str:
    text = _text(value)
    if _PARSED.get(text) is not kind and not isinstance(decode_value(text), kind):
        raise ValueError(f"{text[:80]!r} is not the JSON of a {kind.__name__}")
    return text


def _arguments(value: object) -> str:
    text = _text(value)
    if text != NO_ARGUMENTS:
        args, kwargs = _items(decode_value(text))
        if not (isinstance(args, list) and isinstance(kwargs, dict)):
            raise ValueError(f"{text[:80]!r} are not the JSON of arguments")
    return text


def _errors(value: object) -> tuple[ErrorRecord, ...]:
    if value == _NONE:
        return ()
    pairs = _list(value)
    return tuple(
        ErrorRecord(_text(pair[0]), _text(pair[1]))
        for pair in (_items(each) for each in pairs)
    )


def _worker_ids(value: object) -> tuple[str, ...]:
    if value == _NONE:
        return ()
    return tuple(_text(each) for each in _list(value))


def _list(value: object) -> list[object]:
    return _items(decode_value(_text(value)), length=None)


def _items(value: object, *, length: int | None = 2) -> list[object]:
    if isinstance(value, list):
        items = cast("list[object]", value)  # of whatever: that is seen to
        if length is None or length == len(items):
            return items
    raise ValueError(f"{value!r} is not a list as it should be")
