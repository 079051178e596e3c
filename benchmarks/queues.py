"""How long tasks wait for a slot: by the formula, and by trying it out.

Tasks come at random, one independent of the other, and take random times too, of which
many are short and few long (both exponential: what queueing theory calls M/M/c). All
times are in mean durations of a task.
"""

import heapq
import math
import random
from typing import NamedTuple

__all__ = ["Wait", "reckoned", "simulated"]


class Wait(NamedTuple):
    """From the enqueue until a slot is free."""

    mean: float
    p99: float
    """One task in a hundred waits longer."""


def reckoned(slots: int, utilisation: float) -> Wait:
    """By Erlang's formula (C)."""
    load = slots * utilisation
    blocked = 1.0  # Erlang's formula B, from one slot to the next
    for number in range(1, slots + 1):
        blocked = load * blocked / (number + load * blocked)
    waits = blocked / (1 - utilisation * (1 - blocked))
    a_second = slots * (1 - utilisation)  # how fast the queue of those who wait empties
    return Wait(waits / a_second, max(0.0, math.log(waits / 0.01) / a_second))


def simulated(slots: int, utilisation: float, *, count: int = 400_000) -> Wait:
    """So many tasks, one after the other; the same ones each time."""
    chance = random.Random(0)
    a_duration = slots * utilisation
    free_at = [0.0] * slots
    now = 0.0
    waits: list[float] = []
    for _ in range(count):
        now += chance.expovariate(a_duration)
        begins_at = max(now, free_at[0])
        waits.append(begins_at - now)
        heapq.heapreplace(free_at, begins_at + chance.expovariate(1.0))
    waits.sort()
    return Wait(sum(waits) / count, waits[count * 99 // 100])
