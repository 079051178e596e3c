"""Gates: where tasks, in any thread or process, wait until the test lets them go."""

import asyncio
import socket
from contextlib import suppress
from types import TracebackType
from typing import Self

LONG_S = 20.0
"""For what should happen at once: when it is over, the test fails."""


class Visitor:
    """A task that stands at a gate."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        with connection.makefile("r") as file:
            self.name = file.readline().rstrip("\n")

    def let_go(self) -> None:
        """It may go on."""
        self._connection.close()


class Gate:
    """Tasks that are given its port wait in `pass_gate`; the test meets them here."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._server.settimeout(LONG_S)
        self._visitors: list[Visitor] = []
        self.port: int = self._server.getsockname()[1]

    def next_visitor(self) -> Visitor:
        """The next task that has come here; blocks until there is one."""
        connection, _ = self._server.accept()
        connection.settimeout(LONG_S)
        visitor = Visitor(connection)
        self._visitors.append(visitor)
        return visitor

    def is_deserted(self) -> bool:
        """Whether nobody waits here who was not met yet."""
        self._server.setblocking(False)
        try:
            connection, _ = self._server.accept()
        except BlockingIOError:
            return True
        finally:
            self._server.settimeout(LONG_S)
        self._visitors.append(Visitor(connection))
        return False

    def open(self) -> None:
        """Let everybody go, those too who come later."""
        self._server.close()
        for visitor in self._visitors:
            visitor.let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.open()


def pass_gate(port: int, name: object = "") -> None:
    """For tasks: say who is here, and wait until the test lets them go."""
    address = ("127.0.0.1", port)
    with suppress(ConnectionError), socket.create_connection(address) as connection:
        connection.sendall(f"{name}\n".encode())
        connection.recv(1)


async def apass_gate(port: int, name: object = "") -> None:
    """The same for coroutines."""
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{name}\n".encode())
            await reader.read(1)
        finally:
            writer.close()
