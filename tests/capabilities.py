"""What each backend can do, as the backends say it of themselves.

``uv run python -m tests.capabilities`` writes the table into the documentation's page.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "what-each-backend-can-do.md"

if __name__ == "__main__":
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()

from django.tasks.backends.base import BaseTaskBackend  # noqa: E402  # after the set-up
from django.tasks.backends.dummy import DummyBackend  # noqa: E402
from django.tasks.backends.immediate import ImmediateBackend  # noqa: E402

from django_tasks_local import (  # noqa: E402
    DaskBackend,
    EventLoopBackend,
    ProcessPoolBackend,
    ThreadPoolBackend,
)
from django_tasks_local.backend import FuturesBackend  # noqa: E402
from django_tasks_local.stores.memory import MemoryStore  # noqa: E402

from .tables import as_table, with_table  # noqa: E402

type Backend = type[BaseTaskBackend]

BACKENDS: Sequence[Backend] = (
    ThreadPoolBackend,
    ProcessPoolBackend,
    EventLoopBackend,
    DaskBackend,
    ImmediateBackend,
    DummyBackend,
)

YES = "yes"
NO = "no"
REFUSED = "refused"
IGNORED = "ignored"


def _has(attribute: str, otherwise: str) -> Callable[[Backend], str]:
    return lambda backend: YES if hasattr(backend, attribute) else otherwise


def _supports(attribute: str, otherwise: str = REFUSED) -> Callable[[Backend], str]:
    return lambda backend: YES if getattr(backend, attribute) else otherwise


def _order(backend: Backend) -> str:
    """Only what waits can have an order."""
    supports = _supports("supports_priority")(backend)
    return supports if issubclass(backend, FuturesBackend) else IGNORED


def _run_after(backend: Backend) -> str:
    supports = _supports("supports_defer")(backend)
    return IGNORED if issubclass(backend, DummyBackend) else supports


def _coroutines(backend: Backend) -> str:
    supports = _supports("supports_async_task")(backend)
    return IGNORED if issubclass(backend, DummyBackend) else supports


def _limit_of_function(backend: Backend) -> str:
    if not issubclass(backend, FuturesBackend):
        return IGNORED
    if _can_stop(backend, "can_stop_functions"):
        return _how_it_is_stopped(backend)
    if backend.has_threads:
        return (
            'refused; with `TIMEOUT_ON_THREADS` set to `"raise"`: an exception is '
            "raised in its thread"
        )
    return REFUSED


def _limit_of_coroutine(backend: Backend) -> str:
    if not issubclass(backend, FuturesBackend):
        return IGNORED
    if _can_stop(backend, "can_stop_coroutines"):
        return _how_it_is_stopped(backend)
    return REFUSED


def _cancel_running(attribute: str) -> Callable[[Backend], str]:
    def cell(backend: Backend) -> str:
        if not issubclass(backend, FuturesBackend) or not hasattr(backend, "cancel"):
            return NO
        if _can_stop(backend, attribute):
            return _how_it_is_stopped(backend)
        return "it is asked: it ends at its next checkpoint"

    return cell


def _can_stop(backend: type[FuturesBackend], attribute: str) -> bool:
    return bool(getattr(backend.default_executor, attribute, False))


def _how_it_is_stopped(backend: type[FuturesBackend]) -> str:
    return "its process is killed" if backend.has_processes else "it is cancelled"


def _metadata(backend: Backend) -> str:
    if getattr(backend, "supports_metadata", False):
        return "yes, while it runs too"
    if issubclass(backend, DummyBackend):
        return IGNORED
    return "the task has it, its result does not"


def _at_once(backend: Backend) -> str:
    if backend is ProcessPoolBackend:
        return "as many as CPUs, at most 10"
    if backend is DaskBackend:
        return f"{backend.default_max_workers()} at the cluster, which has its workers"
    if issubclass(backend, FuturesBackend):
        return str(backend.default_max_workers())
    return NO if issubclass(backend, DummyBackend) else "1, in the enqueue"


def _shared(backend: Backend) -> str:
    if not issubclass(backend, FuturesBackend):
        return NO
    return YES if MemoryStore.is_shared else "no, unless its `STORE` is a shared one"


CAPABILITIES: Mapping[str, Callable[[Backend], str]] = {
    "Tasks at once, unless `MAX_WORKERS` says otherwise": _at_once,
    "Tasks at a later time: `run_after`": _run_after,
    "Priorities": _order,
    "`async def`": _coroutines,
    "Retries: `max_attempts`, `backoff`": _has("default_backoff", IGNORED),
    "Time limit of a function: `timeout`": _limit_of_function,
    "Time limit of a coroutine": _limit_of_coroutine,
    "Cancel a task that waits": _has("cancel", NO),
    "Cancel a function that runs": _cancel_running("can_stop_functions"),
    "Cancel a coroutine that runs": _cancel_running("can_stop_coroutines"),
    "Metadata and progress": _metadata,
    "Results by id, from any thread": _supports("supports_get_result", NO),
    "Results of other processes": _shared,
    "All or none of many: `enqueue_many`": _has("enqueue_many", "one by one"),
}


def as_markdown() -> str:
    """The table as the documentation has it."""
    return as_table(
        ["", *(f"`{backend.__name__}`" for backend in BACKENDS)],
        [
            [what, *(cell(backend) for backend in BACKENDS)]
            for what, cell in CAPABILITIES.items()
        ],
    )


def with_capabilities(text: str) -> str:
    """The page's text with the table as it should be."""
    return with_table(text, as_markdown(), name="capabilities")


if __name__ == "__main__":
    PAGE.write_text(with_capabilities(PAGE.read_text()))
