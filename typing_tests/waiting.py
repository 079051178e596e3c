"""What waiting for a handle gives: what the task's function returns."""

import asyncio
from datetime import datetime
from typing import assert_type

from django.tasks import TaskResultStatus
from django.tasks import task as djangos_task

from django_tasks_local import LocalTaskResult, current_result_id, task, wait


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


async def for_any_result() -> None:
    assert_type(await wait(count.enqueue("a")), int)
    assert_type(await wait(name.enqueue("a"), timeout=5), str)
    assert_type(await wait(of_django.enqueue("a")), int)
    assert_type(await wait(await of_django.aenqueue("a"), 5.0), int)
    assert_type(await wait(of_django_with_options.enqueue("a")), str)


async def wrong() -> None:
    handle = count.enqueue("a")
    handle.wait("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    text: str = handle.wait()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    text = await handle  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await wait("id")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # Only this library's handles can be awaited.
    await of_django.enqueue("a")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    print(text)
