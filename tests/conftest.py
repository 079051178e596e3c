"""What all tests share: the project, and that nothing is left behind."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import django
import pytest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from django.conf import settings  # noqa: E402  # after the set-up
from django_tasks_local.state import shutdown_executor  # noqa: E402


def _threads() -> set[str]:
    return {
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("django-tasks")
    }


def _children() -> set[int]:
    """The processes that descend from this one, but for multiprocessing's tracker of
    resources, which lives as long as its process."""
    path = Path(f"/proc/{os.getpid()}/task")
    found: set[int] = set()
    for task in path.iterdir():
        for pid in (task / "children").read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"resource_tracker" not in command:
                found.add(int(pid))
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After each test, no thread, process or file of ours is left."""
    before = _children()
    yield
    for alias in [*settings.TASKS, "test"]:
        shutdown_executor(alias)
    assert _threads() == set()
    assert _children() <= before


@pytest.fixture(params=["default", "cpu"], ids=["threads", "processes"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each of the backends in turn."""
    name: str = request.param
    return name
