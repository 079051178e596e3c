"""Many tasks at once: all of them are enqueued, or none."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from django.conf import settings
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask
from django.tasks.signals import task_enqueued
from django.test import override_settings

from django_tasks_local import (
    LocalTask,
    LocalTaskResult,
    QueueFull,
    as_completed,
)
from django_tasks_local.backend import FuturesBackend
from django_tasks_local.state import get_executor_state

from .conftest import Configure
from .gates import LONG_S, Gate
from .metadata_tasks import see_metadata
from .noting_store import NotingStore, store_of
from .tasks import NOT_JSON, add, echo_arguments, hold
from .test_compatibility import DJANGOS
from .watching_tasks import (
    enqueue_many_inner,
    enqueue_many_inner_async,
    enqueue_many_wrong,
)

type Calls = Iterator[tuple[Sequence[Any], Mapping[str, Any]]]
type Many = Callable[[LocalTask[..., Any], Any], list[LocalTaskResult[Any]]]


def backend_of(task: LocalTask[..., Any]) -> FuturesBackend:
    backend = task.get_backend()
    assert isinstance(backend, FuturesBackend)
    return backend


def enqueue_many(task: LocalTask[..., Any], calls: Any) -> list[LocalTaskResult[Any]]:
    return backend_of(task).enqueue_many(task, calls)


def aenqueue_many(task: LocalTask[..., Any], calls: Any) -> list[LocalTaskResult[Any]]:
    return asyncio.run(backend_of(task).aenqueue_many(task, calls))


@pytest.fixture(params=[enqueue_many, aenqueue_many], ids=["enqueue", "aenqueue"])
def many(request: pytest.FixtureRequest) -> Many:
    """Both ways to enqueue them."""
    function: Many = request.param
    return function


def numbers(count: int) -> Calls:
    return (((number,), {"b": 1}) for number in range(count))


class TestHandles:
    def test_come_in_the_order_of_the_calls(self, alias: str, many: Many) -> None:
        task = add.using(backend=alias)
        handles = many(task, numbers(20))
        assert [handle.args for handle in handles] == [[n] for n in range(20)]
        assert [handle.kwargs for handle in handles] == [{"b": 1}] * 20
        assert len({handle.id for handle in handles}) == 20
        assert [handle.wait(LONG_S) for handle in handles] == list(range(1, 21))
        assert {handle.task for handle in handles} == {task}

    def test_are_found_and_waited_for_like_any_other(
        self, alias: str, many: Many
    ) -> None:
        task = add.using(backend=alias)
        handles = many(task, [([1], {"b": 1}), ([], {"a": 2, "b": 2})])
        done = list(as_completed(handles, LONG_S))
        assert {handle.return_value for handle in done} == {2, 4}
        found = [task.get_result(handle.id) for handle in handles]
        assert [result.return_value for result in found] == [2, 4]

    def test_of_no_calls_are_none(self, many: Many) -> None:
        assert many(add, []) == []
        assert many(add, numbers(0)) == []

    def test_have_each_the_tasks_metadata(self, many: Many) -> None:
        task = see_metadata.using(metadata={"a": [1]})
        for handle in many(task, [((), {})] * 3):
            assert handle.wait(LONG_S) == {"a": [1]}

    def test_arguments_are_those_of_each_call(self, many: Many) -> None:
        shared = [1]
        calls = [((shared,), {"x": (2,)}), (["zwei"], {}), ((), {})]
        handles = many(echo_arguments, calls)
        shared.append(2)
        assert [handle.wait(LONG_S) for handle in handles] == [
            [[[1]], {"x": [2]}],
            [["zwei"], {}],
            [[], {}],
        ]


class TestStore:
    def test_is_written_once(self, many: Many, configure: Configure) -> None:
        configure("default", STORE=NotingStore)
        handles = many(add, numbers(50))
        (added,) = store_of("default").added
        assert [record.id for record in added] == [handle.id for handle in handles]
        for handle in handles:
            handle.join(LONG_S)

    def test_is_not_written_for_nothing(self, many: Many, configure: Configure) -> None:
        configure("default", STORE=NotingStore)
        many(add, [])
        assert store_of("default").added == []


class TestOfATask:
    @pytest.mark.parametrize(
        "backend", ["our own", "Immediate"], ids=["ours", "immediate"]
    )
    def test_go_to_its_own_backend(self, backend: str) -> None:
        setting = {} if backend == "our own" else {"default": DJANGOS["Immediate"]}
        with override_settings(TASKS={**settings.TASKS, **setting}):
            for handles in (
                add.enqueue_many(numbers(3)),
                asyncio.run(add.aenqueue_many(numbers(3))),
            ):
                assert [handle.wait(LONG_S) for handle in handles] == [1, 2, 3]
                assert {handle.backend for handle in handles} == {"default"}

    def test_on_djangos_backends_are_all_looked_at_first(self) -> None:
        with override_settings(TASKS={"default": DJANGOS["Dummy"]}):
            backend: Any = task_backends["default"]
            with pytest.raises(TypeError, match="must be JSON"):
                add.enqueue_many([((1, 2), {}), ((object(),), {})])
            assert backend.results == []


class TestAllOrNone:
    @pytest.mark.parametrize(
        "call", ["ab", ["ab", "cd"], (1, {}), ([1],), ([1], {}, 1), None], ids=repr
    )
    def test_what_is_no_call_refuses_all(
        self, many: Many, configure: Configure, call: Any
    ) -> None:
        configure("default", STORE=NotingStore)
        with pytest.raises(TypeError, match=r"must be a pair \(args, kwargs\), got"):
            many(add, [((1, 2), {}), call])
        assert store_of("default").added == []

    @pytest.mark.parametrize("kind", NOT_JSON)
    def test_one_call_that_is_not_json_refuses_all(
        self, many: Many, configure: Configure, kind: str
    ) -> None:
        configure("default", STORE=NotingStore)
        calls = [*numbers(3), ((NOT_JSON[kind](), 1), {}), *numbers(3)]
        with pytest.raises(
            TypeError, match=r"arguments of task tests\.tasks\.add must"
        ):
            many(add, calls)
        assert get_executor_state("default").unfinished_ids() == []
        assert store_of("default").added == []

    def test_a_generator_that_fails_refuses_all(
        self, many: Many, configure: Configure
    ) -> None:
        def calls() -> Calls:
            yield from numbers(3)
            raise LookupError("no more")

        configure("default", STORE=NotingStore)
        with pytest.raises(LookupError, match="no more"):
            many(add, calls())
        assert store_of("default").added == []

    @pytest.mark.parametrize("call", [(1,), 1, ([], {}, 3)], ids=["one", "no", "three"])
    def test_what_is_no_pair_refuses_all(
        self, many: Many, configure: Configure, call: object
    ) -> None:
        configure("default", STORE=NotingStore)
        with pytest.raises((TypeError, ValueError)):
            many(add, [*numbers(3), call])
        assert store_of("default").added == []

    def test_a_task_that_the_backend_cannot_run_is_refused(self, many: Many) -> None:
        backend = task_backends["cpu"]
        assert isinstance(backend, FuturesBackend)
        task = add.using(queue_name="default")
        object.__setattr__(task, "queue_name", "elsewhere")  # past its own check
        with pytest.raises(InvalidTask, match="Queue 'elsewhere' is not valid"):
            many(task, numbers(2))

    def test_a_full_queue_refuses_all(
        self, alias: str, many: Many, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1, MAX_PENDING=3, STORE=NotingStore)
        running = hold.using(backend=alias).enqueue(gate.port, "running")
        gate.next_visitor()
        task = add.using(backend=alias)
        full = r"^0 tasks are waiting, 4 more would be, and .* is 3\.$"
        with pytest.raises(QueueFull, match=full):
            many(task, numbers(4))
        assert get_executor_state(alias).unfinished_ids() == [running.id]
        assert len(store_of(alias).added) == 1
        waiting = many(task, numbers(3))  # no place was lost
        with pytest.raises(QueueFull, match="3 tasks are waiting"):
            many(task, numbers(1))
        gate.open()
        assert [handle.wait(LONG_S) for handle in waiting] == [1, 2, 3]


class TestSignals:
    def test_task_enqueued_is_sent_for_each(self, many: Many) -> None:
        seen: list[tuple[str, TaskResultStatus]] = []

        def receive(*, task_result: LocalTaskResult[Any], **_: Any) -> None:
            seen.append((task_result.id, task_result.status))

        task_enqueued.connect(receive)
        try:
            handles = many(add, numbers(5))
        finally:
            task_enqueued.disconnect(receive)
        ready = TaskResultStatus.READY
        assert seen == [(handle.id, ready) for handle in handles]
        for handle in handles:
            handle.join(LONG_S)


class TestInTasks:
    @pytest.mark.parametrize(
        "task",
        [enqueue_many_inner, enqueue_many_inner_async],
        ids=["function", "coroutine"],
    )
    def test_a_task_enqueues_many_and_waits_for_them(
        self, alias: str, configure: Configure, task: LocalTask[..., Any]
    ) -> None:
        configure("default", "cpu", MAX_WORKERS=1)
        for other in ("default", "cpu"):
            outer = task.using(backend=alias).enqueue(other, 5)
            assert outer.wait(LONG_S) == [1, 2, 3, 4, 5]
        assert task.using(backend=alias).enqueue("default", 0).wait(LONG_S) == []

    def test_a_task_is_told_of_what_is_refused(
        self, alias: str, configure: Configure
    ) -> None:
        configure("default", "cpu", MAX_PENDING=3, STORE=NotingStore)
        outer = enqueue_many_wrong.using(backend=alias).enqueue("default")
        assert outer.wait(LONG_S) == ["TypeError", "QueueFull"]
        added = [
            record.id for records in store_of("default").added for record in records
        ]
        assert added == ([outer.id] if alias == "default" else [])
