"""The executor and the store of the users' page do what the page says.

What runs here is the text of docs/executors-and-stores.md.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from django.core.management import call_command
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTask
from django.test import override_settings

from django_tasks_local import TaskFailed
from django_tasks_local.state import shutdown_executor

from . import tasks

PAGE = Path(__file__).parents[1] / "docs" / "executors-and-stores.md"
FENCE = re.compile(
    r'^```python title="(?P<name>[^"]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL
)
FILES = {match["name"]: match["text"] for match in FENCE.finditer(PAGE.read_text())}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, in a directory that can be imported from."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.split(".")[0] == "myproject"]:
        del sys.modules[module]


@pytest.fixture
def settings_module(project: Path) -> Iterator[ModuleType]:
    """The page's settings, in force."""
    module = importlib.import_module("myproject.settings")
    with override_settings(TASKS=module.TASKS):
        yield module
        shutdown_executor("default")


def test_page_shows_what_is_tested_here() -> None:
    assert list(FILES) == [
        "myproject/settings.py",
        "myproject/executors.py",
        "myproject/stores.py",
        "tests/test_parts.py",
    ]


@pytest.mark.usefixtures("settings_module")
class TestSettings:
    def test_settings_of_the_page_are_right(self) -> None:
        call_command("check")

    def test_task_runs_on_ones_own_executor(self) -> None:
        result = tasks.add.enqueue(2, 3)

        assert result.wait(10) == 5
        assert result.status is TaskResultStatus.SUCCESSFUL
        (worker_id,) = result.worker_ids
        assert ":pool-default" in worker_id

    def test_time_limit_that_ones_own_executor_cannot_keep_is_refused(
        self, settings_module: ModuleType
    ) -> None:
        setting = settings_module.TASKS["default"]
        options = {**setting["OPTIONS"], "TIMEOUT_ON_THREADS": "raise"}
        given = {"default": {**setting, "OPTIONS": options}}
        with (
            override_settings(TASKS=given),
            pytest.raises(InvalidTask, match="cannot stop a function"),
        ):
            replace(tasks.add, timeout=1.0)

    def test_failure_is_recorded(self) -> None:
        result = tasks.add.enqueue(2, "three")  # type: ignore[arg-type]  # on purpose

        with pytest.raises(TaskFailed, match="TypeError"):
            result.wait(10)
        assert result.status is TaskResultStatus.FAILED

    def test_result_is_found_again_after_a_restart(self, project: Path) -> None:
        result = tasks.add.enqueue(2, 3)
        result.join(10)
        shutdown_executor("default")

        found = tasks.add.get_result(result.id)

        assert found.return_value == 5
        assert found.started_at == result.started_at
        assert found.task == tasks.add
        assert (project / "journal" / "default.jsonl").read_text().count("\n") == 3

    @pytest.mark.anyio
    async def test_coroutines_use_ones_own_store(self) -> None:
        result = await tasks.add.aenqueue(2, 3)

        assert await result == 5
        found = await tasks.add.aget_result(result.id)
        assert found == result
        assert await found == 5

    def test_task_that_waits_for_a_task_gets_its_result(self) -> None:
        depth = 6  # more than MAX_WORKERS

        assert tasks.nest.enqueue(["default"], depth).wait(20) == depth

    def test_unfinished_result_of_a_dead_process_is_nothing_to_wait_for(
        self, project: Path
    ) -> None:
        result = tasks.add.enqueue(2, 3)
        result.join(10)
        shutdown_executor("default")
        journal = project / "journal" / "default.jsonl"
        first_line, *_ = journal.read_text().splitlines(keepends=True)
        journal.write_text(first_line.replace(f":{os.getpid()}", ":0"))

        found = tasks.add.get_result(result.id)

        assert found.status is TaskResultStatus.READY
        with pytest.raises(RuntimeError, match="nothing in this process runs it"):
            found.wait(10)


def run_suite(project: Path, *command: str) -> str:
    """Run the suites of the page as a project would; returns the output."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": str(project),
            "DJANGO_SETTINGS_MODULE": "myproject.settings",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = ran.stdout + ran.stderr
    assert ran.returncode == 0, output
    return output


class TestSuites:
    def test_pytest_runs_the_suites_over_both(self, project: Path) -> None:
        output = run_suite(
            project, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"
        )

        assert re.search(r"^8\d passed", output, re.MULTILINE), output

    def test_unittest_runs_a_suite(self, project: Path) -> None:
        output = run_suite(project, "-m", "unittest", "-v", "tests.test_parts")

        assert "test_all_are_added_or_none" in output
        assert "OK" in output
