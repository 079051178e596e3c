"""What coroutines do with tasks, and tasks that do it; worker processes import them."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

import anyio
from django.tasks import task_backends

from django_tasks_local import (
    LocalTaskContext,
    TaskFailed,
    as_completed,
    task,
    wait,
)
from django_tasks_local.backoff import fixed
from django_tasks_local.results import to_handle

from .blocking import noting_blocking_calls
from .gates import LONG_S, apass_gate
from .leftovers import objects_and_memory_blocks
from .tasks import add, async_add


@task
async def stand_still() -> None:
    await asyncio.Event().wait()


@task(max_attempts=2, backoff=fixed(0), takes_context=True)
async def succeed_late(context: LocalTaskContext) -> int:
    if context.attempt == 1:
        raise ValueError("once more")
    return context.attempt


@task(takes_context=True)
async def report(context: LocalTaskContext) -> str:
    for number in range(5):
        await context.areport_progress(number, 5)
    context.metadata["reported"] = True
    await context.asave_metadata()
    return "reported"


@task
async def time_out_often(alias: str, result_id: str, count: int) -> tuple[int, int]:
    """By how many objects and pieces of memory waiting in vain grows this process."""
    handle = to_handle(await task_backends[alias].aget_result(result_id))
    before = 0, 0
    for times in (10, count):
        before = objects_and_memory_blocks()
        for _ in range(times):
            for seconds in (0, 0.0001):
                with suppress(TimeoutError):
                    await handle.ajoin(seconds)
            async with aclosing(handle.watch()) as changes:
                with anyio.move_on_after(0):
                    await anext(changes)
    now = objects_and_memory_blocks()
    return now[0] - before[0], now[1] - before[1]


_standing: list[asyncio.Future[None]] = []


@task(backend="loop")
async def stand_until_let_go() -> None:
    here: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _standing.append(here)
    await here


@task(backend="loop")
async def let_all_go() -> int:
    count = len(_standing)
    while _standing:
        _standing.pop().set_result(None)
    return count


@task
async def gather_standing(count: int, port: int) -> int:
    """Wait for so many at once; then say at the gate which process this is."""
    handles = await stand_until_let_go.aenqueue_many([((), {})] * count)
    waiting = asyncio.gather(*handles)
    await asyncio.sleep(0)
    await handles[0].arefresh()  # what was said before that has been heard
    await apass_gate(port, os.getpid())
    return len(await waiting)


async def use_everything(alias: str) -> list[object]:
    """All that a coroutine may do with an alias's tasks; what came of it."""
    seen: list[object] = []
    for plain in (add, async_add):
        handle = await plain.using(backend=alias).aenqueue(1, 2)
        found = await plain.using(backend=alias).aget_result(handle.id)
        await found.arefresh()
        await handle.ajoin(LONG_S)
        values: list[int] = [await handle, await found, await wait(found, LONG_S)]
        seen += values
    handles = await add.using(backend=alias).aenqueue_many(
        [((number,), {"b": 1}) for number in range(3)]
    )
    seen += sorted([done.return_value async for done in as_completed(handles, LONG_S)])
    endless = await stand_still.using(backend=alias).aenqueue()
    for seconds in (0, 0.001):
        try:
            await endless.ajoin(seconds)
        except TimeoutError:
            seen.append("TimeoutError")
    async with aclosing(endless.watch()) as changes:
        with anyio.move_on_after(0.001):
            while True:
                await anext(changes)
    seen.append(await endless.acancel(wait=True))
    try:
        await endless
    except TaskFailed as err:
        seen.append(err.exception_class_path)
    seen.append(await (await succeed_late.using(backend=alias).aenqueue()))
    reporting = await report.using(backend=alias).aenqueue()
    changes_seen = [change async for change in reporting.watch()]
    seen += [changes_seen[-1].return_value, changes_seen[-1].metadata["reported"]]
    return seen


ALL_OF_IT: list[object] = [
    *(3, 3, 3) * 2,
    *(1, 2, 3),
    *["TimeoutError"] * 2,
    *(True, "django_tasks_local.errors.TaskCancelled"),
    *(2, "reported", True),
]


@task
async def use_everything_as_task(aliases: Sequence[str]) -> list[list[Any]]:
    """Also what blocked the loop meanwhile, by its stack."""
    with noting_blocking_calls() as noted:
        seen = [await use_everything(alias) for alias in aliases]
    return [*seen, noted]
