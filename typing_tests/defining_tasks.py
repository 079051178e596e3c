"""What the forms of ``@task`` make of functions: their types pass through."""

from collections.abc import Coroutine
from datetime import datetime
from typing import Any, assert_type

from django.tasks import TaskContext, TaskResult

from django_tasks_local import LocalTask, LocalTaskContext, LocalTaskResult, task
from django_tasks_local.backend import FuturesBackend
from django_tasks_local.backoff import exponential, fixed, linear, only


@task
def plain(path: str, *, limit: int = 10) -> int:
    return limit


@task()
def called(path: str) -> int:
    return len(path)


@task(backend="cpu", priority=5, queue_name="mail")
def with_options(path: str) -> list[str]:
    return [path]


@task(takes_context=False)
def without_context(path: str) -> int:
    return len(path)


@task
async def asynchronous(path: str) -> int:
    return len(path)


@task(backend="cpu")
async def asynchronous_with_options(path: str) -> dict[str, int]:
    return {path: 1}


@task(takes_context=True)
def with_context(context: LocalTaskContext, path: str) -> int:
    assert_type(context.attempt, int)
    return len(path)


@task(takes_context=True, backend="cpu")
async def asynchronous_with_context(context: LocalTaskContext, path: str) -> int:
    return len(path)


@task(takes_context=True)
def with_djangos_context(context: "TaskContext[..., Any]", path: str) -> int:
    return len(path)


@task
def returns_nothing() -> None: ...


def in_a_minute(error: BaseException, result: "TaskResult[..., Any]") -> float | None:
    return 60.0 * result.attempts if isinstance(error, OSError) else None


@task(max_attempts=5, backoff=in_a_minute)
def tried_again(path: str) -> int:
    return len(path)


@task(max_attempts=5, backoff=exponential(base=2, cap=60, jitter=False), timeout=30)
async def tried_again_in_time(path: str) -> int:
    return len(path)


@task(
    takes_context=True,
    max_attempts=None,
    backoff=only(OSError, then=fixed(1)),
    timeout=0.5,
)
def tried_again_with_context(context: LocalTaskContext, path: str) -> int:
    return len(path)


@task(takes_context=True, backoff=linear(2.5), timeout=None)
async def asynchronous_with_all(context: LocalTaskContext, path: str) -> int:
    return len(path)


def undecorated(path: str) -> int:
    return len(path)


def undecorated_with_context(context: LocalTaskContext, path: str) -> int:
    return len(path)


def call_all() -> None:
    assert_type(plain.enqueue("a"), LocalTaskResult[int])
    assert_type(plain.enqueue("a", limit=3), LocalTaskResult[int])
    assert_type(called.enqueue("a"), LocalTaskResult[int])
    assert_type(with_options.enqueue("a"), LocalTaskResult[list[str]])
    assert_type(without_context.enqueue("a"), LocalTaskResult[int])
    assert_type(asynchronous.enqueue("a"), LocalTaskResult[int])
    assert_type(asynchronous_with_options.enqueue("a"), LocalTaskResult[dict[str, int]])
    # The context is given by the worker.
    assert_type(with_context.enqueue("a"), LocalTaskResult[int])
    assert_type(asynchronous_with_context.enqueue("a"), LocalTaskResult[int])
    assert_type(with_djangos_context.enqueue("a"), LocalTaskResult[int])
    assert_type(returns_nothing.enqueue(), LocalTaskResult[None])
    assert_type(tried_again.enqueue("a"), LocalTaskResult[int])
    assert_type(tried_again_in_time.enqueue("a"), LocalTaskResult[int])
    assert_type(tried_again_with_context.enqueue("a"), LocalTaskResult[int])
    assert_type(asynchronous_with_all.enqueue("a"), LocalTaskResult[int])
    # As functions.
    assert_type(task(undecorated).enqueue("a"), LocalTaskResult[int])
    assert_type(
        task(undecorated_with_context, takes_context=True).enqueue("a"),
        LocalTaskResult[int],
    )
    assert_type(
        task(undecorated, max_attempts=2, backoff=fixed(1), timeout=1).enqueue("a"),
        LocalTaskResult[int],
    )
    # The other options leave the types alone.
    later = plain.using(
        priority=1, queue_name="a", backend="b", run_after=datetime.now()
    )
    assert_type(later.enqueue("a", limit=2), LocalTaskResult[int])
    told = plain.using(metadata={"user": 7, "tags": ["a"]})
    assert_type(told.enqueue("a", limit=2), LocalTaskResult[int])
    assert_type(plain.get_result("id"), LocalTaskResult[int])


async def acall_all() -> None:
    assert_type(await plain.aenqueue("a", limit=2), LocalTaskResult[int])
    assert_type(await with_context.aenqueue("a"), LocalTaskResult[int])
    assert_type(await asynchronous.aenqueue("a"), LocalTaskResult[int])
    assert_type(await asynchronous.aget_result("id"), LocalTaskResult[int])


def on_commit() -> None:
    plain.enqueue_on_commit("a")
    plain.enqueue_on_commit("a", limit=3)
    plain.enqueue_on_commit("a", using="other")
    plain.enqueue_on_commit("a", limit=3, using=None)
    with_context.enqueue_on_commit("a")
    asynchronous.enqueue_on_commit("a")
    returns_nothing.enqueue_on_commit()
    returns_nothing.enqueue_on_commit(using="other")


def many_at_once(backend: FuturesBackend) -> None:
    handles = backend.enqueue_many(plain, [(("a",), {}), (["b"], {"limit": 3})])
    assert_type(handles, list[LocalTaskResult[int]])
    calls = (((path,), dict[str, int]()) for path in "abc")
    assert_type(backend.enqueue_many(asynchronous, calls), list[LocalTaskResult[int]])


async def amany_at_once(backend: FuturesBackend) -> None:
    handles = await backend.aenqueue_many(with_options, [(("a",), {})])
    assert_type(handles, list[LocalTaskResult[list[str]]])


def calling_the_function() -> None:
    assert_type(plain.call("a"), int)


def wrong_calls() -> None:
    plain.enqueue(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain.enqueue("a", 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain.enqueue("a", limits=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    asynchronous.enqueue(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with_context.enqueue(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.using(backend="b").enqueue(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.using(metadata=[1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.using(metadata={1: 2})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    plain.using(timeout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain.enqueue_on_commit(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    plain.enqueue_on_commit("a", using=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    plain.using(backends="b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain("a")  # type: ignore[operator]  # pyright: ignore[reportCallIssue]


async def wrong_awaited_calls() -> None:
    await plain.aenqueue(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await with_context.aenqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def wrong_definitions() -> None:
    task(undecorated, takes_context=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    task(backend=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(max_attempts="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(timeout="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(backoff=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(backoff=undecorated)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task(queue="mail")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    task(takes_context=True)(undecorated)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


def generic[**P, R](defined: LocalTask[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return defined.enqueue(*args, **kwargs).wait()


def pass_through() -> None:
    assert_type(generic(plain, "a", limit=1), int)
    assert_type(generic(asynchronous, "a"), int)


async def not_a_task(path: str) -> int:
    return len(path)


def coroutine_functions_return_what_they_return() -> None:
    coroutine: Coroutine[Any, Any, int] = not_a_task("a")
    coroutine.close()
    assert_type(task(not_a_task).enqueue("a").wait(), int)
