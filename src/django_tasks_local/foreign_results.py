"""Results of other backends, which only looking at them again can bring on."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
from django.db import connections
from django.tasks import task_backends
from django.tasks.backends.dummy import DummyBackend
from django.tasks.base import TaskResult

from .async_bridge import is_in_trio
from .json_text import encode_foreign
from .logs import log_exception
from .records import ErrorRecord, Record
from .task_registry import spec_of
from .times import to_timestamp

__all__ = ["ForeignResult", "aget_result", "record_of_foreign"]

_FIRST_POLL_S = 0.01
_LONGEST_POLL_S = 0.5


def record_of_foreign(result: "TaskResult[..., Any]", /) -> Record:
    """What another backend's result holds, as a record."""
    is_successful = result.status == result.status.SUCCESSFUL
    return Record(
        id=result.id,
        task=spec_of(result.task),
        alias=result.backend,
        arguments=encode_foreign([result.args, result.kwargs]),
        run_after=to_timestamp(result.task.run_after),
        owner="",
        enqueued_at=to_timestamp(result.enqueued_at) or 0.0,
        status=result.status,
        started_at=to_timestamp(result.started_at),
        last_attempted_at=to_timestamp(result.last_attempted_at),
        finished_at=to_timestamp(result.finished_at),
        value=encode_foreign(result.return_value) if is_successful else None,
        errors=tuple(
            ErrorRecord(error.exception_class_path, error.traceback)
            for error in result.errors
        ),
        worker_ids=tuple(result.worker_ids),
    )


async def aget_result(alias: str, result_id: str) -> "TaskResult[..., Any]":
    """Look a result up on an event loop, under asyncio or trio."""
    backend = task_backends[alias]
    if is_in_trio():  # where Django's own crossing into a thread does not work
        return await anyio.to_thread.run_sync(backend.get_result, result_id)
    return await backend.aget_result(result_id)


class ForeignResult:
    """The `Waitable` of a result that nothing in this process brings to its end."""

    def __init__(self, record: Record) -> None:
        self.record: Record = record

    def latest(self) -> Record:
        """Look it up."""
        return self._see(task_backends[self.record.alias].get_result(self.record.id))

    async def alatest(self) -> Record:
        """The same without blocking."""
        return self._see(await aget_result(self.record.alias, self.record.id))

    def _see(self, result: "TaskResult[..., Any]") -> Record:
        # Others count no revisions.
        record = record_of_foreign(result)._replace(revision=self.record.revision)
        if record != self.record:
            self.record = record._replace(revision=record.revision + 1)
        return self.record

    def wait(
        self,
        timeout_s: float | None,
        /,
        *,
        at_end: Callable[[], None],
        revision: int | None = None,
    ) -> bool:
        """Look again and again, at first every 10 ms, in the end every 500 ms."""
        self._check_that_it_ever_runs()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for pause_s in _pauses():
            if _is_past(self.latest(), revision):
                return True
            if deadline is not None:
                pause_s = min(pause_s, deadline - time.monotonic())
                if pause_s <= 0:
                    return False
            time.sleep(pause_s)
        return True

    async def wait_async(
        self, *, at_end: Callable[[], None], revision: int | None = None
    ) -> None:
        """The same without blocking."""
        self._check_that_it_ever_runs()
        for pause_s in _pauses():
            if _is_past(await self.alatest(), revision):
                return
            await anyio.sleep(pause_s)

    def subscribe(
        self, wake: Callable[[], None], /, *, group: int
    ) -> Callable[[], None] | None:
        """Look for it on a thread of its own until it is finished."""
        self._check_that_it_ever_runs()
        if self.latest().is_finished:
            return None
        is_over = threading.Event()

        def poll() -> None:
            try:
                for pause_s in _pauses():
                    if is_over.wait(pause_s) or self.latest().is_finished:
                        return
            except Exception:  # who is woken looks for itself, and meets it there
                log_exception("Result %s could not be looked up", self.record.id)
            finally:
                connections.close_all()
                wake()

        threading.Thread(target=poll, name="django-tasks-poll", daemon=True).start()
        return is_over.set

    def _check_that_it_ever_runs(self) -> None:
        if isinstance(task_backends[self.record.alias], DummyBackend):
            raise RuntimeError(
                f"Task {self.record.id} never runs: TASKS[{self.record.alias!r}] is a "
                "DummyBackend, which only keeps what was enqueued."
            )


def _is_past(record: Record, revision: int | None) -> bool:
    return record.is_finished or (revision is not None and record.revision > revision)


def _pauses() -> Iterator[float]:
    pause_s = _FIRST_POLL_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, _LONGEST_POLL_S)
