"""Draining at an ASGI server's shutdown event.

Some servers end without Python's own exit, where `state.drain` is called otherwise:
uvicorn sends itself SIGTERM again once it has handled it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import anyio
import anyio.to_thread

from .async_bridge import is_in_trio
from .backend import serve_all
from .state import drain

__all__ = ["lifespan"]

type _Message = Mapping[str, object]

_STARTUP = "lifespan.startup"
_SHUTDOWN = "lifespan.shutdown"


def lifespan[
    Scope: Mapping[str, object],
    Receive: Callable[[], Awaitable[Mapping[str, object]]],
    Send: Callable[..., Awaitable[object]],
](
    application: Callable[[Scope, Receive, Send], Awaitable[object]], /
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return an ASGI application that waits for tasks before its server ends.

    When the server starts, aliases whose store outlives processes begin to look after
    their tasks, as they otherwise do at the first request.

    At the server's shutdown event running and waiting tasks have ``SHUTDOWN_TIMEOUT``
    to finish, as at Python's own exit, while the event loop goes on. All else is
    passed on. An application that handles the lifespan protocol itself has its startup
    and shutdown run; its shutdown begins when the tasks have finished, so that they
    find what it closes. For one that does not, as Django's, the events are answered.

    What its own startup or shutdown raises goes on to the server, which then may send
    no shutdown event.
    """

    async def application_that_drains(
        scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        server = _Server(receive, send)
        try:
            await application(
                scope,
                # Whatever types the application has for them: these pass on what the
                # server's own give and take.
                cast("Receive", server.receive),
                cast("Send", server.send),
            )
        except Exception:
            if _SHUTDOWN in server.received:
                await _drain()
            if server.received:
                raise
            # It has not even asked for the first event: it does not handle them.
        if f"{_STARTUP}.failed" not in server.sent:
            await server.answer()

    return application_that_drains


class _Server:
    """Stands between an application and its server while that starts and ends."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[object]],
    ) -> None:
        self._receive = receive
        self._send = send
        self.received: set[object] = set()
        """The types of the events that the application has received."""
        self.sent: set[object] = set()
        """And of its answers."""

    async def receive(self) -> _Message:
        """Return the server's next event; its shutdown once tasks have finished."""
        message = await self._receive()
        self.received.add(message["type"])
        if message["type"] == _STARTUP:
            serve_all()
        if message["type"] == _SHUTDOWN:
            await _drain()
        return message

    async def send(self, message: _Message) -> None:
        """Pass an answer on."""
        if message["type"] in _answers_to(_SHUTDOWN):
            await _drain()  # what the application's own shutdown has enqueued
        self.sent.add(message["type"])
        await self._send(message)

    async def answer(self) -> None:
        """Receive and answer what the application has not."""
        for event in (_STARTUP, _SHUTDOWN):
            if self.sent.isdisjoint(_answers_to(event)):
                if event not in self.received:
                    await self.receive()
                await self.send({"type": f"{event}.complete"})


def _answers_to(event: str) -> tuple[str, str]:
    return f"{event}.complete", f"{event}.failed"


async def _drain() -> None:
    # On a thread of its own: those that others use may all be taken.
    if is_in_trio():
        await anyio.to_thread.run_sync(drain, limiter=anyio.CapacityLimiter(1))
        return
    # Not one of anyio's, which under asyncio can outlive the loop and hold up the exit.
    thread = ThreadPoolExecutor(1, thread_name_prefix="django-tasks-drain")
    try:
        await asyncio.get_running_loop().run_in_executor(thread, drain)
    finally:
        thread.shutdown(wait=False)
