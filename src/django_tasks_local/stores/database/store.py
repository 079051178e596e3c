"""Results in the project's own database, by way of Django's ORM."""

import time
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from itertools import batched
from typing import Any, ClassVar

from django.db import DEFAULT_DB_ALIAS, IntegrityError, connections, transaction
from django.db.models import Count, Max, Q, QuerySet

from ...errors import StoreError
from ...logs import log_error
from ...options import LocalOptions
from ...records import Record, Timestamp
from ..rows import readable_records
from .errors import explaining
from .leases import Leases, leases_of
from .models import StoredResult, UnreadableResult
from .saves import GroupedSaves
from .statements import FIELDS, insert, update

__all__ = ["DatabaseStore"]

_ROW = ("number", *FIELDS)
_AT_ONCE = 200


class DatabaseStore:
    """For ``"STORE": "database"``: an `OwnedResultStore` in the project's database.

    ``STORE_OPTIONS``: ``USING``, an alias of ``DATABASES`` (``"default"``).

    An enqueue is part of the transaction that it is made in. What happens to a task
    later is not, except on SQLite, where nobody else could write meanwhile. Methods
    raise StoreError where the database cannot be used, and try again at the next call.
    """

    option_names: ClassVar[Sequence[str]] = ("USING",)
    is_shared: bool = True
    is_durable: bool = True
    may_block: bool = True

    def __init__(self, options: LocalOptions, /, *, alias: str) -> None:
        self._alias = alias
        self._using = str(options.store_options.get("USING", DEFAULT_DB_ALIAS))
        self._ownership = leases_of(self._using)
        self._database = self._database_now()
        self._saves = GroupedSaves(
            self._save, self._save_again, name=f"django-tasks-{alias}-save"
        )

    @staticmethod
    def find_wrong_options(given: Mapping[str, object], /) -> Iterator[tuple[str, str]]:
        """The names of options with wrong values, and what would be accepted."""
        known = list(connections)
        if given.get("USING", DEFAULT_DB_ALIAS) not in known:
            yield "USING", f"one of {', '.join(map(repr, known))}"

    @property
    def ownership(self) -> Leases:
        """Who lives, of this machine and of others."""
        return self._ownership

    @property
    def is_in_transaction(self) -> bool:
        """Whether this thread is in one, of which its changes may become a part."""
        return connections[self._using].in_atomic_block

    def add(
        self, records: Sequence[Record], /, *, on_visible: Callable[[], None]
    ) -> None:
        """See `ResultStore`."""
        with self._same_database():
            connection = connections[self._using]
            if not connection.in_atomic_block and not connection.get_autocommit():
                raise StoreError(
                    f"Database {self._using!r} has autocommit turned off, outside of "
                    "atomic(): nobody would know when a task is committed."
                )
            try:
                if len(records) == 1:
                    insert(self._using, records)
                else:
                    with transaction.atomic(self._using, savepoint=False):
                        insert(self._using, records)
            except IntegrityError as err:
                raise ValueError("One of these ids is there already.") from err
        added = _Added({record.id for record in records}, on_visible)
        # At once where there is no transaction.
        transaction.on_commit(added, using=self._using)

    def get(self, ids: Iterable[str], /) -> Mapping[str, Record]:
        """See `ResultStore`."""
        wanted = [
            result_id
            for result_id in ids
            if result_id.isascii() and "\0" not in result_id
        ]
        return {
            record.id: record
            for some in batched(wanted, _AT_ONCE)
            # Not by alias, as in `statements.update`.
            for record in self._readable(self._objects.filter(result_id__in=some))
            if record.alias == self._alias
        }

    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        """See `ResultStore`."""
        if any(record.alias != self._alias for record in records):
            return [
                record.alias == self._alias and self.save([record])[0]
                for record in records
            ]
        if not records:
            return []
        if not self.is_in_transaction:
            return self._saves.save(records)
        # On SQLite nobody else could write meanwhile; and nobody else sees what was
        # added in this very transaction.
        added = self._added_in_transaction()
        is_alone = connections[self._using].vendor == "sqlite"
        return [
            (self._save if is_alone or record.id in added else self._saves.save)(
                [record]
            )[0]
            for record in records
        ]

    def unfinished(self) -> Iterator[Record]:
        """See `ResultStore`."""
        return self._records(self._mine.filter(finished_at=None))

    def discard(
        self,
        *,
        finished_before: Timestamp | None = None,
        keep: int | None = None,
        limit: int | None = None,
    ) -> int:
        """See `ResultStore`."""
        finished = self._mine.filter(finished_at__isnull=False)
        doomed = Q(pk__in=())
        with self._same_database():
            if finished_before is not None:
                doomed |= Q(finished_at__lt=finished_before)
            if keep is not None:
                latest_first = finished.order_by("-finished_at", "-number")
                for last in latest_first[keep : keep + 1]:
                    at, number = last.finished_at, last.number
                    doomed |= Q(finished_at__lt=at)
                    doomed |= Q(finished_at=at, number__lte=number)
            oldest_first = finished.filter(doomed).order_by("finished_at", "number")
            numbers = list(oldest_first.values_list("number", flat=True)[:limit])
            return sum(
                self._objects.filter(number__in=some).delete()[0]
                for some in batched(numbers, _AT_ONCE)
            )

    def close(self) -> None:
        """See `ResultStore`."""
        self._saves.close()

    def owners(self) -> Sequence[str]:
        """See `OwnedResultStore`."""
        unfinished = self._mine.filter(finished_at=None).order_by("owner")
        owners: list[str] = []
        with self._same_database():
            # From one to the next, however many records each has.
            while found := unfinished.filter(owner__gt=owners[-1] if owners else "")[
                :1
            ]:
                owners.append(found[0].owner)
        return owners

    def owned_by(self, owner: str, /) -> Iterator[Record]:
        """See `OwnedResultStore`."""
        return self._records(self._mine.filter(finished_at=None, owner=owner))

    def cancel_requests(self, owner: str, /) -> Sequence[Record]:
        """See `OwnedResultStore`."""
        asked = self._mine.filter(
            is_cancel_requested=True, finished_at=None, owner=owner
        )
        return self._readable(asked, is_finished=False)

    def counts(self) -> Mapping[str, int]:
        """See `OwnedResultStore`."""
        with self._same_database():
            statuses = self._mine.values_list("status").annotate(Count("number"))
            counts = dict(statuses.order_by())
            unreadable = UnreadableResult.objects.using(self._using)
            count = unreadable.filter(alias=self._alias).count()
        return {**counts, "UNREADABLE": count} if count else counts

    def version(self) -> int | None:
        """See `OwnedResultStore`."""
        return None

    @contextmanager
    def _same_database(self) -> Generator[None]:
        """Raise StoreError where the database raises, or is not the same any more.

        As when tests have ended, and what runs in the background would go on with the
        project's own.
        """
        if self._database_now() != self._database:
            raise StoreError(
                f"Database {self._using!r} is another one since TASKS[{self._alias!r}] "
                "was first used, as before or after tests. Close that alias first: "
                f"django_tasks_local.state.shutdown_executor({self._alias!r})."
            )
        with explaining(self._using):
            yield

    def _database_now(self) -> tuple[object, ...]:
        settings = connections[self._using].settings_dict
        return tuple(settings.get(key) for key in ("HOST", "PORT", "NAME"))

    @property
    def _objects(self) -> QuerySet[StoredResult]:
        return StoredResult.objects.using(self._using)

    @property
    def _mine(self) -> QuerySet[StoredResult]:
        return self._objects.filter(alias=self._alias)

    def _added_in_transaction(self) -> set[str]:
        """The ids of what this thread has added in the transaction that it is in."""
        waiting = (each[1] for each in connections[self._using].run_on_commit)
        return {
            result_id
            for added in waiting
            if isinstance(added, _Added)
            for result_id in added.ids
        }

    # Saving, on this thread's connection.

    def _save(self, records: Sequence[Record]) -> Sequence[bool]:
        with self._same_database():
            if len(records) == 1:
                return [update(self._using, records) == 1]
            with transaction.atomic(self._using):
                count = update(self._using, records)
        if count == len(records):
            return [True] * count
        return self._are_kept(records)  # one was refused: which?

    def _save_again(self, records: Sequence[Record]) -> Sequence[bool]:
        """The same, where it has failed, and may have been done nevertheless."""
        return [
            is_saved or is_kept
            for is_saved, is_kept in zip(
                self._save(records), self._are_kept(records), strict=True
            )
        ]

    def _are_kept(self, records: Sequence[Record]) -> Sequence[bool]:
        kept = self.get(record.id for record in records)
        return [kept.get(record.id) == record for record in records]

    # Reading.

    def _records(self, rows: QuerySet[StoredResult]) -> Iterator[Record]:
        """A few at once: there may be more than can be held."""
        with self._same_database():
            last = rows.aggregate(last=Max("number"))["last"]
        return iter(()) if last is None else self._records_until(last, rows)

    def _records_until(
        self, last: int, rows: QuerySet[StoredResult]
    ) -> Iterator[Record]:
        rows = rows.filter(number__lte=last).order_by("number")
        after = 0
        while True:
            with self._same_database():
                some = list(rows.filter(number__gt=after).values_list(*_ROW)[:_AT_ONCE])
            if not some:
                return
            yield from self._parse(some, False)
            after = some[-1][0]

    def _readable(
        self, rows: QuerySet[StoredResult], *, is_finished: bool | None = None
    ) -> list[Record]:
        with self._same_database():
            return self._parse(list(rows.values_list(*_ROW)), is_finished)

    def _parse(
        self, rows: Sequence[Sequence[Any]], is_finished: bool | None
    ) -> list[Record]:
        return readable_records(
            rows, is_finished=is_finished, set_aside=self._set_aside
        )

    def _set_aside(self, row: Sequence[Any], reason: str) -> None:
        number, result_id, *_ = row
        with self._same_database(), transaction.atomic(self._using):
            count, _ = self._objects.filter(number=number).delete()
            if count == 0:  # somebody was faster
                return
            UnreadableResult.objects.using(self._using).create(
                alias=self._alias,
                noticed_at=time.time(),
                reason=ascii(reason),
                content=ascii(dict(zip(_ROW, row, strict=True))),
            )
        log_error(
            "TASKS[%r]: result %r cannot be read and was set aside, in the table of "
            "unreadable results of database %r: %s",
            self._alias,
            result_id,
            self._using,
            reason,
        )


class _Added:
    """Told when what was added is committed; let go of where it is rolled back."""

    __slots__ = ("_on_visible", "ids")

    def __init__(self, ids: set[str], on_visible: Callable[[], None]) -> None:
        self.ids = ids
        self._on_visible = on_visible

    def __call__(self) -> None:
        self._on_visible()
