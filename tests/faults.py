"""What can go wrong, as the tests try it and as the documentation tells it.

``uv run python -m tests.faults`` writes the table into the documentation's page.
"""

import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "what-can-go-wrong.md"

if __name__ == "__main__":
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()

from django.tasks import TaskResultStatus  # noqa: E402  # after the set-up
from django.test import override_settings  # noqa: E402

from django_tasks_local import (  # noqa: E402
    LocalTask,
    LocalTaskResult,
    TaskCancelled,
    TaskTimeout,
    WorkerLost,
)

from . import fault_tasks, tasks  # noqa: E402
from .gates import LONG_S, Gate  # noqa: E402
from .leftovers import wait_until_gone  # noqa: E402
from .tables import as_table, with_table  # noqa: E402

type Handle = LocalTaskResult[Any]
type Provoke = Callable[[str], Handle]
"""Makes the fault happen on an alias; gives the handle of the task that meets it."""
type Expect = Callable[[Handle, str], None]
"""Asserts that the finished handle, of the case of that name, says what it should."""

IN_THIS_PROCESS = ("default", "loop")
PROCESSES = ("cpu",)
ALL = ("default", "cpu", "loop")

_HOW: Mapping[Sequence[str], str] = {
    ALL: "all",
    PROCESSES: "processes",
    IN_THIS_PROCESS: "threads, event loop",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault at one moment, in some variants that are seen alike."""

    cause: str
    moment: str
    sees: str
    """What the user sees of the task that meets it."""
    cases: Mapping[str, Provoke]
    expect: Expect
    on: Sequence[str] = ALL
    """The aliases whose workers it can meet."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options that the alias needs for it."""


def _enqueue(task: "LocalTask[..., Any]", *args: Any) -> Provoke:
    return lambda alias: task.using(backend=alias).enqueue(*args)


# What is expected.


def _lost(said: str = "") -> Expect:
    def expect(handle: Handle, cause: str) -> None:
        how = (
            f"exited with code {fault_tasks.EXIT_CODE}"
            if cause == "exit"
            else f"was killed by {cause}"
        )
        (error,) = handle.errors
        assert error.exception_class is WorkerLost
        (worker_id,) = handle.worker_ids
        pid = worker_id.split(":")[1]
        assert re.search(rf"Worker process {pid} {how} {said}", error.traceback), (
            f"{error.traceback} of {worker_id}"
        )

    return expect


def _failed(handle: Handle, case: str, kind: type[BaseException] | None = None) -> None:
    assert handle.status is TaskResultStatus.FAILED
    (error,) = handle.errors
    assert error.exception_class is (kind or type(tasks.ERRORS[case]()))
    assert error.traceback


def _succeeded(handle: Handle, case: str) -> None:
    assert handle.status is TaskResultStatus.SUCCESSFUL, handle.errors
    assert handle.errors == []


def _succeeded_at_second(handle: Handle, case: str) -> None:
    assert handle.status is TaskResultStatus.SUCCESSFUL, handle.errors
    assert handle.return_value == handle.attempts == 2
    (error,) = handle.errors
    assert error.exception_class is WorkerLost
    died, lived = handle.worker_ids
    assert died != lived


def _not_tried_again(handle: Handle, case: str) -> None:
    assert handle.status is TaskResultStatus.FAILED
    assert handle.attempts == 1
    own, further = handle.errors
    assert own.exception_class is ValueError
    assert further.exception_class.__name__ == case


def _metadata_refused(handle: Handle, case: str) -> None:
    assert handle.status is TaskResultStatus.FAILED
    # Where the task fails because it saves it, it is still there at the end.
    assert len(handle.errors) == (2 if case == "saved" else 1)
    assert {error.exception_class for error in handle.errors} == {TypeError}
    assert handle.metadata == {"step": "first"}


def _shortened(handle: Handle, case: str) -> None:
    _failed(handle, case, ValueError)
    text = handle.errors[0].traceback
    assert len(text) < 101_000
    assert text.startswith("Traceback (most recent call last):\n")
    assert "characters left out" in text
    assert text.endswith("line 999999\n")


def _arrived(handle: Handle, case: str) -> None:
    _succeeded(handle, case)
    assert handle.return_value == "x" * 50_000_000


def _cancel_running(task: "LocalTask[..., Any]") -> Provoke:
    def provoke(alias: str) -> Handle:
        with Gate() as gate:
            handle = task.using(backend=alias).enqueue(gate.port)
            visitor = gate.next_visitor()
            assert handle.cancel()
            visitor.let_go()
            handle.join(LONG_S)
        return handle

    return provoke


# Ways for a worker process to die.

DEATHS = ("SIGKILL", "SIGSEGV", "SIGTERM", "exit")


def _deaths(provoke: Callable[[str, str], Handle]) -> dict[str, Provoke]:
    return {cause: partial(provoke, cause) for cause in DEATHS}


def _die_in_import(cause: str, alias: str) -> Handle:
    module = import_module(f"tests.dying_modules.{cause.lower()}")
    task: LocalTask[[], None] = module.never_runs
    return task.using(backend=alias).enqueue()


def _die_unpickling(cause: str, alias: str) -> Handle:
    token = fault_tasks.carried.set(fault_tasks.DiesUnpickled(cause))
    try:
        return fault_tasks.do_nothing.using(backend=alias).enqueue()
    finally:
        fault_tasks.carried.reset(token)


def _die_starting(cause: str, alias: str) -> Handle:
    with override_settings(ANSWER=fault_tasks.DiesUnpickled(cause)):
        handle = fault_tasks.do_nothing.using(backend=alias).enqueue()
        handle.join(LONG_S)
        return handle


def _die_idle(cause: str, alias: str) -> Handle:
    own_pid = tasks.own_pid.using(backend=alias)
    pid = own_pid.enqueue().wait(LONG_S)
    os.kill(pid, signal.SIGKILL if cause == "exit" else signal.Signals[cause])
    assert wait_until_gone(pid)
    handle = own_pid.enqueue()
    assert handle.wait(LONG_S) != pid
    return handle


_DIES = (
    "A worker process is killed, by the system for want of memory, say, crashes, or "
    "leaves with `os._exit`"
)
_LOST = "FAILED with `WorkerLost`, which names the signal or the exit code"

FAULTS = {
    "dies importing": Fault(
        cause=_DIES,
        moment="while it imports the task's module",
        sees=_LOST,
        on=PROCESSES,
        cases=_deaths(_die_in_import),
        expect=_lost(r"after running tests\.dying_modules\.\w+\.never_runs for"),
    ),
    "dies unpickling": Fault(
        cause=_DIES,
        moment="while it unpickles what came along with the call",
        sees=_LOST,
        on=PROCESSES,
        options={"CONTEXT": ["tests.fault_tasks.carried"]},
        cases=_deaths(_die_unpickling),
        expect=_lost(r"after running tests\.fault_tasks\.do_nothing for \d+\.\d+ s"),
    ),
    "dies running": Fault(
        cause=_DIES,
        moment="while it runs the task",
        sees=f"{_LOST}, and how long the task had run",
        on=PROCESSES,
        cases=_deaths(
            lambda cause, alias: fault_tasks.die_while_running.using(
                backend=alias
            ).enqueue(cause)
        ),
        expect=_lost(r"after running tests\.fault_tasks\.die_while_running for \d+\."),
    ),
    "dies with attempts left": Fault(
        cause=_DIES,
        moment="while it runs a task that has another attempt",
        sees="what comes of the next attempt, which is made when the task's backoff "
        "says; `WorkerLost` is the first of its errors",
        on=PROCESSES,
        cases=_deaths(
            lambda cause, alias: fault_tasks.die_at_first.using(backend=alias).enqueue(
                cause
            )
        ),
        expect=_succeeded_at_second,
    ),
    "dies sending": Fault(
        cause=_DIES,
        moment="while it sends the outcome",
        sees=_LOST,
        on=PROCESSES,
        cases=_deaths(
            lambda cause, alias: fault_tasks.die_while_sending.using(
                backend=alias
            ).enqueue(cause)
        ),
        expect=_lost("after running"),
    ),
    "dies starting": Fault(
        cause=_DIES,
        moment="while it starts, before any task",
        sees=f"{_LOST}, and that no worker process could be started; the next start "
        "waits, longer each time that one fails",
        on=PROCESSES,
        cases=_deaths(_die_starting),
        expect=_lost(r"while it started\."),
    ),
    "dies idle": Fault(
        cause=_DIES,
        moment="while it has nothing to do",
        sees="nothing: the next task gets a new process",
        on=PROCESSES,
        cases=_deaths(_die_idle),
        expect=_succeeded,
    ),
    "raises": Fault(
        cause="The task raises an exception, `SystemExit`, `KeyboardInterrupt` or "
        "any other",
        moment="while it runs",
        sees="FAILED with it",
        cases={
            kind: _enqueue(tasks.fail, kind)
            for kind in (
                *("ValueError", "SystemExit", "KeyboardInterrupt", "GeneratorExit"),
                *("StopIteration", "CancelledError", "MemoryError", "OwnBase"),
                "ExceptionGroup",
            )
        },
        expect=_failed,
    ),
    "raises what cannot be pickled": Fault(
        cause="The task raises an exception that cannot be pickled, or not unpickled, "
        "or that cannot be shown since its `str()` raises",
        moment="while it runs",
        sees="FAILED with it",
        cases={
            kind: _enqueue(tasks.fail, kind)
            for kind in (
                *("Unpicklable", "TwoArguments", "RaisingStr", "RaisingEverything"),
            )
        },
        expect=_failed,
    ),
    "has a long traceback": Fault(
        cause="The exception's text has a million lines",
        moment="while it runs",
        sees="FAILED with it; of the traceback, the first and the last 50,000 "
        "characters",
        cases={"lines": _enqueue(tasks.fail_with_long_text, 1_000_000)},
        expect=_shortened,
    ),
    "recurses": Fault(
        cause="The task calls itself without end",
        moment="while it runs",
        sees="FAILED with `RecursionError`",
        cases={"calls": _enqueue(tasks.recurse_for_ever)},
        expect=partial(_failed, kind=RecursionError),
    ),
    "takes too long": Fault(
        cause="The task takes longer than its time limit",
        moment="while its function runs",
        sees="FAILED with `TaskTimeout`; its process was killed",
        on=PROCESSES,
        cases={"function": _enqueue(fault_tasks.hang)},
        expect=partial(_failed, kind=TaskTimeout),
    ),
    "takes too long to await": Fault(
        cause="The task takes longer than its time limit",
        moment="while its coroutine runs",
        sees="FAILED with `TaskTimeout`; the coroutine was cancelled, on "
        "processes its process was killed",
        cases={"coroutine": _enqueue(fault_tasks.async_hang)},
        expect=partial(_failed, kind=TaskTimeout),
    ),
    "is cancelled": Fault(
        cause="Somebody cancels the task",
        moment="while its coroutine runs",
        sees="FAILED with `TaskCancelled`; the coroutine was cancelled, on "
        "processes its process was killed",
        cases={"coroutine": _cancel_running(tasks.async_hold)},
        expect=partial(_failed, kind=TaskCancelled),
    ),
    "is cancelled in a process": Fault(
        cause="Somebody cancels the task",
        moment="while its function runs",
        sees="FAILED with `TaskCancelled`; its process was killed",
        on=PROCESSES,
        cases={"function": _cancel_running(tasks.hold)},
        expect=partial(_failed, kind=TaskCancelled),
    ),
    "is asked to stop": Fault(
        cause="Somebody cancels the task",
        moment="while its function runs, before a checkpoint",
        sees="FAILED with `TaskCancelled`",
        on=IN_THIS_PROCESS,
        cases={"checkpoint": _cancel_running(fault_tasks.stop_when_asked)},
        expect=partial(_failed, kind=TaskCancelled),
    ),
    "is asked in vain": Fault(
        cause="Somebody cancels the task",
        moment="while its function runs, which never looks whether it should stop",
        sees="SUCCESSFUL: a thread cannot be stopped",
        on=IN_THIS_PROCESS,
        cases={"function": _cancel_running(tasks.hold)},
        expect=_succeeded,
    ),
    "has a wrong backoff": Fault(
        cause="The task fails, and its backoff raises, or answers what is no number of "
        "seconds",
        moment="after an attempt",
        sees="FAILED with both errors: it is not tried again",
        cases={
            "ZeroDivisionError": _enqueue(fault_tasks.fail_with_raising_backoff),
            "TypeError": _enqueue(fault_tasks.fail_with_backoff_that_answers_nonsense),
        },
        expect=_not_tried_again,
    ),
    "has metadata that is not JSON": Fault(
        cause="The metadata is not JSON",
        moment="when the task saves it, or at its end",
        sees="FAILED with `TypeError`; what was saved before stays",
        cases={
            "saved": _enqueue(fault_tasks.have_metadata_that_is_not_json, True),
            "left": _enqueue(fault_tasks.have_metadata_that_is_not_json, False),
        },
        expect=_metadata_refused,
    ),
    "takes too much memory": Fault(
        cause="The task wants more memory than its process may have",
        moment="while its module is imported, while it runs, or at its end",
        sees="FAILED with `MemoryError`; where the system kills the process instead, "
        "see above",
        on=PROCESSES,
        cases={
            "running": _enqueue(fault_tasks.take_too_much_memory),
            "importing": partial(_die_in_import, "memory"),
            "returning": _enqueue(fault_tasks.return_more_than_there_is_memory_for),
        },
        expect=partial(_failed, kind=MemoryError),
    ),
    "returns what is not JSON": Fault(
        cause="The return value is not JSON, or contains itself",
        moment="at its end",
        sees="FAILED with `TypeError`",
        cases={
            **{kind: _enqueue(tasks.return_not_json, kind) for kind in tasks.NOT_JSON},
            "itself": _enqueue(fault_tasks.return_itself),
        },
        expect=partial(_failed, kind=TypeError),
    ),
    "returns much": Fault(
        cause="The return value has 50 MB",
        moment="at its end",
        sees="SUCCESSFUL: there is no limit but memory",
        cases={"text": _enqueue(fault_tasks.return_megabytes, 50)},
        expect=_arrived,
    ),
    "changes its process": Fault(
        cause="The task changes the directory, handlers of signals, or closes standard "
        "input and output",
        moment="while it runs",
        sees="SUCCESSFUL; what it has changed stays so for the next task of that "
        "process",
        on=PROCESSES,
        cases={
            "directory": _enqueue(tasks.change_directory, "/"),
            "signals": _enqueue(fault_tasks.change_signal_handlers),
            "files": _enqueue(tasks.close_standard_files),
        },
        expect=_succeeded,
    ),
    "closes all files": Fault(
        cause="The task closes all files, the pipe to its parent among them",
        moment="while it runs",
        sees="FAILED with `WorkerLost`",
        on=PROCESSES,
        cases={"files": _enqueue(tasks.close_all_files)},
        expect=partial(_failed, kind=WorkerLost),
    ),
    "writes much": Fault(
        cause="The task writes 10 MB to standard output",
        moment="while it runs",
        sees="SUCCESSFUL",
        on=PROCESSES,
        cases={"stdout": _enqueue(tasks.write_to_stdout, 10_000_000)},
        expect=_succeeded,
    ),
    "starts others": Fault(
        cause="The task starts processes of its own, or forks, and the fork returns or "
        "raises",
        moment="while it runs",
        sees="SUCCESSFUL; a fork ends where it would come back from the task",
        on=PROCESSES,
        cases={
            "processes": _enqueue(fault_tasks.use_processes),
            "fork returns": _enqueue(tasks.fork_and_return),
            "fork raises": _enqueue(tasks.fork_and_exit_by_exception),
        },
        expect=_succeeded,
    ),
}


def as_markdown() -> str:
    """The table as the documentation has it."""
    rows: list[list[str]] = []
    told = ""
    for fault in FAULTS.values():
        cause = "" if fault.cause == told else fault.cause
        told = fault.cause
        on = _HOW[tuple(fault.on)]
        rows.append([cause, fault.moment, on, fault.sees])
    return as_table(["What", "When", "On", "What you see of its task"], rows)


def with_faults(text: str) -> str:
    """The page's text with the table as it should be."""
    return with_table(text, as_markdown(), name="faults")


if __name__ == "__main__":
    PAGE.write_text(with_faults(PAGE.read_text()))
