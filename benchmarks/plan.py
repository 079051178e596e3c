"""What is measured, and what is to be reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "FIGURES",
    "LEVELS",
    "MEASUREMENTS",
    "TARGETS",
    "Figure",
    "Level",
    "Measurement",
    "Part",
    "Target",
]

type Part = Literal["backends", "stores", "cluster", "levels"]
"""What is measured, and written into the docs, by itself."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A program, with what it is told and who takes part."""

    name: str
    program: str
    contenders: tuple[str, ...] = ("3", "2.0", "bare")
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quick: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The arguments that differ in a quick run."""
    repeats: int = 5
    quick_repeats: int = 2


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One of the numbers that a measurement gives."""

    measurement: str
    key: str
    title: str
    unit: str
    more_is_better: bool = False
    is_pictured: bool = False
    part: Part = "backends"
    """Whose table it stands in."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """How one of this version's figures is to compare with another."""

    measurement: str
    key: str
    against: str | None = None
    """The contender whose figure it is compared with; None: what is to be reached is
    the figure itself, in its unit."""
    against_key: str | None = None
    """The other figure, where it is not the same one."""
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """A way to run tasks that a project may come to when it outgrows another."""

    name: str
    title: str
    alias: str
    count: int
    """How many tasks that do nothing are timed."""
    waiting: int
    """How many wait when their memory is counted."""
    slots: int


LEVELS = (
    Level(
        name="threads",
        title="threads",
        alias="threads-10",
        count=30_000,
        waiting=100_000,
        slots=10,
    ),
    Level(
        name="processes",
        title="processes",
        alias="processes-2",
        count=10_000,
        waiting=100_000,
        slots=2,
    ),
    Level(
        name="sqlite",
        title="threads, sqlite store",
        alias="sqlite",
        count=5_000,
        waiting=20_000,
        slots=10,
    ),
    Level(
        name="database",
        title="threads, database store on PostgreSQL",
        alias="database",
        count=2_000,
        waiting=3_000,
        slots=10,
    ),
    Level(
        name="dask",
        title="Dask",
        alias="keeping",
        count=5_000,
        waiting=50_000,
        slots=8,
    ),
)

_DEPTHS = [0, 10_000, 100_000, 1_000_000]
_TASKS_SO_FAR = (1_000, 10_000, 20_000)


def _throughput(
    alias: str,
    count: int,
    *,
    is_quiet: bool = False,
    contenders: tuple[str, ...] = ("3", "2.0", "bare"),
) -> Measurement:
    return Measurement(
        name=f"{alias}{'-quiet' if is_quiet else ''}",
        program="throughput",
        contenders=contenders,
        arguments={"alias": alias, "count": count, "is_quiet": is_quiet},
        quick={"count": count // 3},
    )


def _store(
    name: str, *, alias: str, engine: str, count: int, others: tuple[str, ...] = ()
) -> Measurement:
    return Measurement(
        name=name,
        program="store_throughput",
        contenders=("3", "db", *others),
        arguments={
            "alias": alias,
            "engine": engine,
            "counts": {"3": count, "db": count // 5, **dict.fromkeys(others, count)},
        },
        quick={
            "counts": {
                "3": count // 3,
                "db": count // 10,
                **dict.fromkeys(others, count // 3),
            }
        },
    )


def _level(level: Level) -> tuple[Measurement, Measurement]:
    """Its time and CPU time, and its memory."""
    arguments = {
        "level": level.name,
        "alias": level.alias,
        "count": level.count,
        "waiting": level.waiting,
        "slots": level.slots,
    }
    quick = {"count": level.count // 5, "waiting": level.waiting // 4}
    return (
        Measurement(
            name=f"level-{level.name}",
            program="level",
            contenders=("3",),
            arguments=arguments,
            quick=quick,
            repeats=3,
            quick_repeats=1,
        ),
        Measurement(
            name=f"level-{level.name}-waiting",
            program="level_waiting",
            contenders=("3",),
            arguments=arguments,
            quick=quick,
            repeats=1,
            quick_repeats=1,
        ),
    )


MEASUREMENTS = (
    Measurement(
        name="enqueue",
        program="enqueue",
        contenders=("3", "2.0"),
        arguments={"depths": _DEPTHS, "samples": 3_000},
        quick={"depths": _DEPTHS[:-1], "samples": 2_000},
        repeats=3,
        quick_repeats=1,
    ),
    _throughput("threads-2", 15_000),
    _throughput("threads-10", 15_000),
    _throughput("threads-2", 15_000, is_quiet=True, contenders=("3", "2.0")),
    _throughput("threads-10", 15_000, is_quiet=True, contenders=("3", "2.0")),
    _throughput("processes-2", 8_000),
    _throughput("processes-2", 8_000, is_quiet=True),
    Measurement(
        name="round-trip",
        program="round_trip",
        arguments={"samples": 5_000},
        quick={"samples": 1_500},
    ),
    Measurement(
        name="rows",
        program="rows",
        contenders=("3", "2.0"),
        arguments={"samples": 15},
        quick={"samples": 7},
    ),
    *(
        Measurement(
            name="latency-quiet" if is_quiet else "latency",
            program="latency",
            contenders=("3", "bare"),
            arguments={"samples": 1_000, "is_quiet": is_quiet},
            quick={"samples": 400},
        )
        for is_quiet in (False, True)
    ),
    *(
        _throughput("coroutines", 15_000, is_quiet=is_quiet, contenders=("3", "bare"))
        for is_quiet in (False, True)
    ),
    Measurement(
        name="sleepers",
        program="sleepers",
        arguments={"count": 10_000},
        quick={"count": 2_000},
        repeats=3,
        quick_repeats=1,
    ),
    Measurement(
        name="awaiting",
        program="awaiting",
        contenders=("3", "bare"),
        arguments={"samples": 5_000},
        quick={"samples": 1_500},
    ),
    Measurement(
        name="start",
        program="start",
        contenders=("3", "bare"),
        arguments={"samples": 15},
        quick={"samples": 7},
    ),
    Measurement(
        name="later",
        program="later",
        contenders=("3", "bare"),
        arguments={"samples": 200, "count": 100_000},
        quick={"samples": 100, "count": 30_000},
        repeats=3,
        quick_repeats=1,
    ),
    Measurement(
        name="streams",
        program="streams",
        contenders=("3", "bare"),
        arguments={"streams": 1_000, "samples": 200, "rounds": 20},
        quick={"samples": 50, "rounds": 5},
        repeats=3,
        quick_repeats=1,
    ),
    Measurement(
        name="cpu",
        program="cpu",
        contenders=("3", "bare"),
        arguments={"count": 40},
        repeats=11,
        quick_repeats=4,
    ),
    *(
        Measurement(
            name=f"memory-{'held' if is_held else 'dropped'}",
            program="memory",
            contenders=("3", "2.0"),
            arguments={"count": 100_000, "is_held": is_held},
            quick={"count": 20_000},
            repeats=1,
            quick_repeats=1,
        )
        for is_held in (False, True)
    ),
    Measurement(
        name="memory-running",
        program="running_memory",
        contenders=("3", "bare"),
        arguments={"count": 10_000},
        quick={"count": 3_000},
        repeats=1,
        quick_repeats=1,
    ),
    _store(
        "sqlite-store",
        alias="sqlite",
        engine="sqlite",
        count=5_000,
        others=("sqlite3",),
    ),
    _store("database-store-sqlite", alias="database", engine="sqlite", count=4_000),
    _store(
        "database-store-postgresql", alias="database", engine="postgresql", count=2_000
    ),
    Measurement(
        name="store-enqueue",
        program="store_enqueue",
        contenders=("3", "db"),
        arguments={"samples": 1_000},
        quick={"samples": 300},
        repeats=3,
    ),
    *(
        Measurement(
            name=f"{store}-store-waking",
            program="store_waking",
            contenders=("3",),
            arguments={"alias": store, "engine": engine, "samples": 200},
            quick={"samples": 50},
            repeats=3,
            quick_repeats=1,
        )
        for store, engine in (("sqlite", None), ("database", "postgresql"))
    ),
    Measurement(
        name="look-ups",
        program="look_ups",
        contenders=("3", "2.0"),
        arguments={"count": 10_000},
        quick={"count": 1_000},
        repeats=1,
        quick_repeats=1,
    ),
    Measurement(
        name="cluster-4",
        program="cluster_throughput",
        contenders=("3", "dask", "dask-uuid"),
        arguments={
            "threads": 4,
            "counts": {"3": 10_000, "dask": 10_000, "dask-uuid": 2_000},
        },
        quick={"counts": {"3": 2_000, "dask": 2_000, "dask-uuid": 1_000}},
        repeats=3,
    ),
    Measurement(
        name="cluster-16",
        program="cluster_throughput",
        contenders=("3", "dask"),
        arguments={"threads": 16, "counts": {"3": 10_000, "dask": 10_000}},
        quick={"counts": {"3": 2_000, "dask": 2_000}},
        repeats=3,
    ),
    Measurement(
        name="cluster-mixed",
        program="cluster_mixed",
        contenders=("3", "dask", "dask-uuid"),
        arguments={"rounds": 3},
        quick={"rounds": 1},
        repeats=3,
        quick_repeats=1,
    ),
    Measurement(
        name="cluster-memory",
        program="cluster_memory",
        contenders=("3",),
        arguments={"counts": _TASKS_SO_FAR},
        quick={"counts": _TASKS_SO_FAR[:1]},
        repeats=1,
        quick_repeats=1,
    ),
    Measurement(
        name="cluster-enqueue",
        program="cluster_enqueue",
        contenders=("3",),
        arguments={"samples": 1_000},
        quick={"samples": 500},
        repeats=1,
        quick_repeats=1,
    ),
    *(measurement for level in LEVELS for measurement in _level(level)),
)


def _depth_figures(depth: int) -> list[Figure]:
    at = f"{depth:,} waiting"
    return [
        Figure(
            measurement="enqueue",
            key=f"p50_us at {depth}",
            title=f"enqueue on threads, {at}: p50",
            unit="µs",
            is_pictured=depth in (0, 1_000_000),
        ),
        Figure(
            measurement="enqueue",
            key=f"mean_us at {depth}",
            title=f"… mean of the enqueues up to {at}, collections included",
            unit="µs",
        ),
        Figure(
            measurement="enqueue",
            key=f"gc_percent at {depth}",
            title="… garbage collection's share of that time",
            unit="%",
        ),
        Figure(
            measurement="enqueue",
            key=f"gc_longest_ms at {depth}",
            title="… its longest pause",
            unit="ms",
        ),
    ]


def _cluster_figures(threads: int) -> list[Figure]:
    measurement = f"cluster-{threads}"
    return [
        Figure(
            measurement=measurement,
            key="per_s",
            title=f"no-op tasks a second, 2 workers of {threads} threads",
            unit="/s",
            more_is_better=True,
            is_pictured=True,
            part="cluster",
        ),
        *(
            Figure(
                measurement=measurement,
                key=key,
                title=title,
                unit="µs",
                part="cluster",
            )
            for key, title in (
                ("client_us", "… CPU time of each: of the enqueuing process"),
                ("scheduler_us", "… of the scheduler"),
                ("workers_us", "… of the workers"),
                ("all_us", "… of all"),
            )
        ),
    ]


def _level_figures(level: Level) -> list[Figure]:
    figures = [
        Figure(
            measurement=f"level-{level.name}",
            key=key,
            title=f"{level.title}: {title}",
            unit=unit,
            more_is_better=unit == "/s",
            part="levels",
        )
        for key, title, unit in (
            ("per_s", "no-op tasks a second", "/s"),
            ("two_per_s", "… of two processes on one store", "/s"),
            ("client_us", "CPU time a task, of the enqueuing process", "µs"),
            ("workers_us", "… of worker processes", "µs"),
            ("scheduler_us", "… of Dask's scheduler", "µs"),
            ("database_us", "… of PostgreSQL", "µs"),
            ("all_us", "… of all", "µs"),
            (
                "longer_us",
                "… besides its own, of one that takes 19 times as long",
                "µs",
            ),
        )
    ]
    figures += [
        Figure(
            measurement=f"level-{level.name}-waiting",
            key=key,
            title=f"{level.title}: {title}",
            unit="bytes",
            part="levels",
        )
        for key, title in (
            ("waiting_bytes", "memory of a waiting task"),
            ("stored_bytes", "… what the store keeps of it"),
        )
    ]
    return figures


def _per_s(measurement: str, title: str) -> Figure:
    return Figure(
        measurement=measurement,
        key="per_s",
        title=f"no-op tasks a second, {title}",
        unit="/s",
        more_is_better=True,
        is_pictured=True,
    )


FIGURES = (
    *(figure for depth in _DEPTHS for figure in _depth_figures(depth)),
    _per_s("threads-2", "2 threads"),
    _per_s("threads-10", "10 threads"),
    _per_s("threads-2-quiet", "2 threads, django.tasks logger off"),
    _per_s("threads-10-quiet", "10 threads, django.tasks logger off"),
    _per_s("processes-2", "2 processes"),
    _per_s("processes-2-quiet", "2 processes, django.tasks logger off"),
    _per_s("coroutines", "coroutines"),
    _per_s("coroutines-quiet", "coroutines, django.tasks logger off"),
    Figure(
        measurement="sleepers",
        key="total_ms",
        title="10,000 tasks that sleep for 50 ms, coroutines or on 10 threads",
        unit="ms",
    ),
    Figure(
        measurement="sleepers",
        key="per_s",
        title="… of these a second",
        unit="/s",
        more_is_better=True,
        is_pictured=True,
    ),
    Figure(
        measurement="awaiting",
        key="p50_us",
        title="from a coroutine's enqueue to its awaited value: p50",
        unit="µs",
        is_pictured=True,
    ),
    Figure(
        measurement="round-trip",
        key="call_p50_us",
        title="a call to a process, from its executor there and back: p50",
        unit="µs",
        is_pictured=True,
    ),
    Figure(
        measurement="round-trip",
        key="task_p50_us",
        title="a whole task on a process, from its enqueue to its result: p50",
        unit="µs",
        is_pictured=True,
    ),
    Figure(
        measurement="rows",
        key="p50_ms",
        title="1 MB of rows to a process and back: p50",
        unit="ms",
        is_pictured=True,
    ),
    Figure(
        measurement="latency",
        key="start_p50_us",
        title="from enqueue to a thread's start: p50",
        unit="µs",
    ),
    Figure(
        measurement="latency",
        key="start_p99_us",
        title="from enqueue to a thread's start: p99",
        unit="µs",
    ),
    Figure(
        measurement="latency",
        key="wake_p50_us",
        title="from the task's end to who awaits it: p50",
        unit="µs",
        is_pictured=True,
    ),
    Figure(
        measurement="latency",
        key="wake_p99_us",
        title="from the task's end to who awaits it: p99",
        unit="µs",
    ),
    Figure(
        measurement="latency-quiet",
        key="wake_p50_us",
        title="… p50 with the django.tasks logger off",
        unit="µs",
    ),
    Figure(
        measurement="start",
        key="p50_ms",
        title="a new process, until its first task has run: p50",
        unit="ms",
        is_pictured=True,
    ),
    *(
        Figure(measurement="later", key=key, title=title, unit=unit)
        for key, title, unit in (
            ("late_p50_ms", "how late a deferred task, or a timer, begins: p50", "ms"),
            ("late_p99_ms", "… p99", "ms"),
            (
                "replaced_p50_ms",
                "from a time limit until another process has run the next task: p50",
                "ms",
            ),
            ("replaced_most_ms", "… at most", "ms"),
            ("enqueue_us", "each of 100,000 enqueues", "µs"),
            ("defer_us", "… with a time to run after", "µs"),
            ("cancel_us", "… each cancelled again", "µs"),
        )
    ),
    *(
        Figure(measurement="streams", key=key, title=title, unit=unit)
        for key, title, unit in (
            (
                "stream_kb",
                "memory of an open event stream, or plain one, on uvicorn",
                "kB",
            ),
            ("one_p50_ms", "from save_metadata to one client, 1,000 idle: p50", "ms"),
            ("one_p99_ms", "… p99", "ms"),
            ("all_p50_ms", "from save_metadata to each of 1,000 clients: p50", "ms"),
            ("all_p99_ms", "… p99", "ms"),
        )
    ),
    Figure(
        measurement="cpu",
        key="per_s on 1",
        title="CPU-bound tasks a second, 1 process",
        unit="/s",
        more_is_better=True,
    ),
    Figure(
        measurement="cpu",
        key="per_s on 2",
        title="CPU-bound tasks a second, 2 processes",
        unit="/s",
        more_is_better=True,
        is_pictured=True,
    ),
    Figure(
        measurement="cpu",
        key="speed_up",
        title="what the second process brings",
        unit="×",
        more_is_better=True,
    ),
    *(
        Figure(
            measurement=f"memory-{how}",
            key=f"{what}_bytes",
            title=f"{each}, its handle {how}",
            unit="bytes",
            is_pictured=how == "dropped",
        )
        for how in ("dropped", "held")
        for what, each in (("pending", "a waiting task"), ("kept", "a kept result"))
    ),
    Figure(
        measurement="memory-running",
        key="running_bytes",
        title="a coroutine that sleeps",
        unit="bytes",
        is_pictured=True,
    ),
    Figure(
        measurement="sqlite-store",
        key="memory_per_s",
        title="no-op tasks a second, memory store",
        unit="/s",
        more_is_better=True,
        part="stores",
    ),
    *(
        Figure(
            measurement=measurement,
            key="per_s",
            title=f"no-op tasks a second, {title}",
            unit="/s",
            more_is_better=True,
            is_pictured=True,
            part="stores",
        )
        for measurement, title in (
            ("sqlite-store", "sqlite store"),
            ("database-store-sqlite", "database store on SQLite"),
            ("database-store-postgresql", "database store on PostgreSQL"),
        )
    ),
    *(
        Figure(
            measurement="store-enqueue",
            key=f"{alias}_p50_us",
            title=title,
            unit="µs",
            part="stores",
        )
        for alias, title in (
            ("memory", "enqueue into the memory store: p50"),
            ("sqlite", "… the sqlite store"),
            ("sqlite-full", '… the sqlite store, DURABILITY "full"'),
            ("database", "… the database store on PostgreSQL"),
        )
    ),
    *(
        Figure(
            measurement=f"{store}-store-waking",
            key=f"{percentile}_ms",
            title=title,
            unit="ms",
            part="stores",
        )
        for store, percentile, title in (
            (
                "sqlite",
                "p50",
                "from a task's end to who awaits it elsewhere, sqlite store: p50",
            ),
            ("sqlite", "p99", "… p99"),
            ("database", "p50", "… database store on PostgreSQL: p50"),
            ("database", "p99", "… p99"),
        )
    ),
    Figure(
        measurement="look-ups",
        key="found_percent",
        title="results found by whichever of 4 web workers is asked",
        unit="%",
        more_is_better=True,
        is_pictured=True,
        part="stores",
    ),
    *(figure for threads in (4, 16) for figure in _cluster_figures(threads)),
    Figure(
        measurement="cluster-mixed",
        key="short_ms",
        title="ten no-op tasks while long ones run on all threads but one",
        unit="ms",
        part="cluster",
    ),
    *(
        Figure(
            measurement="cluster-memory",
            key=f"resident_mb at {count}",
            title=f"memory of the enqueuing process after {count:,} tasks",
            unit="MB",
            part="cluster",
        )
        for count in _TASKS_SO_FAR
    ),
    *(
        Figure(
            measurement="cluster-enqueue",
            key=f"{state}_{percentile}_us",
            title=title,
            unit="µs",
            part="cluster",
        )
        for state, percentile, title in (
            ("running", "p50", "enqueue while the scheduler runs: p50"),
            ("running", "p99", "enqueue while the scheduler runs: p99"),
            ("stopped", "p50", "enqueue while the scheduler stands still: p50"),
            ("stopped", "p99", "enqueue while the scheduler stands still: p99"),
        )
    ),
    *(figure for level in LEVELS for figure in _level_figures(level)),
)


def _target(
    measurement: str,
    key: str,
    against: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Target:
    return Target(
        measurement=measurement,
        key=key,
        against=against,
        at_most=at_most,
        at_least=at_least,
    )


TARGETS = (
    *(
        _target("enqueue", f"p50_us at {depth}", "2.0", at_most=0.5)
        for depth in _DEPTHS
    ),
    Target(
        measurement="enqueue",
        key="p50_us at 1000000",
        against="3",
        against_key="p50_us at 0",
        at_most=1.2,
    ),
    _target("threads-2", "per_s", "2.0", at_least=1.0),
    _target("threads-10", "per_s", "2.0", at_least=1.0),
    _target("threads-2-quiet", "per_s", "2.0", at_least=1.5),
    _target("threads-10-quiet", "per_s", "2.0", at_least=1.5),
    _target("processes-2", "per_s", "bare", at_least=0.8),
    _target("processes-2", "per_s", "2.0", at_least=1.2),
    _target("round-trip", "call_p50_us", "bare", at_most=0.6),
    _target("rows", "p50_ms", "2.0", at_most=0.35),
    _target("latency", "wake_p50_us", "bare", at_most=2.0),
    _target("coroutines-quiet", "per_s", "bare", at_least=0.8),
    _target("sleepers", "total_ms", "bare", at_most=1.3),
    _target("sleepers", "per_s", "2.0", at_least=60),
    _target("awaiting", "p50_us", "bare", at_most=2.0),
    _target("start", "p50_ms", "bare", at_most=0.15),
    Target(
        measurement="later",
        key="cancel_us",
        against="3",
        against_key="enqueue_us",
        at_most=1.5,
    ),
    Target(
        measurement="later",
        key="defer_us",
        against="3",
        against_key="enqueue_us",
        at_most=1.2,
    ),
    # Level, within what two runs of the same differ by.
    _target("cpu", "per_s on 2", "bare", at_least=0.95),
    _target("memory-dropped", "pending_bytes", "2.0", at_most=0.4),
    _target("memory-dropped", "kept_bytes", "2.0", at_most=1.2),
    _target("memory-running", "running_bytes", "bare", at_most=2.0),
    _target("sqlite-store", "per_s", "db", at_least=10),
    Target(
        measurement="sqlite-store",
        key="per_s",
        against="3",
        against_key="memory_per_s",
        at_least=0.2,
    ),
    _target("database-store-sqlite", "per_s", "db", at_least=2),
    _target("database-store-postgresql", "per_s", "db", at_least=3),
    Target(measurement="sqlite-store-waking", key="p50_ms", at_most=25),
    Target(measurement="look-ups", key="found_percent", at_least=100),
    _target("cluster-4", "per_s", "dask", at_least=0.8),
    _target("cluster-16", "per_s", "dask", at_least=0.8),
    Target(
        measurement="cluster-memory",
        key="resident_mb at 20000",
        against="3",
        against_key="resident_mb at 1000",
        at_most=1.1,
    ),
    Target(
        measurement="cluster-memory",
        key="resident_mb at 20000",
        against="3",
        against_key="resident_mb at 10000",
        at_most=1.05,
    ),
    *(
        Target(
            measurement="cluster-enqueue",
            key=f"stopped_{percentile}_us",
            against="3",
            against_key=f"running_{percentile}_us",
            at_most=1.5,
        )
        for percentile in ("p50", "p99")
    ),
)
