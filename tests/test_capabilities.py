"""What each backend can do is what the documentation says."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTask
from django.test import override_settings

from django_tasks_local import LocalTask, task

from . import tasks
from .capabilities import BACKENDS, CAPABILITIES, IGNORED, NO, PAGE, with_capabilities

LATER = datetime(2999, 1, 1, tzinfo=UTC)


def do_nothing() -> None: ...


async def async_do_nothing() -> None: ...


@pytest.fixture(autouse=True)
def aliases(nothing_left_behind: None) -> Iterator[None]:
    """An alias for each backend of the table, of its name, and its default settings."""
    names = {
        backend.__name__: {"BACKEND": f"{backend.__module__}.{backend.__qualname__}"}
        for backend in BACKENDS
    }
    with override_settings(TASKS=names):
        yield


def cell(what: str, backend: str) -> str:
    """What the table says under a heading that begins so."""
    (says,) = (says for heading, says in CAPABILITIES.items() if what in heading)
    (kind,) = (kind for kind in BACKENDS if kind.__name__ == backend)
    return says(kind)


each_backend = pytest.mark.parametrize("backend", [kind.__name__ for kind in BACKENDS])


def test_the_documentation_tells_them_all() -> None:
    text = PAGE.read_text()
    assert with_capabilities(text) == text


@each_backend
def test_run_after_is_refused_where_the_table_says_so(backend: str) -> None:
    says = cell("run_after", backend)
    if says.startswith("refused"):
        with pytest.raises(InvalidTask, match="run_after"):
            tasks.add.using(backend=backend, run_after=LATER)
    else:
        assert tasks.add.using(backend=backend, run_after=LATER).run_after == LATER


@each_backend
@pytest.mark.parametrize(
    "what, function",
    [("of a function", do_nothing), ("of a coroutine", async_do_nothing)],
    ids=["function", "coroutine"],
)
def test_time_limit_is_refused_where_the_table_says_so(
    backend: str, what: str, function: object
) -> None:
    says = cell(f"Time limit {what}", backend)
    assert callable(function)

    def define() -> LocalTask[..., object]:
        return task(backend=backend, timeout=60)(function)

    if says.startswith("refused"):
        with pytest.raises(InvalidTask, match="timeout of 60 s cannot be kept"):
            define()
    else:
        assert define().timeout == 60


@each_backend
def test_task_that_waits_can_be_cancelled_where_the_table_says_so(
    backend: str,
) -> None:
    if backend == "ImmediateBackend":
        assert cell("that waits", backend) == NO  # there is none
        return
    later = tasks.add.using(backend=backend, run_after=LATER)
    handle = later.enqueue(1, 2)
    if cell("that waits", backend) == NO:
        with pytest.raises(NotImplementedError, match="cannot cancel tasks"):
            handle.cancel()
    else:
        assert handle.cancel(wait=True)


def test_what_the_immediate_backend_ignores_does_no_harm() -> None:
    for what in ("Retries", "of a function", "Priorities"):
        assert cell(what, "ImmediateBackend") == IGNORED
    define = task(backend="ImmediateBackend", max_attempts=3, timeout=60, priority=5)
    handle = define(do_nothing).using(metadata={"key": 1}).enqueue()

    assert handle.status is TaskResultStatus.SUCCESSFUL
    assert handle.metadata == {}
