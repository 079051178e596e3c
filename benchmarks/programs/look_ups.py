"""How many results are found, whichever of gunicorn's workers is asked for them."""

import json
import socket
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

from .contenders import tell, told
from .stores import project

_WORKERS = 4
_VISITORS = 8


def _get(address: tuple[str, int], path: str) -> Any:
    connection = HTTPConnection(*address)  # a new one, so that any worker may take it
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@contextmanager
def _serving() -> Generator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        fd = listener.fileno()
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", f"--bind=fd://{fd}"),
                *(f"--workers={_WORKERS}", "--log-level=warning"),
                *("--no-control-socket", "benchmarks.programs.look_ups_site"),
            ],
            pass_fds=[fd],
        )
        try:
            yield listener.getsockname()
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    name, arguments = told()
    count: int = arguments["count"]
    with (
        project(name, None),
        _serving() as address,
        ThreadPoolExecutor(_VISITORS) as visitors,
    ):

        def is_found(number: int) -> bool:
            result_id = _get(address, "/enqueue")["id"]
            found: bool = _get(address, f"/look-up/{result_id}")["is_found"]
            return found

        found = sum(visitors.map(is_found, range(count)))
    tell({"found_percent": found / count * 100})


if __name__ == "__main__":
    main()
