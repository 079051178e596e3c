"""Tasks that watch others; worker processes import them too."""

import asyncio
from typing import Any

from django_tasks_local import LocalTaskContext, LocalTaskResult, as_completed, task
from django_tasks_local.backoff import fixed

from .gates import LONG_S, apass_gate, pass_gate
from .tasks import add, fail, hold

MANY = 4


@task(takes_context=True)
def step(context: LocalTaskContext, port: int) -> str:
    """Tell of two steps, and wait at a gate after each."""
    for number in range(2):
        context.metadata["step"] = number
        context.save_metadata()
        pass_gate(port, number)
    return "stepped"


@task(max_attempts=2, backoff=fixed(0))
def fail_twice(port: int) -> None:
    pass_gate(port)
    raise ValueError("again")


def _states(seen: list[LocalTaskResult[Any]]) -> list[str]:
    return [handle.status.value for handle in seen]


@task
def watch_inner(alias: str, port: int) -> list[Any]:
    """How an inner task looks from within a task."""
    inner = hold.using(backend=alias).enqueue(port, "inner")
    seen = list(inner.watch_sync())
    return [_states(seen), seen[-1].return_value]


@task
async def watch_inner_async(alias: str, port: int) -> list[Any]:
    inner = await hold.using(backend=alias).aenqueue(port, "inner")
    async with asyncio.timeout(LONG_S):
        seen = [handle async for handle in inner.watch()]
    return [_states(seen), seen[-1].return_value]


@task
def complete_inner(alias: str) -> list[int]:
    """What inner tasks return, as they finish."""
    handles = [add.using(backend=alias).enqueue(n, 0) for n in range(MANY)]
    return sorted(done.return_value for done in as_completed(handles, LONG_S))


@task
async def complete_inner_async(alias: str) -> list[int]:
    handles = [await add.using(backend=alias).aenqueue(n, 0) for n in range(MANY)]
    return sorted(
        [done.return_value async for done in as_completed(handles, timeout=LONG_S)]
    )


@task
def complete_some(alias: str, port: int) -> list[Any]:
    """The first one; a time-out for the second; then all."""
    handles = [hold.using(backend=alias).enqueue(port, n) for n in range(2)]
    pass_gate(port, "enqueued")
    seen: list[Any] = []
    for done in as_completed(handles, LONG_S):
        seen.append(done.return_value)
        break
    try:
        for done in as_completed(handles, 0.01):
            seen.append(done.return_value)
    except TimeoutError as err:
        seen.append(str(err))
    pass_gate(port, "timed out")
    seen.append([done.return_value for done in as_completed(handles, LONG_S)])
    return seen


@task
async def complete_some_async(alias: str, port: int) -> list[Any]:
    handles = [await hold.using(backend=alias).aenqueue(port, n) for n in range(2)]
    await apass_gate(port, "enqueued")
    seen: list[Any] = []
    async for done in as_completed(handles, LONG_S):
        seen.append(done.return_value)
        break
    try:
        async for done in as_completed(handles, 0.01):
            seen.append(done.return_value)
    except TimeoutError as err:
        seen.append(str(err))
    await apass_gate(port, "timed out")
    seen.append([done.return_value async for done in as_completed(handles, LONG_S)])
    return seen


@task
def pause_between(alias: str, port: int, own_port: int) -> list[Any]:
    """Do something between one inner task's end and the next one's."""
    handles = [hold.using(backend=alias).enqueue(port, n) for n in range(2)]
    seen: list[Any] = []
    for done in as_completed(handles, LONG_S):
        pass_gate(own_port, "between")
        seen.append(done.return_value)
    return seen


@task
async def pause_between_async(alias: str, port: int, own_port: int) -> list[Any]:
    handles = [await hold.using(backend=alias).aenqueue(port, n) for n in range(2)]
    seen: list[Any] = []
    async for done in as_completed(handles, LONG_S):
        await apass_gate(own_port, "between")
        seen.append(done.return_value)
    return seen


@task
def enqueue_many_inner(alias: str, count: int) -> list[Any]:
    inner = add.using(backend=alias)
    backend: Any = inner.get_backend()
    handles = backend.enqueue_many(inner, (((n,), {"b": 1}) for n in range(count)))
    return [handle.wait(LONG_S) for handle in handles]


@task
async def enqueue_many_inner_async(alias: str, count: int) -> list[Any]:
    inner = add.using(backend=alias)
    backend: Any = inner.get_backend()
    calls: list[Any] = [((n,), {"b": 1}) for n in range(count)]
    handles = await backend.aenqueue_many(inner, calls)
    return list(await asyncio.gather(*handles))


@task
def enqueue_many_wrong(alias: str) -> list[Any]:
    """What is raised for wrong calls, or for too many of them."""
    inner = fail.using(backend=alias)
    backend: Any = inner.get_backend()
    raised: list[str] = []
    wrong: list[list[Any]] = [[(["a"], {}), ([{1}], {})], [([], {})] * 100]
    for calls in wrong:
        try:
            backend.enqueue_many(inner, calls)
        except Exception as err:
            raised.append(type(err).__name__)
    return raised
