"""Coroutines for the tests of the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.sessions.models import Session
from django.db import DEFAULT_DB_ALIAS, connection, connections

from django_tasks_local import LocalTask, task

from .gates import apass_gate, pass_gate
from .tasks import add

colour: ContextVar[str] = ContextVar("colour", default="none")
_met: list[asyncio.Future[None]] = []


async def meet(count: int) -> None:
    """Wait until so many are here at once."""
    mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _met.append(mine)
    if len(_met) == count:
        for each in _met:
            each.set_result(None)
        _met.clear()
    await mine


def here() -> str:
    """The thread that asks, and whether a loop runs there."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread().name
    return f"{threading.current_thread().name} (a loop)"


@task(backend="loop")
async def no_op() -> None:
    pass


@task(backend="loop")
async def where_after_meeting(count: int) -> str:
    await meet(count)
    return here()


@task(backend="loop")
def where_function() -> str:
    return here()


@task(backend="loop")
async def where_sync_code(count: int) -> list[str]:
    """Which threads run this coroutine's sync calls, while others have theirs."""
    await meet(count)
    return [await sync_to_async(here)() for _ in range(5)]


@task(backend="loop")
async def where_to_thread(port: int) -> str:
    def stand() -> str:
        pass_gate(port)
        return here()

    return await asyncio.to_thread(stand)


@task(backend="loop")
async def change_colour(to: str, count: int) -> list[str]:
    before = colour.get()
    colour.set(to)
    await meet(count)
    return [before, colour.get()]


@task(backend="loop")
async def count_by_orm(count: int) -> int:
    """How many connections of this process PostgreSQL sees, while all use it."""
    await meet(count)
    await Session.objects.acount()
    return await sync_to_async(_count_connections)()


def _count_connections() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = "
            "current_setting('application_name')"
        )
        number: int = cursor.fetchone()[0]
    return number


@task(backend="loop")
async def block_loop(port: int) -> None:
    pass_gate(port)  # where `apass_gate` should have been


@task(backend="loop")
async def block_loop_in_subtask(port: int) -> None:
    async def block() -> None:
        pass_gate(port)

    await asyncio.create_task(block())


@task(backend="loop")
async def tell_of_clean_up(port: int) -> None:
    async with _told(port, "async with"):
        try:
            await apass_gate(port, "running")
        finally:
            await apass_gate(port, "finally")


@contextlib.asynccontextmanager
async def _told(port: int, name: str) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await apass_gate(port, name)


@task(backend="loop")
async def ignore_cancels(port: int) -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await apass_gate(port, "running")
    return "done all the same"


@task(backend="loop")
async def raise_in_subtask(error: str) -> str:
    async def fail() -> None:
        raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[error]

    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        await asyncio.create_task(fail())
    return "still here"


@task(backend="loop")
async def cancel_all() -> None:
    for each in asyncio.all_tasks():
        each.cancel()


@task(backend="loop")
async def stop_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "still here"


@task(backend="loop")
async def wait_in_sync_code() -> int:
    """A sync call that waits for a task which needs a thread as well."""

    def wait() -> int:
        return add.using(backend="loop").enqueue(1, 2).wait()

    return await sync_to_async(wait)()


@task(backend="loop")
def wait_as_function(depth: int) -> int:
    if depth == 0:
        return 0
    again: LocalTask[[int], Any] = wait_as_function
    deeper: int = again.enqueue(depth - 1).wait()
    return deeper + 1


@task(backend="loop")
async def await_function(depth: int) -> int:
    return await wait_as_function.enqueue(depth)


@task(backend="loop", timeout=0.05)
async def run_out_of_time(port: int) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await apass_gate(port, "finally")


@task(backend="loop")
async def leave_subtask(port: int) -> None:
    """What it starts goes on without it."""

    async def stay() -> None:
        try:
            await apass_gate(port, "left")
        finally:
            await asyncio.sleep(0)
            await apass_gate(port, "cleaned up")

    _left.append(asyncio.create_task(stay()))


@task(backend="loop")
async def leave_subtask_that_uses_the_orm(port: int) -> None:
    async def stay() -> None:
        await apass_gate(port, "left")
        await sync_to_async(_count_and_tell_of_close)(port)

    _left.append(asyncio.create_task(stay()))


_left: list[asyncio.Task[None]] = []


def _count_and_tell_of_close(port: int) -> int:
    """Use the database, and tell at a gate when the connection is closed."""
    close = connection.close

    def close_and_tell() -> None:
        was_open = connection.connection is not None
        close()
        if was_open:
            pass_gate(port, "closed")

    vars(connections[DEFAULT_DB_ALIAS])["close"] = close_and_tell
    return Session.objects.count()


@task(backend="loop")
async def where_two_calls_run() -> list[str]:
    return [await sync_to_async(here)(), await sync_to_async(here)()]


@task(backend="loop")
async def walk(port: int) -> int:
    """Go through rows, and wait in the middle of them."""
    count = 0
    async for _ in Session.objects.aiterator(chunk_size=1):
        count += 1
        if count == 1:
            await apass_gate(port, "walking")
    return count


@task(backend="loop")
async def count_by_orm_alone() -> int:
    return await Session.objects.acount()


@task(backend="loop")
def await_function_in_function(depth: int) -> int:
    if depth == 0:
        return 0
    again: LocalTask[[int], Any] = await_function_in_function

    async def deeper() -> int:
        below: int = await again.enqueue(depth - 1)
        return below + 1

    return async_to_sync(deeper)()


@task(backend="loop")
async def await_function_in_sync_code() -> int:
    return await sync_to_async(await_function_in_function.func)(2)


@task(
    backend="loop",
    max_attempts=2,
    backoff=lambda error, result: 0 if here().startswith("django-tasks") else None,
)
async def cancel_itself_and_fail() -> None:
    this = asyncio.current_task()
    assert this is not None
    this.cancel()
    raise ValueError("its own")
