"""Who waits for the results: threads and coroutines, many of which leave early."""

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from django_tasks_local import LocalTaskResult

__all__ = ["Waiters"]

_THREADS = 16
_LONGEST_PATIENCE_S = 0.05


class Waiters:
    """Has each result waited for in one way or another, chosen at random."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"waiters {seed}")
        self._stack = ExitStack()
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._threads = stack.enter_context(ThreadPoolExecutor(_THREADS))
            self._portals: list[BlockingPortal] = [
                stack.enter_context(start_blocking_portal(backend))
                for backend in ("asyncio", "trio")
            ]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def wait_for(
        self, handle: LocalTaskResult[Any], on_done: Callable[[Future[None]], None]
    ) -> None:
        """Wait for it in the background; then call `on_done`."""
        count = self._chance.choice((0, 0, 1, 3))
        patience = [
            self._chance.uniform(0.0, _LONGEST_PATIENCE_S) for _ in range(count)
        ]
        way = self._chance.randrange(3)
        if way == 2:
            future = self._threads.submit(_wait_in_thread, handle, patience)
        else:
            future = self._portals[way].start_task_soon(_wait, handle, patience)
        self._futures.append(future)
        future.add_done_callback(on_done)

    def finish(self) -> None:
        """Block until all have seen the end. Raises what one of them raised."""
        for future in self._futures:
            future.result()


def _wait_in_thread(handle: LocalTaskResult[Any], patience: list[float]) -> None:
    for timeout_s in patience:
        with suppress(TimeoutError):
            handle.join(timeout_s)
        handle.refresh()
    handle.join()


async def _wait(handle: LocalTaskResult[Any], patience: list[float]) -> None:
    for timeout_s in patience:
        with suppress(TimeoutError):
            await handle.ajoin(timeout_s)
        with anyio.move_on_after(timeout_s):
            await handle.ajoin()
        await _leave_together(handle, timeout_s / 10)
        await handle.arefresh()
    await handle.ajoin()


async def _leave_together(handle: LocalTaskResult[Any], patience_s: float) -> None:
    """Several coroutines that wait and are cancelled at once."""
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(handle.ajoin)
        await anyio.sleep(patience_s)
        group.cancel_scope.cancel()
