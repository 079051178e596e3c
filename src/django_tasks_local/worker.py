"""What surrounds the user's function, wherever it runs."""

import asyncio
import pickle
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import lru_cache
from inspect import iscoroutinefunction
from traceback import format_exception
from types import MappingProxyType, TracebackType
from typing import Any

from asgiref.sync import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
)
from django.utils.module_loading import import_string
from typing_extensions import TypeIs

from .backoff import Backoff
from .connections import close_connections, close_old_connections, tidy_connections
from .context import LocalTaskContext, close_context, enter_task, open_context
from .errors import TaskCancelled, WorkerLost, path_of
from .interruption import InterruptibleCall, InterruptibleCoroutine
from .json_text import decode_arguments, encode_value
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
    "is_awaited_by_a_thread",
    "lost_outcome",
    "refusal_of",
    "run_coroutine_task",
    "run_task",
    "stopped_outcome",
    "tidy_connections",
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
    task_context = _open_context(record, host)
    value = failure = None
    try:
        value = context.run(
            _call, record, host, function, carried, task_context, interruptible
        )
    except BaseException as err:
        failure = err
    outcome, failure = _outcome(record, value, failure, task_context)
    if backoff is not None and _may_run_again(failure):
        outcome = context.run(ask_backoff, backoff, failure, record, outcome)
    failure = None  # or it and this frame would keep each other
    return outcome


async def run_coroutine_task[C: InterruptibleCoroutine](
    record: Record,
    /,
    *,
    host: TaskHost,
    function: Callable[..., Coroutine[Any, Any, Any]],
    thread_context: ThreadSensitiveContext,
    backoff: Backoff | None,
    interruptible: C,
    done: Callable[[C, Outcome], None],
) -> None:
    """As `run_task`, in the asyncio task that is running, and in its context.

    `done` is called with `interruptible` and the outcome. What the function calls
    through `sync_to_async`, as the ORM does, goes to the thread of `thread_context`;
    the backoff is called there too.
    """
    task_context = value = failure = None
    try:
        task_context = _open_context(record, host)
        enter_task(host, record.id, record.alias)
        _leave_the_enqueuers_loop(thread_context)
        interruptible.begin()
        value = _as_text(record, await _coroutine(record, function, task_context))
    except BaseException as err:
        failure = err
    failure = interruptible.end(failure)
    outcome, failure = _outcome(record, value, failure, task_context)
    if backoff is not None and _may_run_again(failure):
        outcome = await _ask_in_thread(
            thread_context, backoff, failure, record, outcome
        )
    failure = None  # as above
    done(interruptible, outcome)


async def _ask_in_thread(
    thread_context: ThreadSensitiveContext,
    backoff: Backoff,
    failure: BaseException,
    record: Record,
    outcome: Outcome,
) -> Outcome:
    """As `ask_backoff`, which may block, or use the ORM."""
    context = copy_context()
    try:
        asked = asyncio.get_running_loop().run_in_executor(
            SyncToAsync.context_to_thread_executor[thread_context],
            lambda: context.run(ask_backoff, backoff, failure, record, outcome),
        )
        while not asked.done():
            with suppress(asyncio.CancelledError):  # others may cancel any task
                await asyncio.shield(asked)
        return asked.result()
    except BaseException as err:  # no thread does it
        return outcome._replace(
            is_backoff_asked=True,
            further_errors=(*outcome.further_errors, error_record(err)),
        )


def is_awaited_by_a_thread() -> bool:
    """Whether this runs inside `async_to_sync`, for which a thread waits."""
    return getattr(AsyncToSync.executors, "current", None) is not None


def _open_context(record: Record, host: TaskHost) -> LocalTaskContext | None:
    if not record.task.takes_context:
        return None
    return open_context(handle_of(record), host)


def _outcome(
    record: Record,
    value: str | None,
    failure: BaseException | None,
    task_context: LocalTaskContext | None,
) -> tuple[Outcome, BaseException | None]:
    """What came of an attempt, and the exception if one did."""
    error = None if failure is None else error_record(failure)
    metadata = None
    further: tuple[ErrorRecord, ...] = ()
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
    return outcome, failure


def _may_run_again(failure: BaseException | None) -> TypeIs[BaseException]:
    return failure is not None and not isinstance(failure, TaskCancelled)


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
    _leave_the_enqueuers_loop(None)
    run: Callable[..., Any] = function or find_function(record.task)
    args, kwargs = _arguments(record, task_context)
    if interruptible is None:
        value = (async_to_sync(run) if is_async(run) else run)(*args, **kwargs)
    elif is_async(run):
        value = interruptible.run_coroutine(run, args, kwargs)
    else:
        value = interruptible.run_function(run, args, kwargs)
    return _as_text(record, value)


def _coroutine(
    record: Record,
    function: Callable[..., Coroutine[Any, Any, Any]],
    task_context: LocalTaskContext | None,
) -> Coroutine[Any, Any, Any]:
    args, kwargs = _arguments(record, task_context)
    return function(*args, **kwargs)


def _arguments(
    record: Record, task_context: LocalTaskContext | None
) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = decode_arguments(record.arguments)
    if task_context is not None:
        args.insert(0, task_context)
    return args, kwargs


def _as_text(record: Record, value: object) -> str:
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


def _leave_the_enqueuers_loop(thread_context: ThreadSensitiveContext | None) -> None:
    """Forget what the enqueuer's context says about the loop that it runs on.

    asgiref would send this task's sync calls to the thread of a request that may be
    over; sniffio would name a library that does not run on this thread.
    """
    if SyncToAsync.thread_sensitive_context.get(None) is not thread_context:
        # asgiref asks for its value with a default of None.
        SyncToAsync.thread_sensitive_context.set(thread_context)  # type: ignore[arg-type]
    # And to a thread that waits in `async_to_sync`, before all else. It may not be seen
    # here yet: asgiref brings it along when the task's first call moves threads.
    AsyncToSync.executors.current = None
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None and sniffio.current_async_library_cvar.get() is not None:
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
