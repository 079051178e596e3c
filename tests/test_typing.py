"""A user's project passes mypy --strict and pyright, and its mistakes do not."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .test_own_parts import FILES as FILES_OF_THE_PAGE

PROJECT = {
    "shop/__init__.py": "",
    "shop/settings.py": """
        from django_tasks_local import TasksSetting

        SECRET_KEY = "shop"
        TASKS: TasksSetting = {
            "default": {
                "BACKEND": "django_tasks_local.ThreadPoolBackend",
                "OPTIONS": {"MAX_WORKERS": 10},
            },
            "cpu": {"BACKEND": "django_tasks_local.ProcessPoolBackend"},
        }
        """,
    "shop/tasks.py": """
        from django_tasks_local import task

        @task(backend="cpu")
        def count_tokens(path: str) -> int:
            return len(path)
        """,
    "shop/views.py": """
        import asyncio

        from django.http import HttpRequest, JsonResponse

        from .tasks import count_tokens

        def start(request: HttpRequest) -> JsonResponse:
            return JsonResponse({"id": count_tokens.enqueue(request.path).id})

        async def answer(request: HttpRequest) -> JsonResponse:
            handle = await count_tokens.aenqueue(request.path)
            async with asyncio.timeout(5):
                n = await handle
            reveal_type(n)
            return JsonResponse({"tokens": n})
        """,
    "shop/mistakes.py": """
        from django_tasks_local import TasksSetting

        from .tasks import count_tokens

        text: str = count_tokens.enqueue("a").wait()
        count_tokens.enqueue(1)
        TASKS: TasksSetting = {
            "default": {
                "BACKEND": "django_tasks_local.ThreadPoolBackend",
                "OPTIONS": {"MAX_WORKER": 10},
            },
        }
        """,
    "mypy.ini": """
        [mypy]
        strict = True
        explicit_package_bases = True
        plugins = mypy_django_plugin.main
        [mypy.plugins.django-stubs]
        django_settings_module = shop.settings
        """,
    "pyrightconfig.json": '{"typeCheckingMode": "standard"}',
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files, and those of the page about parts of one's own."""
    directory = tmp_path_factory.mktemp("project")
    for name, text in (PROJECT | FILES_OF_THE_PAGE).items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
    return directory


def run_checker(project: Path, *command: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ran.stdout + ran.stderr


def wrong_lines(output: str) -> set[tuple[str, int]]:
    found = re.findall(r"(\w+\.py):(\d+)(?::\d+)?(?: -|:) error", output)
    return {(name, int(line)) for name, line in found}


class TestUsersProject:
    def test_mypy_finds_its_mistakes_and_nothing_else(self, project: Path) -> None:
        output = run_checker(project, "mypy", "--cache-dir", "cache", ".")

        assert 'Revealed type is "int"' in output
        assert wrong_lines(output) == {
            ("mistakes.py", 5),
            ("mistakes.py", 6),
            ("mistakes.py", 8),  # where the setting begins
        }, output

    def test_pyright_finds_its_mistakes_and_nothing_else(self, project: Path) -> None:
        output = run_checker(project, "pyright", "--pythonpath", sys.executable)

        assert 'Type of "n" is "int"' in output
        assert wrong_lines(output) == {
            ("mistakes.py", 5),
            ("mistakes.py", 6),
            ("mistakes.py", 8),
        }, output
