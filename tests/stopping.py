"""Tasks that are stopped, and how to stop them; worker processes import them too."""

import asyncio
import itertools
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any, Never

from django.tasks import TaskResult, TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist

from django_tasks_local import (
    LocalTask,
    LocalTaskContext,
    LocalTaskResult,
    TaskTimeout,
    current_result_id,
    task,
)

from .gates import LONG_S, Gate, apass_gate, pass_gate
from .tasks import ERRORS, add, count_sessions_and_tell, hold


def limited[**P, R](
    task: LocalTask[P, R], seconds: float, backend: str
) -> LocalTask[P, R]:
    """The same task with a time limit."""
    return replace(task, timeout=seconds, backend=backend)


def error_names(result: "TaskResult[..., Any]") -> list[str]:
    """What its attempts raised."""
    return [error.exception_class.__name__ for error in result.errors]


def ran_in(handle: LocalTaskResult[Any]) -> list[int]:
    """The processes of its attempts."""
    return [int(worker_id.split(":")[1]) for worker_id in handle.worker_ids]


def stored(handle: LocalTaskResult[Any]) -> "TaskResult[..., Any]":
    """The result as anybody would look it up."""
    return task_backends[handle.backend].get_result(handle.id)


def check_slots(alias: str, gate: Gate, count: int) -> None:
    """Have as many tasks stand at the gate at once as there are slots, and no more."""
    task = hold.using(backend=alias)
    handles = [task.enqueue(gate.port, name) for name in range(count + 1)]
    visitors = [gate.next_visitor() for _ in range(count)]
    handles[-1].refresh()
    assert handles[-1].status is TaskResultStatus.READY
    assert gate.is_deserted()
    for visitor in visitors:
        visitor.let_go()
    gate.next_visitor().let_go()
    assert [handle.wait(LONG_S) for handle in handles] == list(range(count + 1))


# Functions that do not end.


def spin() -> Never:
    while True:
        pass


@task
def spin_for_ever() -> None:
    spin()


@task
def count_for_ever() -> None:
    """In C, without ever letting go of the GIL."""
    sum(itertools.repeat(0))


@task
def sleep_for_ever() -> None:
    threading.Event().wait()


@task
def ignore_all_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


@task
def swallow_everything() -> None:
    while True:
        try:
            spin()
        except BaseException:
            continue


@task
async def await_for_ever() -> None:
    await asyncio.Event().wait()


@task
def wait_for_ever(alias: str, port: int) -> None:
    """For another task, which stands at a gate."""
    hold.using(backend=alias).enqueue(port, "inner").wait()


# Functions that have their own way to end.


@task
def hold_at_the_end(port: int) -> None:
    try:
        spin()
    finally:
        pass_gate(port, "finally")


@task
async def async_hold_at_the_end(port: int) -> None:
    try:
        await apass_gate(port, "inside")
    finally:
        await apass_gate(port, "finally")


@task
async def swallow_cancellation(port: int, value: str) -> str:
    with suppress(asyncio.CancelledError):
        await apass_gate(port, "inside")
    return value


@task
async def fail_when_cancelled(port: int) -> None:
    try:
        await apass_gate(port, "inside")
    except asyncio.CancelledError as err:
        raise ValueError("instead") from err


@task
def own_thread() -> int:
    return threading.get_native_id()


@task
def swallow_timeout() -> int:
    try:
        spin()
    except TaskTimeout:
        return threading.get_native_id()


@task
def use_database_for_ever(port: int) -> None:
    count_sessions_and_tell.func(port, is_persistent=True)
    spin()


@task
def work(amount: int) -> int:
    """Ordinary Python: loops, calls, exceptions, clean-up."""
    done = 0
    for number in range(amount):
        try:
            if number % 7 == 0:
                raise LookupError
            done += _step(number)
        except LookupError:
            done += 1
        finally:
            done += 0
    return done


def _step(number: int) -> int:
    return len(str(number)) // len(str(number))


@task(takes_context=True)
def use_the_library(context: LocalTaskContext, alias: str, count: int) -> int:
    """Ask the alias for one thing after another."""
    for number in range(count):
        handle = add.using(backend=alias).enqueue(number, 1)
        context.metadata = {"number": number}
        context.save_metadata()
        context.report_progress(number, count)
        add.using(backend=alias).get_result(handle.id)
        if number % 3 == 0:
            handle.cancel()
        elif number % 3 == 1:
            handle.wait(LONG_S)
    return count


# Ones that are asked to stop.


@task(takes_context=True)
def be_asked(context: LocalTaskContext, port: int, then: str) -> str:
    """Stand at a gate, then do something that a cancelled task may do."""
    pass_gate(port, context.cancel_requested)
    assert context.cancel_requested
    try:
        match then:
            case "checkpoint":
                context.checkpoint()
            case "save_metadata":
                context.metadata["seen"] = True
                context.save_metadata()
            case "report_progress":
                context.report_progress(1, 2)
            case "fail":
                error = ERRORS["ValueError"]()
                raise error
            case _:
                pass
    except Exception:
        if then == "fail":
            raise
        return "swallowed"
    return "returned"


# Ones that cancel.


@task
def cancel_it(alias: str, result_id: str, wait: bool) -> bool | str:
    backend: Any = task_backends[alias]
    try:
        accepted: bool = backend.cancel(result_id, wait=wait)
    except TaskResultDoesNotExist as err:
        return type(err).__name__
    return accepted


@task
async def acancel_it(alias: str, result_id: str, wait: bool) -> bool | str:
    result = await hold.using(backend=alias).aget_result(result_id)
    return await result.acancel(wait=wait)


@task(takes_context=True)
def cancel_oneself(context: LocalTaskContext, alias: str, wait: bool) -> str:
    backend: Any = task_backends[alias]
    try:
        backend.cancel(current_result_id.get(), wait=wait)
    except RuntimeError as err:
        return str(err)
    context.checkpoint()
    return "not stopped"


@task
async def acancel_oneself(alias: str, wait: bool) -> str:
    backend: Any = task_backends[alias]
    try:
        await backend.acancel(current_result_id.get(), wait=wait)
    except RuntimeError as err:
        return str(err)
    await asyncio.Event().wait()
    return "not stopped"
