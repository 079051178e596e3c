"""Tasks that are deferred and tried again; worker processes import them too."""

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import django
from django.tasks import TaskResult
from django.tasks import task as djangos_task

from django_tasks_local import LocalTaskContext, task
from django_tasks_local.backoff import fixed

from .gates import apass_gate, pass_gate
from .tasks import ERRORS, add, colour

HOUR_S = 3600.0


class Noted(Exception):
    """Known as this very object by what only a live exception has."""

    def __init__(self, attempt: int) -> None:
        super().__init__("noted")
        self.attempt = attempt
        self.lock = threading.Lock()


# Backoffs.


def at_once(error: BaseException, task_result: "TaskResult[..., Any]") -> float:
    return 0


def note(error: BaseException, task_result: "TaskResult[..., Any]") -> float:
    """Write down what a backoff is given, in the file that its task is given."""
    seen = {
        "pid": os.getpid(),
        "error": type(error).__name__,
        "text": str(error),
        "attempt": getattr(error, "attempt", None),
        "status": task_result.status.value,
        "attempts": task_result.attempts,
        "errors": [each.exception_class_path for each in task_result.errors],
        "worker_ids": task_result.worker_ids,
    }
    with Path(task_result.args[0]).open("a") as file:
        file.write(json.dumps(seen) + "\n")
    return 0


def fail_as_asked(error: BaseException, task_result: "TaskResult[..., Any]") -> Any:
    return ANSWERS[task_result.args[0]]()


def _divide() -> float:
    return 1 / 0


def _exit() -> float:
    raise SystemExit(3)


ANSWERS: dict[str, Callable[[], Any]] = {
    "text": lambda: "soon",
    "negative": lambda: -1,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "bool": lambda: True,
    "list": lambda: [1],
    "raises": _divide,
    "exits": _exit,
}


# Tasks.


@task
def defer_add(alias: str, at: float) -> str:
    """A task that defers another; its result is for the one who enqueued this."""
    run_after = datetime.fromtimestamp(at, UTC)
    return add.using(backend=alias, run_after=run_after).enqueue(1, 2).id


@task(takes_context=True, max_attempts=5, backoff=fixed(0))
def fail_until(context: LocalTaskContext, attempt: int) -> int:
    if context.attempt < attempt:
        raise ValueError(f"attempt {context.attempt}")
    return context.attempt


@task(takes_context=True)
def fail_until_by_default(context: LocalTaskContext, attempt: int) -> int:
    return fail_until.func(context, attempt)


@task(takes_context=True, max_attempts=5, backoff=fixed(0))
async def fail_until_async(context: LocalTaskContext, attempt: int) -> int:
    return fail_until.func(context, attempt)


@task(takes_context=True, max_attempts=2, backoff=lambda error, task_result: 0)
def fail_until_with_lambda(context: LocalTaskContext, attempt: int) -> int:
    return fail_until.func(context, attempt)


@task(takes_context=True, max_attempts=2, backoff=fixed(0))
def fail_at_first(context: LocalTaskContext, port: int) -> int:
    """Fail, after a gate, at the first attempt."""
    if context.attempt == 1:
        pass_gate(port)
        raise ValueError("first attempt")
    return context.attempt


@task(max_attempts=2, backoff=fixed(HOUR_S))
def fail_for_an_hour() -> None:
    raise ValueError("try again later")


@task(max_attempts=2, backoff=fixed(HOUR_S))
def hold_and_fail_for_an_hour(port: int) -> None:
    pass_gate(port)
    raise ValueError("try again later")


@task(max_attempts=5, backoff=fixed(0))
def hold_with_attempts(port: int) -> None:
    pass_gate(port)


@task(takes_context=True, max_attempts=4, backoff=note)
def fail_noted(context: LocalTaskContext, path: str) -> None:
    raise Noted(context.attempt)


@task(max_attempts=1, backoff=note)
def fail_only_once(path: str) -> None:
    raise ValueError("once")


@task(max_attempts=5, backoff=lambda error, task_result: None)
def fail_for_good() -> None:
    raise ValueError("for good")


@task(max_attempts=5, backoff=fail_as_asked)
def fail_with_answer(answer: str) -> None:
    raise ValueError("wrong value")


@task(takes_context=True, max_attempts=2, backoff=note)
def die_at_first(context: LocalTaskContext, path: str) -> int:
    if context.attempt == 1:
        os._exit(3)
    return context.attempt


@task(takes_context=True, max_attempts=20, backoff=note, timeout=0.3)
async def stay_at_first(context: LocalTaskContext, path: str, port: int) -> int:
    if context.attempt == 1:
        await apass_gate(port)
    return context.attempt


@task(takes_context=True, max_attempts=3, backoff=fixed(0))
def see_and_set_colour(context: LocalTaskContext) -> str:
    seen = colour.get()
    colour.set("an attempt's")
    if context.attempt < 3:
        raise ValueError(seen)
    return seen


@task(takes_context=True, max_attempts=2, backoff=fixed(0))
def raise_at_first(context: LocalTaskContext, kind: str) -> int:
    if context.attempt == 1:
        error = ERRORS[kind]()
        raise error
    return context.attempt


if django.VERSION >= (6, 1):
    # Its stubs do not know of keywords for the backend.
    untyped_task: Any = djangos_task

    @untyped_task(takes_context=True, max_attempts=3, backoff=fixed(0))  # type: ignore[untyped-decorator]  # as said
    def fail_until_djangos(context: LocalTaskContext, attempt: int) -> int:
        return fail_until.func(context, attempt)
