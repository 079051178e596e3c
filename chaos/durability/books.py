"""What was asked for, what became of it, and what of that is wrong."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path

from django.tasks import TaskResultStatus

from django_tasks_local import WorkerLost
from django_tasks_local.errors import path_of
from django_tasks_local.protocols import OwnedResultStore
from django_tasks_local.records import Record

from .clients import Asked
from .settings import LEDGER, SQLITE_FILES
from .tasks import LINE, TASKS, FirstAttemptFailed, value_of

__all__ = ["Books"]

_LOST = path_of(WorkerLost)
_FAILED_FIRST = path_of(FirstAttemptFailed)
_AT_ONCE = 500


@dataclass(slots=True)
class _Attempts:
    """The lines of a task in the ledger: how many for each attempt."""

    begun: Counter[int] = field(default_factory=Counter)
    ended: Counter[int] = field(default_factory=Counter)


class Books:
    """The books of a run, closed once all tasks had the time to end."""

    def __init__(
        self, store: OwnedResultStore, *, asked: Mapping[str, Asked], killed: set[int]
    ) -> None:
        self._asked = asked
        self._killed = killed
        self._attempts = _read_ledger(LEDGER)
        self._records = _records(store, [*{**asked, **self._attempts}])
        self._counts = store.counts()
        self.tasks = sum(self._counts.values())
        self.successful = 0
        self.lost = 0
        """FAILED with WorkerLost."""
        self.again = 0
        """Attempts that were lost where another one was allowed."""
        self.untraced: list[str] = []
        """Asked for, but not there, or not finished."""
        self.twice: list[str] = []
        """Begun more often than they may."""
        self.wrong: list[str] = []
        self._close()

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        return [*self.untraced, *self.twice, *self.wrong]

    def _close(self) -> None:
        for result_id in (*self._asked, *(self._attempts.keys() - self._asked.keys())):
            record = self._records.get(result_id)
            if record is None:
                self.untraced.append(f"{result_id} is not there")
            elif not record.is_finished:
                self.untraced.append(f"{result_id} was never finished: {record}")
            else:
                attempts = self._attempts.get(result_id, _Attempts())
                self.twice += _check_attempts(record, attempts)
                self.wrong += self._check_record(record, attempts)
        for status in ("READY", "RUNNING", "UNREADABLE"):
            if self._counts.get(status):
                self.wrong.append(f"{self._counts[status]} are left as {status}")
        for path in SQLITE_FILES:
            self.wrong += _check_integrity(path)

    def _check_record(self, record: Record, attempts: _Attempts) -> Iterator[str]:
        (token, _), _ = json.loads(record.arguments)
        name = record.task.path.rpartition(".")[2]
        asked = self._asked.get(record.id, Asked(name, token))
        if asked != Asked(name, token):
            yield f"{record.id} was asked for as {asked}: {record}"
        count = len(record.worker_ids)
        errors = list(record.errors)
        if record.status is TaskResultStatus.SUCCESSFUL:
            self.successful += 1
            if json.loads(record.value or "null") != value_of(token):
                yield f"{record.id} has a wrong value: {record}"
            if len(errors) != count - 1 or attempts.ended[count] != 1:
                yield f"{record.id} has not run well to its end: {attempts} {record}"
        else:
            self.lost += 1
            if len(errors) != count or count != _most_attempts(name):
                yield f"{record.id} was not tried as it should be: {record}"
            if not errors or errors[-1].exception_class_path != _LOST:
                yield f"{record.id} failed for no good reason: {record}"
            self.again -= 1
        for number, (error, worker_id) in enumerate(
            zip(errors, record.worker_ids, strict=False), 1
        ):
            if error.exception_class_path == _LOST:
                self.again += 1
                if int(worker_id.split(":")[1]) not in self._killed:
                    yield f"{record.id} was lost by who was not killed: {record}"
            elif (name, number, error.exception_class_path) != (
                "fail_first",
                1,
                _FAILED_FIRST,
            ):
                yield f"{record.id} has a wrong error: {record}"
            elif attempts.ended[number]:
                yield f"{record.id} has failed and run to its end: {record}"


def _check_attempts(record: Record, attempts: _Attempts) -> Iterator[str]:
    """Each attempt that the record tells of has begun once at most, and no other."""
    allowed = set(range(1, len(record.worker_ids) + 1))
    if (
        not attempts.begun.keys() | attempts.ended.keys() <= allowed
        or any(count > 1 for count in attempts.begun.values())
        or any(count > attempts.begun[n] for n, count in attempts.ended.items())
        or len(allowed) > _most_attempts(record.task.path.rpartition(".")[2])
    ):
        yield f"{record.id} has run too often: {attempts} {record}"


def _most_attempts(name: str) -> int:
    return TASKS[name].max_attempts or 1


def _read_ledger(path: Path) -> Mapping[str, _Attempts]:
    attempts = defaultdict[str, _Attempts](_Attempts)
    data = path.read_bytes()
    assert len(data) % LINE == 0
    for line in data.decode().splitlines():
        what, result_id, number = line.split()
        each = attempts[result_id]
        (each.begun if what == "begin" else each.ended)[int(number)] += 1
    return dict(attempts)


def _records(store: OwnedResultStore, ids: list[str]) -> Mapping[str, Record]:
    found: dict[str, Record] = {}
    for some in batched(ids, _AT_ONCE):
        found |= store.get(some)
    return found


def _check_integrity(path: Path) -> Iterator[str]:
    with closing(sqlite3.connect(path)) as db:
        said = db.execute("PRAGMA integrity_check").fetchall()
    if said != [("ok",)]:
        yield f"{path}: {said}"
