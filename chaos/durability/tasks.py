"""The tasks, each of whose attempts leaves a line when it begins and one at its end."""

import os
import time

from django_tasks_local import LocalTaskContext, task

from .settings import LEDGER

__all__ = ["LINE", "TASKS", "FirstAttemptFailed", "value_of"]

LINE = 128
"""The bytes of a line in the ledger.

All have as many, and as many of them make a page. For a write that goes on to another
page may be cut off there by SIGKILL.
"""


class FirstAttemptFailed(Exception):
    """What `fail_first` raises."""


def value_of(token: str) -> str:
    """What a task that was given this token returns."""
    return token[::-1]


@task(takes_context=True)
def run_once(context: LocalTaskContext, token: str, pause_s: float) -> str:
    return _run(context, token, pause_s)


@task(takes_context=True, max_attempts=2, backoff=lambda error, result: 0.0)
def run_twice(context: LocalTaskContext, token: str, pause_s: float) -> str:
    """Run again if the first attempt is lost."""
    return _run(context, token, pause_s)


@task(takes_context=True, max_attempts=2, backoff=lambda error, result: 0.02)
def fail_first(context: LocalTaskContext, token: str, pause_s: float) -> str:
    """Run again in any case."""
    return _run(context, token, pause_s, fails=context.attempt == 1)


def _run(
    context: LocalTaskContext, token: str, pause_s: float, *, fails: bool = False
) -> str:
    _note("begin", context)
    time.sleep(pause_s)
    if fails:
        raise FirstAttemptFailed(token)
    _note("end", context)
    return value_of(token)


def _note(what: str, context: LocalTaskContext) -> None:
    line = f"{what} {context.task_result.id} {context.attempt}"
    file = os.open(LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{line:<{LINE - 1}}\n".encode())
    finally:
        os.close(file)


TASKS = {task.name: task for task in (run_once, run_twice, fail_first)}
