"""Tasks that wait for what another process runs; worker processes import them too."""

import asyncio
from collections.abc import Callable
from typing import Any

from django.tasks import task_backends

from django_tasks_local import LocalTaskResult, as_completed, task
from django_tasks_local.foreign_results import aget_result
from django_tasks_local.results import to_handle

from .gates import LONG_S, pass_gate


def find(result_id: str) -> LocalTaskResult[Any]:
    return to_handle(task_backends["shared"].get_result(result_id))


async def afind(result_id: str) -> LocalTaskResult[Any]:
    return to_handle(await aget_result(task_backends["shared"], result_id))


@task
def wait_for(way: str, result_id: str) -> Any:
    """What a result of the shared alias comes to, waited for in that way."""
    return WAYS[way](result_id)


@task
def find_and_hold(result_id: str, port: int) -> None:
    """Look a result up, and do not wait for it."""
    handle = find(result_id)
    pass_gate(port)
    handle.refresh()


def _wait(result_id: str) -> Any:
    return find(result_id).wait(LONG_S)


def _watch(result_id: str) -> Any:
    return list(find(result_id).watch_sync())[-1].return_value


def _complete(result_id: str) -> Any:
    (done,) = as_completed([find(result_id)], LONG_S)
    return done.return_value


async def await_it(result_id: str) -> Any:
    return await (await afind(result_id))


async def watch_it(result_id: str) -> Any:
    handle = await afind(result_id)
    return [seen async for seen in handle.watch()][-1].return_value


async def complete_it(result_id: str) -> Any:
    handle = await afind(result_id)
    (done,) = [done async for done in as_completed([handle], LONG_S)]
    return done.return_value


WAYS: dict[str, Callable[[str], Any]] = {
    "wait": _wait,
    "watch_sync": _watch,
    "for": _complete,
    "await": lambda result_id: asyncio.run(await_it(result_id)),
    "watch": lambda result_id: asyncio.run(watch_it(result_id)),
    "async for": lambda result_id: asyncio.run(complete_it(result_id)),
}
