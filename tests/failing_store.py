"""A store of results in a file that fails just when a task begins."""

from collections.abc import Sequence
from typing import override

from django.tasks import TaskResultStatus

from django_tasks_local.errors import StoreError
from django_tasks_local.options import LocalOptions
from django_tasks_local.records import Record
from django_tasks_local.stores.sqlite import SqliteStore


class SilentStore(SqliteStore):
    """For ``OPTIONS["STORE"]``: stores the first start, and does not say so.

    As a database does whose connection is lost after the commit.
    """

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        super().__init__(options, alias=alias)
        self._has_failed = False

    @override
    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        if self._has_failed or records[0].status is not TaskResultStatus.RUNNING:
            return super().save(records)
        self._has_failed = True
        self._fail(records)
        raise StoreError("The connection was lost.")

    def _fail(self, records: Sequence[Record]) -> None:
        super().save(records)


class ForgetfulStore(SilentStore):
    """Does not store the first start."""

    @override
    def _fail(self, records: Sequence[Record]) -> None:
        pass


class FlakyStore(SqliteStore):
    """Saves nothing while it is broken."""

    is_broken = False

    @override
    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        if self.is_broken:
            raise StoreError("The disk is full.")
        return super().save(records)
