"""What runs next: by priority, and by age among equals; and what is not due yet.

It has no thread, no clock and no lock: whoever owns it sees to that. Times are what the
owner takes them for, as long as they can be compared.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import cast

__all__ = ["DueHeap", "TaskQueue"]


class _Removals[T]:
    """Which entries are dead: those of items that were removed.

    To find an item's entry would take as long as its queue is. So a dead one stays
    where it is until its turn comes, or until more entries are dead than live. The
    owner then drops all that are dead, which costs no more than to have put them in.

    An item is its own entry, so that those that are never removed cost nothing here.
    One that comes again while its last entry, a dead one, is still there has a
    stand-in for its entry.
    """

    __slots__ = ("dead", "items", "stand_ins")

    def __init__(self) -> None:
        self.dead: set[T] = set()
        self.items: dict[T, T] = {}  # by their stand-ins, the live ones
        self.stand_ins: dict[T, T] = {}  # the other way round

    def entry(self, item: T) -> T:
        """What to put in for an item."""
        if item not in self.dead:
            return item
        # Nobody but this class looks into an entry, and `item` undoes it.
        stand_in = cast("T", object())
        self.items[stand_in] = item
        self.stand_ins[item] = stand_in
        return stand_in

    def remove(self, item: T) -> None:
        """The entry of an item is dead from now on."""
        entry = self.stand_ins.pop(item, item)
        self.items.pop(entry, None)
        self.dead.add(entry)

    def bury(self, entry: T) -> bool:
        """Forget an entry that leaves its place, if it is dead; whether it was."""
        if entry not in self.dead:
            return False
        self.dead.remove(entry)
        return True

    def item(self, entry: T) -> T:
        """The item of a live entry that leaves its place."""
        if not self.items:
            return entry
        item = self.items.pop(entry, entry)
        self.stand_ins.pop(item, None)
        return item

    def live_items(self, entries: Iterable[T]) -> Iterator[T]:
        """The items of those entries that are live."""
        for entry in entries:
            if entry not in self.dead:
                yield self.items.get(entry, entry)


class DueHeap[T]:
    """Items by the time at which each is due, and by age among equals.

    An item is hashable, and is in it once at most. To push one, to take one out and,
    over time, to discard one costs O(log n).
    """

    __slots__ = ("_ages", "_heap", "_removals")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []  # the first one is live
        self._ages = count()
        self._removals = _Removals[T]()

    def __len__(self) -> int:
        return len(self._heap) - len(self._removals.dead)

    @property
    def next_at(self) -> float | None:
        """When the first item is due; None when there is no item."""
        return self._heap[0][0] if self._heap else None

    def push(self, item: T, /, *, at: float) -> None:
        """Put an item in, behind those that are due at the same time."""
        heappush(self._heap, (at, next(self._ages), self._removals.entry(item)))

    def discard(self, item: T, /) -> None:
        """Take an item out, which has to be there."""
        self._removals.remove(item)
        self._drop_dead()

    def pop_due(self, now: float, /, *, at_most: int | None = None) -> list[T]:
        """Take those that are due at `now` or before, in their order."""
        due: list[T] = []
        while self._heap and self._heap[0][0] <= now and len(due) != at_most:
            _, _, entry = heappop(self._heap)
            due.append(self._removals.item(entry))
            self._drop_dead()
        return due

    def drain(self) -> list[T]:
        """Take all items, in their order."""
        self._compact()
        items = [self._removals.item(entry) for _, _, entry in sorted(self._heap)]
        self._heap.clear()
        return items

    def drain_after(self, at: float, /) -> list[T]:
        """Take those that are due after `at`, in their order."""
        self._compact()
        late = sorted(each for each in self._heap if each[0] > at)
        self._heap = [each for each in self._heap if each[0] <= at]
        heapify(self._heap)
        return [self._removals.item(entry) for _, _, entry in late]

    def _drop_dead(self) -> None:
        """Keep the first one live, and no more dead ones than live ones."""
        while self._heap and self._removals.bury(self._heap[0][2]):
            heappop(self._heap)
        if len(self._removals.dead) > len(self):
            self._compact()

    def _compact(self) -> None:
        dead = self._removals.dead
        if dead:
            self._heap = [each for each in self._heap if each[2] not in dead]
            heapify(self._heap)
            dead.clear()


class TaskQueue[T]:
    """Waiting items, the highest priority first and the oldest first among equals.

    Those that are deferred wait apart until they are due and `release` is called. An
    item is hashable, and is in it once at most, be it ready or deferred.

    `push` and `pop` cost the same however many items wait: O(log p) where p is the
    number of distinct priorities that are waiting. So does `remove`, over time. What is
    done with a deferred item costs O(log d) where d items are deferred.
    """

    __slots__ = (
        "_by_priority",
        "_deferred",
        "_deferred_priorities",
        "_ready_count",
        "_removals",
        "_waiting_priorities",
    )

    def __init__(self) -> None:
        self._by_priority: dict[int, deque[T]] = {}
        self._waiting_priorities: list[int] = []  # a heap of negated priorities
        self._ready_count = 0
        # Of those that are ready; None while there is neither a dead entry nor a
        # stand-in, which is what `push` and `pop` are quick for.
        self._removals: _Removals[T] | None = None
        self._deferred = DueHeap[T]()
        self._deferred_priorities: dict[T, int] = {}

    def __len__(self) -> int:
        return self._ready_count + len(self._deferred)

    @property
    def ready_count(self) -> int:
        """How many `pop` would give."""
        return self._ready_count

    @property
    def deferred_count(self) -> int:
        """How many wait for their time."""
        return len(self._deferred)

    @property
    def next_due(self) -> float | None:
        """When the first of the deferred is due; None when none is deferred."""
        return self._deferred.next_at

    def push(self, item: T, /, *, priority: int) -> None:
        """Put an item behind those of its own priority."""
        if self._removals is not None:
            item = self._removals.entry(item)
        entries = self._by_priority.get(priority)
        if entries is None:
            entries = self._by_priority[priority] = deque()
            heappush(self._waiting_priorities, -priority)
        entries.append(item)
        self._ready_count += 1

    def defer(self, item: T, /, *, priority: int, due_at: float) -> None:
        """Keep an item until `release` is called at `due_at` or later."""
        self._deferred.push(item, at=due_at)
        self._deferred_priorities[item] = priority

    def release(self, now: float, /, *, at_most: int | None = None) -> int:
        """Push the deferred that are due, by their times; how many these were."""
        due = self._deferred.pop_due(now, at_most=at_most)
        for item in due:
            self.push(item, priority=self._deferred_priorities.pop(item))
        return len(due)

    def pop(self) -> T:
        """Take the next item. Raises IndexError when none is ready."""
        removals = self._removals
        while True:
            priority = -self._waiting_priorities[0]
            entries = self._by_priority[priority]
            entry = entries.popleft()
            if not entries:
                heappop(self._waiting_priorities)
                del self._by_priority[priority]
            if removals is None or not removals.bury(entry):
                break
        self._ready_count -= 1
        if removals is not None:
            entry = removals.item(entry)
            self._drop_dead(removals)
        return entry

    def remove(self, item: T, /) -> None:
        """Take an item out, which has to be there: ready or deferred."""
        if self._deferred_priorities.pop(item, None) is not None:
            self._deferred.discard(item)
        else:
            if self._removals is None:
                self._removals = _Removals()
            self._removals.remove(item)
            self._ready_count -= 1
            self._drop_dead(self._removals)

    def drain(self) -> list[T]:
        """Take all: in the order in which they would have come, then the deferred."""
        items = [self.pop() for _ in range(self._ready_count)]
        self._deferred_priorities.clear()
        return items + self._deferred.drain()

    def drain_deferred(self, after: float, /) -> list[T]:
        """Take those of the deferred that are due after `after`, by their times."""
        items = self._deferred.drain_after(after)
        for item in items:
            del self._deferred_priorities[item]
        return items

    def _drop_dead(self, removals: _Removals[T]) -> None:
        """Keep no more dead entries than live ones."""
        if len(removals.dead) > self._ready_count:
            all_entries, self._by_priority = self._by_priority, {}
            for priority, entries in all_entries.items():
                items = deque(removals.live_items(entries))
                if items:
                    self._by_priority[priority] = items
            self._waiting_priorities = [-priority for priority in self._by_priority]
            heapify(self._waiting_priorities)
            self._removals = None
        elif not removals.dead and not removals.items:
            self._removals = None
