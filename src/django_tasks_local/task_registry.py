"""From a task to the plain data that names it, and back."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pkgutil import resolve_name
from typing import Any, cast
from weakref import WeakSet

from django.tasks import task_backends
from django.tasks.base import Task
from django.tasks.exceptions import InvalidTask

from .backoff import Backoff
from .json_text import decode_arguments, decode_value
from .records import NO_METADATA, Record, TaskSpec, Timestamp
from .times import to_datetime

__all__ = [
    "check_that_it_is_there",
    "find_backoff",
    "find_checked_task",
    "find_function",
    "find_stored_task",
    "find_task",
    "remember_function",
    "remember_task",
    "spec_of",
    "stand_in",
]

# Grows with the number of definitions and of the options given to `using`, not with
# the number of tasks enqueued.
_tasks: "dict[TaskSpec, Task[..., Any]]" = {}
# What multiprocessing calls a main module that it imports in a child.
_MAIN_IN_CHILD = "__mp_main__."
_functions: dict[str, Callable[..., Any]] = {}
# What tasks have been made of in this process.
_task_functions = WeakSet[Callable[..., Any]]()
# The functions of tasks that have vanished.
_stand_ins = WeakSet[Callable[..., Any]]()


def spec_of(task: "Task[..., Any]", /) -> TaskSpec:
    """What names a task."""
    path = task.module_path
    if path.startswith(_MAIN_IN_CHILD):
        path = f"__main__.{path.removeprefix(_MAIN_IN_CHILD)}"
    return TaskSpec(
        path,
        int(task.priority),
        task.queue_name,
        task.backend,
        task.takes_context,
    )


def remember_task(spec: TaskSpec, task: "Task[..., Any]", /) -> None:
    """Let `find_task` find this very task, whatever stands at its path."""
    options: dict[str, Any] = {}
    if task.run_after is not None:
        options["run_after"] = None
    if getattr(task, "metadata", None):
        options["metadata"] = {}
    if not options:
        _tasks[spec] = task
    elif spec not in _tasks or _tasks[spec].func is not task.func:
        _tasks[spec] = _replace(task, **options)


def find_task(
    spec: TaskSpec,
    /,
    *,
    run_after: Timestamp | None = None,
    metadata: str = NO_METADATA,
) -> "Task[..., Any]":
    """The task that a spec names: one seen in this process, else by its path.

    Raises ImportError or AttributeError when nothing is there, TypeError when
    something is that cannot be one.
    """
    task = _tasks.get(spec)
    if task is None:
        found = resolve_name(spec.path)
        options: dict[str, Any] = {
            "priority": spec.priority,
            "queue_name": spec.queue_name,
            "backend": spec.backend,
        }
        if isinstance(found, Task):  # of whatever parameters
            task = _replace(cast("Task[..., Any]", found), **options)
        elif callable(found):  # a task of another name was made of it
            task = task_backends[spec.backend].task_class(
                func=found,
                run_after=None,
                takes_context=spec.takes_context,
                **options,
            )
        else:
            raise TypeError(f"{spec.path!r} is {found!r}, not a task.")
        _tasks[spec] = task
    given: dict[str, Any] = {}
    if run_after is not None:
        given["run_after"] = to_datetime(run_after)
    if metadata != NO_METADATA:
        given["metadata"] = decode_value(metadata)
    return _replace(task, **given) if given else task


def find_stored_task(record: Record, /) -> "Task[..., Any]":
    """The task of a record that was read from a store, to run it.

    Only what is a task at its path runs, or what its module has made a task of. Raises
    InvalidTask where it has vanished, or does not take these arguments any more.
    """
    spec = record.task
    try:
        task = find_checked_task(
            spec, run_after=record.run_after, metadata=record.metadata
        )
    except (Exception, SystemExit) as err:  # a module of the project's is imported
        raise InvalidTask(
            f"Task {spec.path!r}, which was enqueued by another process, cannot be "
            f"run: {type(err).__name__}: {err}"
        ) from err
    args, kwargs = decode_arguments(record.arguments)
    if task.takes_context:
        args = [None, *args]
    try:
        inspect.signature(task.func).bind(*args, **kwargs)
    except TypeError as err:
        raise InvalidTask(
            f"The code of task {spec.path!r} has changed since another process "
            f"enqueued it, and does not take its arguments any more: {err}"
        ) from err
    return task


def find_checked_task(
    spec: TaskSpec,
    /,
    *,
    run_after: Timestamp | None = None,
    metadata: str = NO_METADATA,
) -> "Task[..., Any]":
    """As `find_task`, of a spec that somebody else may have written.

    Raises TypeError for what nobody has made a task of.
    """
    if spec not in _tasks:
        _check_that_it_is_a_task(spec)
    return find_task(spec, run_after=run_after, metadata=metadata)


def remember_function(task: "Task[..., Any]", /) -> None:
    """Somebody has made a task of this function: it may be found by its path."""
    _task_functions.add(task.func)


def _check_that_it_is_a_task(spec: TaskSpec) -> None:
    found = resolve_name(spec.path)
    if isinstance(found, Task) or found in _task_functions:
        return
    module = sys.modules.get(getattr(found, "__module__", ""))
    for value in [*vars(module).values()] if module is not None else ():
        if isinstance(value, Task) and cast("Task[..., Any]", value).func is found:
            return
    raise TypeError(f"{spec.path!r} is {found!r}, not a task.")


def stand_in(spec: TaskSpec, alias: str, /) -> "Task[..., Any]":
    """What stands for a task that has vanished: it can be looked at, not called.

    The `alias` is that of its result.
    """

    def vanished(*args: object, **kwargs: object) -> None:
        raise InvalidTask(f"There is no task {spec.path!r} any more.")

    module, _, name = spec.path.rpartition(".")
    vanished.__module__, vanished.__qualname__ = module, name
    _stand_ins.add(vanished)
    backend = spec.backend if spec.backend in task_backends else alias
    given: dict[str, object] = {
        "priority": spec.priority,
        "func": vanished,
        "backend": backend,
        "queue_name": spec.queue_name,
        "takes_context": spec.takes_context,
        "metadata_text": NO_METADATA,
        "_spec": spec,
    }
    # Past its `__init__`, which has the backend check what is not to run: it may name
    # a queue that the settings do not know any more either.
    task_class = task_backends[backend].task_class
    task: Task[..., Any] = object.__new__(task_class)
    for field in fields(task_class):
        value = None if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            value = field.default_factory()
        object.__setattr__(task, field.name, given.get(field.name, value))
    return task


def check_that_it_is_there(task: "Task[..., Any]", /) -> None:
    """Raise InvalidTask where a task only stands for one that has vanished."""
    if task.func in _stand_ins:
        task.func()


def _replace(task: "Task[..., Any]", **options: Any) -> "Task[..., Any]":
    return replace(task, **options)


def find_function(spec: TaskSpec, /) -> Callable[..., Any]:
    """The function of a task, also where its path holds the plain function.

    Raises what `find_task` raises. Looked up once in a process.
    """
    function = _functions.get(spec.path)
    if function is None:
        found = resolve_name(spec.path)
        function = (  # of whatever parameters, again
            cast("Task[..., Any]", found).func if isinstance(found, Task) else found
        )
        if not callable(function):
            raise TypeError(f"{spec.path!r} is {found!r}, not a task.")
        _functions[spec.path] = function
    return function


def find_backoff(spec: TaskSpec, alias: str, /) -> Backoff:
    """The backoff of the task at a path, or else that of the alias which runs it.

    Raises what `find_task` raises, and LookupError where there is none.
    """
    backoff: Backoff | None = getattr(resolve_name(spec.path), "backoff", None)
    if backoff is None:
        backoff = getattr(task_backends[alias], "default_backoff", None)
    if backoff is None:
        raise LookupError(f"Task {spec.path} has no backoff in a worker process.")
    return backoff
