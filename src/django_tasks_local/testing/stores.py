"""What every result store promises, as tests."""
# ruff: noqa: D102  # the name of a test says what is promised

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from django.tasks.base import TaskResultStatus

from ..identity import new_result_id
from ..json_text import decode_value, encode_arguments, encode_metadata, encode_value
from ..options import LocalOptions
from ..protocols import ResultStore
from ..records import (
    ErrorRecord,
    Outcome,
    Record,
    TaskSpec,
    apply_cancel,
    apply_cancel_request,
    apply_metadata,
    apply_outcome,
    apply_start,
)
from .contract import ALIAS, in_threads, options_for
from .records import (
    do_nothing,
    finished_record,
    ready_record,
    record_to_be_tried_again,
    running_record,
)

__all__ = ["ResultStoreContract"]


class ResultStoreContract:
    """What a `ResultStore` promises, as tests. Override `make_store`."""

    timeout_s: ClassVar[float] = 30.0
    """What takes longer than this many seconds has failed."""
    racers: ClassVar[int] = 8
    """How many threads use the store at once."""

    def make_store(self, options: LocalOptions, /, *, alias: str) -> ResultStore:
        """A new and empty store, as its `ResultStoreFactory` would make it.

        Called once a test. `options` has no ``store_options``: use
        `dataclasses.replace` to give some. The suite closes the store.
        """
        raise NotImplementedError

    @contextmanager
    def _store(self) -> Generator[ResultStore]:
        store = self.make_store(options_for(store=self.make_store), alias=ALIAS)
        try:
            yield store
        finally:
            store.close()

    @staticmethod
    def _add(store: ResultStore, *records: Record) -> None:
        store.add(records, on_visible=do_nothing)

    @staticmethod
    def _add_finished(store: ResultStore, count: int) -> list[Record]:
        """Records that were added in one order and finished in the opposite one."""
        records = [ready_record(number) for number in range(count)]
        store.add(records, on_visible=do_nothing)
        finished = [
            finished_record(record, at=3_000.0 + position)
            for position, record in enumerate(reversed(records))
        ]
        for record in finished:
            assert list(store.save([record])) == [True]
        return finished

    def test_says_what_it_is(self) -> None:
        with self._store() as store:
            assert isinstance(store.is_shared, bool)
            assert isinstance(store.is_durable, bool)
            assert isinstance(store.may_block, bool)

    # add

    def test_added_records_are_there(self) -> None:
        first, second = ready_record(1), ready_record(2)
        with self._store() as store:
            self._add(store, first, second)

            assert dict(store.get([first.id, second.id])) == {
                first.id: first,
                second.id: second,
            }

    def test_on_visible_is_called_once(self) -> None:
        calls: list[str] = []
        with self._store() as store:
            store.add(
                [ready_record(1), ready_record(2)],
                on_visible=lambda: calls.append("seen"),
            )

            assert calls == ["seen"]

    def test_others_see_the_records_when_on_visible_is_called(self) -> None:
        records = [ready_record(1), ready_record(2)]
        ids = [record.id for record in records]
        seen: list[set[str]] = []
        with self._store() as store:

            def look() -> None:
                (found,) = in_threads(
                    [lambda: store.get(ids)], timeout_s=self.timeout_s
                )
                seen.append(set(found))

            store.add(records, on_visible=look)

            assert seen == [set(ids)]

    def test_what_on_visible_raises_comes_out_and_the_records_stay(self) -> None:
        record = ready_record(1)

        def interrupt() -> None:
            raise KeyboardInterrupt

        with self._store() as store:
            try:
                store.add([record], on_visible=interrupt)
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("what on_visible raised did not come out")

            assert set(store.get([record.id])) == {record.id}

    def test_on_visible_may_use_the_store(self) -> None:
        record = ready_record(1)
        began = running_record(record)
        saved: list[bool] = []
        with self._store() as store:
            store.add([record], on_visible=lambda: saved.extend(store.save([began])))

            assert saved == [True]
            assert store.get([record.id])[record.id] == began

    def test_id_that_is_there_is_refused(self) -> None:
        record = ready_record(1)
        with self._store() as store:
            self._add(store, record)
            for again in (record, ready_record(2)._replace(id=record.id)):
                self._assert_refused(store, [again])

            assert store.get([record.id])[record.id] == record

    def test_id_of_a_finished_record_is_refused(self) -> None:
        with self._store() as store:
            (finished,) = self._add_finished(store, 1)
            self._assert_refused(store, [ready_record(2)._replace(id=finished.id)])

            assert store.get([finished.id])[finished.id] == finished

    def test_all_are_added_or_none(self) -> None:
        kept, first, last = ready_record(1), ready_record(2), ready_record(3)
        with self._store() as store:
            self._add(store, kept)
            self._assert_refused(store, [first, kept, last])

            assert set(store.get([kept.id, first.id, last.id])) == {kept.id}
            assert [record.id for record in store.unfinished()] == [kept.id]

    def test_id_may_not_come_twice(self) -> None:
        record, other = ready_record(1), ready_record(2)
        with self._store() as store:
            self._assert_refused(store, [record, other, record])

            assert not store.get([record.id, other.id])

    def _assert_refused(self, store: ResultStore, records: Sequence[Record]) -> None:
        calls: list[str] = []
        try:
            store.add(records, on_visible=lambda: calls.append("seen"))
        except ValueError:
            pass
        else:
            raise AssertionError("an id that is there already was added again")
        assert calls == []

    def test_of_many_that_add_one_id_one_wins(self) -> None:
        record = ready_record(0)
        rivals = [record._replace(owner=f"host:{n}") for n in range(self.racers)]
        with self._store() as store:

            def adder(rival: Record) -> Callable[[], bool]:
                def add() -> bool:
                    try:
                        self._add(store, rival)
                    except ValueError:
                        return False
                    return True

                return add

            won = in_threads(
                [adder(rival) for rival in rivals], timeout_s=self.timeout_s
            )

            assert won.count(True) == 1
            assert store.get([record.id])[record.id] == rivals[won.index(True)]

    # get

    def test_unknown_ids_are_left_out(self) -> None:
        record = ready_record(1)
        with self._store() as store:
            self._add(store, record)

            assert dict(store.get([new_result_id(), record.id, "no id"])) == {
                record.id: record
            }
            assert dict(store.get([new_result_id()])) == {}
            assert dict(store.get([])) == {}

    def test_ids_may_come_from_a_generator_and_twice(self) -> None:
        record = ready_record(1)
        with self._store() as store:
            self._add(store, record)

            assert dict(store.get(record.id for _ in range(2))) == {record.id: record}

    def test_records_come_back_as_they_were(self) -> None:
        ready = Record(
            id=new_result_id(),
            task=TaskSpec("project.tasks.Größe", -100, "späť 🚚", "other", True),
            alias=ALIAS,
            arguments=encode_arguments(
                ["ü", "\n", "漢字", "🧵"], {"größe": [None, 1.5]}
            ),
            run_after=1_700_000_000.123456,
            owner="höst:123",
            enqueued_at=1_699_999_999.987654,
        )
        running = apply_start(ready, worker_id="höst:123:ein Arbeiter 🧵", at=0.1 + 0.2)
        failed = apply_outcome(
            running,
            Outcome(
                ready.id,
                1_700_000_001.000001,
                error=ErrorRecord("project.Größenfehler", "Zeile 1\n\t“漢字”\r\n🧵\n"),
            ),
        )
        with self._store() as store:
            self._add(store, ready)
            self._assert_same(store, ready)
            for record in (running, failed):
                assert list(store.save([record])) == [True]
                self._assert_same(store, record)

    def test_what_changes_while_a_task_runs_comes_back_as_it_was(self) -> None:
        ready = ready_record(1)._replace(
            metadata=encode_metadata({"größe": [1.5, None, "🧵\n漢字"]}),
            due_at=1_700_000_000.123456,
        )
        other = encode_metadata({"": {"ü": "“"}, "done": 1e300})
        error = ErrorRecord("project.Größe", "Zeile\n🧵")
        changes: Sequence[Callable[[Record], Record]] = (
            running_record,
            lambda record: apply_metadata(record, "{}"),
            apply_cancel_request,
            record_to_be_tried_again,
            running_record,
            lambda record: apply_metadata(record, other),
            record_to_be_tried_again,
            lambda record: apply_cancel(record, error, at=0.1 + 0.2),
        )
        with self._store() as store:
            self._add(store, ready)
            self._assert_same(store, ready)
            record = ready
            for change in changes:
                record = change(record)
                assert list(store.save([record])) == [True]
                self._assert_same(store, record)
                assert bool(list(store.unfinished())) is not record.is_finished

    def test_large_texts_come_back_as_they_were(self) -> None:
        text = "größer 🧵 " * 200_000
        record = ready_record(1)._replace(
            arguments=encode_arguments([text], {}), metadata=encode_metadata({"": text})
        )
        finished = apply_outcome(
            running_record(record), Outcome(record.id, 3_000.0, encode_value(text))
        )
        with self._store() as store:
            self._add(store, record)
            self._assert_same(store, record)
            assert list(store.save([finished._replace(revision=1)])) == [True]
            self._assert_same(store, finished._replace(revision=1))

    @staticmethod
    def _assert_same(store: ResultStore, record: Record) -> None:
        found = store.get([record.id])[record.id]
        assert found == record
        # Tuples are equal whatever their classes are, and statuses are strings.
        assert type(found) is Record
        assert type(found.task) is TaskSpec
        assert type(found.task.takes_context) is bool
        assert type(found.status) is TaskResultStatus
        assert type(found.errors) is tuple
        assert all(type(error) is ErrorRecord for error in found.errors)
        assert type(found.worker_ids) is tuple

    # save

    def test_next_revision_replaces_a_record(self) -> None:
        record = ready_record(1)
        running = running_record(record)
        finished = finished_record(running)
        with self._store() as store:
            self._add(store, record)
            for changed in (running, finished):
                assert list(store.save([changed])) == [True]
                assert store.get([record.id])[record.id] == changed

    def test_any_other_revision_is_refused(self) -> None:
        record = ready_record(1)
        running = running_record(record)
        with self._store() as store:
            self._add(store, record)
            assert list(store.save([running])) == [True]
            for revision in (-1, 0, 1, 3):
                other = finished_record(running)._replace(revision=revision)
                assert list(store.save([other])) == [False]

            assert store.get([record.id])[record.id] == running

    def test_record_that_is_not_there_is_refused(self) -> None:
        record = ready_record(1)
        with self._store() as store:
            assert list(store.save([running_record(record)])) == [False]

            assert dict(store.get([record.id])) == {}
            assert list(store.unfinished()) == []

    def test_save_says_for_each_record_whether_it_was_taken(self) -> None:
        first, second, unknown = ready_record(1), ready_record(2), ready_record(3)
        stale = finished_record(second)._replace(revision=5)
        with self._store() as store:
            self._add(store, first, second)

            saved = store.save([stale, running_record(first), running_record(unknown)])

            assert list(saved) == [False, True, False]
            assert dict(store.get([first.id, second.id, unknown.id])) == {
                first.id: running_record(first),
                second.id: second,
            }
            assert list(store.save([])) == []

    def test_of_many_that_save_one_revision_one_wins(self) -> None:
        record = ready_record(0)
        with self._store() as store:
            self._add(store, record)
            for revision in range(1, 11):
                changes = [
                    record._replace(owner=f"host:{number}", revision=revision)
                    for number in range(self.racers)
                ]

                def saver(change: Record) -> Callable[[], bool]:
                    return lambda: store.save([change])[0]

                won = in_threads(
                    [saver(change) for change in changes], timeout_s=self.timeout_s
                )

                assert won.count(True) == 1
                winner = changes[won.index(True)]
                assert store.get([record.id])[record.id] == winner

    def test_of_many_that_change_metadata_each_wins_in_its_turn(self) -> None:
        record = running_record(ready_record(0))
        with self._store() as store:
            self._add(store, record)

            def adder(name: str) -> Callable[[], None]:
                def add() -> None:
                    for turn in range(5):
                        while True:
                            kept = store.get([record.id])[record.id]
                            metadata = decode_value(kept.metadata)
                            metadata[f"{name} {turn}"] = kept.revision
                            text = encode_metadata(metadata)
                            if store.save([apply_metadata(kept, text)])[0]:
                                break

                return add

            in_threads(
                [adder(f"größe {number}") for number in range(self.racers)],
                timeout_s=self.timeout_s,
            )

            # Nobody's change is lost, and each was made to another revision.
            kept = store.get([record.id])[record.id]
            count = 5 * self.racers
            assert kept.revision == record.revision + count
            metadata = decode_value(kept.metadata)
            assert len(metadata) == count
            assert set(metadata.values()) == {
                record.revision + number for number in range(count)
            }

    def test_cancelling_and_starting_have_one_winner(self) -> None:
        error = ErrorRecord("project.Cancelled", "cancelled")
        with self._store() as store:
            for number in range(10):
                record = ready_record(number)
                self._add(store, record)
                changes = [
                    apply_cancel(record, error, at=3_000.0),
                    running_record(record),
                ]

                def saver(change: Record) -> Callable[[], bool]:
                    return lambda: store.save([change])[0]

                won = in_threads(
                    [saver(change) for change in changes], timeout_s=self.timeout_s
                )

                assert sorted(won) == [False, True]
                winner = changes[won.index(True)]
                self._assert_same(store, winner)
                is_unfinished = record.id in {each.id for each in store.unfinished()}
                assert is_unfinished is not winner.is_finished

    # unfinished

    def test_unfinished_records_come_oldest_first(self) -> None:
        records = [ready_record(number) for number in range(6)]
        with self._store() as store:
            for record in records:
                self._add(store, record)
            # What happens to a record does not make it younger.
            for record in (records[4], records[1]):
                store.save([running_record(record)])
            store.save([finished_record(records[0]), finished_record(records[3])])

            assert list(store.unfinished()) == [
                running_record(records[1]),
                records[2],
                running_record(records[4]),
                records[5],
            ]

    def test_nothing_is_unfinished_at_first(self) -> None:
        with self._store() as store:
            assert list(store.unfinished()) == []

    def test_unfinished_records_are_those_of_the_call(self) -> None:
        first, second, late = ready_record(1), ready_record(2), ready_record(3)
        with self._store() as store:
            self._add(store, first, second)

            unfinished = store.unfinished()
            self._add(store, late)
            store.save([finished_record(first), running_record(second)])

            # As they were at the call, or as they are.
            left = [record for record in unfinished if record != first]
            assert left in ([second], [running_record(second)])

    # discard

    def test_discard_keeps_those_that_finished_last(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 5)

            assert store.discard(keep=2) == 3
            assert self._left(store, finished) == finished[3:]
            assert store.discard(keep=2) == 0
            assert store.discard(keep=0) == 2
            assert self._left(store, finished) == []

    def test_discard_goes_by_age(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 5)

            # The one that finished at that very moment is not older.
            assert store.discard(finished_before=3_002.0) == 2
            assert self._left(store, finished) == finished[2:]
            assert store.discard(finished_before=3_002.0) == 0

    def test_discard_goes_by_age_or_number(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 6)

            assert store.discard(finished_before=3_002.0, keep=5) == 2
            assert store.discard(finished_before=3_002.0, keep=3) == 1
            assert self._left(store, finished) == finished[3:]

    def test_discard_stops_at_its_limit(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 5)

            assert store.discard(keep=1, limit=2) == 2
            assert self._left(store, finished) == finished[2:]
            assert store.discard(finished_before=9_000.0, limit=1) == 1
            assert self._left(store, finished) == finished[3:]
            assert store.discard(keep=0, limit=0) == 0
            assert store.discard(keep=0, limit=100) == 2

    def test_discard_without_a_condition_forgets_nothing(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 3)

            assert store.discard() == 0
            assert self._left(store, finished) == finished

    def test_unfinished_records_are_never_discarded(self) -> None:
        waiting, running = ready_record(1), ready_record(2)
        with self._store() as store:
            self._add(store, waiting, running)
            store.save([running_record(running)])
            finished = self._add_finished(store, 3)

            assert store.discard(keep=0, finished_before=9_000.0) == 3
            assert self._left(store, finished) == []
            assert list(store.unfinished()) == [waiting, running_record(running)]
            assert store.discard(keep=0, finished_before=9_000.0) == 0

    def test_record_that_waits_for_another_attempt_is_unfinished(self) -> None:
        first, second = ready_record(1), ready_record(2)
        again = record_to_be_tried_again(running_record(first))
        with self._store() as store:
            self._add(store, first, second)
            for record in (running_record(first), again):
                assert list(store.save([record])) == [True]

            assert list(store.unfinished()) == [again, second]
            assert store.discard(keep=0, finished_before=9_000.0) == 0
            self._assert_same(store, again)

            for record in (
                running_record(again),
                finished_record(running_record(again)),
            ):
                assert list(store.save([record])) == [True]
            assert list(store.unfinished()) == [second]
            assert store.discard(keep=0) == 1

    def test_discarded_record_cannot_be_saved(self) -> None:
        with self._store() as store:
            (finished,) = self._add_finished(store, 1)
            store.discard(keep=0)

            again = finished._replace(revision=finished.revision + 1)
            assert list(store.save([again])) == [False]
            assert dict(store.get([finished.id])) == {}

    @staticmethod
    def _left(store: ResultStore, records: Sequence[Record]) -> list[Record]:
        found = store.get(record.id for record in records)
        return [record for record in records if record.id in found]

    # All of it.

    def test_threads_may_do_everything_at_once(self) -> None:
        with self._store() as store:

            def live(number: int) -> Callable[[], list[str]]:
                def run() -> list[str]:
                    ids: list[str] = []
                    for turn in range(20):
                        record = ready_record(turn)
                        self._add(store, record)
                        assert store.save([running_record(record)])[0]
                        assert record.id in {each.id for each in store.unfinished()}
                        found = store.get([record.id])
                        assert found == {record.id: running_record(record)}
                        if number % 2:
                            assert store.save(
                                [finished_record(running_record(record))]
                            )[0]
                            store.discard(keep=3)
                        else:
                            ids.append(record.id)
                    return ids

                return run

            lives = [live(number) for number in range(self.racers)]
            left = in_threads(lives, timeout_s=self.timeout_s)

            unfinished = {record.id for record in store.unfinished()}
            assert unfinished == {result_id for ids in left for result_id in ids}
            assert store.discard(keep=0) == 3

    def test_store_may_be_closed_twice(self) -> None:
        with self._store() as store:
            self._add(store, ready_record(1))
            store.close()
            store.close()
