"""The queue gives the highest priority first, and the oldest among equals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from django_tasks_local.task_queue import TaskQueue

# Few priorities, so that many items share one; and any that Django may be given.
PRIORITIES = st.integers(-2, 2) | st.integers()


class TaskQueueComparedWithASortedList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = TaskQueue[int]()
        self.model: list[tuple[int, int]] = []
        self.age = 0

    @rule(priority=PRIORITIES)
    def push(self, priority: int) -> None:
        self.queue.push(self.age, priority=priority)
        self.model.append((-priority, self.age))
        self.model.sort()
        self.age += 1

    @precondition(lambda self: self.model)
    @rule()
    def pop(self) -> None:
        _, item = self.model.pop(0)
        assert self.queue.pop() == item

    @rule()
    def drain(self) -> None:
        assert self.queue.drain() == [item for _, item in self.model]
        self.model.clear()

    @precondition(lambda self: not self.model)
    @rule()
    def pop_when_empty(self) -> None:
        with pytest.raises(IndexError):
            self.queue.pop()

    @invariant()
    def counts_what_waits(self) -> None:
        assert len(self.queue) == len(self.model)
        assert bool(self.queue) == bool(self.model)


TestTaskQueueComparedWithASortedList = TaskQueueComparedWithASortedList.TestCase
TestTaskQueueComparedWithASortedList.settings = settings(
    max_examples=50, stateful_step_count=50, deadline=None
)


@settings(deadline=None)
@given(st.lists(PRIORITIES, max_size=200))
def test_all_items_come_out_by_priority_and_then_by_age(priorities: list[int]) -> None:
    queue = TaskQueue[int]()
    for age, priority in enumerate(priorities):
        queue.push(age, priority=priority)

    popped = [queue.pop() for _ in priorities]

    assert popped == sorted(range(len(priorities)), key=lambda age: -priorities[age])
    assert len(queue) == 0


def test_items_need_not_be_comparable() -> None:
    queue = TaskQueue[object]()
    items = [object() for _ in range(10)]
    for item in items:
        queue.push(item, priority=0)

    assert queue.drain() == items


def test_queue_is_usable_after_a_refused_pop() -> None:
    queue = TaskQueue[str]()
    with pytest.raises(IndexError):
        queue.pop()
    queue.push("item", priority=1)

    assert len(queue) == 1
    assert queue.pop() == "item"
