"""Real servers: each value comes back to the request that asked for it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from django.core.asgi import get_asgi_application
from django.tasks import TaskResultStatus

from django_tasks_local import LocalTaskResult
from django_tasks_local.asgi import lifespan

from .conftest import script_environ, write_files
from .gates import LONG_S, Gate
from .leftovers import descendants, wait_until_gone
from .tasks import add, hold

SITE = {
    "site_settings.py": """
        SECRET_KEY = "x"
        ROOT_URLCONF = "site_urls"
        ALLOWED_HOSTS = ["*"]
        TASKS = {
            "default": {
                "BACKEND": "django_tasks_local.ThreadPoolBackend",
                "OPTIONS": {"MAX_WORKERS": 2, "SHUTDOWN_TIMEOUT": 1.0},
            },
            "cpu": {
                "BACKEND": "django_tasks_local.ProcessPoolBackend",
                "OPTIONS": {"MAX_WORKERS": 2, "SHUTDOWN_TIMEOUT": 1.0},
            },
        }
    """,
    "site_tasks.py": """
        import os
        from django_tasks_local import task

        @task
        def echo(value):
            return [value, os.getpid()]
    """,
    "site_urls.py": """
        import os
        from django.http import JsonResponse
        from django.urls import path
        from site_tasks import echo

        def sync_view(request, alias, value):
            handle = echo.using(backend=alias).enqueue(value)
            return JsonResponse({"pid": os.getpid(), "value": handle.wait(30)})

        async def async_view(request, alias, value):
            handle = await echo.using(backend=alias).aenqueue(value)
            return JsonResponse({"pid": os.getpid(), "value": await handle})

        urlpatterns = [
            path("sync/<alias>/<int:value>", sync_view),
            path("async/<alias>/<int:value>", async_view),
        ]
    """,
    "site_wsgi.py": """
        import os
        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        from django.core.wsgi import get_wsgi_application
        application = get_wsgi_application()
        import site_urls
        if "USE_BEFORE_FORK" in os.environ:
            for alias in ("default", "cpu"):
                for value in range(4):
                    assert site_urls.echo.using(backend=alias).enqueue(value).wait(30)
    """,
    "site_asgi.py": """
        import os
        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        from django.core.asgi import get_asgi_application
        application = get_asgi_application()
    """,
}
GUNICORN = [
    *("gunicorn", "--bind=fd://{fd}", "--workers=2", "--threads=4"),
    *("--graceful-timeout=5", "--no-control-socket", "site_wsgi:application"),
]
UVICORN = ["uvicorn", "--fd={fd}", "--workers=2", "--no-access-log"]
SERVERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "gunicorn": (GUNICORN, {}),
    "gunicorn-preload": ([*GUNICORN, "--preload"], {"USE_BEFORE_FORK": "1"}),
    "uvicorn": ([*UVICORN, "site_asgi:application"], {}),
}


@contextmanager
def running(server: str, directory: Path) -> Generator[str]:
    """The address of a server, which is stopped afterwards."""
    command, environ = SERVERS[server]
    write_files(directory, SITE)
    # It listens already: requests wait until the server has come up.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        fd = listener.fileno()
        address = "http://{}:{}".format(*listener.getsockname())
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(fd=fd) for part in command)],
            cwd=directory,
            env={**script_environ(), **environ},
            pass_fds=[fd],
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        yield address
    finally:
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=LONG_S)
        for pid in family:
            assert wait_until_gone(pid)
    assert not re.search("error|exception|traceback", log, re.IGNORECASE), log


@pytest.mark.parametrize("server", SERVERS)
def test_every_request_gets_its_own_value(server: str, tmp_path: Path) -> None:
    kind = "async" if server == "uvicorn" else "sync"

    def ask(number: int) -> tuple[int, int]:
        """Which process answered, and which ran the task."""
        alias = ("default", "cpu")[number % 2]
        url = f"{address}/{kind}/{alias}/{number}"
        with urllib.request.urlopen(url, timeout=LONG_S) as response:
            answer = json.load(response)
        value, pid = answer["value"]
        assert value == number
        assert (pid == answer["pid"]) is (alias == "default")
        return answer["pid"], pid

    with running(server, tmp_path) as address, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(60)))
    servers = {pid for pid, _ in answers}
    assert os.getpid() not in servers
    # No worker process serves two servers.
    for one in servers:
        for other in servers - {one}:
            mine = {pid for server_pid, pid in answers if server_pid == one}
            theirs = {pid for server_pid, pid in answers if server_pid == other}
            assert not mine & theirs


type Message = Mapping[str, object]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[Message], Awaitable[None]]
type Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Starting:
    """What a server gives an application's lifespan, and gets from it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.is_ending = anyio.Event()
        self._events = ["lifespan.shutdown", "lifespan.startup"]

    async def receive(self) -> Message:
        event = self._events.pop()
        if event == "lifespan.shutdown":
            self.is_ending.set()
        return {"type": event}

    async def send(self, message: Message) -> None:
        self.log.append(str(message["type"]).removeprefix("lifespan."))

    async def run(self, application: Application) -> None:
        with anyio.fail_after(LONG_S):
            scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
            await lifespan(application)(scope, self.receive, self.send)


async def ignores_lifespan(
    scope: dict[str, Any], receive: Receive, send: Send
) -> None: ...


async def only_starts(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


APPLICATIONS: dict[str, Application] = {
    "django": get_asgi_application(),
    "ignores-lifespan": ignores_lifespan,
    "only-starts": only_starts,
}


@pytest.mark.anyio
class TestLifespan:
    @pytest.mark.parametrize("kind", APPLICATIONS)
    async def test_tasks_finish_before_the_end_is_answered_while_the_loop_goes_on(
        self, alias: str, kind: str, gate: Gate
    ) -> None:
        server = Starting()
        handle = await hold.using(backend=alias).aenqueue(gate.port)
        waiting = [await hold.using(backend=alias).aenqueue(0) for _ in range(9)]
        send = server.send
        statuses: list[TaskResultStatus] = []

        async def send_and_look(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                for each in (handle, *waiting):
                    each.refresh()
                    statuses.append(each.status)
            await send(message)

        async def let_go_at_the_end() -> None:
            await server.is_ending.wait()
            gate.open()

        server.send = send_and_look  # type: ignore[method-assign]  # it looks as well
        async with anyio.create_task_group() as group:
            group.start_soon(let_go_at_the_end)
            await server.run(APPLICATIONS[kind])
        assert server.log == ["startup.complete", "shutdown.complete"]
        assert statuses == [TaskResultStatus.SUCCESSFUL] * 10

    async def test_an_applications_own_start_and_end_are_run(self, alias: str) -> None:
        server = Starting()
        handles: list[LocalTaskResult[Any]] = []

        def note(what: str) -> None:
            for handle in handles:
                handle.refresh()
            server.log += [what, *(str(handle.status) for handle in handles)]

        async def application(
            scope: dict[str, Any], receive: Receive, send: Send
        ) -> None:
            assert (await receive())["type"] == "lifespan.startup"
            note("opening")
            handles.append(await add.using(backend=alias).aenqueue(1, 2))
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            note("closing")
            handles.append(await add.using(backend=alias).aenqueue(3, 4))
            await send({"type": "lifespan.shutdown.complete"})
            note("over")

        await server.run(application)
        assert server.log == [
            *("opening", "startup.complete", "closing", "SUCCESSFUL"),
            *("shutdown.complete", "over", "SUCCESSFUL", "SUCCESSFUL"),
        ]

    async def test_a_start_that_fails_is_told(self) -> None:
        server = Starting()

        async def application(
            scope: dict[str, Any], receive: Receive, send: Send
        ) -> None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no"})

        await server.run(application)
        assert server.log == ["startup.failed"]
        assert not server.is_ending.is_set()  # nor would the event ever come

    @pytest.mark.parametrize("answers", [0, 1])
    async def test_what_its_start_raises_goes_on_to_the_server(
        self, answers: int
    ) -> None:
        server = Starting()

        async def application(
            scope: dict[str, Any], receive: Receive, send: Send
        ) -> None:
            await receive()
            for _ in range(answers):
                await send({"type": "lifespan.startup.complete"})
            raise ValueError("its own")

        with pytest.raises(ValueError, match="its own"):
            await server.run(application)
        assert server.log == ["startup.complete"] * answers

    async def test_what_its_end_raises_goes_on_to_the_server_after_the_tasks(
        self, alias: str
    ) -> None:
        handles: list[LocalTaskResult[Any]] = []

        async def application(
            scope: dict[str, Any], receive: Receive, send: Send
        ) -> None:
            await only_starts(scope, receive, send)
            await receive()
            handles.append(await add.using(backend=alias).aenqueue(1, 2))
            raise ValueError("its own")

        server = Starting()
        with pytest.raises(ValueError, match="its own"):
            await server.run(application)
        handles[0].refresh()
        assert handles[0].status is TaskResultStatus.SUCCESSFUL
        assert server.log == ["startup.complete"]

    async def test_everything_else_is_passed_on(self) -> None:
        seen: list[object] = []

        async def application(*arguments: object) -> None:
            seen.extend(arguments)

        scope, receive, send = {"type": "http"}, Starting().receive, Starting().send
        await lifespan(application)(scope, receive, send)
        assert seen == [scope, receive, send]
        assert seen[0] is scope
