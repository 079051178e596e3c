"""The typed ``@task``, and the task that it makes."""

import time
import warnings
from collections.abc import (
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    Protocol,
    cast,
    overload,
    override,
)

from django.db import transaction
from django.tasks import task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.backends.dummy import DummyBackend
from django.tasks.backends.immediate import ImmediateBackend
from django.tasks.base import (
    DEFAULT_TASK_BACKEND_ALIAS,
    DEFAULT_TASK_PRIORITY,
    DEFAULT_TASK_QUEUE_NAME,
    Task,
    TaskResult,
)
from django.tasks.exceptions import InvalidTask, TaskResultMismatch
from django.utils.timezone import is_aware

from .async_bridge import Completion, in_thread, is_in_trio
from .backoff import Backoff
from .connections import close_connections
from .context import LocalTaskContext, current_result_id
from .errors import IgnoredOptionsWarning
from .foreign_results import aget_result, get_result, is_context, raise_djangos
from .identity import new_owner, new_result_id, this_process
from .interruption import calls_in_reach, out_of_reach
from .json_text import (
    decode_arguments,
    decode_value,
    encode_arguments,
    encode_metadata,
)
from .options import is_backoff, is_count, is_timeout
from .records import NO_METADATA, Record, TaskSpec, Timestamp, apply_start
from .results import LocalTaskResult, handle_of, to_handle
from .task_registry import find_task, spec_of
from .times import to_datetime, to_timestamp

if TYPE_CHECKING:
    # Generic for type checkers only: subscripting it fails at run time.
    class _Task[**P, R](Task[P, R]):
        pass
else:

    class _Task[**P, R](Task):
        __slots__ = ()


__all__ = [
    "LocalTask",
    "arguments_text",
    "as_arguments",
    "metadata_text",
    "run_after_of",
    "task",
    "task_spec",
]


@dataclass(frozen=True, kw_only=True)
class LocalTask[**P, R](_Task[P, R]):
    """A task whose handles can be waited for, whatever backend runs it.

    ``P`` are the parameters of its function, without the context where it takes one;
    ``R`` is what the function returns, or what its coroutine does.
    """

    max_attempts: int | None = None
    """How often it runs at most if it fails; None: ``OPTIONS["MAX_ATTEMPTS"]``."""
    backoff: Backoff | None = None
    """What says when it is tried again; None: ``OPTIONS["BACKOFF"]``."""
    timeout: float | None = None
    """How many seconds an attempt may take; None: ``OPTIONS["TIMEOUT"]``."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any], compare=False)
    """What its results are given besides arguments (`using`)."""
    metadata_text: str = field(init=False, repr=False, compare=False)
    """The same as JSON text."""
    run_after_s: Timestamp | None = field(init=False, repr=False, compare=False)
    """`run_after` where that is aware, so that it does not depend on settings."""
    _spec: TaskSpec = field(init=False, repr=False, compare=False)

    @override
    def __post_init__(self) -> None:
        # Past the frozen dataclass's own. The copy is nobody else's to change.
        text = encode_metadata(self.metadata) if self.metadata else NO_METADATA
        object.__setattr__(self, "metadata", decode_value(text))
        object.__setattr__(self, "metadata_text", text)
        for name, value, accepted, is_right in (
            ("max_attempts", self.max_attempts, "an integer of at least 1", is_count),
            (
                "backoff",
                self.backoff,
                "a callable that takes (exception, task_result)",
                is_backoff,
            ),
            ("run_after", self.run_after, "a datetime", _is_datetime),
            ("timeout", self.timeout, "a number of seconds above 0", is_timeout),
        ):
            if value is not None and not is_right(value):
                raise InvalidTask(
                    f"{name} of task {self.module_path} must be {accepted}, "
                    f"got {value!r}."
                )
        try:
            super().__post_init__()
        except Exception as err:
            raise_djangos(err)
            raise
        run_after_s = None
        if self.run_after is not None:
            try:
                at = self.run_after.timestamp()
                to_datetime(at)
                run_after_s = at if is_aware(self.run_after) else None
            except (ValueError, OverflowError) as err:
                raise InvalidTask(
                    f"run_after of task {self.module_path} is out of range: "
                    f"{self.run_after!r}."
                ) from err
        object.__setattr__(self, "run_after_s", run_after_s)

    @override
    def get_backend(self) -> BaseTaskBackend:
        """What runs the task: the backend of its alias."""
        # As Django's own method, which imports `task_backends` at each call.
        if not calls_in_reach:
            return task_backends[self.backend]
        with out_of_reach:  # Django's look-up takes a lock that all threads need
            return task_backends[self.backend]

    @property
    def spec(self) -> TaskSpec:
        """What names the task, as plain data."""
        try:
            return self._spec
        except AttributeError:
            spec = spec_of(self)
            object.__setattr__(self, "_spec", spec)  # past the frozen dataclass's own
            return spec

    @override
    def using(
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | None = None,
        backend: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "LocalTask[P, R]":
        """The same task with other options (as Django's `Task.using`).

        `run_after` is the earliest time that it runs at, `metadata` what its results
        have of it besides arguments: values that are JSON, by strings. Raises
        InvalidTask where the backend cannot honour them; TypeError for metadata that
        is not JSON. Warns as `task` does.
        """
        changes: dict[str, Any] = {
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": backend,
            "metadata": dict(metadata) if isinstance(metadata, Mapping) else metadata,
        }
        task = replace(
            self,
            **{name: value for name, value in changes.items() if value is not None},
        )
        if metadata or task.backend != self.backend:
            _warn_of_ignored_options(task)
        return task

    @override
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> LocalTaskResult[R]:  # type: ignore[override]  # see `_TaskResult`
        """Have the task run in the background; returns a handle at once.

        Raises TypeError for arguments that are not JSON, QueueFull when
        ``MAX_PENDING`` tasks wait, ImproperlyConfigured when the backend's settings
        are wrong; then nothing was stored and nothing will run.
        """
        return to_handle(super().enqueue(*args, **kwargs))

    @override
    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> LocalTaskResult[R]:  # type: ignore[override]  # see `_TaskResult`
        """As `enqueue`, for coroutines."""
        backend = self.get_backend()
        if is_in_trio() and not _is_ours(backend):
            # Most backends know of asyncio alone.
            return to_handle(await in_thread(_enqueue_and_close, self, args, kwargs))
        return to_handle(await super().aenqueue(*args, **kwargs))

    @overload
    def enqueue_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def enqueue_on_commit(
        self, *args: Any, using: str | None, **kwargs: Any
    ) -> None: ...
    def enqueue_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Enqueue the task once the current transaction is committed.

        After the outermost transaction of the database that `using` names (None: the
        default one); at once where there is none. After a rollback nothing was stored
        and nothing runs. Raises, at once, what `enqueue` would for such a task or such
        arguments; what it raises later, as QueueFull, comes out where the transaction
        ends (`django.db.transaction.on_commit`). The task runs in the context of this
        call. For sync code, as Django's transactions are.
        """
        using: str | None = kwargs.pop("using", None)
        self.get_backend().validate_task(self)
        arguments = arguments_text(self, args, kwargs)
        context = copy_context()

        def enqueue() -> None:
            args, kwargs = decode_arguments(arguments)
            # They are what the decorated call was checked for.
            context.run(cast("LocalTask[..., R]", self).enqueue, *args, **kwargs)

        transaction.on_commit(enqueue, using=using)

    def enqueue_many(
        self, calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]]
    ) -> list[LocalTaskResult[R]]:
        """Enqueue the task once for each pair of `args` and `kwargs`, or not at all.

        The handles come in the order of the calls. All arguments are looked at before
        anything is stored, and the store is written to once; a backend of another
        library, or of Django, is given one after the other. Raises as `enqueue`.
        """
        enqueue_many: Callable[..., list[LocalTaskResult[R]]] | None = getattr(
            self.get_backend(), "enqueue_many", None
        )
        if enqueue_many is not None:
            return enqueue_many(self, calls)
        # Pairs of `args` and `kwargs` cannot be checked against its parameters.
        one = cast("LocalTask[..., R]", self)
        return [one.enqueue(*args, **kwargs) for args, kwargs in _checked(self, calls)]

    async def aenqueue_many(
        self, calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]]
    ) -> list[LocalTaskResult[R]]:
        """As `enqueue_many`, for coroutines."""
        aenqueue_many: (
            Callable[..., Coroutine[Any, Any, list[LocalTaskResult[R]]]] | None
        ) = getattr(self.get_backend(), "aenqueue_many", None)
        if aenqueue_many is not None:
            return await aenqueue_many(self, calls)
        one = cast("LocalTask[..., R]", self)  # as above
        return [
            await one.aenqueue(*args, **kwargs)
            for args, kwargs in _checked(self, calls)
        ]

    @override
    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, as Django's ImmediateBackend does."""
        with _named_by(args):
            # What stands before the arguments is the context.
            return super().call(*self._with_context(args), **kwargs)  # type: ignore[arg-type]

    @override
    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As `call`, for coroutines."""
        with _named_by(args):
            return await super().acall(*self._with_context(args), **kwargs)  # type: ignore[arg-type]

    def _with_context(self, args: tuple[object, ...]) -> tuple[object, ...]:
        """The arguments, with a context of ours before them where it takes one.

        In place of Django's, or where there is none: in a test that calls the task.
        """
        if not self.takes_context or (args and isinstance(args[0], LocalTaskContext)):
            return args
        if args and is_context(args[0]):
            context = LocalTaskContext(task_result=args[0].task_result)
            args = args[1:]
        else:
            context = LocalTaskContext(task_result=self._called_here(args))
        context.metadata = decode_value(self.metadata_text)
        return (context, *args)

    def _called_here(self, args: tuple[object, ...]) -> LocalTaskResult[R]:
        now = time.time()
        record = Record(
            new_result_id(),
            self.spec,
            self.backend,
            arguments_text(self, args, {}),
            None,
            new_owner(),
            now,
            metadata=self.metadata_text,
        )
        started = apply_start(record, worker_id=this_process(), at=now)
        return handle_of(started, waitable=Completion(started), task=self)

    @override
    def get_result(self, result_id: str) -> LocalTaskResult[R]:  # type: ignore[override]  # see `_TaskResult`
        """The handle of one of this task's results, by id.

        Raises TaskResultDoesNotExist where the backend has none of that id, and
        TaskResultMismatch where it belongs to another task.
        """
        return self._own(get_result(self.get_backend(), result_id))

    @override
    async def aget_result(self, result_id: str) -> LocalTaskResult[R]:  # type: ignore[override]  # see `_TaskResult`
        """As `get_result`."""
        backend = self.get_backend()
        if _is_ours(backend):
            return self._own(await backend.aget_result(result_id))
        return self._own(await aget_result(backend, result_id))

    def _own(self, result: "TaskResult[..., Any]") -> LocalTaskResult[R]:
        if result.task.func != self.func:
            raise TaskResultMismatch(
                f"Task does not match (received {result.task.module_path!r})"
            )
        return to_handle(result)

    @override
    def __reduce__(self) -> tuple[object, ...]:
        return _find_task, (self.spec, self.run_after, self.metadata_text)

    def __copy__(self) -> "LocalTask[P, R]":
        return self

    def __deepcopy__(self, memo: object) -> "LocalTask[P, R]":
        return self


def _find_task(
    spec: TaskSpec, run_after: datetime | None, metadata: str
) -> "Task[..., Any]":
    return find_task(
        spec,
        run_after=to_timestamp(run_after),
        metadata=metadata,
    )


def task_spec(task: "Task[..., Any]", /) -> TaskSpec:
    """As `spec_of`, worked out once for each of our own tasks."""
    return task.spec if isinstance(task, LocalTask) else spec_of(task)


def metadata_text(task: "Task[..., Any]", /) -> str:
    """The JSON text of what a task's results are given as metadata."""
    return task.metadata_text if isinstance(task, LocalTask) else NO_METADATA


def run_after_of(task: "Task[..., Any]", /) -> Timestamp | None:
    """The earliest time that a task runs at."""
    if isinstance(task, LocalTask) and task.run_after_s is not None:
        return task.run_after_s
    return to_timestamp(task.run_after)


def _is_ours(backend: BaseTaskBackend) -> bool:
    return issubclass(backend.task_class, LocalTask)


def _enqueue_and_close(
    task: "Task[..., Any]", args: tuple[Any, ...], kwargs: dict[str, Any]
) -> "TaskResult[..., Any]":
    """Enqueue on a thread whose database connections nobody else uses."""
    try:
        return task.get_backend().enqueue(task, list(args), kwargs)
    finally:
        close_connections()


@contextmanager
def _named_by(args: tuple[object, ...]) -> Generator[None]:
    """Let `current_result_id` be that of the context which a backend has made."""
    if not args or isinstance(args[0], LocalTaskContext) or not is_context(args[0]):
        yield
        return
    token = current_result_id.set(args[0].task_result.id)
    try:
        yield
    finally:
        current_result_id.reset(token)


_PACKAGE = str(Path(__file__).parent)


def _warn_of_ignored_options(task: LocalTask[..., Any]) -> None:
    """Warn of options that the task's backend does not know, or refuse them.

    Those of Django's own that run nothing in the background are for tests, which need
    not hear of it.
    """
    backend = task.get_backend()
    if isinstance(backend, ImmediateBackend | DummyBackend):
        return
    known = {field.name for field in fields(backend.task_class)}
    ignored = [
        name
        for name in ("max_attempts", "backoff", "timeout", "metadata")
        if name not in known and getattr(task, name) not in (None, {})
    ]
    if not ignored:
        return
    message = (
        f"TASKS[{task.backend!r}] is a {type(backend).__name__}, which does not know "
        f"{', '.join(ignored)}: task {task.module_path} runs there without."
    )
    try:
        warnings.warn(message, IgnoredOptionsWarning, skip_file_prefixes=(_PACKAGE,))
    except IgnoredOptionsWarning as err:  # a filter says that it is an error
        raise InvalidTask(message) from err


def _is_datetime(value: object) -> bool:
    return isinstance(value, datetime)


def as_arguments(call: object, /) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The `args` and `kwargs` of one of many calls. Raises TypeError for no such."""
    # The casts say what `isinstance` cannot: nothing is known of a user's items yet.
    if isinstance(call, list | tuple):
        pair = tuple(cast("Sequence[object]", call))
        if len(pair) == 2 and isinstance(pair[0], list | tuple):
            args, kwargs = cast("tuple[Sequence[object], object]", pair)
            if isinstance(kwargs, Mapping):
                return args, cast("Mapping[str, object]", kwargs)
    raise TypeError(f"A call must be a pair (args, kwargs), got {call!r}.")


def _checked(
    task: "Task[..., Any]", calls: Iterable[object]
) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
    checked = [as_arguments(call) for call in calls]
    for args, kwargs in checked:
        arguments_text(task, args, kwargs)
    return checked


def arguments_text(
    task: "Task[..., Any]", args: Sequence[Any], kwargs: Mapping[str, Any], /
) -> str:
    """The JSON text of a call's arguments. Raises TypeError where they are not JSON."""
    try:
        return encode_arguments(args, kwargs)
    except TypeError as err:
        raise TypeError(
            f"The arguments of task {task.module_path} must be JSON: {err}"
        ) from err


class _TaskDecorator(Protocol):
    @overload
    def __call__[**P, R](
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> LocalTask[P, R]: ...
    @overload
    def __call__[**P, R](self, function: Callable[P, R], /) -> LocalTask[P, R]: ...


class _ContextTaskDecorator(Protocol):
    @overload
    def __call__[**P, R](
        self,
        function: Callable[Concatenate[LocalTaskContext, P], Coroutine[Any, Any, R]],
        /,
    ) -> LocalTask[P, R]: ...
    @overload
    def __call__[**P, R](
        self, function: Callable[Concatenate[LocalTaskContext, P], R], /
    ) -> LocalTask[P, R]: ...


@overload
def task[**P, R](
    function: Callable[P, Coroutine[Any, Any, R]],
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[False] = ...,
    max_attempts: int | None = ...,
    backoff: Backoff | None = ...,
    timeout: float | None = ...,
) -> LocalTask[P, R]: ...
@overload
def task[**P, R](
    function: Callable[P, R],
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[False] = ...,
    max_attempts: int | None = ...,
    backoff: Backoff | None = ...,
    timeout: float | None = ...,
) -> LocalTask[P, R]: ...
@overload
def task[**P, R](
    function: Callable[Concatenate[LocalTaskContext, P], Coroutine[Any, Any, R]],
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
    max_attempts: int | None = ...,
    backoff: Backoff | None = ...,
    timeout: float | None = ...,
) -> LocalTask[P, R]: ...
@overload
def task[**P, R](
    function: Callable[Concatenate[LocalTaskContext, P], R],
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
    max_attempts: int | None = ...,
    backoff: Backoff | None = ...,
    timeout: float | None = ...,
) -> LocalTask[P, R]: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[False] = ...,
    max_attempts: int | None = ...,
    backoff: Backoff | None = ...,
    timeout: float | None = ...,
) -> _TaskDecorator: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
    max_attempts: int | None = ...,
    backoff: Backoff | None = ...,
    timeout: float | None = ...,
) -> _ContextTaskDecorator: ...
def task(
    function: Callable[..., Any] | None = None,
    *,
    priority: int = DEFAULT_TASK_PRIORITY,
    queue_name: str = DEFAULT_TASK_QUEUE_NAME,
    backend: str = DEFAULT_TASK_BACKEND_ALIAS,
    takes_context: bool = False,
    max_attempts: int | None = None,
    backoff: Backoff | None = None,
    timeout: float | None = None,
) -> Any:
    """Make a `LocalTask` of a module-level function, sync or async.

    Use it as ``@task`` or ``@task(backend="cpu", …)``; the options are those of
    `django.tasks.task`, and three more. `max_attempts`: how often the task runs at
    most, as long as it fails. `backoff`: called with the exception and the task's
    result after each failed attempt but the last, it gives the seconds until the next
    one, or None for no further attempt (`django_tasks_local.backoff`). `timeout`: how
    many seconds each attempt may take. What is None is the alias's: ``MAX_ATTEMPTS``,
    ``BACKOFF`` and ``TIMEOUT`` of its ``OPTIONS``. Whatever backend the alias names,
    Django's own included, the handles can be waited for and awaited. One of another
    library that does not know the three runs the task without, of which an
    IgnoredOptionsWarning tells. Raises InvalidTask where the backend cannot run such a
    task, or an option is none.
    """

    def make_task(function: Callable[..., Any]) -> LocalTask[..., Any]:
        # Not subscripted: Python would set `__orig_class__`, which a frozen class
        # refuses (and 3.12 does not ignore that).
        make: type[LocalTask[..., Any]] = LocalTask
        task = make(
            func=function,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            run_after=None,
            takes_context=takes_context,
            max_attempts=max_attempts,
            backoff=backoff,
            timeout=timeout,
        )
        _warn_of_ignored_options(task)
        return task

    return make_task if function is None else make_task(function)
