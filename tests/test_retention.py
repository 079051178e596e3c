"""What ``MAX_RESULTS`` and ``RESULT_TTL`` do not keep is forgotten."""

import threading
from pathlib import Path
from typing import override

import pytest
from django.conf import settings
from django.tasks.exceptions import TaskResultDoesNotExist
from django.test import override_settings

from django_tasks_local.records import Timestamp
from django_tasks_local.state import get_executor_state, shutdown_executor
from django_tasks_local.stores.memory import MemoryStore
from django_tasks_local.stores.sqlite import SqliteStore

from .gates import LONG_S, Gate
from .kept import ALIAS, THREADS, find, serve, sharing
from .tasks import add, hold

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SHORT_S = 0.05


class WatchedStore(SqliteStore):
    """Notes who has it forget, and how many at once."""

    discards: list[tuple[str, int | None]]

    @override
    def discard(
        self,
        *,
        finished_before: Timestamp | None = None,
        keep: int | None = None,
        limit: int | None = None,
    ) -> int:
        self.discards.append((threading.current_thread().name, limit))
        return super().discard(finished_before=finished_before, keep=keep, limit=limit)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite3"


def wait_until_pruned() -> None:
    """The thread that forgets ends when nothing is left that it will have to."""
    for thread in threading.enumerate():
        if thread.name == f"django-tasks-{ALIAS}-prune":
            thread.join(LONG_S)
            assert not thread.is_alive()


def is_known(result_id: str) -> bool:
    try:
        find(result_id)
    except TaskResultDoesNotExist:
        return False
    return True


class TestTimeToLive:
    def test_old_results_are_forgotten_in_memory(self) -> None:
        options = {"RESULT_TTL": SHORT_S, "MAX_RESULTS": None}
        kept = {ALIAS: {"BACKEND": THREADS, "OPTIONS": options}}
        with override_settings(TASKS={**settings.TASKS, **kept}):
            results = [add.using(backend=ALIAS).enqueue(1, 2) for _ in range(3)]
            for result in results:
                assert result.wait(LONG_S) == 3
            wait_until_pruned()
            assert not any(is_known(result.id) for result in results)
            assert results[0].return_value == 3
            shutdown_executor(ALIAS)

    def test_old_results_are_forgotten_in_a_file(self, path: Path) -> None:
        with sharing(path, RESULT_TTL=SHORT_S):
            result = add.using(backend=ALIAS).enqueue(1, 2)
            result.join(LONG_S)
            wait_until_pruned()
            assert not is_known(result.id)

    def test_those_of_another_process_are_forgotten_by_who_serves(
        self, path: Path
    ) -> None:
        with sharing(path):
            result = add.using(backend=ALIAS).enqueue(1, 2)
            result.join(LONG_S)
        with sharing(path, RESULT_TTL=SHORT_S):
            assert is_known(result.id)
            serve()
            wait_until_pruned()
            assert not is_known(result.id)

    def test_what_is_not_finished_is_never_forgotten(
        self, path: Path, gate: Gate
    ) -> None:
        with sharing(path, RESULT_TTL=SHORT_S):
            held = hold.using(backend=ALIAS).enqueue(gate.port)
            gate.next_visitor()
            ended = add.using(backend=ALIAS).enqueue(1, 2)
            ended.join(LONG_S)
            wait_until_pruned()
            assert is_known(held.id)
            assert not is_known(ended.id)
            gate.open()
            held.join(LONG_S)

    def test_young_results_stay(self, path: Path) -> None:
        with sharing(path, RESULT_TTL=3600.0):
            result = add.using(backend=ALIAS).enqueue(1, 2)
            result.join(LONG_S)
            assert get_executor_state(ALIAS).prune() == 0
            assert is_known(result.id)


class TestNumber:
    def test_only_the_last_ones_are_kept_in_a_file(self, path: Path) -> None:
        with sharing(path, MAX_WORKERS=1, MAX_RESULTS=2):
            results = [add.using(backend=ALIAS).enqueue(1, 2) for _ in range(5)]
            results[-1].join(LONG_S)
            assert get_executor_state(ALIAS).prune() == 3
            assert [is_known(result.id) for result in results] == 3 * [False] + (
                2 * [True]
            )

    def test_any_number_is_kept_without_it(self, path: Path) -> None:
        with sharing(path, RESULT_TTL=None):
            results = [add.using(backend=ALIAS).enqueue(1, 2) for _ in range(3)]
            for result in results:
                result.join(LONG_S)
            assert get_executor_state(ALIAS).prune() == 0
            assert all(is_known(result.id) for result in results)

    def test_in_memory_they_go_at_once(self) -> None:
        kept = {ALIAS: {"BACKEND": THREADS, "OPTIONS": {"MAX_RESULTS": 1}}}
        with override_settings(TASKS={**settings.TASKS, **kept}):
            first, second = (add.using(backend=ALIAS).enqueue(1, 2) for _ in "ab")
            first.join(LONG_S)
            second.join(LONG_S)
            assert isinstance(get_executor_state(ALIAS).store, MemoryStore)
            assert sum(is_known(each.id) for each in (first, second)) == 1
            shutdown_executor(ALIAS)


class TestHow:
    def test_in_small_batches_on_a_thread_of_its_own(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(WatchedStore, "discards", [], raising=False)
        with sharing(path, MAX_WORKERS=1):
            results = add.using(backend=ALIAS).enqueue_many(
                ((number, 1), {}) for number in range(1100)
            )
            results[-1].join(LONG_S)
        with sharing(path, STORE=WatchedStore, RESULT_TTL=SHORT_S):
            serve()
            wait_until_pruned()
            assert not any(is_known(result.id) for result in results)
        names, limits = zip(*WatchedStore.discards, strict=True)
        assert set(names) == {f"django-tasks-{ALIAS}-prune"}
        assert all(limit is not None and limit <= 500 for limit in limits)

    def test_a_store_that_fails_is_tried_again(
        self,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        has_failed = threading.Event()
        discard = SqliteStore.discard

        def fail_once(self: SqliteStore, **conditions: float | None) -> int:
            if not has_failed.is_set():
                has_failed.set()
                raise OSError("no disk")
            return discard(self, **conditions)  # type: ignore[arg-type]

        monkeypatch.setattr(SqliteStore, "discard", fail_once)
        with sharing(path, RESULT_TTL=SHORT_S):
            first = add.using(backend=ALIAS).enqueue(1, 2)
            first.join(LONG_S)
            assert has_failed.wait(LONG_S)
            second = add.using(backend=ALIAS).enqueue(1, 2)
            second.join(LONG_S)
            wait_until_pruned()
            assert not is_known(first.id)
            assert not is_known(second.id)
        assert "old results stay in the store" in caplog.text
