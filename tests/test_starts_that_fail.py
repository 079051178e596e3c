"""A task whose start the store has failed to save, or to confirm, begins later."""

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context
from dataclasses import replace
from pathlib import Path

import pytest

from django_tasks_local.errors import path_of
from django_tasks_local.executors.dask import DaskExecutor
from django_tasks_local.identity import new_owner, new_result_id
from django_tasks_local.jobs import Job, Records
from django_tasks_local.records import (
    Call,
    ErrorRecord,
    Outcome,
    Record,
    apply_metadata,
    apply_outcome,
)
from django_tasks_local.stores.sqlite import SqliteStore
from django_tasks_local.tasks import task_spec
from django_tasks_local.testing.contract import options_for
from django_tasks_local.transitions import ended, started

from .dask_clusters import DaskCluster
from .failing_store import FlakyStore, ForgetfulStore, SilentStore
from .gates import LONG_S, Gate
from .kept import ALIAS, BACKENDS, DASK, find, sharing
from .tasks import add, hold

KINDS = [*BACKENDS, "dask"]

type Open = Callable[[str, type], AbstractContextManager[None]]


@pytest.fixture
def share(tmp_path: Path, dask_cluster: DaskCluster) -> Open:
    """Have an alias whose results are in such a store."""

    @contextmanager
    def share(kind: str, store: type) -> Generator[None]:
        options: dict[str, object] = {"STORE": path_of(store)}
        if kind == "dask":
            kind, options["ADDRESS"] = DASK, dask_cluster.address
        with sharing(tmp_path / "results", kind, **options):
            yield

    return share


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("kind", KINDS)
class TestStarts:
    @pytest.mark.parametrize("store", [SilentStore, ForgetfulStore])
    def test_task_runs_once_with_one_attempt(
        self, share: Open, kind: str, store: type
    ) -> None:
        with share(kind, store):
            result = add.using(backend=ALIAS).enqueue(1, 2)
            assert result.wait(LONG_S) == 3
            kept = find(result.id)
            assert kept.attempts == 1
            assert kept.errors == []
            assert kept.started_at == kept.last_attempted_at


@pytest.mark.usefixtures("nothing_left_behind")
class TestDask:
    def test_each_has_a_key_of_its_own(
        self, share: Open, dask_cluster: DaskCluster
    ) -> None:
        """Dask may not have forgotten the first one yet."""
        with share("dask", ForgetfulStore):
            result = add.using(backend=ALIAS).enqueue(1, 2)
            assert result.wait(LONG_S) == 3
        keys = {key for key in dask_cluster.known_keys() if result.id in key}
        assert len(keys) == 2
        assert f"{add.module_path}-{result.id}" in keys

    def test_ctrl_c_while_it_is_handed_over_ends_nothing(
        self, share: Open, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it comes after the executor has it, it is handed over once more."""
        run, interrupts = DaskExecutor.run, [KeyboardInterrupt()]
        ids: list[str] = []

        def interrupted(
            self: DaskExecutor, call: Call, done: Callable[[Outcome], None], /
        ) -> None:
            run(self, call, done)
            ids.append(call.record.id)
            while interrupts:
                raise interrupts.pop()

        with share("dask", SqliteStore):
            monkeypatch.setattr(DaskExecutor, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                hold.using(backend=ALIAS).enqueue(gate.port, "held")
            visitor = gate.next_visitor()
            assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
            visitor.let_go()
            held = find(ids[0])
            assert held.wait(LONG_S) == "held"
            assert held.attempts == 1


def test_task_that_another_owner_has_finished_stays_finished(tmp_path: Path) -> None:
    """However many of its changes the store has not saved in the meantime."""
    options = replace(
        options_for(store=SqliteStore), store_options={"PATH": tmp_path / "results"}
    )
    store = FlakyStore(options, alias=ALIAS)
    record = Record(
        new_result_id(),
        task_spec(add),
        ALIAS,
        "[[1, 2], {}]",
        None,
        new_owner(),
        time.time(),
    )
    store.add([record], on_visible=lambda: None)
    records = Records(store, alias=ALIAS, is_owned=True)
    job = Job(record, task=add, context=Context())
    assert records.change(job, started, "first", time.time(), must_be_saved=True)
    store.is_broken = True
    for number in range(3):
        records.change(job, apply_metadata, f'{{"n":{number}}}')
    failure = ErrorRecord("builtins.OSError", "OSError\n")
    again = Outcome(record.id, time.time(), error=failure, retry_after_s=0.0)
    records.change(job, ended, again)
    store.is_broken = False
    taken = store.get([record.id])[record.id]
    taken = taken._replace(owner=new_owner(), revision=taken.revision + 1)
    finished = apply_outcome(taken, Outcome(record.id, time.time(), value="3"))
    assert store.save([taken]) == store.save([finished]) == [True]
    assert (
        records.change(job, started, "again", time.time(), must_be_saved=True) is None
    )
    assert store.get([record.id])[record.id] == finished
    store.close()
