"""Open event streams on one uvicorn process: what they take, and how late they tell."""

import asyncio
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any, override

from .contenders import begin, tell

_TOLD_AT = re.compile(rb'"told_at":([\d.]+)')
_WARM_UP = 50
_PAUSE_MS = 100
_ROUND_PAUSE_MS = 500
"""Longer, since telling all takes a while."""


class _Late:
    """How late clients see what they are told."""

    def __init__(self) -> None:
        self.samples_ms: list[float] = []
        self._wanted = 0
        self._is_enough = asyncio.Event()

    def note(self, late_ms: float) -> None:
        self.samples_ms.append(late_ms)
        if len(self.samples_ms) == self._wanted:
            self._is_enough.set()

    async def collect(self, count: int) -> None:
        """Take that many samples from now on."""
        self.samples_ms.clear()
        self._wanted = count
        await self._is_enough.wait()


class _Client(asyncio.Protocol):
    """Follows one result."""

    def __init__(self, path: str, late: _Late) -> None:
        self._path = path
        self._late = late
        self._transport: asyncio.Transport | None = None
        self.began = asyncio.Event()
        """The first event is there."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(f"GET {self._path} HTTP/1.1\r\nHost: site\r\n\r\n".encode())

    @override
    def data_received(self, data: bytes) -> None:
        now = time.monotonic()  # the same clock in all processes
        if self.began.is_set():
            for told_at in _TOLD_AT.findall(data):
                self._late.note((now - float(told_at)) * 1e3)
        elif b"data:" in data:
            self.began.set()

    def close(self) -> None:
        assert self._transport is not None
        self._transport.abort()


class _Site:
    """The server, asked by one contender."""

    def __init__(self, name: str, address: tuple[str, int]) -> None:
        self._name = name
        self._address = address

    def get(self, path: str) -> Any:
        connection = HTTPConnection(*self._address)
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def memory(self) -> int:
        used: int = self.get("/memory")["bytes"]
        return used

    def wait(self, count: int) -> list[str]:
        ids: list[str] = self.get(f"/{self._name}/wait/{count}")["ids"]
        return ids

    def start(self, count: int, pause_ms: int) -> str:
        result_id: str = self.get(f"/{self._name}/start/{count}/{pause_ms}")["id"]
        return result_id

    async def follow(self, ids: list[str], late: _Late) -> list[_Client]:
        """Open a stream for each, and see its first event."""
        clients: list[_Client] = []
        for result_id in ids:
            path = f"/{self._name}/stream/{result_id}"
            make = partial(_Client, path, late)
            _, client = await asyncio.get_running_loop().create_connection(
                make, *self._address
            )
            clients.append(client)
        for client in clients:
            await client.began.wait()
        return clients


async def _tell_to(
    site: _Site, streams: int, count: int, pause_ms: int
) -> tuple[float, float]:
    """How late each of so many clients sees what is saved: p50 and p99."""
    # The first ones pass while the streams are opened.
    result_id = site.start(count + streams // 50 + 5, pause_ms)
    late = _Late()
    clients = await site.follow([result_id] * streams, late)
    await late.collect(count * streams)
    for client in clients:
        client.close()
    cuts = statistics.quantiles(late.samples_ms, n=100)
    return cuts[49], cuts[98]


async def _measure(
    site: _Site, streams: int, samples: int, rounds: int
) -> dict[str, float]:
    for client in await site.follow(site.wait(_WARM_UP), _Late()):
        client.close()
    ids = site.wait(streams)
    before = site.memory()
    clients = await site.follow(ids, _Late())
    figures = {"stream_kb": (site.memory() - before) / streams / 1000}
    p50_ms, p99_ms = await _tell_to(site, 1, samples, _PAUSE_MS)
    figures |= {"one_p50_ms": p50_ms, "one_p99_ms": p99_ms}
    for client in clients:
        client.close()
    p50_ms, p99_ms = await _tell_to(site, streams, rounds, _ROUND_PAUSE_MS)
    return figures | {"all_p50_ms": p50_ms, "all_p99_ms": p99_ms}


@contextmanager
def _serving(name: str) -> Generator[_Site]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        fd = listener.fileno()
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", f"--fd={fd}", "--no-access-log"),
                *("--log-level=warning", "--backlog=1024", "--lifespan=off"),
                "benchmarks.programs.streams_site:application",
            ],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "benchmarks.programs.streams_settings",
            },
            pass_fds=[fd],
        )
        try:
            yield _Site(name, listener.getsockname())
        finally:
            server.kill()
            server.wait()


def main() -> None:
    name, arguments = begin()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _serving(name) as site:
        tell(asyncio.run(_measure(site, **arguments)))


if __name__ == "__main__":
    main()
