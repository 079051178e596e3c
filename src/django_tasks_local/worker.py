"""What surrounds the user's function, wherever it runs."""

import pickle
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from functools import lru_cache
from inspect import iscoroutinefunction
from traceback import format_exception
from types import MappingProxyType, TracebackType
from typing import Any

from asgiref.sync import SyncToAsync, async_to_sync
from django.db import connections
from django.utils.module_loading import import_string

from .backoff import Backoff
from .context import LocalTaskContext, close_context, enter_task, open_context
from .errors import TaskCancelled, WorkerLost, path_of
from .interruption import InterruptibleCall
from .json_text import decode_arguments, encode_value
from .logs import log_exception
from .options import is_duration
from .protocols import TaskHost
from .records import ErrorRecord, Outcome, Record, Refusal, apply_outcome
from .results import handle_of
from .task_registry import find_function

__all__ = [
    "ask_backoff",
    "close_connections",
    "close_old_connections",
    "error_record",
    "is_async",
    "lost_outcome",
    "refusal_of",
    "run_task",
    "stopped_outcome",
]


_LONGEST_TRACEBACK = 100_000
_OURS = {__name__, InterruptibleCall.__module__}
_NOTHING: Mapping[str, bytes] = MappingProxyType({})


def run_task(
    record: Record,
    /,
    *,
    host: TaskHost,
    function: Callable[..., Any] | None = None,
    context: Context,
    carried: Mapping[str, bytes] = _NOTHING,
    backoff: Backoff | None = None,
    interruptible: InterruptibleCall | None = None,
) -> Outcome:
    """Run a task's function on this thread and say what came of it.

    It runs in `context`, where the context variables of which `carried` has the
    pickled values are set first, by their dotted paths; `host` lends its slot while it
    waits for another task. Without a `function` the task's path is imported. Whatever
    the function raises is recorded: nothing raised comes out of here, `SystemExit` and
    `KeyboardInterrupt` included, for both would otherwise end a worker that serves
    other tasks. `backoff` is asked about another attempt when this one fails;
    `interruptible` is how it can be stopped meanwhile.
    """
    value = failure = error = metadata = None
    task_context: LocalTaskContext | None = None
    further: tuple[ErrorRecord, ...] = ()
    if record.task.takes_context:
        task_context = open_context(handle_of(record), host)
    try:
        value = context.run(
            _call, record, host, function, carried, task_context, interruptible
        )
    except BaseException as err:
        failure, error = err, error_record(err)
    if task_context is not None:
        try:
            metadata = close_context(task_context)
        except BaseException as err:
            if failure is None:
                value, failure, error = None, err, error_record(err)
            else:
                further = (error_record(err),)
    outcome = Outcome(
        record.id, time.time(), value, error, metadata, further_errors=further
    )
    if (
        failure is not None
        and backoff is not None
        and not isinstance(failure, TaskCancelled)
    ):
        outcome = context.run(ask_backoff, backoff, failure, record, outcome)
    failure = None  # or it and this frame would keep each other
    return outcome


def ask_backoff(
    backoff: Backoff, error: BaseException, record: Record, outcome: Outcome, /
) -> Outcome:
    """The outcome of a failed attempt with what its backoff says about another one.

    Where it raises, or answers what is no number of seconds, its own error joins the
    task's, and there is no further attempt.
    """
    retry_after_s = None
    try:
        answer: object = backoff(error, handle_of(apply_outcome(record, outcome)))
        if is_duration(answer):
            retry_after_s = float(answer)  # plain data, whatever it was
        elif answer is not None:
            raise TypeError(
                f"The backoff of task {record.task.path} must return a number of "
                f"seconds, 0 or more, or None; it returned {answer!r}."
            )
    except BaseException as err:
        return outcome._replace(
            is_backoff_asked=True,
            further_errors=(*outcome.further_errors, error_record(err)),
        )
    return outcome._replace(is_backoff_asked=True, retry_after_s=retry_after_s)


def close_old_connections() -> None:
    """Care for this thread's database connections, as is done after a request.

    After each task; before one there is nothing to care for, since a worker that
    rests holds none.
    """
    for connection in connections.all(initialized_only=True):
        try:
            if connection.in_atomic_block:
                # A transaction that a task left open is not the next task's. Django
                # would keep its state, so the next task gets another connection.
                connection.close()
                del connections[connection.alias]
            else:
                connection.close_if_unusable_or_obsolete()
        except Exception:  # a driver's, of a connection that is already broken
            log_exception("A database connection could not be closed")


def close_connections() -> None:
    """Close this thread's database connections."""
    for connection in connections.all(initialized_only=True):
        try:
            connection.close()
        except Exception:  # as above
            log_exception("A database connection could not be closed")


def lost_outcome(result_id: str, reason: str, /) -> Outcome:
    """What is recorded of an attempt whose worker did not live to say it."""
    return stopped_outcome(result_id, WorkerLost(reason))


def stopped_outcome(result_id: str, error: BaseException, /) -> Outcome:
    """What is recorded of an attempt that was ended from outside."""
    path = path_of(type(error))
    return Outcome(
        result_id, time.time(), None, ErrorRecord(path, f"{path}: {error}\n")
    )


def _call(
    record: Record,
    host: TaskHost,
    function: Callable[..., Any] | None,
    carried: Mapping[str, bytes],
    task_context: LocalTaskContext | None,
    interruptible: InterruptibleCall | None,
) -> str:
    enter_task(host, record.id, record.alias)
    for path, value in carried.items():
        _find_variable(path).set(pickle.loads(value))
    _leave_the_enqueuers_loop()
    run: Callable[..., Any] = function or find_function(record.task)
    args, kwargs = decode_arguments(record.arguments)
    if task_context is not None:
        args.insert(0, task_context)
    if interruptible is None:
        value = (async_to_sync(run) if is_async(run) else run)(*args, **kwargs)
    elif is_async(run):
        value = interruptible.run_coroutine(run, args, kwargs)
    else:
        value = interruptible.run_function(run, args, kwargs)
    try:
        return encode_value(value)
    except TypeError as err:
        raise TypeError(
            f"Task {record.task.path} returned a value that is not JSON: {err}"
        ) from err


@lru_cache(maxsize=1024)
def _find_variable(path: str) -> ContextVar[Any]:
    variable: ContextVar[Any] = import_string(path)  # the settings' check has seen it
    return variable


is_async: Callable[[Callable[..., Any]], bool] = lru_cache(maxsize=1024)(
    iscoroutinefunction
)
"""Whether a function is a coroutine function."""


def _leave_the_enqueuers_loop() -> None:
    """Forget what the enqueuer's context says about the loop that it runs on.

    asgiref would send this task's sync calls to the thread of a request that may be
    over; sniffio would name a library that does not run on this thread.
    """
    if SyncToAsync.thread_sensitive_context.get(None) is not None:
        # asgiref asks for its value with a default of None.
        SyncToAsync.thread_sensitive_context.set(None)  # type: ignore[arg-type]
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        sniffio.current_async_library_cvar.set(None)


def error_record(error: BaseException, /) -> ErrorRecord:
    """An exception as plain data: its class's path and its traceback's text."""
    try:
        kind = type(error)
        path = path_of(kind)
        text = "".join(
            format_exception(kind, error, _past_this_module(error.__traceback__))
        )
    except BaseException as err:  # what an exception says of itself is its own code
        path = "builtins.BaseException"
        text = (
            f"An exception that cannot be shown: to ask about it raises "
            f"{type(err).__qualname__}.\n"
        )
    return ErrorRecord(path, _shortened(text))


def refusal_of(error: BaseException, /) -> Refusal:
    """What a worker process is told where its request raised."""
    return Refusal(path_of(type(error)), str(error))


def _past_this_module(traceback: TracebackType | None) -> TracebackType | None:
    frames = traceback
    while frames is not None and frames.tb_frame.f_globals["__name__"] in _OURS:
        frames = frames.tb_next
    return frames or traceback


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_TRACEBACK:
        return text
    half = _LONGEST_TRACEBACK // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"
