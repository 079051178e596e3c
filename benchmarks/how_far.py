"""The passages of the docs' page "How far it goes" that are reckoned from a run.

Each number is one that was measured, or the arithmetic stands beside it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .plan import LEVELS, Level
from .queues import Wait, reckoned, simulated
from .results import Results, amount

__all__ = ["passages"]

_RATES = (1_000, 1_000_000)
_MANY = _RATES[-1]
_FULL = 0.8
"""How busy something may be so that what comes at random does not wait for long."""
_EFFICIENCY = 0.95
_UNIT_US = 100
"""The small piece of work in the example of larger tasks."""
_OUTAGES_S = ((1_000, 60), (1_000, 3_600), (1_000_000, 60))
_UTILISATIONS = (0.5, 0.8, 0.9, 0.95)
_SLOTS = (1, 10, 100)
_WORKERS = 2
"""The worker processes of the levels that have some."""

_PARTS = {
    "client_us": "enqueuing process",
    "workers_us": "worker processes",
    "scheduler_us": "Dask's scheduler",
    "database_us": "PostgreSQL",
}


@dataclass(frozen=True)
class _Measured:
    """What a run knows of a level, by the figures' keys."""

    level: Level
    figures: dict[str, float]

    def __getitem__(self, key: str) -> float:
        return self.figures.get(key, 0.0)

    @property
    def title(self) -> str:
        return self.level.title

    def cpus_of(self, key: str) -> float:
        """How many CPUs that part keeps busy while tasks run as fast as they can."""
        return self[key] * self["per_s"] / 1e6


def passages(results: Results, where: str) -> dict[str, str]:
    """By the names that their marks in the page have."""
    figures: dict[str, dict[str, float]] = {}
    for figure in results.figures():
        value = results.median_of(figure, "3")
        if figure.part == "levels" and value is not None:
            name = figure.measurement.removeprefix("level-").removesuffix("-waiting")
            figures.setdefault(name, {})[figure.key] = value
    levels = [
        _Measured(level, figures[level.name])
        for level in LEVELS
        if level.name in figures
    ]
    return {
        "costs": f"{where}\n\n{_costs(levels)}",
        "rates": _rates(levels),
        "limits": _limits(levels),
        "batches": _batches(levels),
        "waits": _waits(),
        "memory": _memory(levels),
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| ---{' | ---:' * (len(head) - 1)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _number(value: float) -> str:
    """In two digits or so, or in full."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _percent(part: float) -> str:
    return f"{part * 100:.0f} %"


def _us(value: float) -> str:
    return "–" if value == 0 else f"{value:,.0f} µs"


def _ms(us: float) -> str:
    return f"{_number(us / 1e3)} ms"


def _size(value: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{_number(value)} {unit}"
        value /= 1000
    return f"{_number(value)} TB"


def _costs(levels: Sequence[_Measured]) -> str:
    def busiest(level: _Measured) -> str:
        cpus = {part: level.cpus_of(key) for key, part in _PARTS.items()}
        cpus["worker processes"] /= _WORKERS
        part = max(cpus, key=lambda each: cpus[each])
        name = "each worker process" if part == "worker processes" else part
        return f"{name}: {cpus[part]:.2f}"

    return _table(
        ["", "tasks a second", *_PARTS.values(), "all", "CPUs busy", "the busiest"],
        (
            [
                level.title,
                amount(level["per_s"], "/s"),
                *(_us(level[key]) for key in _PARTS),
                _us(level["all_us"]),
                f"{level.cpus_of('all_us'):.2f}",
                busiest(level),
            ]
            for level in levels
        ),
    )


def _rates(levels: Sequence[_Measured]) -> str:
    def processes(level: _Measured, rate: int) -> str:
        return f"{math.ceil(rate * level['client_us'] / 1e6 / _FULL):,}"

    def row(level: _Measured) -> list[str]:
        cells = [level.title]
        for rate in _RATES:
            cpus = _number(rate * level["all_us"] / 1e6)
            cells.append(f"{rate:,} × {_us(level['all_us'])} = {cpus}")
            cells.append(processes(level, rate))
        return cells

    head = [""]
    for rate in _RATES:
        head += [f"CPUs at {rate:,} /s", "processes that enqueue"]
    example = levels[0]
    return (
        f"{_table(head, map(row, levels))}\n\n"
        "A process that enqueues has one interpreter, so about one CPU, of which "
        f"{_percent(_FULL)} is counted: {_MANY:,} × {_us(example['client_us'])} / "
        f"{_FULL} = {processes(example, _MANY)} on {example.title}."
    )


def _limits(levels: Sequence[_Measured]) -> str:
    texts: dict[str, Callable[[_Measured], str]] = {
        "threads": _limit_of_threads,
        "sqlite": _limit_of_sqlite,
        "database": _limit_of_postgresql,
        "dask": _limit_of_dask,
    }
    return "\n".join(
        texts[level.level.name](level) for level in levels if level.level.name in texts
    )


def _limit_of_threads(level: _Measured) -> str:
    per_s = level["per_s"]
    return (
        f"- **One process** enqueues and runs {per_s:,.0f} tasks a second on threads. "
        "They share one interpreter, and so about one CPU. Another process has "
        "another: "
        f"{_MANY:,} / {per_s:,.0f} = {_number(_MANY / per_s)} processes, each of which "
        "knows only its own tasks."
    )


def _limit_of_sqlite(level: _Measured) -> str:
    one, two = level["per_s"], level["two_per_s"]
    most = max(one, two)
    return (
        f"- **One SQLite file** took {one:,.0f} tasks a second from one process, and "
        f"{two:,.0f} from two at once, together: it has one writer at a time. "
        f"{_MANY:,} / {most:,.0f} = {_number(_MANY / most)} files."
    )


def _limit_of_postgresql(level: _Measured) -> str:
    one, two, server = level["per_s"], level["two_per_s"], _us(level["database_us"])
    cpus = _number(_MANY * level["database_us"] / 1e6)
    return (
        f"- **PostgreSQL** took {one:,.0f} tasks a second from one process, and "
        f"{two:,.0f} from two at once, together. A task takes {server} of its CPUs: "
        f"{_MANY:,} × {server} = {cpus} CPUs on one server, besides what its disk has "
        "to bear."
    )


def _limit_of_dask(level: _Measured) -> str:
    a_task = _us(level["scheduler_us"])
    most = 1e6 / level["scheduler_us"]
    wanted = _FULL * most
    return (
        f"- **One Dask scheduler** is one process on one CPU. A task takes {a_task} of "
        f"it: 1 s / {a_task} = {most:,.0f} tasks a second at the very most, however "
        f"many workers there are, and {wanted:,.0f} at {_percent(_FULL)}. {_MANY:,} / "
        f"{wanted:,.0f} = {_number(_MANY / wanted)} schedulers."
    )


def _batches(levels: Sequence[_Measured]) -> str:
    times = _EFFICIENCY / (1 - _EFFICIENCY)
    bare = _MANY * _UNIT_US / 1e6

    def pieces(level: _Measured) -> int:
        return math.ceil(times * level["longer_us"] / _UNIT_US)

    def row(level: _Measured) -> list[str]:
        cost_us = level["longer_us"]
        tasks = _MANY / pieces(level)
        return [
            level.title,
            f"{times:.0f} × {_us(cost_us)} = {_ms(times * cost_us)}",
            _number(_MANY * (_UNIT_US + level["all_us"]) / 1e6),
            f"{pieces(level):,}",
            f"{tasks:,.0f} /s",
            _number(bare + tasks * cost_us / 1e6),
        ]

    head = ["", f"a task for {_percent(_EFFICIENCY)}", "CPUs, one piece a task"]
    head += ["pieces a task", "then tasks", "then CPUs"]
    text = (
        f"{_table(head, map(row, levels))}\n\n"
        f"The columns from the third on are those of {_MANY:,} pieces a second, which "
        f"by themselves are {_MANY:,} × {_UNIT_US} µs = {bare:,.0f} CPUs of work."
    )
    for level in levels:
        if level["scheduler_us"]:
            tasks = _MANY / pieces(level)
            busy = tasks * level["scheduler_us"] / 1e6
            schedulers = math.ceil(busy / _FULL)
            text += (
                f" On {level.title}, {tasks:,.0f} tasks a second take {tasks:,.0f} × "
                f"{_us(level['scheduler_us'])} = {_number(busy)} CPUs of schedulers: "
                f"at {_percent(_FULL)} of each, {schedulers} of them."
            )
    return text


def _waits() -> str:
    def cell(by_formula: float, tried: float) -> str:
        return f"{by_formula:.2f} ({tried:.2f})"

    rows: list[list[str]] = []
    for utilisation in _UTILISATIONS:
        row = [f"{_percent(utilisation)}"]
        for slots in _SLOTS:
            wait: Wait = reckoned(slots, utilisation)
            tried = simulated(slots, utilisation)
            row += [cell(wait.mean, tried.mean), cell(wait.p99, tried.p99)]
        rows.append(row)
    head = ["slots busy"]
    for slots in _SLOTS:
        head += [f"{slots} {'slot' if slots == 1 else 'slots'}: mean", "p99"]
    slots, full = 10, _percent(_FULL)
    wait = reckoned(slots, _FULL)
    return (
        f"{_table(head, rows)}\n\n"
        f"With {slots} slots and tasks of 100 ms, {slots} / 0.1 s × {full} = "
        f"{slots / 0.1 * _FULL:.0f} tasks a second keep {full} of them busy. "
        f"They wait {wait.mean:.2f} × 100 ms = {wait.mean * 100:.0f} ms on "
        f"average, and one in a hundred longer than {wait.p99:.2f} × 100 ms = "
        f"{wait.p99 * 100:.0f} ms."
    )


def _memory(levels: Sequence[_Measured]) -> str:
    def row(level: _Measured) -> list[str]:
        stored = level["stored_bytes"]
        return [
            level.title,
            _size(level["waiting_bytes"]),
            _size(stored) if stored else "–",
            *(
                _size(rate * seconds * level["waiting_bytes"])
                + (f" and {_size(rate * seconds * stored)}" if stored else "")
                for rate, seconds in _OUTAGES_S
            ),
        ]

    head = ["", "a waiting task, in memory", "in the store"]
    head += [
        f"{rate:,} /s for {'a minute' if seconds == 60 else 'an hour'}"
        for rate, seconds in _OUTAGES_S
    ]
    example = levels[0]
    rate, seconds = _OUTAGES_S[0]
    waiting = example["waiting_bytes"]
    return (
        f"{_table(head, map(row, levels))}\n\n"
        f"For example {rate:,} /s × {seconds} s × {_size(waiting)} = "
        f"{_size(rate * seconds * waiting)}, in the memory of the processes that "
        "enqueue; what follows an “and” is on the store's disk."
    )
