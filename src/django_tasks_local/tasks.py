"""The typed ``@task``, and the task that it makes."""

from collections.abc import Callable, Coroutine
from datetime import datetime
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

from django.tasks.base import (
    DEFAULT_TASK_BACKEND_ALIAS,
    DEFAULT_TASK_PRIORITY,
    DEFAULT_TASK_QUEUE_NAME,
    Task,
)

from .context import LocalTaskContext
from .records import TaskSpec
from .results import LocalTaskResult, to_handle
from .task_registry import find_task, spec_of

if TYPE_CHECKING:
    # Generic for type checkers only: subscripting it fails at run time.
    class _Task[**P, R](Task[P, R]):
        pass
else:

    class _Task[**P, R](Task):
        __slots__ = ()


__all__ = ["LocalTask", "task", "task_spec"]


class LocalTask[**P, R](_Task[P, R]):
    """A task whose handles can be waited for, whatever backend runs it.

    ``P`` are the parameters of its function, without the context where it takes one;
    ``R`` is what the function returns, or what its coroutine does.
    """

    __slots__ = ("_spec",)

    _spec: TaskSpec

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
    ) -> "LocalTask[P, R]":
        """The same task with other options (as Django's `Task.using`).

        Raises InvalidTask where the backend cannot honour them.
        """
        task = super().using(
            priority=priority,
            queue_name=queue_name,
            run_after=run_after,
            backend=backend,
        )
        # The base class makes it with `dataclasses.replace`, of this class.
        return cast("LocalTask[P, R]", task)

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
        return to_handle(await super().aenqueue(*args, **kwargs))

    @override
    def get_result(self, result_id: str) -> LocalTaskResult[R]:  # type: ignore[override]  # see `_TaskResult`
        """The handle of one of this task's results, by id.

        Raises TaskResultDoesNotExist where the backend has none of that id, and
        TaskResultMismatch where it belongs to another task.
        """
        return to_handle(super().get_result(result_id))

    @override
    async def aget_result(self, result_id: str) -> LocalTaskResult[R]:  # type: ignore[override]  # see `_TaskResult`
        """As `get_result`."""
        return to_handle(await super().aget_result(result_id))

    @override
    def __reduce__(self) -> tuple[object, ...]:
        return _find_task, (self.spec, self.run_after)

    def __copy__(self) -> "LocalTask[P, R]":
        return self

    def __deepcopy__(self, memo: object) -> "LocalTask[P, R]":
        return self


def _find_task(spec: TaskSpec, run_after: datetime | None) -> "Task[..., Any]":
    return find_task(
        spec, run_after=None if run_after is None else run_after.timestamp()
    )


def task_spec(task: "Task[..., Any]", /) -> TaskSpec:
    """As `spec_of`, worked out once for each of our own tasks."""
    return task.spec if isinstance(task, LocalTask) else spec_of(task)


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
) -> LocalTask[P, R]: ...
@overload
def task[**P, R](
    function: Callable[P, R],
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[False] = ...,
) -> LocalTask[P, R]: ...
@overload
def task[**P, R](
    function: Callable[Concatenate[LocalTaskContext, P], Coroutine[Any, Any, R]],
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
) -> LocalTask[P, R]: ...
@overload
def task[**P, R](
    function: Callable[Concatenate[LocalTaskContext, P], R],
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
) -> LocalTask[P, R]: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[False] = ...,
) -> _TaskDecorator: ...
@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: Literal[True],
) -> _ContextTaskDecorator: ...
def task(
    function: Callable[..., Any] | None = None,
    *,
    priority: int = DEFAULT_TASK_PRIORITY,
    queue_name: str = DEFAULT_TASK_QUEUE_NAME,
    backend: str = DEFAULT_TASK_BACKEND_ALIAS,
    takes_context: bool = False,
) -> Any:
    """Make a `LocalTask` of a module-level function, sync or async.

    Use it as ``@task`` or ``@task(backend="cpu", …)``; the options are those of
    `django.tasks.task`. Whatever backend the alias names, Django's own included, the
    handles can be waited for and awaited. Raises InvalidTask where the backend cannot
    run such a task.
    """

    def make_task(function: Callable[..., Any]) -> LocalTask[..., Any]:
        # Not subscripted: Python would set `__orig_class__`, which a frozen class
        # refuses (and 3.12 does not ignore that).
        make: type[LocalTask[..., Any]] = LocalTask
        return make(
            func=function,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            run_after=None,
            takes_context=takes_context,
        )

    return make_task if function is None else make_task(function)
