"""What runs next: by priority, and by age among equals.

It has no thread, no clock and no lock: whoever owns it sees to that.
"""

from collections import deque
from heapq import heappop, heappush

__all__ = ["TaskQueue"]


class TaskQueue[T]:
    """Waiting items, the highest priority first and the oldest first among equals.

    `push` and `pop` cost the same however many items wait: O(log p) where p is the
    number of distinct priorities that are waiting.
    """

    __slots__ = ("_by_priority", "_length", "_waiting_priorities")

    def __init__(self) -> None:
        self._by_priority: dict[int, deque[T]] = {}
        self._waiting_priorities: list[int] = []  # a heap of negated priorities
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, item: T, /, *, priority: int) -> None:
        """Put an item behind those of its own priority."""
        items = self._by_priority.get(priority)
        if items is None:
            items = self._by_priority[priority] = deque()
            heappush(self._waiting_priorities, -priority)
        items.append(item)
        self._length += 1

    def pop(self) -> T:
        """Take the next item. Raises IndexError when nothing waits."""
        priority = -self._waiting_priorities[0]
        items = self._by_priority[priority]
        item = items.popleft()
        self._length -= 1
        if not items:
            heappop(self._waiting_priorities)
            del self._by_priority[priority]
        return item

    def drain(self) -> list[T]:
        """Take all items, in the order in which they would have come."""
        return [self.pop() for _ in range(self._length)]
