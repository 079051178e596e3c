"""What an enqueue gives, and what a result tells at each moment."""

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
)
from django.test import override_settings

from django_tasks_local import (
    LocalTaskResult,
    ProcessPoolBackend,
    QueueFull,
    TaskFailed,
    ThreadPoolBackend,
)
from django_tasks_local.state import get_executor_state

from .conftest import WORKERS, Configure
from .gates import LONG_S, Gate
from .tasks import (
    NOT_JSON,
    add,
    append_to,
    async_add,
    async_hold,
    describe_context,
    echo,
    echo_arguments,
    fail,
    hold,
    own_id,
    own_id_async,
    own_pid,
    return_int_keys,
    return_not_json,
)

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED


def status_of(handle: LocalTaskResult[Any]) -> TaskResultStatus:
    """The status in the store, as anybody would look it up."""
    backend = task_backends[handle.backend]
    return backend.get_result(handle.id).status


def unfinished_ids(alias: str) -> list[str]:
    return get_executor_state(alias).unfinished_ids()


class TestEnqueue:
    def test_enqueue_returns_result(self, alias: str) -> None:
        result = add.using(backend=alias).enqueue(2, 3)

        assert result.status is TaskResultStatus.READY
        assert result.backend == alias
        assert result.wait(10) == 5

    def test_a_fresh_result_says_only_what_is_so(self, alias: str) -> None:
        before = datetime.now(UTC)
        task = add.using(backend=alias)
        result = task.enqueue(2, b=3)

        assert isinstance(result, LocalTaskResult)
        assert result.task == task
        assert result.args == [2]
        assert result.kwargs == {"b": 3}
        assert result.enqueued_at is not None
        assert before <= result.enqueued_at <= datetime.now(UTC)
        assert result.started_at is None
        assert result.last_attempted_at is None
        assert result.finished_at is None
        assert result.worker_ids == []
        assert result.attempts == 0
        assert result.errors == []
        with pytest.raises(ValueError, match="has not finished yet"):
            _ = result.return_value
        assert result.wait(LONG_S) == 5

    def test_ids_are_unique(self, alias: str) -> None:
        handles = [add.using(backend=alias).enqueue(1, 1) for _ in range(200)]
        assert len({handle.id for handle in handles}) == 200
        for handle in handles:
            handle.join(LONG_S)

    def test_coroutine_functions_run(self, alias: str) -> None:
        handles = [async_add.using(backend=alias).enqueue(n, 1) for n in range(5)]
        assert [handle.wait(LONG_S) for handle in handles] == [1, 2, 3, 4, 5]

    def test_positional_and_keyword_arguments_arrive(self, alias: str) -> None:
        task = echo_arguments.using(backend=alias)
        assert task.enqueue(1, "zwei", x=[3]).wait(LONG_S) == [[1, "zwei"], {"x": [3]}]

    def test_unknown_queue_names_are_refused(self, alias: str) -> None:
        with pytest.raises(InvalidTask, match="Queue 'elsewhere' is not valid"):
            add.using(backend=alias, queue_name="elsewhere")


class TestTruth:
    def test_statuses_follow_the_task(self, alias: str, gate: Gate) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port, "it")
        visitor = gate.next_visitor()
        assert status_of(handle) is RUNNING
        assert handle.status is READY  # a snapshot
        handle.refresh()
        assert handle.status is RUNNING
        visitor.let_go()
        assert handle.wait(LONG_S) == "it"
        assert handle.status is SUCCESSFUL
        assert status_of(handle) is SUCCESSFUL
        assert handle.return_value == "it"

    def test_times_are_those_of_the_events(self, alias: str, gate: Gate) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port)
        visitor = gate.next_visitor()
        while_it_runs = datetime.now(UTC)
        assert hold.using(backend=alias).get_result(handle.id).finished_at is None
        visitor.let_go()
        handle.wait(LONG_S)

        assert handle.enqueued_at is not None
        assert handle.started_at is not None
        assert handle.finished_at is not None
        assert handle.started_at.tzinfo is UTC
        assert handle.last_attempted_at == handle.started_at
        assert handle.enqueued_at <= handle.started_at <= while_it_runs
        assert while_it_runs <= handle.finished_at <= datetime.now(UTC)

    @pytest.mark.parametrize("use_tz", [True, False], ids=["aware", "naive"])
    def test_times_are_as_the_project_has_them(
        self, alias: str, use_tz: bool, gate: Gate
    ) -> None:
        with override_settings(USE_TZ=use_tz):
            now = datetime.now(UTC if use_tz else None)
            handle = add.using(backend=alias).enqueue(1, 2)
            handle.join(LONG_S)
            for found in (handle, add.using(backend=alias).get_result(handle.id)):
                assert found.enqueued_at is not None
                assert found.started_at is not None
                assert found.finished_at is not None
                times = [now, found.enqueued_at, found.started_at, found.finished_at]
                assert times == sorted(times)
                assert (found.finished_at.tzinfo is UTC) is use_tz

    def test_worker_ids_name_host_process_and_worker(self, alias: str) -> None:
        handle = own_pid.using(backend=alias).enqueue()
        pid = handle.wait(LONG_S)

        assert (pid == os.getpid()) is (alias != "cpu")
        assert handle.worker_ids == [f"{socket.gethostname()}:{pid}:{WORKERS[alias]}"]
        assert handle.attempts == 1

    def test_a_failure_is_recorded(self, alias: str) -> None:
        handle = fail.using(backend=alias).enqueue()
        handle.join(LONG_S)

        assert handle.status is FAILED
        assert handle.attempts == 1
        (error,) = handle.errors
        assert error.exception_class is ValueError
        assert error.traceback.startswith("Traceback (most recent call last):")
        assert "in fail\n    raise error" in error.traceback
        assert error.traceback.endswith("ValueError: wrong value\n")
        assert "django_tasks_local" not in error.traceback
        with pytest.raises(ValueError, match="Task failed"):
            _ = handle.return_value

    def test_none_is_a_return_value(self, alias: str) -> None:
        handle = echo.using(backend=alias).enqueue(None)
        assert handle.wait(LONG_S) is None
        assert handle.status is SUCCESSFUL
        assert handle.return_value is None

    def test_running_tasks_are_at_most_max_workers(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=2)
        handles = [hold.using(backend=alias).enqueue(gate.port, n) for n in range(5)]
        gate.next_visitor()
        gate.next_visitor()
        assert [status_of(handle) for handle in handles] == [
            RUNNING,
            RUNNING,
            READY,
            READY,
            READY,
        ]
        assert gate.is_deserted()
        gate.open()
        assert [handle.wait(LONG_S) for handle in handles] == list(range(5))

    def test_a_task_begins_as_soon_as_another_ends(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        handles = [hold.using(backend=alias).enqueue(gate.port, n) for n in range(4)]
        for number in range(4):
            visitor = gate.next_visitor()
            assert visitor.name == str(number)
            expected = [SUCCESSFUL] * number + [RUNNING] + [READY] * (3 - number)
            assert [status_of(handle) for handle in handles] == expected
            visitor.let_go()
        handles[-1].join(LONG_S)


class TestOrder:
    def test_higher_priorities_first_and_older_ones_among_equals(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        first = hold.using(backend=alias).enqueue(gate.port)
        occupant = gate.next_visitor()
        priorities = [0, -100, 5, 0, 100, 5, -100]
        handles = [
            hold.using(backend=alias, priority=priority).enqueue(gate.port, number)
            for number, priority in enumerate(priorities)
        ]
        occupant.let_go()
        order: list[int] = []
        for _ in priorities:
            visitor = gate.next_visitor()
            order.append(int(visitor.name))
            visitor.let_go()
        assert order == [4, 2, 5, 0, 3, 1, 6]
        for handle in [first, *handles]:
            handle.join(LONG_S)


class TestContext:
    def test_context_is_the_running_attempts(self, alias: str) -> None:
        handle = describe_context.using(backend=alias).enqueue()
        assert handle.wait(LONG_S) == ["LocalTaskContext", 1, handle.id, "RUNNING"]

    def test_every_task_knows_its_own_id(self, alias: str) -> None:
        tasks = (own_id.using(backend=alias), own_id_async.using(backend=alias))
        handles = [task.enqueue() for task in tasks for _ in range(5)]
        for handle in handles:
            assert handle.wait(LONG_S) == handle.id


class TestJson:
    def test_arguments_are_what_json_makes_of_them(self, alias: str) -> None:
        handle = echo_arguments.using(backend=alias).enqueue(
            {1: (2, 3)}, b"bytes", key={None: True}
        )
        arguments = [[{"1": [2, 3]}, "bytes"], {"key": {"null": True}}]
        assert [handle.args, handle.kwargs] == arguments
        assert handle.wait(LONG_S) == arguments

    def test_return_values_are_what_json_makes_of_them(self, alias: str) -> None:
        handle: LocalTaskResult[Any] = return_int_keys.using(backend=alias).enqueue()
        assert handle.wait(LONG_S) == {"1": [2, "three"]}

    @pytest.mark.parametrize("make", NOT_JSON.values(), ids=NOT_JSON)
    def test_arguments_that_are_not_json_are_refused(
        self, alias: str, make: Callable[[], object]
    ) -> None:
        with pytest.raises(TypeError, match=r"arguments of task tests\.tasks\.echo"):
            echo.using(backend=alias).enqueue(make())
        assert unfinished_ids(alias) == []

    @pytest.mark.parametrize("kind", NOT_JSON)
    def test_return_values_that_are_not_json_fail_the_task(
        self, alias: str, kind: str
    ) -> None:
        handle = return_not_json.using(backend=alias).enqueue(kind)
        handle.join(LONG_S)
        assert handle.status is FAILED
        assert handle.errors[0].exception_class is TypeError
        assert (
            "tests.tasks.return_not_json returned a value" in handle.errors[0].traceback
        )

    def test_the_callers_later_changes_change_nothing(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        hold.using(backend=alias).enqueue(gate.port)
        values = [1, 2]
        handle = append_to.using(backend=alias).enqueue(values)
        values.append(3)
        handle.args.append("more")
        gate.open()
        assert handle.wait(LONG_S) == [1, 2, 99]
        assert values == [1, 2, 3]
        assert add.using(backend=alias).get_backend().get_result(handle.id).args == [
            [1, 2]
        ]

    def test_results_are_copies(self, alias: str) -> None:
        task = echo.using(backend=alias)
        handle = task.enqueue({"list": [1]})
        handle.wait(LONG_S)["list"].append(2)
        handle.worker_ids.append("nobody")
        found = task.get_result(handle.id)
        assert found.return_value == {"list": [1]}
        assert found.worker_ids == handle.worker_ids
        assert len(found.worker_ids) == 1
        found.return_value["list"].append(3)
        found.args.clear()
        again = task.get_result(handle.id)
        assert again.return_value == {"list": [1]}
        assert again.args == [{"list": [1]}]


class TestBounds:
    def test_enqueue_is_refused_when_the_queue_is_full(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1, MAX_PENDING=2)
        task = hold.using(backend=alias)
        handles = [task.enqueue(gate.port, "running")]
        running = gate.next_visitor()
        handles += [task.enqueue(gate.port, n) for n in range(2)]
        limit = r"2 tasks are waiting, and TASKS\['(default|cpu|loop)'\]\['OPTIONS'\]"
        with pytest.raises(QueueFull, match=limit):
            task.enqueue(gate.port, "refused")
        assert unfinished_ids(alias) == [handle.id for handle in handles]

        running.let_go()  # the next task begins, and leaves its place
        gate.next_visitor()
        handles.append(task.enqueue(gate.port, "after"))
        with pytest.raises(QueueFull):
            task.enqueue(gate.port, "refused")
        gate.open()
        names = [handle.wait(LONG_S) for handle in handles]
        assert names == ["running", 0, 1, "after"]

    def test_a_refused_argument_takes_no_place(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1, MAX_PENDING=1)
        task = hold.using(backend=alias)
        task.enqueue(gate.port)
        gate.next_visitor()
        with pytest.raises(TypeError):
            task.enqueue(gate.port, object())
        waiting = task.enqueue(gate.port, "waiting")
        gate.open()
        assert waiting.wait(LONG_S) == "waiting"

    def test_the_oldest_finished_results_are_forgotten(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=2, MAX_RESULTS=3)
        task = hold.using(backend=alias)
        unfinished = task.enqueue(gate.port, "unfinished")
        visitor = gate.next_visitor()
        handles = [add.using(backend=alias).enqueue(n, 0) for n in range(6)]
        assert [handle.wait(LONG_S) for handle in handles] == list(range(6))

        get_result = task.get_backend().get_result
        assert get_result(unfinished.id).status is RUNNING
        for handle in handles[:3]:
            with pytest.raises(TaskResultDoesNotExist):
                get_result(handle.id)
        assert [get_result(handle.id).return_value for handle in handles[3:]] == [
            3,
            4,
            5,
        ]

        # The one that finishes last is the newest, however long ago it began.
        visitor.let_go()
        unfinished.join(LONG_S)
        assert get_result(unfinished.id).return_value == "unfinished"
        with pytest.raises(TaskResultDoesNotExist):
            get_result(handles[3].id)

    def test_a_handle_keeps_what_the_store_forgets(
        self, alias: str, configure: Configure
    ) -> None:
        configure(alias, MAX_RESULTS=0)
        waited = add.using(backend=alias).enqueue(1, 1)
        assert waited.wait(LONG_S) == 2
        refreshed = fail.using(backend=alias).enqueue()
        add.using(backend=alias).enqueue(2, 2).wait(LONG_S)
        refreshed.join(LONG_S)
        with pytest.raises(TaskResultDoesNotExist):
            add.using(backend=alias).get_result(waited.id)
        waited.refresh()
        refreshed.refresh()
        assert waited.return_value == 2
        assert refreshed.status is FAILED
        with pytest.raises(TaskFailed, match="wrong value"):
            refreshed.wait()


class TestLookup:
    def test_a_result_is_found_by_its_id(self, alias: str) -> None:
        task = add.using(backend=alias)
        handle = task.enqueue(2, 3)
        handle.wait(LONG_S)
        found = task.get_result(handle.id)
        assert found is not handle
        assert found == handle
        assert found.return_value == 5
        assert found.task == task
        assert found.enqueued_at == handle.enqueued_at
        assert found.started_at == handle.started_at
        assert found.worker_ids == handle.worker_ids

    def test_a_found_result_can_be_waited_for(self, alias: str, gate: Gate) -> None:
        task = hold.using(backend=alias)
        found = task.get_result(task.enqueue(gate.port, "found").id)
        gate.next_visitor().let_go()
        assert found.wait(LONG_S) == "found"

    def test_an_unknown_id_is_explained(self, alias: str) -> None:
        with pytest.raises(TaskResultDoesNotExist) as caught:
            add.using(backend=alias).get_result("unknown")
        message = str(caught.value)
        assert f"TASKS['{alias}'] has no result 'unknown'." in message
        assert "only what was enqueued in this process" in message
        assert f"{socket.gethostname()}:{os.getpid()}" in message
        assert "the last 1000 finished" in message
        assert f"TASKS['{alias}']['OPTIONS']['STORE']" in message

    def test_another_tasks_result_is_a_mismatch(self, alias: str) -> None:
        handle = add.using(backend=alias).enqueue(1, 2)
        with pytest.raises(TaskResultMismatch, match=r"tests\.tasks\.add"):
            echo.using(backend=alias).get_result(handle.id)
        handle.wait(LONG_S)


class TestBackendInstances:
    @pytest.mark.parametrize("backend_class", [ThreadPoolBackend, ProcessPoolBackend])
    def test_a_backend_can_be_made_by_hand(
        self, backend_class: type[ThreadPoolBackend | ProcessPoolBackend]
    ) -> None:
        params = {"QUEUES": ["default"], "OPTIONS": {"MAX_WORKERS": 2}}
        backend = backend_class("test", params=params)
        result = backend.enqueue(add, args=(2, 3), kwargs={})
        assert result.backend == "test"
        result.join(LONG_S)
        assert result.return_value == 5
        assert backend.get_result(result.id).return_value == 5
        assert backend.enqueue(add, [4], {"b": 5}).wait(LONG_S) == 9
        backend.close()

    def test_params_may_be_empty(self) -> None:
        backend = ThreadPoolBackend("test", params={})
        assert backend.enqueue(add, (1, 2), {}).wait(LONG_S) == 3
        assert backend.queues == {"default"}
        backend.close()

    def test_instances_of_an_alias_share_their_results(self) -> None:
        one = ThreadPoolBackend("test", params={"OPTIONS": {}})
        other = ThreadPoolBackend("test", params={"OPTIONS": {}})
        result = one.enqueue(add, (1, 2), {})
        assert other.get_result(result.id) == result
        result.join(LONG_S)
        one.close()

    def test_a_closed_backend_begins_anew(self, alias: str) -> None:
        task = own_pid.using(backend=alias)
        backend = task.get_backend()
        before = task.enqueue()
        backend.close()  # type: ignore[attr-defined]  # ours has it
        assert before.is_finished is False  # a snapshot
        assert before.wait(0) > 0
        after = task.enqueue()
        after.join(LONG_S)
        assert after.status is SUCCESSFUL
        with pytest.raises(TaskResultDoesNotExist):
            task.get_result(before.id)
        backend.close()  # type: ignore[attr-defined]
        backend.close()  # type: ignore[attr-defined]  # twice is no error

    def test_what_they_support(self, alias: str) -> None:
        backend = task_backends[alias]
        assert backend.supports_get_result
        assert backend.supports_priority
        assert backend.supports_async_task
        assert backend.supports_defer


def test_coroutines_hold_their_slot(
    alias: str, configure: Configure, gate: Gate
) -> None:
    configure(alias, MAX_WORKERS=1)
    handles = [async_hold.using(backend=alias).enqueue(gate.port, n) for n in range(2)]
    visitor = gate.next_visitor()
    assert [status_of(handle) for handle in handles] == [RUNNING, READY]
    visitor.let_go()
    gate.next_visitor().let_go()
    assert [handle.wait(LONG_S) for handle in handles] == [0, 1]
