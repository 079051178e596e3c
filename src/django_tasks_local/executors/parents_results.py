"""What a task in a worker process has of its parent: results, and refusals."""

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, override

import anyio.to_thread
from django.utils.module_loading import import_string

from ..async_bridge import RemoteCompletion
from ..backoff import Backoff
from ..protocols import ParentLink
from ..records import GetRequest, Record, Refusal
from ..task_registry import find_backoff
from .messages import Run

if TYPE_CHECKING:
    from ..results import LocalTaskResult

__all__ = ["ParentsResult", "WatchingLink", "as_exception", "backoff_of"]


class WatchingLink(ParentLink, Protocol):
    """A `ParentLink` that tells of changes of the parent's results."""

    def watching(
        self,
        result: "ParentsResult",
        /,
        *,
        revision: int | None,
        group: int | None = None,
    ) -> AbstractContextManager[None]:
        """Have the result fetched when the parent's task is finished.

        With a `revision`: when its record has a later one. For the `group` see
        `SlotLender`.
        """
        ...


def backoff_of(call: Run) -> Backoff | None:
    """What to ask when the call fails; found, and its errors raised, only then."""
    packed = call.backoff
    if packed is None:
        return None

    def ask(error: BaseException, task_result: "LocalTaskResult[Any]") -> float | None:
        backoff: Backoff = (
            pickle.loads(packed)
            if packed
            else find_backoff(call.record.task, call.record.alias)
        )
        return backoff(error, task_result)

    return ask


class ParentsResult(RemoteCompletion):
    """A result of the parent's, to be waited for in a worker process."""

    __slots__ = ("_link",)

    def __init__(self, link: WatchingLink, record: Record) -> None:
        super().__init__(record)
        self._link = link

    def fetch(self, revision: int | None) -> None:
        """There is news of it: get its record, and wake who waits."""
        try:
            if not self.latest().is_past(revision):
                raise RuntimeError(
                    f"Task {self.record.id} is {self.record.status.value}, and nothing "
                    "more can be learned of it: there is nothing to wait for."
                )
        except Exception as err:  # the parent refused: whoever waits must know
            self.fail(err)

    @override
    def latest(self) -> Record:
        record = self._link.request(GetRequest(self.record.alias, self.record.id))
        assert isinstance(record, Record)  # as the parent answers that
        if record.is_finished:
            self.finish(record)
        else:
            self.see(record)
        return record

    @override
    async def alatest(self) -> Record:
        # Not on the thread of the task's other sync code, which may take long.
        return await anyio.to_thread.run_sync(self.latest)

    @override
    def wait(
        self,
        timeout_s: float | None,
        /,
        *,
        at_end: Callable[[], None],
        revision: int | None = None,
    ) -> bool:
        with self._watching(revision):
            return super().wait(timeout_s, at_end=at_end, revision=revision)

    @override
    async def wait_async(
        self, *, at_end: Callable[[], None], revision: int | None = None
    ) -> None:
        with self._watching(revision):
            await super().wait_async(at_end=at_end, revision=revision)

    @override
    def subscribe(
        self, wake: Callable[[], None], /, *, group: int
    ) -> Callable[[], None] | None:
        remove = super().subscribe(wake, group=group)
        if remove is None:
            return None
        watch = self._watching(None, group=group)
        watch.__enter__()

        def end() -> None:
            remove()
            watch.__exit__(None, None, None)

        return end

    def _watching(
        self, revision: int | None, *, group: int | None = None
    ) -> AbstractContextManager[None]:
        if self._is_past(revision):
            return nullcontext()
        return self._link.watching(self, revision=revision, group=group)


def as_exception(refusal: Refusal) -> Exception:
    """What the parent's code raised, or what comes nearest to it."""
    try:
        error = import_string(refusal.exception_class_path)(refusal.message)
    except Exception:  # the class is not there, or wants other arguments
        error = None
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"{refusal.exception_class_path}: {refusal.message}")
