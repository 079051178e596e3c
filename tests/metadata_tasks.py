"""Tasks that tell of themselves; worker processes import them too."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from django_tasks_local import LocalTaskContext, task
from django_tasks_local.backoff import fixed

from .gates import apass_gate, pass_gate
from .tasks import NOT_JSON

# Metadata.


@task(takes_context=True)
def see_metadata(context: LocalTaskContext) -> dict[str, Any]:
    return context.metadata


@task(takes_context=True)
async def see_metadata_async(context: LocalTaskContext) -> dict[str, Any]:
    return context.metadata


@task(takes_context=True)
def save_metadata(context: LocalTaskContext, port: int) -> None:
    """Change it; save; wait at a gate; change it again."""
    context.metadata["saved"] = {"at": "the gate"}
    context.save_metadata()
    context.metadata["unsaved"] = True
    pass_gate(port)


@task(takes_context=True)
async def save_metadata_async(context: LocalTaskContext, port: int) -> None:
    context.metadata["saved"] = {"at": "the gate"}
    await context.asave_metadata()
    context.metadata["unsaved"] = True
    await apass_gate(port)


@task(takes_context=True)
def change_metadata(context: LocalTaskContext, *, fails: bool) -> None:
    context.metadata["given"].append("changed")
    context.metadata["new"] = None
    if fails:
        raise ValueError("after the change")


@task(takes_context=True)
async def change_metadata_async(context: LocalTaskContext, *, fails: bool) -> None:
    context.metadata["given"].append("changed")
    context.metadata["new"] = None
    if fails:
        raise ValueError("after the change")


@task(takes_context=True)
def replace_metadata(context: LocalTaskContext) -> None:
    context.metadata = {"other": context.metadata}


@task(takes_context=True, max_attempts=3, backoff=fixed(0))
def note_attempts(context: LocalTaskContext) -> list[int]:
    attempts: list[int] = context.metadata.setdefault("attempts", [])
    attempts.append(context.attempt)
    if context.attempt < 3:
        raise ValueError("once more")
    return attempts


@task(takes_context=True, max_attempts=3, backoff=fixed(0))
async def note_attempts_async(context: LocalTaskContext) -> list[int]:
    attempts: list[int] = context.metadata.setdefault("attempts", [])
    attempts.append(context.attempt)
    if context.attempt < 3:
        raise ValueError("once more")
    return attempts


@task(takes_context=True, max_attempts=2, backoff=fixed(3600))
def fail_until_later(context: LocalTaskContext) -> None:
    context.metadata["attempt"] = context.attempt
    raise ValueError("in an hour")


def _as_metadata(make: Callable[[], object]) -> dict[str, object]:
    return {"it": make()}


NO_METADATA: Mapping[str, Callable[[], Any]] = {
    **{name: partial(_as_metadata, make) for name, make in NOT_JSON.items()},
    "list": lambda: ["it"],
    "none": lambda: None,
    "keys": lambda: {1: "it"},
}


@task(takes_context=True)
def leave_no_metadata(context: LocalTaskContext, kind: str, *, fails: bool) -> None:
    context.metadata = NO_METADATA[kind]()
    if fails:
        raise ValueError("as well")


@task(takes_context=True)
def save_no_metadata(context: LocalTaskContext, port: int, kind: str) -> str:
    """What it raises; then it is made good again."""
    context.metadata["before"] = 1
    context.save_metadata()
    context.metadata = NO_METADATA[kind]()
    text = "saved"
    try:
        context.save_metadata()
    except TypeError as err:
        text = str(err)
    pass_gate(port)
    context.metadata = {"after": 1}
    return text


_kept: list[LocalTaskContext] = []


@task(takes_context=True)
def keep_context(context: LocalTaskContext) -> None:
    """For the next task in this process."""
    context.metadata["kept"] = 1
    _kept.append(context)


@task
def use_kept_context() -> list[str]:
    """What the former task's context raises, now that the task has ended."""
    context = _kept.pop()
    context.metadata["late"] = 1
    raised: list[str] = []
    try:
        context.save_metadata()
    except RuntimeError as err:
        raised.append(str(err))
    return raised


@task
async def use_kept_context_async() -> list[str]:
    context = _kept.pop()
    context.metadata["late"] = 1
    raised: list[str] = []
    try:
        await context.asave_metadata()
    except RuntimeError as err:
        raised.append(str(err))
    return raised


@task
def enqueue_with_metadata(alias: str, metadata: dict[str, Any]) -> list[Any]:
    """What a handle says, and the task that it belongs to."""
    handle = see_metadata.using(backend=alias, metadata=metadata).enqueue()
    at_first = handle.metadata
    return [at_first, handle.wait(20.0), handle.metadata]


# Progress.


@task(takes_context=True)
def report(context: LocalTaskContext, port: int) -> None:
    """Once, then wait at a gate."""
    context.report_progress(3, 7, "three of seven")
    pass_gate(port)


@task(takes_context=True)
async def report_async(context: LocalTaskContext, port: int) -> None:
    await context.areport_progress(3, 7, "three of seven")
    await apass_gate(port)


@task(takes_context=True)
def report_often(context: LocalTaskContext, count: int, port: int) -> None:
    """As fast as it can, then wait at a gate without a word."""
    for done in range(1, count + 1):
        context.report_progress(done, count)
    pass_gate(port)


@task(takes_context=True)
async def report_often_async(context: LocalTaskContext, count: int, port: int) -> None:
    for done in range(1, count + 1):
        await context.areport_progress(done, count)
    await apass_gate(port)


@task(takes_context=True)
def report_and_end(context: LocalTaskContext, count: int, *, fails: bool) -> None:
    for done in range(1, count + 1):
        context.report_progress(done)
    if fails:
        raise ValueError("just short of it")


@task(takes_context=True)
def report_beside_changes(context: LocalTaskContext, port: int) -> None:
    """What it has not saved stays unsaved when it reports."""
    context.metadata["saved"] = 1
    context.save_metadata()
    context.metadata["unsaved"] = 1
    context.report_progress(1)
    pass_gate(port)


class WrongReport:
    """One that is no progress, by name, for tasks and for tests."""

    def __init__(self, *args: Any, error: type[Exception]) -> None:
        self.args = args
        self.error = error


WRONG_REPORTS = {
    "nan": WrongReport(float("nan"), error=ValueError),
    "infinity": WrongReport(1, float("inf"), error=ValueError),
    "string": WrongReport("x", error=TypeError),
    "bool": WrongReport(True, error=TypeError),
    "none": WrongReport(None, error=TypeError),
    "total": WrongReport(1, "7", error=TypeError),
    "bool_total": WrongReport(1, False, error=TypeError),
    "message": WrongReport(1, 2, 3, error=TypeError),
}


@task(takes_context=True)
def report_wrongly(context: LocalTaskContext) -> dict[str, str]:
    """The class of what each raises."""
    raised: dict[str, str] = {}
    for name, wrong in WRONG_REPORTS.items():
        try:
            context.report_progress(*wrong.args)
        except Exception as err:
            raised[name] = type(err).__name__
    return raised


@task(takes_context=True)
async def report_wrongly_async(context: LocalTaskContext) -> dict[str, str]:
    raised: dict[str, str] = {}
    for name, wrong in WRONG_REPORTS.items():
        try:
            await context.areport_progress(*wrong.args)
        except Exception as err:
            raised[name] = type(err).__name__
    return raised


# All of it, where nobody listens.


@task(takes_context=True)
def use_context(context: LocalTaskContext) -> list[Any]:
    context.checkpoint()
    before = dict(context.metadata)
    context.metadata["told"] = True
    context.save_metadata()
    context.report_progress(1, 2, "half")
    context.report_progress(2, 2)
    return [
        type(context).__name__,
        context.attempt,
        context.cancel_requested,
        before,
        context.metadata["told"],
        context.metadata["progress"]["done"],
    ]


@task(takes_context=True)
async def use_context_async(context: LocalTaskContext) -> list[Any]:
    context.checkpoint()
    before = dict(context.metadata)
    context.metadata["told"] = True
    await context.asave_metadata()
    await context.areport_progress(1, 2, "half")
    await context.areport_progress(2, 2)
    return [
        type(context).__name__,
        context.attempt,
        context.cancel_requested,
        before,
        context.metadata["told"],
        context.metadata["progress"]["done"],
    ]
