"""The tasks: each returns what it was given, and nobody else was."""

import time

from django_tasks_local import TaskFailed, task


@task
def echo(token: str, pause_s: float) -> str:
    time.sleep(pause_s)
    return token


@task
def relay(token: str, pause_s: float) -> list[str | None]:
    """The id of a task of its own, and what that returned; None if it was lost."""
    handle = echo.enqueue(token, pause_s)
    try:
        return [handle.id, handle.wait()]
    except TaskFailed:
        return [handle.id, None]
