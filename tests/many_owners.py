"""Processes that own tasks of one alias, forked from a template in no time.

``python -m tests.many_owners TASKS PORT`` is the template: for each line that it reads
it forks. Each fork calls at the port and says who it is. Then it does what it is asked
there, until nobody asks any more.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from django.tasks import task_backends
from django.utils.module_loading import import_string
from django.utils.timezone import now

from django_tasks_local.state import get_executor_state, shutdown_executor

from .gates import LONG_S
from .leftovers import wait_until_gone


class Owner:
    """A process that has tasks, and takes over those of dead ones."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(LONG_S)
        with connection:  # until the file is closed too
            self._file = connection.makefile("rw")
        self.pid: int = self.answer()

    def enqueue(
        self, task: Any, calls: Sequence[Sequence[object]], *, in_s: float | None = None
    ) -> list[str]:
        """Have it enqueue a task with each of the arguments; the results' ids."""
        self._ask("enqueue", task.module_path, calls, in_s)
        ids: list[str] = self.answer()
        return ids

    def adopt_at_death_of(self, other: "Owner") -> None:
        """Have it take over what the dead have left, once another one is dead too."""
        self._ask("adopt_at_death", other.pid)
        assert self.answer() == "waiting"

    def answer(self) -> Any:
        return json.loads(self._file.readline())

    def kill(self) -> None:
        """It ends at once."""
        os.kill(self.pid, signal.SIGKILL)
        self._file.close()

    def end(self) -> None:
        """It ends in good order."""
        self._file.close()
        assert wait_until_gone(self.pid)

    def _ask(self, *request: object) -> None:
        self._file.write(json.dumps(request) + "\n")
        self._file.flush()


class Owners:
    """The template, and the living processes that were forked from it."""

    def __init__(self, tasks: Mapping[str, Any], *, count: int) -> None:
        self.living: list[Owner] = []
        self._tasks = tasks
        self._count = count

    def replace(self, owner: Owner) -> None:
        """A fresh process takes the place of one that was killed."""
        self.living[self.living.index(owner)] = self._fork()

    def others(self, owner: Owner) -> list[Owner]:
        """Those that live besides this one."""
        return [other for other in self.living if other is not owner]

    def _fork(self) -> Owner:
        assert self._template.stdin is not None
        self._template.stdin.write("\n")
        self._template.stdin.flush()
        connection, _ = self._server.accept()
        return Owner(connection)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._server = stack.enter_context(
                socket.create_server(("127.0.0.1", 0), backlog=128)
            )
            self._server.settimeout(LONG_S)
            port = self._server.getsockname()[1]
            command = [sys.executable, "-W", "error", "-m", __name__]
            self._template = subprocess.Popen(
                [*command, json.dumps(self._tasks), str(port)],
                env=_environ(),
                stdin=subprocess.PIPE,
                text=True,
            )
            stack.callback(self._template.communicate)
            for _ in range(self._count):
                self.living.append(self._fork())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            for owner in self.living:
                owner.end()
        assert self._template.returncode == 0


def _environ() -> dict[str, str]:
    from .conftest import script_environ  # which sets a project up: not the template's

    return script_environ()


# In the template and its forks.


def _own(alias: str, port: int) -> None:
    """What a fork does."""

    def enqueue(path: str, calls: list[list[Any]], in_s: float | None) -> list[str]:
        task = import_string(path).using(backend=alias)
        if in_s is not None:
            task = task.using(run_after=now() + timedelta(seconds=in_s))
        return [task.enqueue(*arguments).id for arguments in calls]

    def adopt_at_death(pid: int) -> int:
        pidfd = os.pidfd_open(pid)
        answer("waiting")
        select.select([pidfd], [], [])
        os.close(pidfd)
        return get_executor_state(alias).adopt()

    def answer(value: object) -> None:
        print(json.dumps(value), file=file, flush=True)

    functions: dict[str, Callable[..., object]] = {
        "enqueue": enqueue,
        "adopt_at_death": adopt_at_death,
    }
    backend: Any = task_backends[alias]
    backend.serve()
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rw") as file,
    ):
        answer(os.getpid())
        for line in file:
            name, *arguments = json.loads(line)
            answer(functions[name](*arguments))
    shutdown_executor(alias)


def main() -> None:
    from .small_project import configure

    tasks, port = json.loads(sys.argv[1]), int(sys.argv[2])
    configure(TASKS=tasks, INSTALLED_APPS=["django.contrib.sessions"])
    (alias,) = set(tasks) - {"default"}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ends is buried
    for _ in sys.stdin:
        if os.fork() == 0:
            code = 1
            try:
                _own(alias, port)
                code = 0
            finally:
                os._exit(code)


if __name__ == "__main__":
    main()
