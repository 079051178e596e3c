"""Tasks that the tests enqueue; worker processes import them too."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn, override

from django.apps import apps
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import DEFAULT_DB_ALIAS, connection, connections, transaction
from django.tasks import task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

from django_tasks_local import LocalTaskContext, TaskFailed, current_result_id, task

from .gates import LONG_S, apass_gate, pass_gate

# Plain ones.


@task
def add(a: int, b: int) -> int:
    return a + b


@task
def echo(value: Any) -> Any:
    return value


@task
def echo_arguments(*args: Any, **kwargs: Any) -> list[Any]:
    return [list(args), kwargs]


@task
async def async_add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@task
def hold(port: int, name: object = "") -> object:
    """Wait at a gate."""
    pass_gate(port, name)
    return name


@task
async def async_hold(port: int, name: object = "") -> object:
    await apass_gate(port, name)
    return name


@task(takes_context=True)
def note_and_report(context: LocalTaskContext) -> dict[str, Any]:
    context.metadata["noted"] = True
    context.save_metadata()
    metadata = {**context.metadata}
    context.report_progress(1, 2)
    context.checkpoint()
    return metadata


@task(takes_context=True)
def describe_context(context: LocalTaskContext, port: int | None = None) -> list[Any]:
    if port is not None:
        pass_gate(port)
    result = context.task_result
    return [type(context).__name__, context.attempt, result.id, result.status.value]


@task(takes_context=True)
def refresh_after(context: LocalTaskContext, port: int) -> list[str]:
    """What the task's own result, and one looked up, say once the gate is passed."""
    pass_gate(port)
    result = context.task_result
    result.refresh()
    found = task_backends[result.backend].get_result(result.id)
    return [result.status.value, found.status.value]


@task
def own_id() -> str:
    return current_result_id.get()


@task
async def own_id_async() -> str:
    return current_result_id.get()


@task
def own_pid() -> int:
    return os.getpid()


@task
def append_to(values: list[int]) -> list[int]:
    values.append(99)
    return values


# Ones that return what is not JSON.

NOT_JSON: dict[str, Callable[[], object]] = {
    "nan": lambda: float("nan"),
    "infinity": lambda: [float("inf")],
    "set": lambda: {1, 2},
    "bytes": lambda: b"\xff",
    "object": object,
    "key": lambda: {(1, 2): 3},
}


@task
def return_not_json(kind: str) -> object:
    return NOT_JSON[kind]()


@task
def return_int_keys() -> dict[int, tuple[int, bytes]]:
    return {1: (2, b"three")}


# Ones that fail.


class TwoArguments(Exception):
    """Cannot be made from its `args`, nor therefore be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("no pickle")
        self.lock = threading.Lock()


class RaisingStr(Exception):
    @override
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text either")


class RaisingEverything(BaseException):
    @override
    def __str__(self) -> NoReturn:
        raise SystemExit(7)

    __repr__ = __str__


class OwnBase(BaseException):
    pass


ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("wrong value"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "CancelledError": asyncio.CancelledError,
    "MemoryError": MemoryError,
    "OwnBase": lambda: OwnBase("own"),
    "ExceptionGroup": lambda: BaseExceptionGroup("both", [SystemExit(1), OwnBase()]),
    "TwoArguments": lambda: TwoArguments("one", "two"),
    "Unpicklable": Unpicklable,
    "RaisingStr": RaisingStr,
    "RaisingEverything": RaisingEverything,
}


@task
def fail(kind: str = "ValueError") -> None:
    error = ERRORS[kind]()
    raise error


@task
async def async_fail(kind: str) -> None:
    error = ERRORS[kind]()
    raise error


@task
def call_sys_exit() -> None:
    sys.exit(4)


@task
def recurse_for_ever() -> int:
    def deeper(depth: int) -> int:
        return deeper(depth + 1) + 1

    return deeper(0)


@task
def fail_with_long_text(lines: int) -> None:
    raise ValueError("\n".join(f"line {number}" for number in range(lines)))


@task
def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


@task
def fill_memory(mebibytes: int) -> int:
    """Take so much memory for a moment; says which process did."""
    assert bytearray(b"x") * (mebibytes * 2**20)
    return os.getpid()


@task
def exit_process(code: int) -> None:
    os._exit(code)


# Ones that misbehave.


@task
def close_standard_files() -> None:
    sys.stdin.close()
    for fd in (0, 1, 2):
        os.close(fd)


@task
def close_all_files() -> None:
    os.closerange(0, 1024)


@task
def write_to_stdout(size: int) -> None:
    print("x" * size)


@task
def change_directory(path: str) -> str:
    os.chdir(path)
    return os.getcwd()


@task
def leave_thread_running(port: int) -> None:
    threading.Thread(target=pass_gate, args=(port,), daemon=True).start()


@task
def fork_and_return() -> str:
    """Both the process and its fork come back from here."""
    pid = os.fork()
    if pid == 0:
        return "fork"
    os.waitpid(pid, 0)
    return "process"


@task
def fork_and_exit_by_exception() -> str:
    pid = os.fork()
    if pid == 0:
        sys.exit(5)
    os.waitpid(pid, 0)
    return "process"


# Ones that ask for other tasks.


@task
def add_by_task(alias: str, a: int, b: int) -> int:
    return add.using(backend=alias).enqueue(a, b).wait(LONG_S)


@task
async def add_by_task_async(alias: str, a: int, b: int) -> int:
    handle = await add.using(backend=alias).aenqueue(a, b)
    async with asyncio.timeout(LONG_S):
        return await handle


@task
def nest(aliases: list[str], depth: int) -> int:
    """A task that waits for a task that waits…"""
    if depth == 0:
        return 0
    inner = nest.using(backend=aliases[depth % len(aliases)])
    return 1 + inner.enqueue(aliases, depth - 1).wait(LONG_S)


@task
async def nest_async(aliases: list[str], depth: int) -> int:
    if depth == 0:
        return 0
    inner = nest_async.using(backend=aliases[depth % len(aliases)])
    return 1 + await (await inner.aenqueue(aliases, depth - 1))


@task
def enqueue_hold(alias: str, port: int, name: str) -> str:
    """Enqueue and go: its result is for the one who enqueued this."""
    return hold.using(backend=alias).enqueue(port, name).id


@task
def look_up(alias: str, result_id: str) -> list[Any]:
    result = add.using(backend=alias).get_result(result_id)
    return [result.status.value, result.args, result.return_value]


@task
async def look_up_async(alias: str, result_id: str) -> list[Any]:
    result = await add.using(backend=alias).aget_result(result_id)
    return [result.status.value, result.args, result.return_value]


@task
def look_up_unknown(alias: str) -> str:
    try:
        add.using(backend=alias).get_result("unknown")
    except TaskResultDoesNotExist as err:
        return str(err)
    return "found"


@task
def wait_for_failing(alias: str) -> list[str]:
    try:
        fail.using(backend=alias).enqueue()
        fail.using(backend=alias).enqueue().wait(LONG_S)
    except TaskFailed as err:
        return [err.exception_class_path, err.traceback]
    return []


@task
def wait_too_short(alias: str, port: int) -> list[str]:
    """Time-outs of all kinds, then the task's end."""
    handle = hold.using(backend=alias).enqueue(port, "inner")
    pass_gate(port, "enqueued")
    seen: list[str] = []
    for _ in range(3):
        try:
            handle.wait(0.01)
        except TimeoutError as err:
            seen.append(str(err))
    handle.refresh()
    seen.append(handle.status.value)
    pass_gate(port, "timed out")
    seen.append(str(handle.wait(LONG_S)))
    return seen


@task
async def cancel_waiters(alias: str, port: int) -> list[str]:
    handle = await hold.using(backend=alias).aenqueue(port, "inner")
    await apass_gate(port, "enqueued")
    seen: list[str] = []
    waiters = [asyncio.ensure_future(handle.ajoin()) for _ in range(3)]
    await asyncio.sleep(0)
    for waiter in waiters:
        waiter.cancel()
    for outcome in await asyncio.gather(*waiters, return_exceptions=True):
        seen.append(type(outcome).__name__)
    try:
        await handle.ajoin(0.01)
    except TimeoutError:
        seen.append("TimeoutError")
    try:
        async with asyncio.timeout(0.01):
            await handle
    except TimeoutError:
        seen.append("TimeoutError")
    await handle.arefresh()
    seen.append(handle.status.value)
    await apass_gate(port, "cancelled")
    async with asyncio.timeout(LONG_S):
        seen.append(str(await handle))
    return seen


@task
async def gather_tasks(alias: str, count: int) -> list[int]:
    inner = add.using(backend=alias)
    handles = [await inner.aenqueue(number, 1) for number in range(count)]
    return list(await asyncio.gather(*handles))


@task
def wait_in_threads(alias: str, count: int) -> list[int]:
    """Threads of one task wait at the same time."""
    sums: dict[int, int] = {}

    def wait_for_sum(number: int) -> None:
        sums[number] = add.using(backend=alias).enqueue(number, 1).wait(LONG_S)

    threads = [
        threading.Thread(target=wait_for_sum, args=(number,)) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [sums[number] for number in range(count)]


# Ones that look at the project.

colour: ContextVar[str] = ContextVar("colour", default="none")


@task
def see_colour() -> str:
    seen = colour.get()
    colour.set("the task's")
    return seen


@task
def enqueue_see_colour(alias: str) -> str:
    return see_colour.using(backend=alias).enqueue().wait(LONG_S)


@task
async def see_colour_async() -> str:
    seen = colour.get()
    colour.set("the task's")
    return seen


@task
def see_project() -> dict[str, Any]:
    return {
        "database": str(connection.settings_dict["NAME"]),
        "apps": [config.label for config in apps.get_app_configs()],
        "ready": apps.ready,
        "debug": settings.DEBUG,
        "answer": getattr(settings, "ANSWER", None),
        "use_tz": settings.USE_TZ,
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
    }


@task
def store_session(key: str) -> int:
    Session.objects.create(session_key=key, session_data="", expire_date=timezone.now())
    return Session.objects.count()


@task
def count_sessions() -> int:
    return Session.objects.count()


@task
def leave_transaction_open(key: str) -> None:
    transaction.atomic().__enter__()
    Session.objects.create(session_key=key, session_data="", expire_date=timezone.now())


@task
def is_in_transaction() -> bool:
    return connection.in_atomic_block


@task
def count_sessions_and_tell(port: int, is_persistent: bool = False) -> int:
    """Use the database, and tell at a gate when the connection has been closed."""
    if is_persistent:
        # Of this thread's alone: all share the dict.
        own = connections[DEFAULT_DB_ALIAS]
        own.settings_dict = {**own.settings_dict, "CONN_MAX_AGE": None}
    close = connection.close

    def close_and_tell() -> None:
        was_open = connection.connection is not None
        close()
        if was_open:
            pass_gate(port, "closed")

    vars(connections[DEFAULT_DB_ALIAS])["close"] = close_and_tell
    return Session.objects.count()


@task
def enqueue_and_wait(alias: str, port: int, own_port: int) -> str:
    value = hold.using(backend=alias, priority=1).enqueue(port, "inner").wait(LONG_S)
    pass_gate(own_port, "woken")
    return str(value)
