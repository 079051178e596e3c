"""Real servers: each value comes back to the request that asked for it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import script_environ, write_files
from .gates import LONG_S
from .leftovers import descendants, wait_until_gone

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
