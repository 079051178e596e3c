"""What a task is given besides its arguments, and what it tells of itself."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.tasks import TaskResultStatus
from django.tasks.base import TaskContext
from django.test import override_settings

from django_tasks_local import (
    LocalTask,
    LocalTaskContext,
    LocalTaskResult,
    Progress,
)
from django_tasks_local.state import get_executor_state

from .conftest import Configure
from .gates import LONG_S, Gate
from .metadata_tasks import (
    NO_METADATA,
    WRONG_REPORTS,
    change_metadata,
    change_metadata_async,
    enqueue_with_metadata,
    fail_until_later,
    keep_context,
    leave_no_metadata,
    note_attempts,
    note_attempts_async,
    replace_metadata,
    report,
    report_and_end,
    report_async,
    report_beside_changes,
    report_often,
    report_often_async,
    report_wrongly,
    report_wrongly_async,
    save_metadata,
    save_metadata_async,
    save_no_metadata,
    see_metadata,
    see_metadata_async,
    use_context,
    use_context_async,
    use_kept_context,
    use_kept_context_async,
)
from .noting_store import NotingStore, store_of
from .tasks import add

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED

type AnyTask = LocalTask[..., Any]


def forms(sync: object, coroutine: object) -> pytest.MarkDecorator:
    """A task as a function, and as a coroutine function."""
    return pytest.mark.parametrize(
        "task", [sync, coroutine], ids=["function", "coroutine"]
    )


def seen_when(
    handle: LocalTaskResult[Any], condition: Callable[[LocalTaskResult[Any]], object]
) -> LocalTaskResult[Any]:
    """The first state of a result of which that is true."""

    async def main() -> LocalTaskResult[Any]:
        async with asyncio.timeout(LONG_S):
            async for seen in handle.watch():
                if condition(seen):
                    return seen
        raise AssertionError(f"never: {handle}")

    return asyncio.run(main())


class TestGiving:
    def test_a_result_has_what_its_task_was_given(self, alias: str) -> None:
        task = see_metadata.using(backend=alias, metadata={"user": 7, "tags": ["a"]})
        handle = task.enqueue()
        assert handle.metadata == {"user": 7, "tags": ["a"]}
        assert task.get_result(handle.id).metadata == {"user": 7, "tags": ["a"]}
        assert handle.wait(LONG_S) == {"user": 7, "tags": ["a"]}
        assert handle.metadata == {"user": 7, "tags": ["a"]}

    def test_there_is_none_where_none_was_given(self) -> None:
        handle = see_metadata.enqueue()
        assert handle.metadata == {}
        assert handle.wait(LONG_S) == {}
        assert handle.metadata == {}

    def test_coroutines_see_theirs(self, alias: str) -> None:
        task = see_metadata_async.using(backend=alias, metadata={"user": 7})
        assert task.enqueue().wait(LONG_S) == {"user": 7}

    def test_it_is_what_json_makes_of_it(self) -> None:
        task = see_metadata.using(metadata={"it": ({2: b"x"},)})
        handle = task.enqueue()
        assert handle.metadata == {"it": [{"2": "x"}]}
        assert handle.wait(LONG_S) == {"it": [{"2": "x"}]}

    @pytest.mark.parametrize("kind", [kind for kind in NO_METADATA if kind != "none"])
    def test_what_is_no_metadata_is_refused_at_once(
        self, alias: str, kind: str
    ) -> None:
        with pytest.raises(TypeError):
            add.using(backend=alias, metadata=NO_METADATA[kind]())

    def test_the_error_says_what_is_wrong(self) -> None:
        with pytest.raises(TypeError, match=r"A task's metadata must be JSON: .*set"):
            add.using(metadata={"it": {1}})
        with pytest.raises(TypeError, match="keys of metadata must be strings, got 1"):
            add.using(metadata={1: "it"})  # type: ignore[dict-item]  # on purpose

    def test_the_callers_later_changes_change_nothing(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        metadata = {"list": [1]}
        task = see_metadata.using(backend=alias, metadata=metadata)
        metadata["list"].append(2)
        handle = task.enqueue()
        metadata["list"].append(3)
        metadata["more"] = []
        handle.metadata["list"].append(4)
        assert task.metadata == {"list": [1]}
        assert handle.wait(LONG_S) == {"list": [1]}
        assert task.get_result(handle.id).metadata == {"list": [1]}

    def test_tasks_of_one_definition_have_each_their_own(self, alias: str) -> None:
        tasks = [see_metadata.using(backend=alias, metadata={"n": n}) for n in range(3)]
        handles = [task.enqueue() for task in [*tasks, see_metadata]]
        expected: list[dict[str, int]] = [{"n": 0}, {"n": 1}, {"n": 2}, {}]
        assert [handle.wait(LONG_S) for handle in handles] == expected

    def test_other_options_leave_it_alone(self) -> None:
        task = add.using(metadata={"a": 1})
        assert task.using(priority=3).metadata == {"a": 1}
        assert task.using(metadata=None).metadata == {"a": 1}
        assert task.using(metadata={}).metadata == {}
        assert add.metadata == {}

    def test_a_results_copy_is_fresh_each_time(self) -> None:
        handle = see_metadata.using(metadata={"a": [1]}).enqueue()
        assert handle.metadata is not handle.metadata
        handle.metadata["a"].append(2)
        handle.metadata["b"] = 3
        assert handle.metadata == {"a": [1]}
        handle.join(LONG_S)
        assert handle.metadata == {"a": [1]}

    def test_a_child_gives_it_too(self, alias: str) -> None:
        for inner in ("default", "cpu"):
            told = enqueue_with_metadata.using(backend=alias).enqueue(inner, {"a": [1]})
            assert told.wait(LONG_S) == [{"a": [1]}] * 3

    def test_aenqueue_gives_it(self) -> None:
        async def main() -> dict[str, Any]:
            task = see_metadata.using(metadata={"a": 1})
            return await (await task.aenqueue())

        assert asyncio.run(main()) == {"a": 1}

    def test_handles_keep_it_when_they_are_pickled(self) -> None:
        handle = see_metadata.using(metadata={"a": 1}).enqueue()
        for other in (pickle.loads(pickle.dumps(handle)), copy.deepcopy(handle)):
            assert other.metadata == {"a": 1}
        handle.join(LONG_S)


class TestTasksWithMetadata:
    def test_are_the_same_whatever_it_is(self) -> None:
        one, same = (add.using(metadata={"a": [1]}) for _ in range(2))
        assert one == same == add
        assert hash(one) == hash(same)
        assert one.enqueue(1, 2).task == add

    def test_can_be_pickled_and_copied(self) -> None:
        task = add.using(metadata={"a": [1]}, priority=3)
        for other in (
            pickle.loads(pickle.dumps(task)),
            copy.copy(task),
            copy.deepcopy(task),
        ):
            assert other == task
            assert other.metadata == {"a": [1]}

    def test_are_found_as_they_were_enqueued(self) -> None:
        task = add.using(metadata={"a": 1})
        handle = task.enqueue(1, 2)
        assert handle.task == task
        assert task.get_result(handle.id) == handle
        assert handle.wait(LONG_S) == 3


class TestContext:
    @pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
    @forms(change_metadata, change_metadata_async)
    def test_changes_are_saved_when_the_attempt_ends(
        self, alias: str, task: AnyTask, fails: bool
    ) -> None:
        task = task.using(backend=alias, metadata={"given": []})
        handle = task.enqueue(fails=fails)
        handle.join(LONG_S)
        assert handle.status is (FAILED if fails else SUCCESSFUL)
        expected = {"given": ["changed"], "new": None}
        assert handle.metadata == expected
        assert task.get_result(handle.id).metadata == expected

    def test_it_may_be_another_dict(self) -> None:
        task = replace_metadata.using(metadata={"a": 1})
        handle = task.enqueue()
        handle.join(LONG_S)
        assert handle.metadata == {"other": {"a": 1}}

    @forms(note_attempts, note_attempts_async)
    def test_the_next_attempt_sees_what_the_last_one_left(
        self, alias: str, task: AnyTask
    ) -> None:
        handle = task.using(backend=alias).enqueue()
        assert handle.wait(LONG_S) == [1, 2, 3]
        assert handle.metadata == {"attempts": [1, 2, 3]}

    def test_everybody_sees_it_between_attempts(self, alias: str) -> None:
        task = fail_until_later.using(backend=alias)
        handle = task.enqueue()
        seen = seen_when(handle, lambda seen: seen.attempts and seen.status is READY)
        assert seen.metadata == {"attempt": 1}
        assert task.get_result(handle.id).metadata == {"attempt": 1}
        assert handle.cancel()
        handle.join(LONG_S)
        assert handle.metadata == {"attempt": 1}

    @forms(save_metadata, save_metadata_async)
    def test_what_is_saved_is_seen_while_the_task_runs(
        self, alias: str, gate: Gate, task: AnyTask
    ) -> None:
        task = task.using(backend=alias, metadata={"given": 1})
        handle = task.enqueue(gate.port)
        visitor = gate.next_visitor()
        saved = {"given": 1, "saved": {"at": "the gate"}}
        seen: list[dict[str, Any]] = []

        def look() -> None:
            handle.refresh()
            seen.extend([handle.metadata, task.get_result(handle.id).metadata])

        thread = threading.Thread(target=look)
        thread.start()
        thread.join(LONG_S)
        assert seen == [saved, saved]
        assert handle.status is RUNNING
        visitor.let_go()
        handle.join(LONG_S)
        assert handle.metadata == {**saved, "unsaved": True}

    def test_what_is_no_metadata_fails_the_attempt(self, alias: str) -> None:
        task = leave_no_metadata.using(backend=alias, metadata={"given": 1})
        handles = {kind: task.enqueue(kind, fails=False) for kind in NO_METADATA}
        for kind, handle in handles.items():
            handle.join(LONG_S)
            assert handle.status is FAILED, kind
            assert [error.exception_class for error in handle.errors] == [TypeError]
            assert "metadata" in handle.errors[0].traceback
            assert handle.metadata == {"given": 1}

    def test_its_error_joins_that_of_the_task(self, alias: str) -> None:
        task = leave_no_metadata.using(backend=alias, metadata={"given": 1})
        handle = task.enqueue("set", fails=True)
        handle.join(LONG_S)
        assert handle.status is FAILED
        classes = [error.exception_class for error in handle.errors]
        assert classes == [ValueError, TypeError]
        assert handle.attempts == 1
        assert handle.metadata == {"given": 1}

    @pytest.mark.parametrize("kind", ["set", "list", "keys"])
    def test_saving_what_is_no_metadata_saves_nothing(
        self, alias: str, gate: Gate, kind: str
    ) -> None:
        handle = save_no_metadata.using(backend=alias).enqueue(gate.port, kind)
        visitor = gate.next_visitor()
        handle.refresh()
        assert handle.metadata == {"before": 1}
        visitor.let_go()
        assert "metadata" in handle.wait(LONG_S)
        assert handle.metadata == {"after": 1}

    @forms(use_kept_context, use_kept_context_async)
    def test_nothing_is_saved_after_the_attempt(
        self, alias: str, configure: Configure, task: AnyTask
    ) -> None:
        configure(alias, MAX_WORKERS=1)  # so that the next task is in its process
        keeper = keep_context.using(backend=alias).enqueue()
        (text,) = task.using(backend=alias).enqueue().wait(LONG_S)
        assert text == f"Attempt 1 of task {keeper.id} does not run any more."
        keeper.refresh()
        assert keeper.metadata == {"kept": 1}


class TestProgress:
    @forms(report, report_async)
    def test_is_seen_while_the_task_runs(
        self, alias: str, gate: Gate, task: AnyTask
    ) -> None:
        before = datetime.now(UTC)
        handle = task.using(backend=alias).enqueue(gate.port)
        at_first = handle.progress
        assert at_first is None
        visitor = gate.next_visitor()
        handle.refresh()
        progress = handle.progress
        assert progress is not None
        assert progress == Progress(3, 7, "three of seven", progress.at)
        assert before <= progress.at <= datetime.now(UTC)
        assert handle.metadata["progress"]["done"] == 3
        visitor.let_go()
        handle.join(LONG_S)
        assert handle.progress == progress

    @pytest.mark.parametrize("use_tz", [True, False], ids=["aware", "naive"])
    def test_is_dated_as_the_project_has_it(self, gate: Gate, use_tz: bool) -> None:
        with override_settings(USE_TZ=use_tz):
            handle = report.enqueue(gate.port)
            gate.open()
            handle.join(LONG_S)
            assert handle.progress is not None
            assert (handle.progress.at.tzinfo is UTC) is use_tz

    @forms(report_often, report_often_async)
    def test_is_saved_20_times_a_second_at_most_and_the_last_one_always(
        self, alias: str, configure: Configure, gate: Gate, task: AnyTask
    ) -> None:
        configure(alias, STORE=NotingStore)
        count = 1_000 if task is report_often_async else 10_000
        handle = task.using(backend=alias).enqueue(count, gate.port)
        visitor = gate.next_visitor()  # it reports nothing any more
        seen = seen_when(
            handle, lambda seen: seen.progress and seen.progress[0] == count
        )
        assert seen.status is RUNNING
        visitor.let_go()
        handle.join(LONG_S)
        written = [
            at for at, record in store_of(alias).saved if "progress" in record.metadata
        ]
        *while_running, _ = written  # with the last one the task ended
        assert len(while_running) >= 2
        took_s = while_running[-1] - while_running[0]
        assert len(while_running) <= 20 * took_s + 1

    @pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
    def test_the_last_one_is_there_at_the_end(self, alias: str, fails: bool) -> None:
        handle = report_and_end.using(backend=alias).enqueue(50, fails=fails)
        handle.join(LONG_S)
        assert handle.progress is not None
        assert handle.progress[:3] == (50, None, "")

    def test_does_not_save_what_else_has_changed(self, alias: str, gate: Gate) -> None:
        handle = report_beside_changes.using(backend=alias).enqueue(gate.port)
        visitor = gate.next_visitor()
        handle.refresh()
        assert sorted(handle.metadata) == ["progress", "saved"]
        visitor.let_go()
        handle.join(LONG_S)
        assert sorted(handle.metadata) == ["progress", "saved", "unsaved"]

    @forms(report_wrongly, report_wrongly_async)
    def test_that_is_none_is_refused(self, alias: str, task: AnyTask) -> None:
        handle = task.using(backend=alias).enqueue()
        expected = {name: wrong.error.__name__ for name, wrong in WRONG_REPORTS.items()}
        assert handle.wait(LONG_S) == expected
        assert handle.progress is None
        assert handle.metadata == {}

    @pytest.mark.parametrize(
        "found",
        [
            None,
            "half",
            [1, 2],
            {},
            {"done": 1},
            {"done": 1, "total": 2, "message": "", "at": "yesterday"},
            {"done": 1, "total": 2, "message": "", "at": None},
            {"done": 1, "total": 2, "message": "", "at": 1e300},
            {"done": "1", "total": 2, "message": "", "at": 0},
            {"done": True, "total": 2, "message": "", "at": 0},
            {"done": 1, "total": [], "message": "", "at": 0},
            {"done": 1, "total": 2, "message": None, "at": 0},
        ],
        ids=range(12),
    )
    def test_is_none_where_something_else_stands_in_its_place(
        self, found: object
    ) -> None:
        task = see_metadata.using(metadata={"progress": found})
        handle = task.enqueue()
        at_first = handle.progress
        assert at_first is None
        handle.join(LONG_S)
        assert handle.progress is None
        assert handle.metadata == {"progress": found}

    def test_may_be_given_beforehand(self) -> None:
        given = {"done": 0, "total": 2.5, "message": "soon", "at": 0, "more": 1}
        handle = see_metadata.using(metadata={"progress": given}).enqueue()
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        assert handle.progress == Progress(0, 2.5, "soon", epoch)
        handle.join(LONG_S)


class TestWithoutOurBackends:
    @pytest.fixture
    def _immediate(self, nothing_left_behind: None) -> Iterator[None]:
        backend = "django.tasks.backends.immediate.ImmediateBackend"
        with override_settings(TASKS={"default": {"BACKEND": backend}}):
            yield

    @pytest.mark.usefixtures("_immediate")
    @forms(use_context, use_context_async)
    def test_a_context_works_and_keeps_to_itself_what_it_is_told(
        self, task: AnyTask
    ) -> None:
        task = task.using(metadata={"given": 1})
        handle = task.enqueue()
        seen = ["LocalTaskContext", 1, False, {"given": 1}, True, 2]
        assert handle.wait(LONG_S) == seen
        assert task.enqueue().wait(LONG_S) == seen
        assert task.metadata == {"given": 1}

    @pytest.mark.usefixtures("_immediate")
    def test_under_aenqueue_too(self) -> None:
        async def main() -> list[Any]:
            return await (await use_context_async.using(metadata={"a": 1}).aenqueue())

        assert asyncio.run(main())[3] == {"a": 1}

    def test_a_context_that_a_test_makes_works(self) -> None:
        handle = see_metadata.using(metadata={"given": [1]}).enqueue()
        handle.join(LONG_S)
        context = LocalTaskContext(task_result=handle)
        assert isinstance(context, TaskContext)
        assert use_context.func(context) == [
            "LocalTaskContext",
            1,
            False,
            {"given": [1]},
            True,
            2,
        ]
        coroutine_function: Any = use_context_async.func
        asyncio.run(coroutine_function(context))
        assert handle.metadata == {"given": [1]}
        assert see_metadata.get_result(handle.id).metadata == {"given": [1]}

    def test_it_refuses_what_a_real_one_refuses(self) -> None:
        handle = add.enqueue(1, 2)
        handle.join(LONG_S)
        context = LocalTaskContext(task_result=handle)
        context.metadata["it"] = object()
        with pytest.raises(TypeError, match="metadata must be JSON"):
            context.save_metadata()
        for wrong in WRONG_REPORTS.values():
            with pytest.raises(wrong.error):
                context.report_progress(*wrong.args)
        with pytest.raises(AttributeError, match="task_result"):
            setattr(context, "task_result", handle)  # noqa: B010  # on purpose


def test_nothing_is_stored_of_what_is_refused(alias: str) -> None:
    with pytest.raises(TypeError):
        see_metadata.using(backend=alias, metadata={"it": {1}}).enqueue()
    assert get_executor_state(alias).unfinished_ids() == []
