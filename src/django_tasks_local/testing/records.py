"""Records in each state, for the suites of stores."""

from ..identity import new_owner, new_result_id
from ..records import (
    ErrorRecord,
    Outcome,
    Record,
    TaskSpec,
    Timestamp,
    apply_outcome,
    apply_start,
)
from .contract import ALIAS

__all__ = [
    "do_nothing",
    "finished_record",
    "ready_record",
    "record_to_be_tried_again",
    "running_record",
]


def ready_record(number: int) -> Record:
    """One that waits; the higher its number, the younger."""
    return Record(
        id=new_result_id(),
        task=TaskSpec("project.tasks.work", 0, "default", ALIAS, False),
        alias=ALIAS,
        arguments=f"[[{number}],{{}}]",
        run_after=None,
        owner=new_owner(),
        enqueued_at=1_000.0 + number,
    )


def running_record(record: Record) -> Record:
    """It, once it runs."""
    return apply_start(record, worker_id="host:1:worker", at=2_000.0)


def record_to_be_tried_again(record: Record) -> Record:
    """It, once an attempt has failed that was not the last."""
    error = ErrorRecord("builtins.ValueError", "wrong")
    outcome = Outcome(record.id, 2_500.0, error=error, retry_after_s=1_500.25)
    return apply_outcome(record, outcome)


def finished_record(record: Record, *, at: Timestamp = 3_000.0) -> Record:
    """It, once it has succeeded."""
    return apply_outcome(record, Outcome(record.id, at, "null"))


def do_nothing() -> None:
    """For ``on_visible``."""
