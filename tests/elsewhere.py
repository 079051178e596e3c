"""Another process, with which the tests' own shares a store."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .conftest import script_environ

ALIAS = "shared"

_SCRIPT = """
import json, sys
from datetime import timedelta
from tests.small_project import configure
values = json.loads(sys.argv[1])
TASKS = values["TASKS"]
configure(
    INSTALLED_APPS=[
        "django.contrib.sessions",
        "django_tasks_local",
        "django_tasks_local.stores.database",
    ],
    **values,
)
from django.tasks import task_backends
from django.utils.module_loading import import_string
from django.utils.timezone import now
from django_tasks_local.state import shutdown_executor

(alias,) = set(TASKS) - {"default"}
for line in sys.stdin:
    path, count, args, in_s = json.loads(line)
    if not path:
        task_backends[alias].serve()
        print("[]", flush=True)
        continue
    task = import_string(path).using(backend=alias)
    if in_s is not None:
        task = task.using(run_after=now() + timedelta(seconds=in_s))
    results = [task.enqueue(*args) for _ in range(count)]
    print(json.dumps([result.id for result in results]), flush=True)
shutdown_executor(alias)
"""


def tasks_setting(path: str, store: str = "CountingStore") -> dict[str, Any]:
    """``TASKS`` of an alias with the shared store, which is this file."""
    options = {
        "STORE": f"tests.shared_store.{store}",
        "STORE_OPTIONS": {"PATH": path},
        "MAX_WORKERS": 3,
    }
    backend = "django_tasks_local.ThreadPoolBackend"
    return {ALIAS: {"BACKEND": backend, "OPTIONS": options}}


class OtherProcess:
    """Runs tasks of the shared alias, or of the one whose setting it is given."""

    def __init__(
        self,
        path: Path,
        setting: Mapping[str, Any] | None = None,
        *,
        databases: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        threads = {"BACKEND": "django_tasks_local.ThreadPoolBackend"}
        setting = setting or tasks_setting(str(path), "SharedStore")
        tasks = {"default": threads, **setting}
        values = {"TASKS": tasks, "DATABASES": databases or {}}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _SCRIPT, json.dumps(values)],
            env=script_environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def enqueue(self, task: object, *args: object) -> str:
        """Enqueue a task there; the id of its result."""
        return self.enqueue_many(task, 1, *args)[0]

    def enqueue_many(
        self, task: Any, count: int, *args: object, in_s: float | None = None
    ) -> list[str]:
        return self._ask(task.module_path, count, args, in_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    def serve(self) -> None:
        """Have it look after the tasks of processes that have ended."""
        self._ask("", 0, (), None)

    def stop(self) -> None:
        """It does nothing, until it goes on or is killed."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """It ends at once."""
        self._process.kill()
        self._process.wait()

    def _ask(self, *request: object) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ids: list[str] = json.loads(self._process.stdout.readline())
        return ids

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_killed = self._process.returncode is not None
        self._process.communicate()
        assert is_killed or self._process.returncode == 0
