"""What the calls of the suites run, and a gate that holds them wherever they do.

Module-level functions, since a worker process imports them.
"""

import asyncio
import os
import socket
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, override

from django.tasks.base import TaskResultStatus

from ..context import LocalTaskContext, current_result_id, lending_slot
from ..errors import TaskCancelled, path_of

if TYPE_CHECKING:
    # Generic for type checkers only.
    from django.tasks.base import TaskResult

__all__: list[str] = []


class Gate:
    """Holds calls wherever they run, until it is opened.

    A held call waits on a connection to this machine's loopback address.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.settimeout(timeout_s)
        self._held: list[socket.socket] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def wait_for_arrivals(self, count: int) -> None:
        """Block until as many more calls are held. Raises TimeoutError."""
        for _ in range(count):
            connection, _ = self._listener.accept()
            self._held.append(connection)

    def open(self) -> None:
        """Let all that were held go on."""
        while self._held:
            self._held.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.open()
        self._listener.close()


def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


async def echo_async(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


def hold(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)  # nothing comes: the other end closes it
    return "went on"


async def hold_async(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await reader.read(1)
    finally:
        writer.close()
    return "went on"


def see_context(context: LocalTaskContext) -> dict[str, Any]:
    result = context.task_result
    return {
        "current_result_id": current_result_id.get(),
        "id": result.id,
        "status": result.status,
        "worker_ids": result.worker_ids,
        "attempt": context.attempt,
    }


class TwoArguments(Exception):
    """Cannot be unpickled, which breaks pools that send exceptions."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Unshowable(Exception):
    @override
    def __str__(self) -> str:
        raise ValueError("no text")


class FarOut(BaseException):
    pass


def raise_error(kind: str) -> None:
    match kind:
        case "SystemExit":
            raise SystemExit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "GeneratorExit":
            raise GeneratorExit
        case "BaseException":
            raise FarOut("far out")
        case "two arguments":
            raise TwoArguments("this", "that")
        case "unshowable":
            raise Unshowable
        case _:
            raise ValueError(f"wrong: {kind}")


def return_odd(kind: str) -> object:
    match kind:
        case "set":
            return {1, 2}
        case "nan":
            return float("nan")
        case "bytes":
            return b"\xff"
        case "recursive":
            items: list[object] = []
            items.append(items)
            return items
        case _:
            return object()


def die(exit_code: int) -> None:
    os._exit(exit_code)


def lend() -> None:
    with lending_slot():  # as one does who waits for a task
        pass


def get_var() -> str:
    return var.get()


var: ContextVar[str] = ContextVar("var", default="unset")


# Ones that fail, and what is asked about another attempt.


class Busy(Exception):
    """Knows where it was raised, which nobody can tell who has only its text."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"busy for {seconds} s")
        self.seconds = seconds
        self.where: tuple[int, int] = (os.getpid(), threading.get_ident())


def be_busy(seconds: float) -> None:
    raise Busy(seconds)


def cancel_itself() -> None:
    raise TaskCancelled("by itself")


def wait_while_busy(
    error: BaseException, task_result: "TaskResult[..., Any]"
) -> float | None:
    """A backoff: raises where it is not asked as it should be."""
    assert isinstance(error, Busy)
    assert error.__traceback__ is not None
    assert error.where == (os.getpid(), threading.get_ident())
    assert current_result_id.get() == task_result.id
    assert task_result.status is TaskResultStatus.FAILED
    assert task_result.errors[-1].exception_class_path == path_of(Busy)
    return error.seconds * task_result.attempts


@dataclass(frozen=True)
class Answers:
    """A backoff that always says the same."""

    answer: Any

    def __call__(
        self, error: BaseException, task_result: "TaskResult[..., Any]"
    ) -> float | None:
        answer: float | None = self.answer
        return answer


def divide_by_zero(
    error: BaseException, task_result: "TaskResult[..., Any]"
) -> float | None:
    """A backoff."""
    return 1 / 0


# Ones with metadata.


def tell(context: LocalTaskContext, port: int) -> dict[str, Any]:
    """Says what the metadata was at first, and changes it twice."""
    given = {**context.metadata}
    context.metadata["told"] = ["größe", 1.5, None]
    context.save_metadata()
    hold(port)
    context.metadata["at the end"] = "🧵"
    return given


async def tell_async(context: LocalTaskContext, port: int) -> dict[str, Any]:
    given = {**context.metadata}
    context.metadata["told"] = ["größe", 1.5, None]
    await context.asave_metadata()
    await hold_async(port)
    context.metadata["at the end"] = "🧵"
    return given


def tell_and_fail(context: LocalTaskContext) -> None:
    context.metadata["told"] = "so far"
    raise ValueError("wrong")


def tell_what_is_not_json(context: LocalTaskContext, fails: bool) -> str:
    context.metadata["told"] = object()
    if fails:
        raise ValueError("wrong")
    return "told"


def save_what_is_not_json(context: LocalTaskContext) -> str:
    context.metadata["told"] = object()
    try:
        context.save_metadata()
    except TypeError as err:
        del context.metadata["told"]
        return type(err).__name__
    return "saved"


def tell_nothing(context: LocalTaskContext) -> None: ...


def stop_when_asked(context: LocalTaskContext, where: str) -> str:
    """Ends where it finds that it has been asked to stop."""
    assert context.cancel_requested
    match where:
        case "checkpoint":
            context.checkpoint()
        case "save_metadata":
            context.save_metadata()
        case _:
            context.report_progress(1, 2)
    return "went on"
