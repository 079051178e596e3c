"""What every store promises whose tasks outlive their process, as tests."""
# ruff: noqa: D102  # the name of a test says what is promised

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import batched
from typing import override

from django.tasks.base import TaskResultStatus

from ..identity import new_owner
from ..options import LocalOptions
from ..protocols import OwnedResultStore
from ..records import (
    ErrorRecord,
    Record,
    apply_cancel,
    apply_cancel_request,
    apply_metadata,
)
from .contract import ALIAS, in_threads, options_for
from .records import (
    do_nothing,
    finished_record,
    ready_record,
    record_to_be_tried_again,
    running_record,
)
from .stores import ResultStoreContract

__all__ = ["OwnedResultStoreContract"]

# More than any store should hold at once.
_MANY = 450
_OTHER_ALIAS = f"{ALIAS}-too"
# What is no record's.
_CORRUPTIONS = (
    ("status", "LOST"),
    ("status", ""),
    ("arguments", "[[1],{}"),
    ("arguments", "{}"),
    ("arguments", "[1]"),
    ("arguments", "[" * 100_000),
    ("metadata", "[]"),
    ("errors", '[["only one"]]'),
    ("errors", "null"),
    ("worker_ids", "[1]"),
)


def _owned(owner: str, count: int, *, first: int = 0) -> list[Record]:
    """Records that wait, the oldest first."""
    return [
        ready_record(first + number)._replace(owner=owner) for number in range(count)
    ]


def _claimed(record: Record, owner: str) -> Record:
    return record._replace(owner=owner, revision=record.revision + 1)


def _failed(record: Record) -> Record:
    return apply_cancel(record, ErrorRecord("project.Cancelled", "no"), at=3_000.0)


class _Errors(logging.Handler):
    """Those that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _logged_errors() -> Generator[list[str]]:
    logger = logging.getLogger("django_tasks_local")
    handler = _Errors()
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)


class OwnedResultStoreContract(ResultStoreContract):
    """What an `OwnedResultStore` promises, as tests. Override `make_store`.

    And `corrupt`, where somebody could change a record past the store.
    """

    @override
    def make_store(self, options: LocalOptions, /, *, alias: str) -> OwnedResultStore:
        """A store as its `ResultStoreFactory` would make it; empty at a test's start.

        Called again in a test that needs another process's view: then it has the same
        records. `options` and closing are as in `ResultStoreContract`.
        """
        raise NotImplementedError

    def corrupt(self, result_id: str, column: str, value: str, /) -> bool:
        """Put a text in the place of what is kept of a record, past all stores.

        `column` is one of `django_tasks_local.stores.rows.COLUMNS`. False, as here,
        where that cannot be done: then the suite leaves it out.
        """
        return False

    @contextmanager
    def _stores(
        self, count: int = 1, *, alias: str = ALIAS
    ) -> Generator[list[OwnedResultStore]]:
        """As many views of the same records."""
        with ExitStack() as stack:
            stores: list[OwnedResultStore] = []
            for _ in range(count):
                store = self.make_store(options_for(store=self.make_store), alias=alias)
                stack.callback(store.close)
                stores.append(store)
            yield stores

    @staticmethod
    def _save(store: OwnedResultStore, *records: Record) -> None:
        assert list(store.save(records)) == [True] * len(records)

    @staticmethod
    def _counts(store: OwnedResultStore) -> dict[str, int]:
        return {status: count for status, count in store.counts().items() if count}

    def test_others_see_it_and_it_outlives_the_process(self) -> None:
        with self._stores() as (store,):
            assert store.is_shared
            assert store.is_durable

    # ownership

    def test_owner_lives_from_hold_to_release_for_everybody(self) -> None:
        owner = new_owner()
        with self._stores(2) as (mine, other):
            mine.ownership.hold(owner)
            assert mine.ownership.is_alive(owner)
            assert other.ownership.is_alive(owner)

            mine.ownership.release(owner)
            assert not mine.ownership.is_alive(owner)
            assert not other.ownership.is_alive(owner)

            mine.ownership.release(owner)
            assert not mine.ownership.is_alive(owner)

    def test_name_that_nobody_holds_does_not_live(self) -> None:
        with self._stores() as (store,):
            assert not store.ownership.is_alive(new_owner())
            store.ownership.release(new_owner())
            store.ownership.bury(new_owner())

    def test_renewing_says_when_that_is_due_again(self) -> None:
        owners = [new_owner(), new_owner()]
        with self._stores(2) as (mine, other):
            for owner in owners:
                mine.ownership.hold(owner)
            for _ in range(2):
                due_s = mine.ownership.renew()
                assert due_s is None or due_s > 0
            assert all(map(other.ownership.is_alive, owners))
            for owner in owners:
                mine.ownership.release(owner)
            mine.ownership.renew()
            assert not any(map(other.ownership.is_alive, owners))

    def test_burying_touches_nobody_else(self) -> None:
        dead, living, unknown = new_owner(), new_owner(), new_owner()
        with self._stores(2) as (mine, other):
            mine.ownership.hold(living)
            mine.ownership.hold(dead)
            mine.ownership.release(dead)
            for owner in (dead, unknown, dead):
                other.ownership.bury(owner)

                assert not other.ownership.is_alive(owner)
            for store in (mine, other):
                assert store.ownership.is_alive(living)
            mine.ownership.release(living)

    def test_many_are_held_and_released_at_once(self) -> None:
        with self._stores(2) as (mine, other):

            def hold() -> list[str]:
                owners = [new_owner() for _ in range(5)]
                for owner in owners:
                    mine.ownership.hold(owner)
                mine.ownership.release(owners[0])
                return owners

            held = in_threads([hold] * self.racers, timeout_s=self.timeout_s)

            for released, *living in held:
                assert not other.ownership.is_alive(released)
                for owner in living:
                    assert other.ownership.is_alive(owner)
                    mine.ownership.release(owner)

    # owners

    def test_owners_of_unfinished_records_come_once_each(self) -> None:
        many, one, running, again, done, cancelled = (new_owner() for _ in range(6))
        (runs,) = _owned(running, 1)
        (retried,) = _owned(again, 1)
        ended = [*_owned(done, 2), *_owned(cancelled, 1)]
        with self._stores() as (store,):
            assert list(store.owners()) == []
            self._add(store, *_owned(many, _MANY), *_owned(one, 1))
            self._add(store, runs, retried, *ended)
            self._save(store, running_record(runs), running_record(retried))
            self._save(store, record_to_be_tried_again(running_record(retried)))
            self._save(store, finished_record(ended[0]), finished_record(ended[1]))
            self._save(store, _failed(ended[2]))

            assert sorted(store.owners()) == sorted([many, one, running, again])

    def test_who_has_nothing_left_is_no_owner(self) -> None:
        first, second = new_owner(), new_owner()
        mine, taken = _owned(first, 2)
        with self._stores(2) as (store, other):
            self._add(store, mine, taken)
            self._save(other, _claimed(taken, second))
            assert sorted(store.owners()) == sorted([first, second])

            self._save(store, finished_record(mine))
            assert list(store.owners()) == [second]
            assert list(other.owners()) == [second]

            self._save(store, finished_record(_claimed(taken, second)))
            assert list(store.owners()) == []

    # owned_by

    def test_owned_records_come_oldest_first_however_many(self) -> None:
        owner, other = new_owner(), new_owner()
        records: list[Record] = []
        with self._stores(2) as (store, reader):
            for number in range(0, _MANY, 50):
                mine = _owned(owner, 50, first=number)
                records += mine
                # Those of others come in between.
                rest = _owned(other, 10, first=number)
                self._add(store, *mine[:25], *rest, *mine[25:])
            # What happens to a record does not make it younger.
            for number in (449, 220, 0):
                records[number] = running_record(records[number])
                self._save(store, records[number])
            ended = [records[number] for number in (448, 300, 1)]
            self._save(store, *map(finished_record, ended[:2]), _failed(ended[2]))

            left = [record for record in records if record not in ended]
            assert list(reader.owned_by(owner)) == left
            assert list(store.owned_by(owner)) == left
            assert len(list(store.owned_by(other))) == 90
            assert list(store.owned_by(new_owner())) == []

    def test_owned_records_are_those_of_the_call(self) -> None:
        owner = new_owner()
        first, second, late = _owned(owner, 3)
        with self._stores() as (store,):
            self._add(store, first, second)

            owned = store.owned_by(owner)
            self._add(store, late)
            self._save(store, finished_record(first), running_record(second))

            # As they were at the call, or as they are.
            left = [record for record in owned if record != first]
            assert left in ([second], [running_record(second)])

    def test_claiming_while_they_are_read_loses_and_doubles_none(self) -> None:
        records = _owned(new_owner(), _MANY)
        with self._stores(2) as (store, other):
            self._add(store, *records)
            dead = records[0].owner
            for at_once in (1, 200, _MANY):
                mine = new_owner()
                seen: list[str] = []
                for some in batched(store.owned_by(dead), at_once):
                    seen += [record.id for record in some]
                    self._save(other, *(_claimed(record, mine) for record in some))

                assert seen == [record.id for record in records]
                assert [each.id for each in store.owned_by(mine)] == seen
                assert list(store.owned_by(dead)) == []
                assert list(store.owners()) == [mine]
                dead = mine

    def test_what_ends_while_they_are_read_keeps_no_other_back(self) -> None:
        records = _owned(new_owner(), _MANY)
        owner = records[0].owner
        with self._stores(2) as (store, other):
            self._add(store, *records)
            owned = store.owned_by(owner)
            first = next(owned)
            self._save(other, *map(finished_record, records[::2]))
            other.discard(keep=0)

            seen = {first.id, *(record.id for record in owned)}

            assert seen >= {record.id for record in records[1::2]}
            assert seen <= {record.id for record in records}

    def test_of_many_that_adopt_each_record_is_won_once(self) -> None:
        records = _owned(new_owner(), _MANY)
        dead = records[0].owner
        with self._stores(3) as stores:
            self._add(stores[0], *records)

            def adopter(store: OwnedResultStore, owner: str) -> Callable[[], set[str]]:
                def adopt() -> set[str]:
                    won: set[str] = set()
                    for some in batched(store.owned_by(dead), 20):
                        saved = store.save([_claimed(each, owner) for each in some])
                        won |= {
                            record.id
                            for record, is_mine in zip(some, saved, strict=True)
                            if is_mine
                        }
                    return won

                return adopt

            owners = [new_owner() for _ in range(self.racers)]
            won = in_threads(
                [
                    adopter(stores[number % len(stores)], owner)
                    for number, owner in enumerate(owners)
                ],
                timeout_s=self.timeout_s,
            )

            assert sum(map(len, won)) == len(records)
            for store in stores:
                assert list(store.owned_by(dead)) == []
                for owner, ids in zip(owners, won, strict=True):
                    owned = list(store.owned_by(owner))
                    assert {record.id for record in owned} == ids
                    assert {record.revision for record in owned} <= {1}

    def test_adopting_and_starting_have_one_winner(self) -> None:
        with self._stores(2) as (mine, other):
            for number in range(10):
                record = ready_record(number)
                self._add(mine, record)
                changes = [running_record(record), _claimed(record, new_owner())]

                def saver(
                    store: OwnedResultStore, change: Record
                ) -> Callable[[], bool]:
                    return lambda: store.save([change])[0]

                won = in_threads(
                    [saver(mine, changes[0]), saver(other, changes[1])],
                    timeout_s=self.timeout_s,
                )

                assert sorted(won) == [False, True]
                winner = changes[won.index(True)]
                assert list(mine.owned_by(winner.owner)) == [winner]

    # cancel_requests

    def test_cancel_requests_are_those_of_the_owners_unfinished(self) -> None:
        owner, other = new_owner(), new_owner()
        waiting, running, done, not_asked = _owned(owner, 4)
        (others,) = _owned(other, 1)
        runs = running_record(running)
        with self._stores(2) as (store, asking):
            self._add(store, waiting, running, done, not_asked, others)
            assert list(store.cancel_requests(owner)) == []
            self._save(store, runs)
            self._save(
                asking,
                *map(apply_cancel_request, (waiting, runs, done, others)),
            )
            self._save(store, _failed(apply_cancel_request(done)))

            asked = store.cancel_requests(owner)

            assert len(asked) == 2
            assert {record.id: record for record in asked} == {
                waiting.id: apply_cancel_request(waiting),
                running.id: apply_cancel_request(runs),
            }
            (found,) = store.cancel_requests(other)
            assert found == apply_cancel_request(others)
            assert list(store.cancel_requests(new_owner())) == []

    def test_cancel_request_goes_with_its_task(self) -> None:
        record = apply_cancel_request(ready_record(1))
        heir = new_owner()
        with self._stores(2) as (store, other):
            self._add(store, record)
            self._save(other, _claimed(record, heir))

            assert list(store.cancel_requests(record.owner)) == []
            assert list(store.cancel_requests(heir)) == [_claimed(record, heir)]

    # counts

    def test_counts_are_by_status(self) -> None:
        records = _owned(new_owner(), 10)
        with self._stores(2) as (store, other):
            assert self._counts(store) == {}
            self._add(store, *records)
            self._save(store, *map(running_record, records[:4]))
            self._save(
                other, *(finished_record(running_record(each)) for each in records[:2])
            )
            self._save(store, _failed(records[4]))

            counts = self._counts(store)

            assert counts == {
                TaskResultStatus.READY: 5,
                TaskResultStatus.RUNNING: 2,
                TaskResultStatus.SUCCESSFUL: 2,
                TaskResultStatus.FAILED: 1,
            }
            assert self._counts(other) == counts
            assert all(type(count) is int for count in counts.values())

    # version

    def test_version_changes_with_what_others_write_and_only_then(self) -> None:
        record = ready_record(1)
        writes: Sequence[Callable[[OwnedResultStore], object]] = (
            lambda store: store.add([record], on_visible=do_nothing),
            lambda store: store.save([running_record(record)]),
            lambda store: store.save([apply_metadata(running_record(record), "{}")]),
            lambda store: store.save(
                [finished_record(apply_metadata(running_record(record), "{}"))]
            ),
            lambda store: store.discard(keep=0),
        )
        with self._stores(2) as (store, other):
            if store.version() is None:
                return
            for write in writes:
                before = store.version()
                for each in (store, other):
                    each.get([record.id])
                    each.owners()
                    list(each.owned_by(record.owner))
                    each.cancel_requests(record.owner)
                    each.counts()
                assert store.version() == before
                assert type(before) is int

                write(other)

                assert store.version() != before

    # discard

    def test_discarding_changes_nothing_of_what_is_unfinished(self) -> None:
        owner = new_owner()
        waiting, asked, *ended = _owned(owner, 8)
        with self._stores(2) as (store, other):
            self._add(store, waiting, asked, *ended)
            self._save(store, apply_cancel_request(asked))
            self._save(store, *map(finished_record, ended))

            assert other.discard(keep=2) == 4
            assert self._counts(store) == {"READY": 2, "SUCCESSFUL": 2}
            assert other.discard(keep=0, finished_before=9_000.0) == 2

            for each in (store, other):
                assert self._counts(each) == {"READY": 2}
                assert list(each.owners()) == [owner]
                assert list(each.owned_by(owner)) == [
                    waiting,
                    apply_cancel_request(asked),
                ]
                assert list(each.cancel_requests(owner)) == [
                    apply_cancel_request(asked)
                ]

    def test_of_many_that_discard_each_record_goes_once(self) -> None:
        records = _owned(new_owner(), 200)
        with self._stores(2) as stores:
            self._add(stores[0], *records)
            self._save(stores[0], *map(finished_record, records))

            def discarder(store: OwnedResultStore) -> Callable[[], int]:
                def discard() -> int:
                    total = 0
                    while count := store.discard(keep=20, limit=7):
                        total += count
                    return total

                return discard

            gone = in_threads(
                [discarder(stores[number % 2]) for number in range(self.racers)],
                timeout_s=self.timeout_s,
            )

            assert sum(gone) == 180
            assert self._left(stores[1], records) == records[180:]
            assert self._counts(stores[1]) == {"SUCCESSFUL": 20}

    # Aliases that share.

    def test_aliases_see_only_their_own(self) -> None:
        owner = new_owner()
        mine, ended, theirs = _owned(owner, 3)
        theirs = apply_cancel_request(theirs)._replace(alias=_OTHER_ALIAS)
        with (
            self._stores() as (store,),
            self._stores(alias=_OTHER_ALIAS) as (other,),
        ):
            self._add(store, mine, ended)
            self._save(store, finished_record(ended))
            self._add(other, theirs)

            assert list(store.owned_by(owner)) == list(store.unfinished()) == [mine]
            assert list(other.owned_by(owner)) == list(other.unfinished()) == [theirs]
            assert list(store.cancel_requests(owner)) == []
            assert self._counts(store) == {"READY": 1, "SUCCESSFUL": 1}
            assert self._counts(other) == {"READY": 1}
            assert dict(other.get([mine.id, ended.id])) == {}
            assert list(other.save([running_record(mine)])) == [False]
            assert other.discard(keep=0) == 0
            self._save(other, finished_record(theirs))
            assert list(other.owners()) == []
            assert list(store.owners()) == [owner]

    # Records that cannot be read.

    def _corrupt(self, records: Sequence[Record]) -> list[Record]:
        """Those of them that it could be done to, each in another way."""
        return [
            record
            for record, (column, value) in zip(records, _CORRUPTIONS, strict=False)
            if self.corrupt(record.id, column, value)
        ]

    def test_what_cannot_be_read_keeps_no_other_back(self) -> None:
        records = _owned(new_owner(), _MANY)
        owner = records[0].owner
        with self._stores(2) as (store, other), _logged_errors() as errors:
            self._add(store, *records)
            corrupt = self._corrupt(records[195:])
            if not corrupt:
                return
            left = [record for record in records if record not in corrupt]

            assert list(store.owned_by(owner)) == left

            # Each is reported once, and set aside for everybody.
            for each in (store, other):
                assert list(each.owned_by(owner)) == left
                assert list(each.unfinished()) == left
                assert dict(each.get(record.id for record in corrupt)) == {}
                assert self._counts(each) == {
                    "READY": len(left),
                    "UNREADABLE": len(corrupt),
                }
            assert len(errors) == len(corrupt)
            for record, message in zip(corrupt, errors, strict=True):
                assert repr(record.id) in message

    def test_look_up_and_cancel_requests_set_aside_too(self) -> None:
        records = _owned(new_owner(), len(_CORRUPTIONS))
        owner = records[0].owner
        asked = list(map(apply_cancel_request, records))
        with self._stores() as (store,), _logged_errors() as errors:
            self._add(store, *records)
            self._save(store, *asked)
            corrupt = self._corrupt(asked)
            if not corrupt:
                return
            half = len(corrupt) // 2
            ids = [record.id for record in records]

            found = store.get(record.id for record in corrupt[:half])
            assert dict(found) == {}
            left = [record for record in asked if record not in corrupt]
            requests = store.cancel_requests(owner)
            assert {record.id for record in requests} == {each.id for each in left}
            assert set(store.get(ids)) == {each.id for each in left}

            assert self._counts(store).get("UNREADABLE") == len(corrupt)
            assert len(errors) == len(corrupt)

    def test_of_many_that_find_it_one_reports_it(self) -> None:
        records = _owned(new_owner(), len(_CORRUPTIONS))
        owner = records[0].owner
        with self._stores(2) as stores, _logged_errors() as errors:
            self._add(stores[0], *records)
            corrupt = self._corrupt(records)
            if not corrupt:
                return

            def reader(store: OwnedResultStore) -> Callable[[], list[Record]]:
                return lambda: list(store.owned_by(owner))

            found = in_threads(
                [reader(stores[number % 2]) for number in range(self.racers)],
                timeout_s=self.timeout_s,
            )

            left = [record for record in records if record not in corrupt]
            assert found == [left] * self.racers
            assert self._counts(stores[0]).get("UNREADABLE") == len(corrupt)
            assert len(errors) == len(corrupt)

    def test_finished_record_that_cannot_be_read_is_counted_as_such(self) -> None:
        records = _owned(new_owner(), len(_CORRUPTIONS) + 1)
        with self._stores() as (store,):
            self._add(store, *records)
            ended = list(map(finished_record, records))
            self._save(store, *ended)
            corrupt = self._corrupt(ended)
            if not corrupt:
                return

            found = store.get([record.id for record in ended])

            left = [record for record in ended if record not in corrupt]
            assert dict(found) == {record.id: record for record in left}
            assert self._counts(store) == {
                "SUCCESSFUL": len(left),
                "UNREADABLE": len(corrupt),
            }
            assert store.discard(keep=0) == len(left)
