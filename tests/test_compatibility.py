"""What was written for 2.0, or for Django's own backends, works as it stands."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
from django.tasks import task_backends
from django.test import override_settings

from django_tasks_local import LocalTask, LocalTaskResult, TaskFailed, wait

from .conftest import script_environ, write_files
from .gates import LONG_S
from .tasks import add, async_add, describe_context, fail, note_and_report

type Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]

SETTINGS = """
SECRET_KEY = "x"
USE_TZ = True
ROOT_URLCONF = "site_urls"
TASKS = {
    "default": {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {
            "MAX_WORKERS": 10,    # Thread pool size (default: 10)
            "MAX_RESULTS": 1000,  # Results to keep in memory (default: 1000)
        }
    },
    "cpu_intensive": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 4},
    },
    "by_module": {"BACKEND": "django_tasks_local.backend.ThreadPoolBackend"},
}
"""
TASKS = """
from django.tasks import task
from django_tasks_local import current_result_id
from django_tasks_local.backend import current_result_id as the_same

assert the_same is current_result_id

@task
def add(a, b):
    return a + b

@task
def send_welcome_email(user_id):
    return [user_id, current_result_id.get()]

@task(backend="cpu_intensive")
def process_image(image_path):
    return [image_path.upper(), current_result_id.get()]

@task
def fail():
    raise ValueError("no luck")

@task(backend="by_module")
def by_module():
    return "by module"
"""
MAIN = """
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import django
os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
django.setup()

from django.tasks import (
    TaskResult, TaskResultStatus, default_task_backend, task_backends
)
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_finished
from django_tasks_local import ProcessPoolBackend, ThreadPoolBackend
from django_tasks_local.backend import FuturesBackend
from django_tasks_local.state import (
    ExecutorState, get_executor_state, shutdown_executor
)

def main():
    from site_tasks import add, by_module, fail, process_image, send_welcome_email

    finished = threading.Semaphore(0)

    def count(**kwargs):
        finished.release()

    task_finished.connect(count)

    result = add.enqueue(2, 3)
    assert isinstance(result, TaskResult)
    assert isinstance(result.id, str) and len(result.id) == 36
    assert result.status == TaskResultStatus.READY
    assert finished.acquire(timeout=30)
    result.refresh()
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.is_finished
    found = default_task_backend.get_result(result.id)
    assert found.status == TaskResultStatus.SUCCESSFUL
    assert found.return_value == 5

    result = send_welcome_email.enqueue(user_id=7)
    assert finished.acquire(timeout=30)
    result.refresh()
    assert result.return_value == [7, result.id]

    result = process_image.enqueue("a/path")
    assert finished.acquire(timeout=30)
    found = task_backends["cpu_intensive"].get_result(result.id)
    assert found.return_value == ["A/PATH", result.id]

    result = fail.enqueue()
    assert finished.acquire(timeout=30)
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is ValueError
    assert "no luck" in result.errors[0].traceback

    result = by_module.enqueue()
    assert finished.acquire(timeout=30)
    result.refresh()
    assert result.return_value == "by module"

    try:
        default_task_backend.get_result("unknown")
    except TaskResultDoesNotExist:
        pass
    else:
        raise AssertionError

    assert isinstance(task_backends["default"], FuturesBackend)
    assert task_backends["default"].supports_get_result

    state = get_executor_state("tasks-default", ThreadPoolExecutor, 10, 1000)
    assert isinstance(state, ExecutorState)
    assert state is get_executor_state(
        name="tasks-default", executor_class=ThreadPoolExecutor,
        max_workers=10, max_results=1000,
    )
    other = get_executor_state(
        name="other", executor_class=ProcessPoolExecutor, max_workers=1, max_results=5
    )
    assert isinstance(other, ExecutorState) and other is not state
    shutdown_executor("other", wait=True)
    shutdown_executor(name="tasks-default", wait=True)
    shutdown_executor("tasks-default")
    shutdown_executor("never-made", wait=False)
    result = add.enqueue(4, 5)
    assert finished.acquire(timeout=30)
    result.refresh()
    assert result.return_value == 9
    task_backends["default"].close()

    backend = ThreadPoolBackend("test", params={"OPTIONS": {"MAX_WORKERS": 2}})
    result = backend.enqueue(add, (1, 2), {})
    assert finished.acquire(timeout=30)
    assert backend.get_result(result.id).return_value == 3
    backend.close()
    backend = ProcessPoolBackend(alias="test", params={"OPTIONS": {"MAX_WORKERS": 1}})
    result = backend.enqueue(add, args=(1,), kwargs={"b": 2})
    assert finished.acquire(timeout=30)
    assert backend.get_result(result.id).return_value == 3
    backend.close()
    print("as before")

if __name__ == "__main__":
    main()
"""


def test_a_project_written_for_2_0_runs_unchanged(tmp_path: Path) -> None:
    files = {"site_settings.py": SETTINGS, "site_tasks.py": TASKS, "main.py": MAIN}
    write_files(tmp_path, files)
    done = subprocess.run(
        [sys.executable, "-W", "error", "main.py"],
        cwd=tmp_path,
        env=script_environ(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [done.stdout, done.returncode] == ["as before\n", 0], done.stderr


DJANGOS = {
    name: {"BACKEND": f"django.tasks.backends.{name.lower()}.{name}Backend"}
    for name in ("Immediate", "Dummy")
}
runs = pytest.mark.parametrize(
    "run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"]
)


class TestImmediateBackend:
    """The usual choice for a project's own tests."""

    @pytest.fixture(autouse=True)
    def _immediate(self, nothing_left_behind: None) -> Any:
        with override_settings(TASKS={"default": DJANGOS["Immediate"]}):
            yield

    def test_our_tasks_run_and_give_handles(self) -> None:
        assert isinstance(add, LocalTask)
        handle = add.enqueue(2, 3)
        assert isinstance(handle, LocalTaskResult)
        assert handle.is_finished
        assert handle.wait() == 5
        handle.join()
        handle.refresh()
        assert handle.return_value == 5
        assert handle.args == [2, 3]
        assert handle.attempts == 1
        assert async_add.enqueue(2, 3).wait(0) == 5
        seen = describe_context.enqueue()
        assert seen.wait()[1:] == [1, seen.id, "RUNNING"]

    def test_our_contexts_have_all_that_they_have_elsewhere(self) -> None:
        noted = note_and_report.using(metadata={"given": 1}).enqueue()
        assert noted.wait() == {"given": 1, "noted": True}

    def test_tasks_that_take_a_context_can_be_called(self) -> None:
        task = note_and_report.using(metadata={"given": 1})
        # As one does in a test of the function alone.
        assert task.call() == {"given": 1, "noted": True}
        assert describe_context.call()[1] == 1

    def test_failures_are_raised_by_waiting(self) -> None:
        handle = fail.enqueue()
        with pytest.raises(TaskFailed, match="wrong value"):
            handle.wait()

    @runs
    def test_results_can_be_awaited(self, run: Run) -> None:
        async def main() -> list[int]:
            # Django's own `aenqueue` needs asyncio, and its `enqueue` no loop.
            with anyio.fail_after(LONG_S):
                handle = await anyio.to_thread.run_sync(add.enqueue, 1, 2)
            backend = task_backends["default"]
            result = await anyio.to_thread.run_sync(backend.enqueue, add, [3, 4], {})
            return [await handle, await wait(result)]

        assert run(main) == [3, 7]

    def test_aenqueue_gives_handles(self) -> None:
        async def main() -> int:
            return await (await add.aenqueue(2, 3))

        assert asyncio.run(main()) == 5


class TestDummyBackend:
    @pytest.fixture(autouse=True)
    def _dummy(self, nothing_left_behind: None) -> Any:
        with override_settings(TASKS={"default": DJANGOS["Dummy"]}):
            yield

    def test_our_tasks_are_kept_and_never_run(self) -> None:
        handle = add.enqueue(2, 3)
        assert isinstance(handle, LocalTaskResult)
        (kept,) = task_backends["default"].results  # type: ignore[attr-defined]
        assert kept.id == handle.id
        assert kept.args == [2, 3]
        handle.refresh()
        assert not handle.is_finished
        assert add.get_result(handle.id) == handle

    def test_waiting_says_that_nothing_will_come(self) -> None:
        handle = add.enqueue(2, 3)
        message = re.escape(f"Task {handle.id} never runs: TASKS['default'] is a Dummy")
        with pytest.raises(RuntimeError, match=message):
            handle.wait()
        with pytest.raises(RuntimeError, match=message):
            handle.join(1)

    @runs
    def test_awaiting_says_so_too(self, run: Run) -> None:
        async def main() -> None:
            handle = add.enqueue(2, 3)
            with pytest.raises(RuntimeError, match="never runs"):
                await handle
            with pytest.raises(RuntimeError, match="never runs"):
                await wait(task_backends["default"].get_result(handle.id), 1)

        run(main)
