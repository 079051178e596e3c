"""Tasks that run on Dask workers, which import them."""

import asyncio
import os
from pathlib import Path
from typing import Any

from django.tasks import task_backends

from django_tasks_local import LocalTaskContext, task
from django_tasks_local.backoff import fixed

from .gates import LONG_S, apass_gate, pass_gate
from .tasks import add, colour

ALIAS = "dask"


@task(takes_context=True)
def tell(context: LocalTaskContext, port: int) -> dict[str, Any]:
    """Report, stand at a gate, and tell what the worker is."""
    context.metadata["step"] = "größe 🧵"
    context.save_metadata()
    pass_gate(port)
    context.metadata["step"] = "over"
    return {"pid": os.getpid(), "attempt": context.attempt, "colour": colour.get()}


@task(takes_context=True)
def be_asked(context: LocalTaskContext, port: int) -> str:
    """Stand at a gate again and again, until it is asked to stop."""
    while True:
        pass_gate(port)
        context.checkpoint()


@task
async def sleep_for_ever(port: int) -> None:
    await apass_gate(port)
    await asyncio.Event().wait()


@task
def add_by_another(a: int, b: int) -> list[int]:
    """Has another task add, and one more, and waits for both."""
    first = add.using(backend=ALIAS).enqueue(a, b)
    looked_up = task_backends[ALIAS].get_result(first.id)
    assert looked_up == first
    second = add.using(backend=ALIAS).enqueue(first.wait(LONG_S), b)
    return [first.wait(), second.wait(LONG_S)]


@task
async def add_by_another_async(a: int, b: int) -> int:
    handle = await add.using(backend=ALIAS).aenqueue(a, b)
    return await handle


@task
def length(text: str) -> int:
    return len(text)


def _note(path: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


@task
def note_and_hold(path: str, port: int, name: object = "") -> object:
    """Write down that it has begun, then stand at a gate."""
    _note(path)
    pass_gate(port, name)
    return name


@task(max_attempts=2, backoff=fixed(0))
def note_and_hold_twice(path: str, port: int) -> int:
    _note(path)
    pass_gate(port, os.getpid())
    return os.getpid()
