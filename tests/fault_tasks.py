"""Tasks that go wrong; worker processes import them too."""

import asyncio
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from contextvars import ContextVar
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, override

from django_tasks_local import LocalTaskContext, task
from django_tasks_local.backoff import fixed

from .gates import pass_gate

if TYPE_CHECKING:
    from django.tasks.base import TaskResult  # generic for type checkers only

LIMIT_S = 0.2

EXIT_CODE = 3


def die(cause: str) -> None:
    """End this process: by the signal of that name, or by `os._exit`."""
    if cause == "exit":
        os._exit(EXIT_CODE)
    os.kill(os.getpid(), signal.Signals[cause])
    threading.Event().wait()


class DiesUnpickled:
    """Ends the process that unpickles it."""

    def __init__(self, cause: str) -> None:
        self.cause = cause

    @override
    def __reduce__(self) -> tuple[object, ...]:
        return die, (self.cause,)


carried: ContextVar[object] = ContextVar("carried")
"""What goes along with the calls of an alias that names it in CONTEXT."""


@task
def do_nothing() -> None: ...


@task
def die_while_running(cause: str) -> None:
    die(cause)


@task(max_attempts=2, backoff=fixed(0), takes_context=True)
def die_at_first(context: LocalTaskContext, cause: str) -> int:
    """Which attempt has lived."""
    if context.attempt == 1:
        die(cause)
    return context.attempt


@task(backend="cpu", timeout=LIMIT_S)
def hang() -> None:
    threading.Event().wait()


@task(timeout=LIMIT_S)
async def async_hang() -> None:
    await asyncio.Event().wait()


@task(takes_context=True)
def stop_when_asked(context: LocalTaskContext, port: int) -> None:
    pass_gate(port)
    context.checkpoint()


def divide_by_zero(error: BaseException, result: "TaskResult[..., Any]") -> float:
    """A backoff."""
    return 1 / 0


def answer_soon(error: BaseException, result: "TaskResult[..., Any]") -> float:
    """A backoff."""
    soon: Any = "soon"
    answer: float = soon
    return answer


@task(max_attempts=3, backoff=divide_by_zero)
def fail_with_raising_backoff() -> None:
    raise ValueError("wrong")


@task(max_attempts=3, backoff=answer_soon)
def fail_with_backoff_that_answers_nonsense() -> None:
    raise ValueError("wrong")


@task(takes_context=True)
def have_metadata_that_is_not_json(context: LocalTaskContext, saves: bool) -> str:
    context.metadata["step"] = "first"
    context.save_metadata()
    context.metadata["lock"] = threading.Lock()
    if saves:
        context.save_metadata()
    return "done"


@task
def crash_in_fork_and_exit() -> None:
    pid = os.fork()
    if pid == 0:
        die("SIGSEGV")
    os.waitpid(pid, 0)
    die("exit")


@task
def die_while_sending(cause: str) -> str:
    """End the process while its main thread sends what this returns."""
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        while not is_sending():
            pass
        die(cause)

    def is_sending() -> bool:
        frame = sys._current_frames()[main]
        while frame.f_back is not None:
            if frame.f_code.co_qualname == "MessagePipe.send":
                return True
            frame = frame.f_back
        return False

    threading.Thread(target=watch, daemon=True).start()
    return "x" * 50_000_000


@task
def return_itself() -> object:
    value: list[object] = []
    value.append(value)
    return value


@task
def return_megabytes(count: int) -> str:
    return "x" * (count * 1_000_000)


@task
def take_too_much_memory() -> None:
    """More than this process may have, for as long as this runs."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    _limit_memory(200)
    try:
        bytearray(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@task
def return_more_than_there_is_memory_for() -> str:
    value = "x" * 100_000_000
    _limit_memory(50)
    return value


def _limit_memory(mebibytes: int) -> None:
    """Let this process have so much more than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    soft = pages * resource.getpagesize() + mebibytes * 2**20
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@task
def change_signal_handlers() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


@task
def use_processes() -> list[str]:
    """What a subprocess and a process of multiprocessing have said."""
    said = subprocess.run(
        [sys.executable, "-c", "print('subprocess')"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_say, args=(theirs,))
    process.start()
    answer = ours.recv()
    process.join()
    ours.close()
    theirs.close()
    return [said, answer]


def _say(pipe: "Connection[str, str]") -> None:
    pipe.send("process")
