"""What is compared: this library, whichever version is installed, and the executors."""

import asyncio
import json
import logging
import sys
import threading
import time
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import Any, Protocol

import django
from django.tasks import Task, TaskResult, task_backends

__all__ = [
    "Contender",
    "Library",
    "begin",
    "contender",
    "start_loop",
    "tell",
    "told",
]


class Contender(Protocol):
    """What runs functions in the background."""

    def submit(self, task: "Task[..., Any]", /, *args: Any, **kwargs: Any) -> Any:
        """Have a task's function run."""
        ...

    def wait(self, submitted: Any, /) -> Any:
        """Block until it has run; what it returned."""
        ...


class Library:
    """An alias of django-tasks-local."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._tasks: dict[int, Task[..., Any]] = {}

    def submit(self, task: "Task[..., Any]", /, *args: Any, **kwargs: Any) -> Any:
        return self.task(task).enqueue(*args, **kwargs)

    def task(self, task: "Task[..., Any]", /) -> "Task[..., Any]":
        """The task as the alias runs it. Made once, as a project would."""
        try:
            return self._tasks[id(task)]
        except KeyError:
            made = self._tasks[id(task)] = task.using(backend=self._alias)
            return made

    def wait(self, submitted: Any, /) -> Any:
        if hasattr(submitted, "wait"):
            return submitted.wait()
        return self._wait_in_2_0(submitted)

    def _wait_in_2_0(self, result: "TaskResult[..., Any]") -> Any:
        """As fast as 2.0 can be made to tell: its users can only ask now and then.

        Its private future is waited for; it is done just before the result is there.
        """
        backend: Any = task_backends[self._alias]
        future: Future[Any] | None = backend._state.futures.get(result.id)
        if future is not None:
            future.exception()
        while True:
            found = backend.get_result(result.id)
            if found.is_finished:
                return found.return_value
            time.sleep(0)


class _Bare:
    """An executor of the standard library."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, task: "Task[..., Any]", /, *args: Any, **kwargs: Any) -> Any:
        return self._executor.submit(task.func, *args, **kwargs)

    def wait(self, submitted: Any, /) -> Any:
        return submitted.result()


class _BareLoop:
    """An event loop of the standard library, on a thread of its own."""

    def __init__(self) -> None:
        self._loop = start_loop()

    def submit(self, task: "Task[..., Any]", /, *args: Any, **kwargs: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(task.func(*args, **kwargs), self._loop)

    def wait(self, submitted: Any, /) -> Any:
        return submitted.result()


def start_loop() -> asyncio.AbstractEventLoop:
    """An event loop that runs on a thread, until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def contender(name: str, alias: str) -> Contender:
    """The library's alias, or the bare executor that does the same."""
    if name != "bare":
        return Library(alias)
    if alias == "coroutines":
        return _BareLoop()
    kind, workers = alias.split("-")
    if kind == "threads":
        return _Bare(ThreadPoolExecutor(int(workers)))
    return _Bare(ProcessPoolExecutor(int(workers)))


def told() -> tuple[str, dict[str, Any]]:
    """The contender and the arguments that this program was given."""
    name, text = sys.argv[1:]
    return name, json.loads(text)


def begin() -> tuple[str, dict[str, Any]]:
    """Set Django up; what this program was told."""
    django.setup()
    name, arguments = told()
    if arguments.get("is_quiet"):
        logging.getLogger("django.tasks").setLevel(logging.WARNING)
    return name, arguments


def tell(figures: dict[str, float]) -> None:
    """Print what was measured."""
    print(json.dumps(figures), flush=True)
