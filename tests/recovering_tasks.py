"""Tasks that end with their process, and begin again in another one."""

import asyncio
import os
from pathlib import Path
from typing import NoReturn

from django_tasks_local import LocalTaskContext, task
from django_tasks_local.options import LocalOptions
from django_tasks_local.protocols import WorkerHost

from .gates import pass_gate


@task(max_attempts=2, backoff=lambda error, result: 0.0)
def hold_twice(port: int) -> int:
    pass_gate(port)
    return os.getpid()


@task
def note(path: str, text: str) -> None:
    """Write a line that no other writer's can come into."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


@task(takes_context=True)
def hold_until_asked(context: LocalTaskContext, port: int) -> None:
    """Stand at a gate, and then look whether it is asked to stop."""
    while True:
        pass_gate(port)
        context.checkpoint()


@task
async def sleep_for_ever(port: int) -> None:
    await asyncio.to_thread(pass_gate, port)
    await asyncio.Event().wait()


@task(takes_context=True)
def tell_and_hold(context: LocalTaskContext, port: int) -> str:
    pass_gate(port)
    context.metadata["step"] = 1
    context.save_metadata()
    pass_gate(port)
    return "told"


def no_executor(options: LocalOptions, /, *, host: WorkerHost) -> NoReturn:
    """For ``OPTIONS["EXECUTOR"]`` of a process that can run nothing."""
    raise RuntimeError("There is no executor here.")
