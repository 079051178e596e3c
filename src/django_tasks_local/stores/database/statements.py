"""The two statements of each task, for which the ORM takes longer than the database."""

from collections.abc import Sequence
from functools import cache

from django.db import connections

from ...records import Record
from ..rows import CHANGING, COLUMNS, changing_of, row_of
from .models import StoredResult

__all__ = ["FIELDS", "insert", "update"]

# "id" can only be the name of a primary key.
FIELDS = ("result_id", *COLUMNS[1:])
"""The model's fields, in the order of `row_of`."""


def insert(using: str, records: Sequence[Record], /) -> None:
    """Add rows, each with a statement of its own."""
    with connections[using].cursor() as cursor:
        if len(records) == 1:
            cursor.execute(_insert_into(using), row_of(records[0]))
        else:
            cursor.executemany(_insert_into(using), list(map(row_of, records)))


def update(using: str, records: Sequence[Record], /) -> int:
    """Change the rows that have the record's last revision; how many these were.

    In one order, or of two processes each could wait for the other's row.
    """
    changes = [
        (*changing_of(record), record.id, record.revision - 1)
        for record in sorted(records, key=_id_of)
    ]
    with connections[using].cursor() as cursor:
        if len(changes) == 1:
            cursor.execute(_update(using), changes[0])
        else:
            cursor.executemany(_update(using), changes)
        count: int = cursor.rowcount
        return count


def _id_of(record: Record) -> str:
    return record.id


@cache
def _insert_into(using: str) -> str:
    columns = ", ".join(_column(using, field) for field in FIELDS)
    values = ", ".join("%s" for _ in FIELDS)
    return f"INSERT INTO {_table(using)} ({columns}) VALUES ({values})"


@cache
def _update(using: str) -> str:
    changes = ", ".join(f"{_column(using, field)} = %s" for field in CHANGING)
    # Not by alias: a database that knows little of the table yet may look through all
    # of the alias's rows.
    key = " AND ".join(
        f"{_column(using, field)} = %s" for field in ("result_id", "revision")
    )
    return f"UPDATE {_table(using)} SET {changes} WHERE {key}"


def _column(using: str, field: str) -> str:
    # Each of these fields has a column of its own name.
    return connections[using].ops.quote_name(field)


def _table(using: str) -> str:
    return connections[using].ops.quote_name(StoredResult._meta.db_table)
