"""Django's signals and log lines: once each, and nobody who listens can do harm."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from queue import Queue
from typing import Any, Protocol

import pytest
from asgiref.sync import sync_to_async
from django.contrib.sessions.models import Session
from django.db import connection
from django.dispatch import Signal
from django.tasks import TaskResult, TaskResultStatus, task_backends
from django.tasks.signals import task_enqueued, task_finished, task_started

from django_tasks_local import LocalTaskResult

from .conftest import WORKERS, Configure
from .gates import LONG_S, Gate
from .tasks import OwnBase, add, async_add, enqueue_hold, fail, hold

SIGNALS = {
    "enqueued": task_enqueued,
    "started": task_started,
    "finished": task_finished,
}

type Receiver = Callable[..., Any]


class Listen(Protocol):
    """Connects a receiver until the test ends."""

    def __call__(self, signal: Signal, receiver: Receiver, /) -> None: ...


@pytest.fixture
def listen(nothing_left_behind: None) -> Iterator[Listen]:
    with ExitStack() as stack:

        def listen(signal: Signal, receiver: Receiver, /) -> None:
            signal.connect(receiver)
            stack.callback(signal.disconnect, receiver)

        yield listen


class Seen:
    """What receivers of all signals have seen, in order."""

    def __init__(self, listen: Listen) -> None:
        self.events: list[tuple[str, type, str, str]] = []
        self.threads: dict[str, str] = {}
        self.finished = threading.Event()
        self._receivers = [self._receiver(name) for name in SIGNALS]
        for signal, receiver in zip(SIGNALS.values(), self._receivers, strict=True):
            listen(signal, receiver)

    def _receiver(self, name: str) -> Receiver:
        def receive(
            *, sender: type, task_result: "TaskResult[..., Any]", **_: Any
        ) -> None:
            self.events.append((name, sender, task_result.id, str(task_result.status)))
            self.threads[name] = threading.current_thread().name

        return receive


@pytest.mark.parametrize("is_async", [False, True], ids=["enqueue", "aenqueue"])
def test_each_signal_is_sent_once_and_in_order(
    alias: str, listen: Listen, is_async: bool
) -> None:
    seen = Seen(listen)
    good, bad = add.using(backend=alias), fail.using(backend=alias)
    handles: list[LocalTaskResult[Any]]
    if is_async:

        async def enqueue() -> list[LocalTaskResult[Any]]:
            return [await good.aenqueue(1, 2), await bad.aenqueue()]

        handles = asyncio.run(enqueue())
    else:
        handles = [good.enqueue(1, 2), bad.enqueue()]
    sender = type(task_backends[alias])
    for handle, status in zip(handles, ["SUCCESSFUL", "FAILED"], strict=True):
        handle.join(LONG_S)
        assert [event for event in seen.events if event[2] == handle.id] == [
            ("enqueued", sender, handle.id, "READY"),
            ("started", sender, handle.id, "RUNNING"),
            ("finished", sender, handle.id, status),
        ]
    assert len(seen.events) == 6


def test_only_task_enqueued_is_sent_on_the_enqueuers_thread(
    alias: str, listen: Listen
) -> None:
    seen = Seen(listen)
    add.using(backend=alias).enqueue(1, 2).wait(LONG_S)
    assert seen.threads == {
        "enqueued": threading.current_thread().name,
        "started": f"django-tasks-{WORKERS[alias]}",
        "finished": f"django-tasks-{WORKERS[alias]}",
    }


def test_receivers_of_task_started_are_done_before_the_function_begins(
    alias: str, listen: Listen, gate: Gate, other_gate: Gate
) -> None:
    def receive(**_: Any) -> None:
        hold.func(other_gate.port, "receiver")

    listen(task_started, receive)
    handle = hold.using(backend=alias).enqueue(gate.port)
    receiver = other_gate.next_visitor()
    assert gate.is_deserted()
    handle.refresh()
    assert handle.status is TaskResultStatus.RUNNING
    receiver.let_go()
    gate.next_visitor().let_go()
    handle.wait(LONG_S)


def test_receivers_of_task_enqueued_are_done_before_the_task_starts(
    alias: str, listen: Listen
) -> None:
    states: list[TaskResultStatus] = []

    def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
        task_result.refresh()
        states.append(task_result.status)
        found = task_backends[alias].get_result(task_result.id)
        states.append(found.status)

    listen(task_enqueued, receive)
    add.using(backend=alias).enqueue(1, 2).wait(LONG_S)
    assert states == [TaskResultStatus.READY] * 2


def test_receivers_of_task_finished_are_done_before_waiters_wake(
    alias: str, listen: Listen
) -> None:
    finished: list[str] = []

    def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
        found = task_backends[alias].get_result(task_result.id)
        finished.append(f"{found.status} {found.return_value}")

    listen(task_finished, receive)
    add.using(backend=alias).enqueue(1, 2).wait(LONG_S)
    assert finished == ["SUCCESSFUL 3"]


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("error", [ValueError(), SystemExit(3), OwnBase()], ids=repr)
def test_a_receiver_that_raises_changes_nothing_and_is_logged(
    alias: str,
    listen: Listen,
    name: str,
    error: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def receive(**_: Any) -> None:
        raise error

    listen(SIGNALS[name], receive)
    handles = [add.using(backend=alias).enqueue(n, 1) for n in range(3)]
    assert [handle.wait(LONG_S) for handle in handles] == [1, 2, 3]
    logged = [r for r in caplog.records if r.exc_info and r.exc_info[1] is error]
    assert len(logged) == 3


@pytest.mark.parametrize("error", [ValueError(), OwnBase()], ids=repr)
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async"])
def test_a_receiver_that_raises_changes_nothing_for_aenqueue(
    listen: Listen, error: BaseException, is_async: bool
) -> None:
    def receive(**_: Any) -> None:
        raise error

    async def areceive(**_: Any) -> None:
        raise error

    async def enqueue() -> int:
        return await (await add.aenqueue(1, 2))

    listen(task_enqueued, areceive if is_async else receive)
    assert asyncio.run(enqueue()) == 3


def test_a_receiver_that_ends_the_event_loop_does_not_end_the_task(
    listen: Listen,
) -> None:
    """Asyncio itself lets SystemExit out of its loop, past all who await."""
    ended = Queue[str]()

    async def receive(**_: Any) -> None:
        raise SystemExit(3)

    def take(task_result: LocalTaskResult[Any], **_: Any) -> None:
        ended.put(task_result.status.value)

    listen(task_enqueued, receive)
    listen(task_finished, take)
    with suppress(SystemExit):  # some versions of Django keep it to themselves
        asyncio.run(add.aenqueue(1, 2))
    assert ended.get(timeout=LONG_S) == "SUCCESSFUL"


def test_receivers_may_change_their_result(alias: str, listen: Listen) -> None:
    def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
        task_result.args.append("more")
        task_result.worker_ids.append("nobody")

    for signal in SIGNALS.values():
        listen(signal, receive)
    handle = add.using(backend=alias).enqueue(1, 2)
    assert handle.args == [1, 2]
    assert handle.wait(LONG_S) == 3
    assert add.using(backend=alias).get_result(handle.id).args == [1, 2]


def test_receivers_may_enqueue_and_wait(
    alias: str, listen: Listen, configure: Configure
) -> None:
    configure(alias, MAX_WORKERS=1)
    outer = fail.using(backend=alias)
    sums: list[int] = []

    def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
        if task_result.task.name == "fail":
            sums.append(add.using(backend=alias).enqueue(1, len(sums)).wait(LONG_S))

    for signal in SIGNALS.values():
        listen(signal, receive)
    outer.enqueue().join(LONG_S)
    assert sums == [1, 2, 3]


def test_receivers_may_be_async(alias: str, listen: Listen) -> None:
    seen: list[str] = []

    async def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
        await asyncio.sleep(0)
        seen.append(str(task_result.status))

    for signal in SIGNALS.values():
        listen(signal, receive)
    async_add.using(backend=alias).enqueue(1, 2).wait(LONG_S)
    assert seen == ["READY", "RUNNING", "SUCCESSFUL"]
    seen.clear()

    async def enqueue() -> int:
        return await (await async_add.using(backend=alias).aenqueue(1, 2))

    assert asyncio.run(enqueue()) == 3
    assert seen == ["READY", "RUNNING", "SUCCESSFUL"]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_receivers_may_use_the_orm_in_aenqueue(
    alias: str, listen: Listen, loop: str
) -> None:
    counts: list[int] = []

    def receive(**_: Any) -> None:
        counts.append(Session.objects.count())
        connection.close()  # which on the enqueuer's side is a request's affair

    async def enqueue() -> int:
        return await (await add.using(backend=alias).aenqueue(1, 2))

    for signal in SIGNALS.values():
        listen(signal, receive)
    if loop == "asyncio":
        assert asyncio.run(enqueue()) == 3
    else:
        import trio

        assert trio.run(enqueue) == 3
    assert counts == [0, 0, 0]


def test_a_cancelled_aenqueue_has_enqueued_what_it_stored(
    listen: Listen, gate: Gate
) -> None:
    ids: list[str] = []
    reached = asyncio.Event()

    async def receive(task_result: LocalTaskResult[Any], **_: Any) -> None:
        ids.append(task_result.id)
        reached.set()
        await asyncio.Event().wait()

    async def cancel() -> None:
        enqueuing = asyncio.ensure_future(add.aenqueue(1, 2))
        await reached.wait()
        enqueuing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await enqueuing

    listen(task_enqueued, receive)
    asyncio.run(cancel())
    assert add.get_result(ids[0]).wait(LONG_S) == 3


def test_signals_of_a_childs_tasks_are_sent_here(alias: str, listen: Listen) -> None:
    seen = Seen(listen)
    with Gate() as gate:
        outer = enqueue_hold.using(backend="cpu").enqueue(alias, gate.port, "inner")
        gate.next_visitor().let_go()
        inner_id = outer.wait(LONG_S)
        assert hold.using(backend=alias).get_result(inner_id).wait(LONG_S) == "inner"
    names = [event[0] for event in seen.events if event[2] == inner_id]
    assert names == ["enqueued", "started", "finished"]


class TestDjangosLogLines:
    def lines(
        self, caplog: pytest.LogCaptureFixture, result_id: str
    ) -> list[tuple[str, str]]:
        return [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if record.name == "django.tasks" and result_id in record.getMessage()
        ]

    def test_appear_once_each(
        self, alias: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "django.tasks")
        handle = add.using(backend=alias).enqueue(1, 2)
        handle.wait(LONG_S)
        begin = f"Task id={handle.id} path=tests.tasks.add"
        assert self.lines(caplog, handle.id) == [
            ("DEBUG", f"{begin} enqueued backend={alias}"),
            ("INFO", f"{begin} state=RUNNING"),
            ("INFO", f"{begin} state=SUCCESSFUL"),
        ]

    def test_show_the_traceback_of_a_task_that_failed(
        self, alias: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "django.tasks")
        handle = fail.using(backend=alias).enqueue()
        handle.join(LONG_S)
        begin = f"Task id={handle.id} path=tests.tasks.fail"
        assert self.lines(caplog, handle.id) == [
            ("INFO", f"{begin} state=RUNNING"),
            ("ERROR", f"{begin} state=FAILED"),
        ]
        text = logging.Formatter().format(caplog.records[-1])
        assert "in fail\n    raise error" in text
        assert text.count("ValueError: wrong value") == 1

    def test_are_the_same_with_other_receivers(
        self, alias: str, listen: Listen, caplog: pytest.LogCaptureFixture
    ) -> None:
        Seen(listen)
        self.test_appear_once_each(alias, caplog)
        self.test_show_the_traceback_of_a_task_that_failed(alias, caplog)

    def test_carry_no_error_that_the_enqueuer_is_handling(
        self, alias: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "django.tasks")
        try:
            raise ValueError("the enqueuer's")
        except ValueError:
            add.using(backend=alias).enqueue(1, 2).wait(LONG_S)
        assert [record.exc_info for record in caplog.records] == [None, None]


def test_async_enqueues_from_sync_receivers_keep_their_thread(listen: Listen) -> None:
    """With a receiver besides Django's own, it runs off the loop, as Django has it."""
    threads: list[threading.Thread] = []

    def receive(**_: Any) -> None:
        threads.append(threading.current_thread())

    async def enqueue() -> threading.Thread:
        await (await add.aenqueue(1, 2))
        return await sync_to_async(threading.current_thread)()

    listen(task_enqueued, receive)
    sensitive = asyncio.run(enqueue())
    assert threads == [sensitive]
