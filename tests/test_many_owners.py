"""Processes are killed, one after another, and others compete for their tasks."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from django.tasks import TaskResultStatus, task_backends

from django_tasks_local import ThreadPoolBackend, WorkerLost
from django_tasks_local.errors import path_of
from django_tasks_local.records import Record

from .gates import LONG_S, Gate
from .kept import ALIAS, find, setting_of, sharing
from .leftovers import wait_until_gone
from .many_owners import Owner, Owners
from .noting_tasks import note_and_hold
from .recovering_tasks import note

THREADS = {"default": {"BACKEND": "django_tasks_local.ThreadPoolBackend"}}
PROCESSES = 8
RESTARTS = 100
AN_HOUR_S = 3600.0


class Tasks:
    """Those that were enqueued: what each notes, by its id."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self.held: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        self.for_later: dict[str, str] = {}

    @property
    def all(self) -> dict[str, str]:
        return {**self.held, **self.waiting, **self.for_later}

    def enqueue_in(self, owner: Owner, gate: Gate, *, soon_s: float) -> None:
        """Hold its only worker, so that all else that it owns waits."""
        self.held |= self._enqueue(owner, note_and_hold, gate.port)
        gate.next_visitor()
        self.waiting |= self._enqueue(owner, note, count=4)
        self.waiting |= self._enqueue(owner, note, count=2, in_s=soon_s)
        self.for_later |= self._enqueue(owner, note, in_s=AN_HOUR_S)

    def _enqueue(
        self,
        owner: Owner,
        task: object,
        *arguments: object,
        count: int = 1,
        in_s: float | None = None,
    ) -> dict[str, str]:
        texts = [f"task {self._count + number}" for number in range(count)]
        self._count += count
        calls = [(str(self._path), text, *arguments) for text in texts]
        return dict(zip(owner.enqueue(task, calls, in_s=in_s), texts, strict=True))


def records_of(ids: Iterable[str]) -> Mapping[str, Record]:
    """By a single look-up. None is missing."""
    wanted = list(ids)
    records = cast("ThreadPoolBackend", task_backends[ALIAS]).get_records(wanted)
    assert records.keys() == set(wanted)
    return records


def pid_in(name: str) -> int:
    """Of an owner or a worker."""
    return int(name.split(":")[1])


def test_nothing_is_left_of_who_died_with_all_its_tasks_done(tmp_path: Path) -> None:
    path, noted = tmp_path / "results.sqlite3", str(tmp_path / "noted")
    with sharing(path), Owners({**THREADS, **setting_of(path)}, count=2) as owners:
        for victim in [*owners.living]:
            (result_id,) = victim.enqueue(note, [(noted, "done")])
            find(result_id).join(LONG_S)
            victim.kill()
            assert wait_until_gone(victim.pid)
            owners.replace(victim)
        for owner in owners.living:
            owner.enqueue(note, [(noted, "done")], in_s=AN_HOUR_S)
        names = [file.name for file in path.with_name(f"{path.name}-owners").iterdir()]
        assert {pid_in(name) for name in names} == {each.pid for each in owners.living}
        assert len(names) == 2


def test_a_hundred_kills_lose_no_task_and_none_runs_twice(
    tmp_path: Path, gate: Gate
) -> None:
    path, noted = tmp_path / "results.sqlite3", tmp_path / "noted"
    setting = {**THREADS, **setting_of(path, MAX_WORKERS=1)}
    chance = random.Random(1)
    tasks = Tasks(noted)
    killed: list[int] = []
    adoptions = Counter[str]()
    with sharing(path), Owners(setting, count=PROCESSES) as owners:
        for _ in range(RESTARTS):
            victim = chance.choice(owners.living)
            tasks.enqueue_in(victim, gate, soon_s=chance.uniform(0.0, 0.5))
            orphans = [
                record.id
                for record in records_of(tasks.all).values()
                if pid_in(record.owner) == victim.pid and not record.is_finished
            ]
            assert len(orphans) >= 8
            others = owners.others(victim)
            for other in others:
                other.adopt_at_death_of(victim)
            victim.kill()
            killed.append(victim.pid)
            adoptions.update(orphans)
            for other in others:
                other.answer()
            records = records_of(orphans)
            adopters = {pid_in(record.owner) for record in records.values()}
            assert adopters <= {other.pid for other in others}
            owners.replace(victim)
        for result_id in tasks.waiting:
            find(result_id).join(LONG_S)
        records = records_of(tasks.all)
        # Nothing is left of the dead.
        owner_files = path.with_name(f"{path.name}-owners")
        assert len(list(owner_files.iterdir())) == PROCESSES
    # A record counts its changes: it was started, has ended, and has got another owner
    # each time that its own was killed, but only then.
    for result_id in (*tasks.held, *tasks.waiting):
        assert records[result_id].revision == 2 + adoptions[result_id]
    for result_id in tasks.for_later:
        assert records[result_id].revision == adoptions[result_id]
        assert records[result_id].status is TaskResultStatus.READY
    for result_id in tasks.waiting:
        assert records[result_id].status is TaskResultStatus.SUCCESSFUL
    lost_in: list[int] = []
    for result_id in tasks.held:
        (error,) = records[result_id].errors
        assert error.exception_class_path == path_of(WorkerLost)
        lost_in += map(pid_in, records[result_id].worker_ids)
    assert lost_in == killed
    texts = [*tasks.held.values(), *tasks.waiting.values()]
    assert sorted(noted.read_text().splitlines()) == sorted(texts)
