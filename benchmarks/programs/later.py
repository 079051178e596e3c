"""Tasks that run later, in time, or not at all: how exactly, and at what cost."""

import gc
import os
import statistics
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.utils import timezone

from .contenders import begin, tell

if TYPE_CHECKING:
    from django_tasks_local import LocalTask

_DELAY_S = 0.05


def _bare_late_ms(samples: int) -> list[float]:
    """How late the standard library's timer is."""
    late_ms: list[float] = []
    for _ in range(samples):
        rang = threading.Event()
        due = time.perf_counter() + _DELAY_S
        threading.Timer(_DELAY_S, rang.set).start()
        rang.wait()
        late_ms.append((time.perf_counter() - due) * 1e3)
    return late_ms


def _own_late_ms(samples: int) -> list[float]:
    """How late a deferred task begins where nothing else runs."""
    no_op = _own("no_op", "threads-2")
    no_op.enqueue().wait()
    late_ms: list[float] = []
    for _ in range(samples):
        due = timezone.now() + timedelta(seconds=_DELAY_S)
        result = no_op.using(run_after=due).enqueue()
        result.wait()
        late_ms.append((_seen(result.started_at) - due).total_seconds() * 1e3)
    return late_ms


def _replaced_ms(samples: int) -> list[float]:
    """From a task's deadline until the next one has run, in another process."""
    no_op = _own("no_op", "processes-1")
    slow = replace(_own("oversleep", "processes-1"), timeout=_DELAY_S)
    no_op.enqueue().wait()
    samples_ms: list[float] = []
    for _ in range(samples):
        late = slow.enqueue()
        following = no_op.enqueue()
        following.wait()
        late.refresh()
        deadline = _seen(late.started_at) + timedelta(seconds=_DELAY_S)
        replaced_at = _seen(following.finished_at)
        samples_ms.append((replaced_at - deadline).total_seconds() * 1e3)
    return samples_ms


def _costs_us(count: int) -> dict[str, float]:
    """What each of many tasks costs that waits, is cancelled, or is deferred."""
    from . import functions

    no_op, block = _own("no_op", "threads-2"), _own("block", "threads-2")
    for _ in range(2):
        block.enqueue()
    functions.blocked.wait()
    later = no_op.using(run_after=timezone.now() + timedelta(days=1))
    for _ in range(500):
        no_op.enqueue().cancel()
        later.enqueue().cancel()

    gc.collect()
    began_at = time.perf_counter()
    waiting = [no_op.enqueue() for _ in range(count)]
    enqueued_at = time.perf_counter()
    for result in waiting:
        result.cancel()
    cancelled_at = time.perf_counter()
    waiting.clear()

    gc.collect()
    deferring_at = time.perf_counter()
    waiting = [later.enqueue() for _ in range(count)]
    deferred_at = time.perf_counter()
    return {
        "enqueue_us": (enqueued_at - began_at) / count * 1e6,
        "cancel_us": (cancelled_at - enqueued_at) / count * 1e6,
        "defer_us": (deferred_at - deferring_at) / count * 1e6,
    }


def _own(name: str, alias: str) -> "LocalTask[[], None]":
    """One of the measured tasks without arguments, as this version makes them."""
    from . import tasks

    task: LocalTask[[], None] = getattr(tasks, name)
    return task.using(backend=alias)


def _seen(at: datetime | None) -> datetime:
    assert at is not None  # it has happened
    return at


def main() -> None:
    name, arguments = begin()
    samples = arguments["samples"]
    late_ms = (_own_late_ms if name == "3" else _bare_late_ms)(samples)
    figures = {
        "late_p50_ms": statistics.median(late_ms),
        "late_p99_ms": statistics.quantiles(late_ms, n=100)[98],
    }
    if name == "3":
        replaced_ms = _replaced_ms(samples // 10)
        figures["replaced_p50_ms"] = statistics.median(replaced_ms)
        figures["replaced_most_ms"] = max(replaced_ms)
        figures |= _costs_us(arguments["count"])
    tell(figures)
    os._exit(0)  # what waits need not run


if __name__ == "__main__":
    main()
