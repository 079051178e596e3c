"""The queue gives the highest priority first, and the oldest among equals.

What is deferred comes when it is due; what is removed does not come.
"""

import gc
import weakref
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple, override

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_tasks_local.task_queue import DueHeap, TaskQueue

# Few priorities, so that many items share one; and any that Django may be given.
PRIORITIES = st.integers(-2, 2) | st.integers()
# The same for times.
TIMES = st.integers(0, 5).map(float) | st.floats(allow_nan=False)


class Item:
    """What is compared and hashed by identity, as tasks are."""

    def __init__(self, name: int = 0) -> None:
        self.name = name

    @override
    def __repr__(self) -> str:
        return f"<{self.name}>"


class Items(RuleBasedStateMachine):
    """Items that are outside of what is tested, so that they come again."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.outside: list[Item] = []
        self.now = 0.0

    def draw_item(self, data: st.DataObject) -> Item:
        """One that was in it before, or a new one."""
        comes_again = data.draw(st.booleans(), "again")
        if self.outside and comes_again:
            return self.outside.pop(self.draw_index(data, self.outside))
        self.count += 1
        return Item(self.count)

    def draw_index(self, data: st.DataObject, items: list[Item]) -> int:
        return data.draw(st.integers(0, len(items) - 1), "index")


class TaskQueueComparedWithSortedLists(Items):
    def __init__(self) -> None:
        super().__init__()
        self.queue = TaskQueue[Item]()
        self.ready: list[tuple[int, Item]] = []
        self.deferred: list[tuple[float, int, Item]] = []

    @property
    def waiting(self) -> list[Item]:
        """All, in the order in which they would come."""
        ready = [item for _, item in self.ready]
        return ready + [item for _, _, item in self.deferred]

    @rule(data=st.data(), priorities=st.lists(PRIORITIES, min_size=1, max_size=5))
    def push(self, data: st.DataObject, priorities: list[int]) -> None:
        for priority in priorities:
            self.push_item(self.draw_item(data), priority)

    def push_item(self, item: Item, priority: int) -> None:
        self.queue.push(item, priority=priority)
        self.ready.append((-priority, item))
        self.ready.sort(key=itemgetter(0))

    @rule(data=st.data(), priority=PRIORITIES, due_at=TIMES)
    def defer(self, data: st.DataObject, priority: int, due_at: float) -> None:
        item = self.draw_item(data)
        self.queue.defer(item, priority=priority, due_at=due_at)
        self.deferred.append((due_at, priority, item))
        self.deferred.sort(key=itemgetter(0))

    @rule(now=TIMES, at_most=st.none() | st.integers(1, 3))
    def release(self, now: float, at_most: int | None) -> None:
        self.now = max(self.now, now)
        due = [each for each in self.deferred if each[0] <= self.now][:at_most]
        assert self.queue.release(self.now, at_most=at_most) == len(due)
        del self.deferred[: len(due)]
        self.ready += [(-priority, item) for _, priority, item in due]
        self.ready.sort(key=itemgetter(0))

    @precondition(lambda self: self.ready)
    @rule()
    def pop(self) -> None:
        _, item = self.ready.pop(0)
        assert self.queue.pop() is item
        self.outside.append(item)

    @precondition(lambda self: self.ready or self.deferred)
    @rule(data=st.data(), priority=st.none() | PRIORITIES)
    def remove(self, data: st.DataObject, priority: int | None) -> None:
        """And push the item again at once, where a priority is given."""
        items = self.waiting
        item = items[self.draw_index(data, items)]
        self.queue.remove(item)
        self.ready = [each for each in self.ready if each[-1] is not item]
        self.deferred = [each for each in self.deferred if each[-1] is not item]
        if priority is None:
            self.outside.append(item)
        else:
            self.push_item(item, priority)

    @rule()
    def drain(self) -> None:
        items = self.waiting
        assert self.queue.drain() == items
        self.ready.clear()
        self.deferred.clear()
        self.outside += items

    @rule(after=TIMES)
    def drain_deferred(self, after: float) -> None:
        items = [item for due_at, _, item in self.deferred if due_at > after]
        assert self.queue.drain_deferred(after) == items
        self.deferred = [each for each in self.deferred if each[0] <= after]
        self.outside += items

    @precondition(lambda self: not self.ready)
    @rule()
    def pop_when_none_is_ready(self) -> None:
        with pytest.raises(IndexError):
            self.queue.pop()

    @invariant()
    def tells_what_waits(self) -> None:
        assert self.queue.ready_count == len(self.ready)
        assert self.queue.deferred_count == len(self.deferred)
        assert len(self.queue) == len(self.ready) + len(self.deferred)
        assert bool(self.queue) == bool(self.ready or self.deferred)
        assert self.queue.next_due == (self.deferred[0][0] if self.deferred else None)


class DueHeapComparedWithASortedList(Items):
    def __init__(self) -> None:
        super().__init__()
        self.heap = DueHeap[Item]()
        self.model: list[tuple[float, Item]] = []

    @rule(data=st.data(), at=TIMES)
    def push(self, data: st.DataObject, at: float) -> None:
        item = self.draw_item(data)
        self.heap.push(item, at=at)
        self.model.append((at, item))
        self.model.sort(key=itemgetter(0))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        items = [item for _, item in self.model]
        _, item = self.model.pop(self.draw_index(data, items))
        self.heap.discard(item)
        self.outside.append(item)

    @rule(now=TIMES)
    def pop_due(self, now: float) -> None:
        self.takes(self.heap.pop_due(now), lambda at: at <= now)

    @rule(at=TIMES)
    def drain_after(self, at: float) -> None:
        self.takes(self.heap.drain_after(at), lambda each: each > at)

    @rule()
    def drain(self) -> None:
        self.takes(self.heap.drain(), lambda at: True)

    def takes(self, taken: list[Item], is_taken: Callable[[float], bool]) -> None:
        assert taken == [item for at, item in self.model if is_taken(at)]
        self.model = [each for each in self.model if not is_taken(each[0])]
        self.outside += taken

    @invariant()
    def tells_what_is_in_it(self) -> None:
        assert len(self.heap) == len(self.model)
        assert bool(self.heap) == bool(self.model)
        assert self.heap.next_at == (self.model[0][0] if self.model else None)


@pytest.mark.parametrize(
    "machine", [TaskQueueComparedWithSortedLists, DueHeapComparedWithASortedList]
)
def test_all_that_is_done_agrees_with_sorted_lists(machine: type[Items]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=80, stateful_step_count=50, deadline=None),
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


@settings(deadline=None)
@given(
    priorities=st.lists(st.integers(-1, 1), min_size=1, max_size=200), data=st.data()
)
def test_removed_items_do_not_come_out_and_come_again_behind_the_others(
    priorities: list[int], data: st.DataObject
) -> None:
    queue = TaskQueue[int]()
    ages = range(len(priorities))
    for age in ages:
        queue.push(age, priority=priorities[age])
    removed = data.draw(st.lists(st.sampled_from(ages), unique=True))
    again = data.draw(
        st.lists(st.sampled_from(removed), unique=True) if removed else st.just([])
    )

    for age in removed:
        queue.remove(age)
    for age in again:
        queue.push(age, priority=priorities[age])

    ages_left = [age for age in ages if age not in removed]
    assert queue.drain() == sorted(ages_left + again, key=lambda age: -priorities[age])


def test_items_need_not_be_comparable() -> None:
    queue = TaskQueue[object]()
    items = [object() for _ in range(20)]
    for item in items[:10]:
        queue.push(item, priority=0)
    for item in items[10:]:
        queue.defer(item, priority=0, due_at=1.0)

    assert queue.drain() == items


def test_queue_is_usable_after_a_refused_pop() -> None:
    queue = TaskQueue[str]()
    with pytest.raises(IndexError):
        queue.pop()
    queue.push("item", priority=1)

    assert len(queue) == 1
    assert queue.pop() == "item"


def test_due_items_come_behind_those_of_their_priority_that_are_ready() -> None:
    queue = TaskQueue[str]()
    queue.defer("later", priority=0, due_at=2.0)
    queue.defer("soon", priority=0, due_at=1.0)
    queue.defer("urgent", priority=1, due_at=2.0)
    queue.defer("too late", priority=1, due_at=2.5)
    queue.push("ready", priority=0)

    assert queue.release(2.0) == 3

    assert [queue.pop() for _ in range(4)] == ["urgent", "ready", "soon", "later"]
    assert queue.next_due == 2.5


class Ways(NamedTuple):
    """Ways of an item into what is tested, and out of it."""

    push: Callable[[Item], None]
    remove: Callable[[Item], None]
    take: Callable[[], object]


def ready() -> Ways:
    queue = TaskQueue[Item]()

    def push(item: Item) -> None:
        queue.push(item, priority=item.name % 3)

    return Ways(push, queue.remove, queue.pop)


def deferred() -> Ways:
    queue = TaskQueue[Item]()

    def push(item: Item) -> None:
        queue.defer(item, priority=0, due_at=item.name % 7)

    def take() -> None:
        queue.release(queue.next_due or 0.0)
        queue.pop()

    return Ways(push, queue.remove, take)


def due_heap() -> Ways:
    heap = DueHeap[Item]()

    def push(item: Item) -> None:
        heap.push(item, at=item.name)

    def take() -> None:
        heap.pop_due(heap.next_at or 0.0)

    return Ways(push, heap.discard, take)


each_kind = pytest.mark.parametrize("kind", [ready, deferred, due_heap])


@each_kind
def test_no_more_removed_items_are_kept_than_others(kind: Callable[[], Ways]) -> None:
    push, remove, _ = kind()
    items = [Item(number) for number in range(100_000)]
    alive = weakref.WeakSet(items)
    for number in range(100_000):
        push(items[number])

    kept: list[Item] = []
    while items:  # no variable here holds an item
        take = remove if items[-1].name % 10_000 else kept.append
        take(items.pop())
    gc.collect()

    assert len(kept) <= len(alive) <= 2 * len(kept)


@each_kind
def test_removed_items_do_not_outlast_the_others(kind: Callable[[], Ways]) -> None:
    push, remove, take = kind()
    items = [Item(number) for number in range(100)]
    alive = weakref.WeakSet(items)
    for number in range(100):
        push(items[number])

    while len(items) > 60:
        remove(items.pop())
    items.clear()
    for _ in range(60):
        take()
    gc.collect()

    assert len(alive) == 0


class HashCountingItem(Item):
    hashed = 0

    @override
    def __hash__(self) -> int:
        HashCountingItem.hashed += 1
        return super().__hash__()


@each_kind
def test_to_remove_an_item_is_not_to_search_the_others(
    kind: Callable[[], Ways],
) -> None:
    push, remove, _ = kind()
    items = [HashCountingItem(number) for number in range(10_000)]
    for item in items:
        push(item)
    HashCountingItem.hashed = 0

    for item in items[5_000:]:  # which come again at once, before their old entries go
        remove(item)
        push(item)
    for item in items:
        remove(item)

    # Each entry that is passed over is looked up.
    assert HashCountingItem.hashed < 20 * 20_000
