"""What waiting for a handle gives: what the task's function returns."""

import asyncio
from contextlib import aclosing, closing
from datetime import datetime
from typing import Any, assert_type

from django.tasks import TaskResultStatus
from django.tasks import task as djangos_task

from django_tasks_local import (
    LocalTaskContext,
    LocalTaskResult,
    Progress,
    as_completed,
    current_result_id,
    task,
    wait,
)


@task
def count(path: str) -> int:
    return len(path)


@task
async def name(path: str) -> str:
    return path


@djangos_task
def of_django(path: str) -> int:
    return len(path)


@djangos_task
def of_django_with_options(path: str) -> str:
    return path


def in_sync_code() -> None:
    handle = count.enqueue("a")
    assert_type(handle.wait(), int)
    assert_type(handle.wait(5), int)
    assert_type(handle.wait(timeout=0.5), int)
    handle.join(1.0)
    handle.refresh()
    assert_type(handle.id, str)
    assert_type(handle.status, TaskResultStatus)
    assert_type(handle.started_at, datetime | None)
    assert_type(handle.worker_ids, list[str])
    assert_type(handle.is_finished, bool)
    assert_type(handle.attempts, int)
    assert_type({handle: 1}, dict[LocalTaskResult[int], int])
    assert_type(current_result_id.get(), str)


async def in_async_code() -> None:
    handle = await count.aenqueue("a")
    n: int = await handle
    assert_type(n, int)
    assert_type(await handle, int)
    assert_type(await (await name.aenqueue("a")), str)
    await handle.ajoin()
    await handle.ajoin(timeout=2)
    await handle.arefresh()
    async with asyncio.timeout(5):
        assert_type(await handle, int)
    assert_type(await asyncio.wait_for(handle, 5), int)


async def in_gather() -> None:
    first, second = await asyncio.gather(count.enqueue("a"), name.enqueue("b"))
    assert_type(first, int)
    assert_type(second, str)
    assert_type(
        await asyncio.gather(*[count.enqueue(path) for path in ("a", "b")]), list[int]
    )


def watching_in_sync_code() -> None:
    handle = count.enqueue("a")
    for seen in handle.watch_sync():
        assert_type(seen, LocalTaskResult[int])
        assert_type(seen.metadata, dict[str, Any])
        assert_type(seen.progress, Progress | None)
    for done in as_completed([handle, count.enqueue("b")], timeout=5):
        assert_type(done, LocalTaskResult[int])
    for other in as_completed([handle, name.enqueue("b")]):
        assert_type(other, LocalTaskResult[Any])
    for found in as_completed([of_django.enqueue("a")]):
        assert_type(found, LocalTaskResult[int])
    with closing(handle.watch_sync()) as watch:
        assert_type(next(watch), LocalTaskResult[int])


async def watching_in_async_code() -> None:
    handle = await name.aenqueue("a")
    async for seen in handle.watch():
        assert_type(seen, LocalTaskResult[str])
    async for done in as_completed(name.enqueue(path) for path in "ab"):
        assert_type(done, LocalTaskResult[str])
        assert_type(done.return_value, str)
    async with aclosing(handle.watch()) as watch:
        assert_type(await anext(watch), LocalTaskResult[str])
    async with aclosing(aiter(as_completed([handle]))) as completed:
        assert_type(await anext(completed), LocalTaskResult[str])


def progress(told: Progress) -> None:
    assert_type(told.done, float)
    assert_type(told.total, float | None)
    assert_type(told.message, str)
    assert_type(told.at, datetime)


def context(given: LocalTaskContext) -> None:
    assert_type(given.metadata, dict[str, Any])
    given.metadata["a"] = [1]
    given.metadata = {"b": 2}
    assert_type(given.attempt, int)
    assert_type(given.cancel_requested, bool)
    given.checkpoint()
    given.save_metadata()
    given.report_progress(1)
    given.report_progress(1, 2.5)
    given.report_progress(done=1, total=None, message="one")


async def context_in_coroutines(given: LocalTaskContext) -> None:
    await given.asave_metadata()
    await given.areport_progress(1, 2, "one of two")


def cancelling() -> None:
    handle = count.enqueue("a")
    assert_type(handle.cancel(), bool)
    assert_type(handle.cancel(wait=True), bool)


async def cancelling_in_coroutines() -> None:
    handle = count.enqueue("a")
    assert_type(await handle.acancel(), bool)
    assert_type(await handle.acancel(wait=True), bool)


async def for_any_result() -> None:
    assert_type(await wait(count.enqueue("a")), int)
    assert_type(await wait(name.enqueue("a"), timeout=5), str)
    assert_type(await wait(of_django.enqueue("a")), int)
    assert_type(await wait(await of_django.aenqueue("a"), 5.0), int)
    assert_type(await wait(of_django_with_options.enqueue("a")), str)


def wrong_context(given: LocalTaskContext) -> None:
    given.report_progress("half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    given.report_progress(1, 2, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    given.metadata[1] = 2  # type: ignore[index]  # pyright: ignore[reportArgumentType]
    given.metadata = 3  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


async def wrong() -> None:
    handle = count.enqueue("a")
    handle.wait("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    text: str = handle.wait()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    text = await handle  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await wait("id")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    as_completed(handle)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    list(handle.watch())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    # Only this library's handles can be awaited.
    await of_django.enqueue("a")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    print(text)
