"""Names the task that keeps an event loop from running the others."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from traceback import StackSummary
from types import FrameType

from ..context import current_result_id
from ..interruption import InterruptibleCall
from ..logs import log_warning
from ..worker import run_coroutine_task
from .loop_thread import LoopThread

__all__ = ["LoopWatch"]

_LOOKS = 10  # how often it looks in the time in which a task is not yet too slow
_AROUND = {
    "asyncio.events",
    "asyncio.runners",
    InterruptibleCall.__module__,
    LoopThread.__module__,
    run_coroutine_task.__module__,
}


class LoopWatch:
    """Looks at an event loop from another thread, while tasks run there.

    Where the same one is there for `slow_s` seconds, and the loop does not answer, a
    WARNING says what it does, once for each time.
    """

    def __init__(
        self,
        loop_thread: LoopThread,
        *,
        alias: str,
        slow_s: float,
        is_needed: Callable[[], bool],
    ) -> None:
        self._loop_thread = loop_thread
        self._alias = alias
        self._slow_s = slow_s
        self._is_needed = is_needed
        self._begins = threading.Event()
        self._ends = threading.Event()
        threading.Thread(
            target=self._work, name=f"django-tasks-{alias}-watch", daemon=True
        ).start()

    def watch(self) -> None:
        """A task begins. Does not block."""
        if not self._begins.is_set():
            self._begins.set()

    def end(self) -> None:
        """Let the thread end. May be called twice."""
        self._ends.set()
        self._begins.set()

    def _work(self) -> None:
        pause_s = self._slow_s / _LOOKS
        while not self._ends.is_set():
            self._begins.wait()
            self._begins.clear()
            while self._is_needed() and not self._ends.wait(pause_s):
                self._await_answer(pause_s)

    def _await_answer(self, pause_s: float) -> None:
        """Ask the loop to answer, and look again and again at what it does instead.

        An answer that takes long is no fault: many short steps may come before it.
        Only one task that is seen there all the time is.
        """
        answer = threading.Event()
        self._loop_thread.call_soon(answer.set)
        seen, is_said = self._current_task(), False
        since = time.monotonic()
        while not answer.wait(pause_s) and not self._ends.is_set():
            task = self._current_task()
            if task is not seen:
                seen, is_said = task, False
                since = time.monotonic()
            elif (
                task is not None
                and not is_said
                and time.monotonic() - since >= self._slow_s
            ):
                is_said = True
                self._say_what_blocks(task)

    def _current_task(self) -> asyncio.Task[object] | None:
        return asyncio.current_task(self._loop_thread.loop)

    def _say_what_blocks(self, task: asyncio.Task[object]) -> None:
        # Python's documentation has it for just this.
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
        frame = frames.get(self._loop_thread.thread.ident or 0)
        if frame is None:
            return
        stack = _stack_of_task(frame)
        del frame, frames  # they and what they hold are not ours to keep
        log_warning(
            "TASKS[%r]: task %s (result %s) has blocked the event loop for %g s, at "
            "%s:%s in %s\n%s",
            self._alias,
            task.get_name(),
            task.get_context().get(current_result_id, "unknown"),
            self._slow_s,
            stack[0].filename,
            stack[0].lineno,
            stack[0].name,
            "".join(stack.format()).rstrip(),
        )


def _stack_of_task(frame: FrameType) -> StackSummary:
    """From the task's own function to what it calls now."""
    frames = [frame]
    while (outer := frames[-1].f_back) is not None and not _is_around(outer):
        frames.append(outer)
    return StackSummary.extract((each, each.f_lineno) for each in reversed(frames))


def _is_around(frame: FrameType) -> bool:
    """Whether it is of what runs the tasks, not of one."""
    return frame.f_globals.get("__name__") in _AROUND
