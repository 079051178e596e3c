"""Django's task signals, sent so that no receiver can harm a task.

Each `Signal.send` takes the signal's lock, and threads that contend for a lock change
places at every use of it from then on: with two workers that took more time than all
else about a small task. Where only Django's own receiver is connected, the one that
logs, it is called directly.
"""

import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from django.dispatch import Signal
from django.tasks.base import TaskResult
from django.tasks.signals import (
    log_task_enqueued,
    log_task_finished,
    log_task_started,
    task_enqueued,
    task_finished,
    task_started,
)

from .async_bridge import is_in_trio
from .logs import log_exception, reaches_nobody

__all__ = [
    "asend",
    "has_only_djangos_receiver",
    "has_receivers_of_a_project",
    "is_heard",
    "send",
    "task_enqueued",
    "task_finished",
    "task_started",
]

_djangos_logger = logging.getLogger("django.tasks")

_FAILURE = "TASKS[%r]: a receiver failed for result %s"

_DJANGOS_RECEIVERS: dict[Signal, Callable[..., None]] = {
    task_enqueued: log_task_enqueued,
    task_started: log_task_started,
    task_finished: log_task_finished,
}
# How the signals keep them: seen once, found again at a glance.
_djangos_entries: dict[Signal, object] = {}
_DJANGOS_LEVELS = {
    task_enqueued: logging.DEBUG,
    task_started: logging.INFO,
    task_finished: logging.INFO,
}


def has_only_djangos_receiver(signal: Signal, /) -> bool:
    """Whether nobody but Django itself listens to one of its task signals."""
    receivers = signal.receivers
    if len(receivers) != 1:
        return False
    receiver = receivers[0]
    if receiver is _djangos_entries.get(signal):
        return True
    # An entry begins with its look-up key: the ids of the receiver and the sender.
    receiver_id: int = receiver[0][0]
    if receiver_id != id(_DJANGOS_RECEIVERS[signal]):
        return False
    _djangos_entries[signal] = receiver
    return True


def has_receivers_of_a_project() -> bool:
    """Whether others than Django itself listen to how tasks go on."""
    return not (
        (has_only_djangos_receiver(task_started) or not task_started.receivers)
        and (has_only_djangos_receiver(task_finished) or not task_finished.receivers)
    )


def is_heard(signal: Signal, /, *, has_failed: bool = False) -> bool:
    """Whether sending makes a difference to anybody: a receiver, or Django's log."""
    if not has_only_djangos_receiver(signal):
        return bool(signal.receivers)
    level = logging.ERROR if has_failed else _DJANGOS_LEVELS[signal]
    return not reaches_nobody(_djangos_logger, level)


def send(signal: Signal, sender: type, result: "TaskResult[..., Any]", /) -> None:
    """Send one of Django's task signals. What a receiver raises is logged.

    Whatever it is, but for KeyboardInterrupt, which is the user's.
    """
    try:
        if has_only_djangos_receiver(signal):
            _DJANGOS_RECEIVERS[signal](signal=signal, sender=sender, task_result=result)
        else:
            signal.send_robust(sender, task_result=result)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a receiver's, or a log handler's: the task must go on
        log_exception(_FAILURE, result.backend, result.id)


async def asend(
    signal: Signal, sender: type, result: "TaskResult[..., Any]", /
) -> None:
    """The same on an event loop, so that receivers may be async or use the ORM."""
    try:
        if is_in_trio():  # where Django's own way does not work
            await anyio.to_thread.run_sync(send, signal, sender, result)
        else:
            await signal.asend_robust(sender, task_result=result)
    except (KeyboardInterrupt, GeneratorExit, anyio.get_cancelled_exc_class()):
        raise
    except BaseException:  # as above
        log_exception(_FAILURE, result.backend, result.id)
