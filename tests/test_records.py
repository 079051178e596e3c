"""What a start and an outcome make of a record."""

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
    apply_outcome,
    apply_start,
)

TIMES = st.floats(0, 4e9)
ERRORS = st.builds(ErrorRecord, st.text(), st.text())
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
    errors=st.lists(ERRORS, max_size=3).map(tuple),
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
@given(RECORDS, ERRORS, st.lists(ERRORS, max_size=2).map(tuple), TIMES, TIMES)
def test_error_with_a_delay_makes_a_task_ready_again(
    before: Record,
    error: ErrorRecord,
    further: tuple[ErrorRecord, ...],
    at: float,
    delay_s: float,
) -> None:
    outcome = Outcome(
        before.id, at, error=error, retry_after_s=delay_s, further_errors=further
    )
    after = apply_outcome(before, outcome)

    assert after.status is TaskResultStatus.READY
    assert after.due_at == at + delay_s
    assert after.errors == (*before.errors, error, *further)
    assert changes(before, after).keys() <= {"status", "due_at", "errors"}


@settings(deadline=None)
@given(RECORDS, st.text(), st.text(), TIMES)
def test_metadata_that_an_attempt_leaves_takes_the_place_of_the_last(
    before: Record, value: str, metadata: str, at: float
) -> None:
    after = apply_outcome(before, Outcome(before.id, at, value, metadata=metadata))

    assert after.metadata == metadata


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
