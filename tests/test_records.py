"""What a start, an outcome and whatever else happens to a task make of its record."""

import pickle
from typing import Any

import pytest
from django.tasks import TaskResultStatus
from hypothesis import given, settings
from hypothesis import strategies as st

from django_tasks_local.records import (
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

TIMES = st.floats(0, 4e9)
ERRORS = st.builds(ErrorRecord, st.text(), st.text())
ERROR_TUPLES = st.lists(ERRORS, max_size=3).map(tuple)
RECORDS = st.builds(
    Record,
    id=st.uuids().map(str),
    task=st.builds(
        TaskSpec, st.text(), st.integers(-100, 100), st.text(), st.text(), st.booleans()
    ),
    alias=st.text(),
    arguments=st.text(),
    run_after=st.none() | TIMES,
    owner=st.text(),
    enqueued_at=TIMES,
    status=st.sampled_from([TaskResultStatus.READY, TaskResultStatus.RUNNING]),
    started_at=st.none() | TIMES,
    last_attempted_at=st.none() | TIMES,
    finished_at=st.none(),
    value=st.none(),
    errors=ERROR_TUPLES,
    worker_ids=st.lists(st.text(), max_size=3).map(tuple),
    metadata=st.text(),
    due_at=st.none() | TIMES,
    is_cancel_requested=st.booleans(),
    revision=st.integers(0, 1000),
)


def changes(before: Record, after: Record) -> dict[str, Any]:
    """The fields that are not as they were, apart from the revision, which grew."""
    assert after.revision == before.revision + 1
    new = after._asdict()
    old = before._asdict()
    return {
        name: value
        for name, value in new.items()
        if value != old[name] and name != "revision"
    }


@settings(deadline=None)
@given(RECORDS, st.text(), TIMES)
def test_start_begins_an_attempt(before: Record, worker_id: str, at: float) -> None:
    after = apply_start(before, worker_id=worker_id, at=at)

    assert after.status is TaskResultStatus.RUNNING
    assert after.last_attempted_at == at
    assert after.worker_ids == (*before.worker_ids, worker_id)
    # The first attempt's start stays.
    assert after.started_at == (at if before.started_at is None else before.started_at)
    assert not after.is_finished
    assert changes(before, after).keys() <= {
        "status",
        "started_at",
        "last_attempted_at",
        "worker_ids",
    }


@settings(deadline=None)
@given(RECORDS, st.text(), TIMES)
def test_value_makes_a_task_successful(before: Record, value: str, at: float) -> None:
    after = apply_outcome(before, Outcome(before.id, at, value))

    assert after.is_finished
    assert changes(before, after) == {
        "status": TaskResultStatus.SUCCESSFUL,
        "finished_at": at,
        "value": value,
    }


@settings(deadline=None)
@given(RECORDS, ERRORS, TIMES)
def test_error_makes_a_task_failed(
    before: Record, error: ErrorRecord, at: float
) -> None:
    after = apply_outcome(before, Outcome(before.id, at, error=error))

    assert after.is_finished
    assert changes(before, after) == {
        "status": TaskResultStatus.FAILED,
        "finished_at": at,
        "errors": (*before.errors, error),
    }


@settings(deadline=None)
@given(RECORDS, ERRORS, TIMES, st.floats(0, 1e9))
def test_error_with_another_attempt_makes_a_task_ready(
    before: Record, error: ErrorRecord, at: float, retry_after_s: float
) -> None:
    before = before._replace(status=TaskResultStatus.RUNNING)
    outcome = Outcome(before.id, at, error=error, retry_after_s=retry_after_s)
    after = apply_outcome(before, outcome)

    assert not after.is_finished
    assert after.status is TaskResultStatus.READY
    assert after.due_at == at + retry_after_s
    assert after.errors == (*before.errors, error)
    # What the attempts were stays, and their number with it.
    assert changes(before, after).keys() <= {"status", "due_at", "errors"}


@settings(deadline=None)
@given(RECORDS, ERRORS, ERROR_TUPLES, TIMES, st.none() | st.floats(0, 1e9))
def test_further_errors_come_after_the_attempts_own(
    before: Record,
    error: ErrorRecord,
    further: tuple[ErrorRecord, ...],
    at: float,
    retry_after_s: float | None,
) -> None:
    outcome = Outcome(
        before.id,
        at,
        error=error,
        retry_after_s=retry_after_s,
        further_errors=further,
    )
    after = apply_outcome(before, outcome)

    assert after.errors == (*before.errors, error, *further)
    assert after.is_finished is (retry_after_s is None)


@settings(deadline=None)
@given(RECORDS, st.text(), st.none() | ERRORS, st.text(), TIMES)
def test_outcome_brings_the_metadata_of_the_end(
    before: Record,
    value: str,
    error: ErrorRecord | None,
    metadata: str,
    at: float,
) -> None:
    outcome = Outcome(before.id, at, None if error else value, error)

    kept = apply_outcome(before, outcome)
    assert kept.metadata == before.metadata
    after = apply_outcome(before, outcome._replace(metadata=metadata))
    assert after == kept._replace(metadata=metadata)


@settings(deadline=None)
@given(RECORDS, ERRORS, TIMES)
def test_cancelling_fails_a_task_that_waits(
    before: Record, error: ErrorRecord, at: float
) -> None:
    before = before._replace(status=TaskResultStatus.READY)
    after = apply_cancel(before, error, at=at)

    assert after.is_finished
    assert changes(before, after) == {
        "status": TaskResultStatus.FAILED,
        "finished_at": at,
        "errors": (*before.errors, error),
    }


@settings(deadline=None)
@given(RECORDS)
def test_request_to_stop_changes_nothing_else(before: Record) -> None:
    before = before._replace(is_cancel_requested=False)
    after = apply_cancel_request(before)

    assert changes(before, after) == {"is_cancel_requested": True}
    # It stays, whatever comes.
    assert apply_start(after, worker_id="worker", at=1.0).is_cancel_requested
    assert apply_outcome(after, Outcome(after.id, 1.0, "1")).is_cancel_requested
    again = apply_cancel_request(after)
    assert changes(after, again) == {}


@settings(deadline=None)
@given(RECORDS, st.text())
def test_metadata_changes_nothing_else(before: Record, metadata: str) -> None:
    after = apply_metadata(before, metadata)

    assert after.metadata == metadata
    assert changes(before, after).keys() <= {"metadata"}


@settings(deadline=None)
@given(RECORDS, st.lists(st.tuples(st.text(), ERRORS), max_size=4))
def test_record_of_several_attempts_has_all_of_them(
    before: Record, attempts: list[tuple[str, ErrorRecord]]
) -> None:
    before = before._replace(started_at=None, status=TaskResultStatus.READY)
    record = before
    for number, (worker_id, error) in enumerate(attempts):
        record = apply_start(record, worker_id=worker_id, at=100.0 + number)
        outcome = Outcome(record.id, 200.0 + number, error=error, retry_after_s=1.0)
        record = apply_outcome(record, outcome)

    assert record.worker_ids == (*before.worker_ids, *(each[0] for each in attempts))
    assert record.errors == (*before.errors, *(each[1] for each in attempts))
    assert record.revision == before.revision + 2 * len(attempts)
    assert record.started_at == (100.0 if attempts else None)
    assert not record.is_finished


@settings(deadline=None)
@given(RECORDS)
def test_records_are_plain_data(record: Record) -> None:
    copied = pickle.loads(pickle.dumps(record))

    assert copied == record
    assert hash(copied) == hash(record)
    assert type(copied.task) is TaskSpec
    with pytest.raises(AttributeError):
        record.status = TaskResultStatus.FAILED  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_only_final_statuses_are_finished() -> None:
    record = Record(
        "id", TaskSpec("path", 0, "queue", "alias", False), "alias", "[]", None, "", 0.0
    )
    finished = [
        status
        for status in TaskResultStatus
        if record._replace(status=status).is_finished
    ]

    assert finished == [TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL]
