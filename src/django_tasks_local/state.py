"""The states of this process: one `ExecutorState` an alias, made at its first use.

All backend instances of an alias share it (Django makes one for each thread). And what
happens to all states when the settings change, when the process forks, and when it
ends.
"""

import atexit
import math
import os
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.tasks import task_backends
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

from .async_bridge import Completion, is_in_event_loop
from .context import is_running
from .executor_state import ExecutorState, Siblings
from .executors.processes import ProcessExecutor
from .executors.threads import ThreadExecutor
from .foreign_results import record_of
from .logs import log_warning
from .options import LocalOptions, parse_options
from .protocols import ExecutorFactory
from .records import Answer, CancelRequest, Enqueued, EnqueueRequest, GetRequest
from .results import LocalTaskResult
from .slots import Retired
from .task_registry import find_task
from .worker import refusal_of

__all__ = [
    "ExecutorState",
    "cancel",
    "drain",
    "find_unfinished",
    "get_executor_state",
    "open_state",
    "settings_generation",
    "shutdown_executor",
]

_END_S = 1.0  # for threads that have nothing left to do
_RELOAD_S = 0.1  # for all of it, where somebody waits for the new code
_NAMED_AT_MOST = 100

_lock = threading.Lock()
_states: dict[str, ExecutorState] = {}
_retired: set[ExecutorState] = set()


def open_state(alias: str, /, *, sender: type, options: LocalOptions) -> ExecutorState:
    """The alias's state in this process; the first call makes it.

    `sender` is that of its signals.
    """
    state = _states.get(alias)
    if state is None:
        _arm_exit()
        made = ExecutorState(
            alias=alias, sender=sender, options=options, siblings=_SIBLINGS
        )
        with _lock:  # decides whose state is the alias's
            state = _states.setdefault(alias, made)
        if state is not made:
            made.store.close()
    return state


def find_unfinished(alias: str, result_id: str, /) -> LocalTaskResult[Any] | None:
    """The handle of what waits or runs in this process.

    A task that began before the settings changed finds what was enqueued then.
    """
    for state in _all_states():
        if state.alias == alias and state.job(result_id) is not None:
            return state.get_result(result_id)
    return None


def _alias_of(name: str) -> str:
    """2.0 named states "tasks-<alias>"."""
    if name in _states or name in settings.TASKS:
        return name
    return name.removeprefix("tasks-")


_FACTORIES: dict[type[Executor], ExecutorFactory] = {
    ThreadPoolExecutor: ThreadExecutor,
    ProcessPoolExecutor: ProcessExecutor,
}


def get_executor_state(
    name: str,
    executor_class: type[Executor] | None = None,
    max_workers: int | None = None,
    max_results: int | None = None,
) -> ExecutorState:
    """The state of an alias in this process, made at the first call.

    `name` is the alias, or "tasks-<alias>" as in 2.0. The other arguments are 2.0's
    too, and count only where the call makes the state of an alias that the settings
    do not know: ``ThreadPoolExecutor`` and ``ProcessPoolExecutor`` stand for threads
    and processes. Raises InvalidTaskBackend for an unknown alias without them.
    """
    alias = _alias_of(name)
    state = _states.get(alias)
    if state is not None:
        return state
    if alias in settings.TASKS or executor_class is None:
        return _state_of(alias)
    factory = _FACTORIES[executor_class]
    options = {"MAX_WORKERS": max_workers or 10, "MAX_RESULTS": max_results or 1000}
    parsed = parse_options(
        alias,
        {"OPTIONS": options},
        backend_name="ExecutorState",
        default_max_workers=10,
        default_executor=factory,
        has_processes=factory is ProcessExecutor,
    )
    if isinstance(parsed, list):
        raise ValueError(parsed[0].message)
    return open_state(alias, sender=ExecutorState, options=parsed)


def _state_of(alias: str) -> ExecutorState:
    """The state of an alias of the settings.

    Its backend knows how to make it.
    """
    backend = task_backends[alias]
    state = getattr(backend, "state", None)
    if not isinstance(state, ExecutorState):
        raise TypeError(f"TASKS[{alias!r}] is a {type(backend).__name__}.")
    return state


def shutdown_executor(name: str, wait: bool = True) -> None:
    """End what an alias runs in this process; a later enqueue begins anew.

    New tasks are refused from now on, or rather begin a new state. With `wait`, blocks
    until those that are here have ended, for ``SHUTDOWN_TIMEOUT`` seconds at most:
    then those that still wait fail with WorkerLost, and worker processes are killed;
    one WARNING names what did not finish. Without it, or from a task of the same
    alias, that all comes to its end in the background, without a time limit. A name
    that has no state is no error. On an event loop's thread it does not wait. What
    another call, or a change of the settings, has begun to end is waited for too.
    """
    alias = _alias_of(name)
    with _lock:
        current = _states.pop(alias, None)
        if current is not None:
            _retired.add(current)
        ending = [state for state in _retired if state.alias == alias]
    if current is not None:
        patience_s = current.options.shutdown_timeout_s
        current.retire(runs_until=time.time() + patience_s)
    if not wait or is_running(alias) or is_in_event_loop():
        return
    begin = time.monotonic()
    for state in ending:
        left_s = begin + state.options.shutdown_timeout_s - time.monotonic()
        if not state.wait_until_idle(max(0.0, left_s)):
            _warn_of_unfinished(state.unfinished_ids(), "SHUTDOWN_TIMEOUT")
            state.drop_queued(
                f"TASKS[{alias!r}] was shut down before the task could run."
            )
            state.end(timeout_s=0.0)  # kills what it can
        state.end(timeout_s=_END_S)
        state.release()
        _forget(state)


def _warn_of_unfinished(ids: list[str], limit: str) -> None:
    if not ids:
        return
    named = ", ".join(ids[:_NAMED_AT_MOST])
    more = len(ids) - _NAMED_AT_MOST
    log_warning(
        "%d tasks did not finish before %s: %s%s",
        len(ids),
        limit,
        named,
        f" and {more} more" if more > 0 else "",
    )


# What a task in a worker process asks of this one.


def _serve(request: EnqueueRequest | GetRequest | CancelRequest) -> Answer:
    try:
        match request:
            case EnqueueRequest():
                return _enqueue_for_child(request)
            case GetRequest():
                return record_of(_get_for_child(request))
            case CancelRequest():
                return cancel(request.alias, request.result_id)
    except BaseException as err:  # the child's task gets it, whatever it is
        return refusal_of(err)


def _enqueue_for_child(request: EnqueueRequest) -> Enqueued:
    task = find_task(
        request.task, run_after=request.run_after, metadata=request.metadata
    )
    while True:
        state = _states.get(request.alias) or _state_of(request.alias)
        try:
            results = state.enqueue(task, request.task, request.arguments)
        except Retired:
            continue  # the alias has a new state, or gets one
        for result in results:
            result.refresh()  # what has ended already may be forgotten soon
        return Enqueued(tuple(map(record_of, results)))


def _get_for_child(request: GetRequest) -> LocalTaskResult[Any]:
    unfinished = find_unfinished(request.alias, request.result_id)
    if unfinished is not None:
        return unfinished
    state = _states.get(request.alias) or _state_of(request.alias)
    return state.get_result(request.result_id)


def cancel(alias: str, result_id: str, /) -> bool:
    """Cancel a task of this process; False where it is finished.

    Raises TaskResultDoesNotExist where its alias does not know it.
    """
    for state in _all_states():  # perhaps from before the settings changed
        if state.alias == alias and state.job(result_id) is not None:
            return state.cancel(result_id)
    return (_states.get(alias) or _state_of(alias)).cancel(result_id)


def _find_completion(alias: str, result_id: str) -> Completion | None:
    for state in _all_states():
        if state.alias == alias:
            job = state.job(result_id)
            if job is not None:
                return job
    return (_states.get(alias) or _state_of(alias)).find_completion(result_id)


def _forget(state: ExecutorState) -> None:
    with _lock:  # from now on the end of the process does not wait for it
        _retired.discard(state)


_SIBLINGS = Siblings(_serve, _find_completion, _forget)


# When the settings change.

_generation = 0


def settings_generation() -> int:
    """How often the ``TASKS`` setting has changed."""
    return _generation


def _retire_all(*, setting: str, **_: object) -> None:
    global _generation
    if setting == "TASKS":
        with _lock:
            _generation += 1
            states = list(_states.values())
            _states.clear()
            _retired.update(states)
        for state in states:
            state.retire(runs_until=time.time())


setting_changed.connect(_retire_all)


# When the process ends.

_is_exit_armed = False


def _arm_exit() -> None:
    """Have `drain` called when Python ends.

    `threading._register_atexit` runs hooks in reverse order of registration, before
    threads are joined. Ours has to run before that of `concurrent.futures.thread`,
    after which no task could use `async_to_sync` or an executor of its own; that module
    has been imported here for its names. The function is private: where it is gone,
    `atexit` alone has to do.
    """
    global _is_exit_armed
    with _lock:
        if _is_exit_armed:
            return
        _is_exit_armed = True
    # Again later, for what other threads and exit hooks have enqueued since.
    atexit.register(drain)
    # Refused where Python is ending already, with a thread of ours still running.
    with suppress(AttributeError, RuntimeError):
        threading._register_atexit(drain)  # type: ignore[attr-defined]


def drain() -> None:
    """Let tasks finish until each alias's SHUTDOWN_TIMEOUT, then end the workers.

    For when the process ends: one WARNING names what did not finish. An enqueue
    afterwards begins anew. Under runserver's autoreload tasks have a moment only.
    """
    begin = time.monotonic()
    is_reloaded = os.environ.get(DJANGO_AUTORELOAD_ENV) == "true"
    limit = "runserver's reload or end" if is_reloaded else "SHUTDOWN_TIMEOUT"
    most_s = _RELOAD_S if is_reloaded else math.inf
    try:
        while True:
            busy = [
                (left, state)
                for state in _all_states()
                if (
                    left := begin
                    + min(state.options.shutdown_timeout_s, most_s)
                    - time.monotonic()
                )
                > 0
                and not state.is_idle(until=time.time() + left)
            ]
            if not busy:
                break
            # A task may enqueue to another alias, so look at all of them again.
            left, state = busy[0]
            state.wait_until_idle(left)
    except (
        BaseException
    ) as err:  # Ctrl-C, or what a server's handler of a signal raises
        limit = type(err).__name__
        raise
    finally:
        states = _all_states()
        unfinished = [
            result_id for state in states for result_id in state.unfinished_ids()
        ]
        _warn_of_unfinished(unfinished, limit)
        with _lock:
            _states.clear()  # what is enqueued from now on is another state's
            _retired.update(states)
        for state in states:
            state.retire(runs_until=math.inf)  # what is left has just been named
            state.leave_queued()
            state.end(timeout_s=0.0)  # kills what it can
        deadline = time.monotonic() + min(_END_S, most_s)
        for state in states:
            state.end(timeout_s=max(0.0, deadline - time.monotonic()))
            state.release()
        with _lock:
            _retired.difference_update(states)


def _all_states() -> list[ExecutorState]:
    with _lock:
        return [*_states.values(), *_retired]


# When the process forks.


def _begin_anew() -> None:
    """In a fork nothing of the parent's runs.

    Its threads are not there, its children are not ours, and its locks may be held
    for ever.
    """
    global _lock, _states, _retired
    _lock = threading.Lock()
    for state in (*_states.values(), *_retired):
        state.is_retired = True
    _states = {}
    _retired = set()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_begin_anew)
