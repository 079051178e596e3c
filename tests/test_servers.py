"""Real servers: values come back to who asked, and the end waits for tasks."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import product
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
        OPTIONS = {"MAX_WORKERS": 2, "SHUTDOWN_TIMEOUT": 20.0}
        TASKS = {
            "default": {
                "BACKEND": "django_tasks_local.ThreadPoolBackend",
                "OPTIONS": OPTIONS,
            },
            "cpu": {
                "BACKEND": "django_tasks_local.ProcessPoolBackend",
                "OPTIONS": OPTIONS,
            },
            "loop": {
                "BACKEND": "django_tasks_local.EventLoopBackend",
                "OPTIONS": OPTIONS,
            },
        }
    """,
    "site_tasks.py": """
        import os
        from pathlib import Path
        from django_tasks_local import task
        from tests.gates import pass_gate

        @task
        def echo(value):
            return [value, os.getpid()]

        @task
        def finish(port, name):
            pass_gate(port, name)
            Path(__file__).with_name(name).touch()
            return name
    """,
    "site_urls.py": """
        import asyncio, os
        from django.http import JsonResponse
        from django.urls import path
        from django_tasks_local.state import get_executor_state
        from site_tasks import echo, finish
        from tests.gates import pass_gate

        def sync_values(request, alias, first, last):
            task = echo.using(backend=alias)
            handles = [task.enqueue(value) for value in range(first, last)]
            values = [handle.wait(30) for handle in handles]
            return JsonResponse({"pid": os.getpid(), "values": values})

        async def async_values(request, alias, first, last):
            task = echo.using(backend=alias)
            handles = [await task.aenqueue(value) for value in range(first, last)]
            values = [await handle for handle in handles]
            loop = type(asyncio.get_running_loop()).__module__
            return JsonResponse({"pid": os.getpid(), "values": values, "loop": loop})

        def hold(request, alias, port, name):
            handle = finish.using(backend=alias).enqueue(port, name)
            return JsonResponse({"pid": os.getpid(), "id": handle.id})

        async def watch(request, alias, port):
            handle = await finish.using(backend=alias).aenqueue(port, "watched")
            try:
                await handle
            finally:
                pass_gate(port, handle.id)  # nobody else needs the loop now
            return JsonResponse({})

        async def look(request, alias, result_id):
            job = get_executor_state(alias).job(result_id)
            return JsonResponse(
                {"status": job.record.status, "waiters": len(job._waiters)}
            )

        async def value(request, alias, result_id):
            handle = await finish.using(backend=alias).aget_result(result_id)
            return JsonResponse({"value": await handle})

        urlpatterns = [
            path("sync/<alias>/<int:first>/<int:last>", sync_values),
            path("async/<alias>/<int:first>/<int:last>", async_values),
            path("hold/<alias>/<int:port>/<name>", hold),
            path("watch/<alias>/<int:port>", watch),
            path("look/<alias>/<result_id>", look),
            path("value/<alias>/<result_id>", value),
        ]
    """,
    "site_wsgi.py": """
        import os
        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        from django.core.wsgi import get_wsgi_application
        application = get_wsgi_application()
        import site_urls
        if "HELD_AT_FORK" in os.environ:
            port = int(os.environ["HELD_AT_FORK"])
            for alias in ("default", "cpu", "loop"):
                for value in range(4):
                    assert site_urls.echo.using(backend=alias).enqueue(value).wait(30)
                task = site_urls.finish.using(backend=alias)
                task.enqueue(port, f"preloaded-{alias}")
    """,
    # It is told of the end last: after that comes only Python's own exit.
    "site_gunicorn.py": """
        import os
        from tests.gates import pass_gate

        def worker_exit(server, worker):
            pass_gate(int(os.environ["ENDING"]), os.getpid())
    """,
    "site_asgi.py": """
        import os
        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        from django.core.asgi import get_asgi_application
        from django_tasks_local.asgi import lifespan
        from tests.gates import pass_gate
        drained = lifespan(get_asgi_application())

        async def application(scope, receive, send):
            async def receive_and_tell():
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    pass_gate(int(os.environ["ENDING"]), os.getpid())
                return message

            await drained(scope, receive_and_tell, send)
    """,
    # granian takes no socket that listens already, and says that it listens before it
    # does: so have it listen at once.
    "site_granian.py": """
        import os, socket, sys
        from pathlib import Path
        from granian import Granian
        from granian.constants import Loops
        from tests.gates import pass_gate

        def listen():
            socket.socket(fileno=os.dup(server._sfd)).listen(128)
            pass_gate(int(os.environ["LISTENING"]))

        if __name__ == "__main__":
            server = Granian(
                "site_asgi:application",
                uds=Path(sys.argv[1]),
                workers=int(sys.argv[2]),
                loop=Loops(sys.argv[3]),
                interface="asgi",
                log_access=False,
            )
            server.on_startup(listen)
            server.serve()
    """,
}


@dataclass(frozen=True)
class Server:
    """How to run a server: `{fd}` stands for a socket, `{path}` for one's path."""

    command: list[str]
    kind: str
    workers: int
    is_preloading: bool = False
    loop: str | None = None

    @property
    def kinds(self) -> list[str]:
        """Of views, which it runs on threads or on its loop: under ASGI both."""
        return ["sync"] if self.kind == "sync" else ["sync", "async"]


def gunicorn(workers: int, kind: str, *, is_preloading: bool = False) -> Server:
    command = [
        *("-m", "gunicorn", "--bind=fd://{fd}", f"--workers={workers}"),
        *("--worker-class", kind, "--threads", "4" if kind == "gthread" else "1"),
        *("--graceful-timeout=20", "--no-control-socket", "--config=site_gunicorn.py"),
        *(["--preload"] if is_preloading else []),
        "site_wsgi:application",
    ]
    return Server(command, "sync", workers, is_preloading)


def uvicorn(workers: int, loop: str = "auto") -> Server:
    command = [
        *("-m", "uvicorn", "--fd={fd}", f"--workers={workers}", f"--loop={loop}"),
        *("--no-access-log", "site_asgi:application"),
    ]
    return Server(command, "async", workers, loop=loop)


def granian(workers: int, loop: str = "auto") -> Server:
    command = ["site_granian.py", "{path}", str(workers), loop]
    return Server(command, "async", workers, loop=loop)


# Every pair of gunicorn's options, but not all three together: a server takes seconds.
SERVERS = {
    "gunicorn-1-sync-preload": gunicorn(1, "sync", is_preloading=True),
    "gunicorn-1-gthread": gunicorn(1, "gthread"),
    "gunicorn-2-sync": gunicorn(2, "sync"),
    "gunicorn-2-gthread-preload": gunicorn(2, "gthread", is_preloading=True),
    "gunicorn-4-sync-preload": gunicorn(4, "sync", is_preloading=True),
    "gunicorn-4-gthread": gunicorn(4, "gthread"),
    "uvicorn-1-asyncio": uvicorn(1, "asyncio"),
    "uvicorn-2-uvloop": uvicorn(2, "uvloop"),
    "granian-1-uvloop": granian(1, "uvloop"),
    "granian-2-asyncio": granian(2, "asyncio"),
}
ALIASES = ["default", "cpu", "loop"]
VALUES = 1_000  # of each server
PER_REQUEST = 10
AT_ONCE = 8


class Connection(HTTPConnection):
    """One to an address of any kind."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        super().__init__("site", timeout=LONG_S)
        self._address = address

    def connect(self) -> None:
        is_path = isinstance(self._address, str)
        self.sock = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
        self.sock.settimeout(LONG_S)
        self.sock.connect(self._address)


class Site:
    """A running server."""

    def __init__(
        self, process: subprocess.Popen[str], address: tuple[str, int] | str
    ) -> None:
        self._process = process
        self._address = address
        self.family: set[int] | None = None
        """Its processes, once it was told to end."""

    @property
    def url(self) -> str:
        """For browsers, where its address has a port."""
        assert not isinstance(self._address, str)
        host, port = self._address
        return f"http://{host}:{port}"

    def connect(self, path: str, **headers: str) -> Connection:
        """Ask for a page, without waiting for it."""
        connection = Connection(self._address)
        connection.request("GET", path, headers=headers)
        return connection

    def get(self, path: str) -> dict[str, Any]:
        connection = self.connect(path)
        try:
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        assert response.status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def terminate(self) -> None:
        """Have it begin to end."""
        if self.family is None:
            self.family = descendants(self._process.pid)
            self._process.send_signal(signal.SIGTERM)


@contextmanager
def running(
    server: Server,
    directory: Path,
    site_files: Mapping[str, str] = SITE,
    /,
    **gates: Gate,
) -> Generator[Site]:
    """Run a server; at the end it has ended well, with all its processes."""
    write_files(directory, site_files)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, Gate() as up:
        # It listens already: requests wait until the server has come up.
        fd, path = listener.fileno(), str(directory / "socket")
        process = subprocess.Popen(
            [sys.executable, *(p.format(fd=fd, path=path) for p in server.command)],
            cwd=directory,
            env={
                **script_environ(),
                "LISTENING": str(up.port),
                **{name: str(gate.port) for name, gate in gates.items()},
            },
            pass_fds=[fd],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        address: tuple[str, int] | str = listener.getsockname()
        if "{path}" in server.command:
            address = path
            up.next_visitor().let_go()
    site = Site(process, address)
    try:
        yield site
    finally:
        site.terminate()
        for gate in gates.values():
            gate.open()
        try:
            log, _ = process.communicate(timeout=LONG_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        for pid in site.family or ():
            assert wait_until_gone(pid)
    unexpected = "error|exception|traceback|did not finish"
    assert not re.search(unexpected, log, re.IGNORECASE), log


def values_reach_who_asked(site: Site, server: Server, *, first: int) -> None:
    def ask(number: int) -> list[tuple[int, int]]:
        """Which process answered, and which ran the tasks."""
        request = number // PER_REQUEST
        alias = ALIASES[request % len(ALIASES)]
        kind = server.kinds[request % len(server.kinds)]
        last = number + PER_REQUEST
        answer = site.get(f"/{kind}/{alias}/{number}/{last}")
        if kind == "async":
            assert answer["loop"].split(".")[0] == server.loop
        values = [value for value, _ in answer["values"]]
        assert values == list(range(number, last))
        pids = [pid for _, pid in answer["values"]]
        for pid in pids:
            assert (pid == answer["pid"]) is (alias != "cpu")
        return [(answer["pid"], pid) for pid in pids]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(ask, range(first, first + VALUES, PER_REQUEST))
        seen = {pids for answer in answers for pids in answer}
    servers = {pid for pid, _ in seen}
    assert os.getpid() not in servers
    assert len(servers) <= server.workers
    # No worker process serves two servers.
    for one in servers:
        for other in servers - {one}:
            mine = {pid for server_pid, pid in seen if server_pid == one}
            theirs = {pid for server_pid, pid in seen if server_pid == other}
            assert not mine & theirs


@pytest.mark.parametrize("name", SERVERS)
def test_values_reach_who_asked_and_sigterm_waits_for_tasks(
    name: str, tmp_path: Path, gate: Gate, other_gate: Gate
) -> None:
    server = SERVERS[name]
    ending = other_gate
    gates = {
        "ENDING": ending,
        **({"HELD_AT_FORK": gate} if server.is_preloading else {}),
    }
    with running(server, tmp_path, **gates) as site:
        values_reach_who_asked(site, server, first=VALUES * list(SERVERS).index(name))
        held = Counter[tuple[int, str]]()
        for number, alias in product(range(3), ALIASES):
            path = f"/hold/{alias}/{gate.port}/{alias}-{number}"
            held[site.get(path)["pid"], alias] += 1
        # Two run at a time in each process.
        running_count = sum(min(2, n) for n in held.values())
        for _ in range(running_count + 3 * server.is_preloading):
            gate.next_visitor()
        site.terminate()
        for _ in range(server.workers):
            ending.next_visitor().let_go()
        # The end has begun in all of them: would they go without their tasks?
        for number, pid in enumerate({pid for pid, _ in held}):
            assert not wait_until_gone(pid, timeout_s=0.0 if number else 0.2)
        gate.open()
    done = {f"{alias}-{n}" for alias in ALIASES for n in range(3)}
    if server.is_preloading:
        done |= {f"preloaded-{alias}" for alias in ALIASES}
    assert {path.name for path in tmp_path.glob("*-*")} == done


@pytest.mark.parametrize("alias", ALIASES)
def test_a_client_that_disconnects_leaves_the_task_alone(
    alias: str, tmp_path: Path, gate: Gate, other_gate: Gate
) -> None:
    with running(uvicorn(1), tmp_path, ENDING=other_gate, HELD=gate) as site:
        client = site.connect(f"/watch/{alias}/{gate.port}")
        task = gate.next_visitor()
        assert task.name == "watched"
        client.close()
        view = gate.next_visitor()  # it has been cancelled
        view.let_go()
        path = f"{alias}/{view.name}"
        assert site.get(f"/look/{path}") == {"status": "RUNNING", "waiters": 0}
        task.let_go()
        assert site.get(f"/value/{path}") == {"value": "watched"}


RELOADED_SITE = {
    **SITE,
    "site_version.py": "VERSION = 1\n",
    "reload_settings.py": """
        from site_settings import *
        from site_settings import OPTIONS
        OPTIONS["SHUTDOWN_TIMEOUT"] = 120.0
        ROOT_URLCONF = "reload_urls"
        # The reloader sees changes of what it has seen before, and says so.
        LOGGING = {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {
                "version": {
                    "()": "django.utils.log.CallbackFilter",
                    "callback": lambda record: "site_version" in record.getMessage(),
                },
            },
            "handlers": {
                "version": {"class": "logging.StreamHandler", "filters": ["version"]},
            },
            "loggers": {
                "django.utils.autoreload": {
                    "handlers": ["version"], "level": "DEBUG", "propagate": False,
                },
            },
        }
    """,
    "reload_urls.py": """
        from django.http import JsonResponse
        from django.urls import path
        from site_urls import urlpatterns
        from site_version import VERSION

        def version(request):
            return JsonResponse({"version": VERSION})

        urlpatterns = [*urlpatterns, path("version", version)]
    """,
}


class Runserver:
    """Django's development server, with its autoreload, in a group of its own."""

    def __init__(self, directory: Path) -> None:
        write_files(directory, RELOADED_SITE)
        self._directory = directory
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "django", "runserver", "127.0.0.1:0"],
                cwd=directory,
                env={
                    **script_environ(),
                    "PYTHONPATH": f"{directory}:{script_environ()['PYTHONPATH']}",
                    "PYTHONUNBUFFERED": "1",
                    "DJANGO_SETTINGS_MODULE": "reload_settings",
                },
                stdin=subprocess.DEVNULL,
                stdout=theirs.fileno(),
                stderr=theirs.fileno(),
                text=True,
                start_new_session=True,
            )
        ours.settimeout(LONG_S)
        self._output = ours.makefile("r")
        ours.close()
        self.log = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read what it says, up to a line that matches."""
        for line in self._output:
            self.log += line
            found = re.search(pattern, line)
            if found is not None:
                return found
        raise AssertionError(self.log)

    def next_site(self) -> Site:
        """What serves next: after a reload it is another process, at another port."""
        found = self.read_until(r"server at http://127\.0\.0\.1:(\d+)/")
        return Site(self.process, ("127.0.0.1", int(found[1])))

    def change_code(self) -> None:
        """Have the reloader find that a file has changed."""
        seen = "site_version.py first seen"
        if seen not in self.log:
            self.read_until(seen)
        path = self._directory / "site_version.py"
        path.write_text("VERSION = 2\n")
        later = path.stat().st_mtime + 10
        os.utime(path, (later, later))

    def close(self) -> None:
        """Read the rest, of what has ended, or is killed."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LONG_S)
        if not self._output.closed:
            with suppress(OSError):  # after a time-out
                self.log += self._output.read()
            self._output.close()


@pytest.fixture
def runserver(tmp_path: Path) -> Generator[Runserver]:
    server = Runserver(tmp_path)
    yield server
    server.close()


class TestRunserver:
    def test_a_stuck_task_does_not_delay_a_reload(
        self, runserver: Runserver, gate: Gate
    ) -> None:
        site = runserver.next_site()
        assert site.get("/version") == {"version": 1}
        ids = [
            site.get(f"/hold/{alias}/{gate.port}/{alias}-{n}")["id"]
            for alias, n in product(("default", "cpu"), range(3))
        ]
        for _ in range(4):
            gate.next_visitor()
        before = descendants(runserver.process.pid)
        runserver.change_code()
        warning = runserver.read_until("6 tasks did not finish before (.*)")
        assert warning[1].startswith("runserver's reload or end: ")
        assert sorted(re.findall(r"[\w-]{36}", warning[1])) == sorted(ids)
        assert runserver.next_site().get("/version") == {"version": 2}
        for pid in before:
            assert wait_until_gone(pid)

    def test_ctrl_c_ends_it_with_all_its_processes(
        self, runserver: Runserver, gate: Gate
    ) -> None:
        site = runserver.next_site()
        for alias in ("default", "cpu"):
            site.get(f"/hold/{alias}/{gate.port}/{alias}")
            gate.next_visitor()
        family = descendants(runserver.process.pid)
        os.killpg(runserver.process.pid, signal.SIGINT)
        runserver.process.wait(LONG_S)
        for pid in family:
            assert wait_until_gone(pid)
        runserver.close()
        assert not re.search("fatal|traceback", runserver.log, re.IGNORECASE)


type Message = Mapping[str, object]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[Message], Awaitable[None]]
type Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


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
