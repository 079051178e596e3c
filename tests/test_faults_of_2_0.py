"""What version 2.0 got wrong, each by its name, and right here."""

import re
import signal
import socket
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import override_settings

from django_tasks_local.state import shutdown_executor

from .conftest import WORKERS, Configure, RunScript
from .gates import LONG_S, Gate
from .tasks import (
    add,
    add_by_task,
    call_sys_exit,
    colour,
    count_sessions_and_tell,
    describe_context,
    echo,
    hold,
    kill_self,
    own_pid,
    return_not_json,
    see_colour,
    store_session,
)


def test_signals_are_sent(alias: str) -> None:
    seen: list[str] = []

    def receive(task_result: Any, **_: Any) -> None:
        seen.append(str(task_result.status))

    signals = (task_enqueued, task_started, task_finished)
    for each in signals:
        each.connect(receive)
    try:
        add.using(backend=alias).enqueue(1, 2).wait(LONG_S)
    finally:
        for each in signals:
            each.disconnect(receive)
    assert seen == ["READY", "RUNNING", "SUCCESSFUL"]


def test_takes_context_is_honoured(alias: str) -> None:
    handle = describe_context.using(backend=alias).enqueue()
    assert handle.wait(LONG_S) == ["LocalTaskContext", 1, handle.id, "RUNNING"]


def test_started_at_is_when_the_task_started(
    alias: str, configure: Configure, gate: Gate
) -> None:
    configure(alias, MAX_WORKERS=1)
    hold.using(backend=alias).enqueue(gate.port)
    handle = hold.using(backend=alias).enqueue(gate.port)
    visitor = gate.next_visitor()
    between = datetime.now(UTC)
    visitor.let_go()
    gate.next_visitor().let_go()
    handle.wait(LONG_S)
    assert handle.enqueued_at is not None
    assert handle.started_at is not None
    assert handle.enqueued_at < between < handle.started_at


def test_worker_ids_are_filled(alias: str) -> None:
    handle = own_pid.using(backend=alias).enqueue()
    pid = handle.wait(LONG_S)
    assert handle.worker_ids == [f"{socket.gethostname()}:{pid}:{WORKERS[alias]}"]


def test_a_set_is_no_return_value(alias: str) -> None:
    handle = return_not_json.using(backend=alias).enqueue("set")
    handle.join(LONG_S)
    assert handle.status is TaskResultStatus.FAILED
    assert handle.errors[0].exception_class is TypeError


def test_results_are_not_shared(alias: str) -> None:
    handle = echo.using(backend=alias).enqueue([1])
    handle.wait(LONG_S).append(2)
    assert task_backends[alias].get_result(handle.id).return_value == [1]


def test_sys_exit_in_a_task_ends_only_the_task(alias: str) -> None:
    handle = call_sys_exit.using(backend=alias).enqueue()
    handle.join(LONG_S)
    assert handle.status is TaskResultStatus.FAILED
    assert handle.errors[0].exception_class is SystemExit
    assert add.using(backend=alias).enqueue(1, 2).wait(LONG_S) == 3


def test_a_dead_worker_breaks_nothing_else() -> None:
    kill = kill_self.using(backend="cpu")
    lost = [kill.enqueue(signal.SIGKILL) for _ in range(3)]
    kept = [add.using(backend="cpu").enqueue(n, 1) for n in range(5)]
    for handle in lost:
        handle.join(LONG_S)
        assert handle.status is TaskResultStatus.FAILED
    assert [handle.wait(LONG_S) for handle in kept] == [1, 2, 3, 4, 5]


def test_results_of_other_processes_are_not_pretended(alias: str) -> None:
    with pytest.raises(
        TaskResultDoesNotExist, match="only what was enqueued in this process"
    ):
        task_backends[alias].get_result("another-process's")


def test_used_pools_work_after_a_fork(run_script: RunScript) -> None:
    done = run_script(
        """
        import os
        from tests.small_project import configure
        configure()
        from tests.small_tasks import double

        if __name__ == "__main__":
            for alias in ("default", "cpu"):
                assert double.using(backend=alias).enqueue(1).wait(20) == 2
            pid = os.fork()
            for alias in ("default", "cpu"):
                assert double.using(backend=alias).enqueue(2).wait(20) == 4
            if pid:
                _, status = os.waitpid(pid, 0)
                print("fork", os.waitstatus_to_exitcode(status))
        """
    )
    assert done.stdout == "fork 0\n"
    assert done.stderr == ""


@pytest.mark.usefixtures("database")
def test_the_orm_works_in_worker_processes() -> None:
    assert store_session.using(backend="cpu").enqueue("one").wait(LONG_S) == 1


@pytest.mark.usefixtures("database")
def test_connections_are_closed_after_a_task(alias: str, gate: Gate) -> None:
    handle = count_sessions_and_tell.using(backend=alias).enqueue(gate.port)
    assert gate.next_visitor().name == "closed"
    gate.open()
    assert handle.wait(LONG_S) == 0


def test_thread_tasks_see_the_enqueuers_contextvars() -> None:
    token = colour.set("red")
    try:
        assert see_colour.enqueue().wait(LONG_S) == "red"
        assert colour.get() == "red"
    finally:
        colour.reset(token)


@pytest.mark.parametrize(
    "options", [{"MAX_WORKER": 3}, {"MAX_WORKERS": "ten"}, {"MAX_WORKERS": 0}]
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    setting = {
        "default": {
            "BACKEND": "django_tasks_local.ThreadPoolBackend",
            "OPTIONS": options,
        }
    }
    (name,) = options
    with override_settings(TASKS=setting):
        (message,) = task_backends["default"].check()
        assert f"TASKS['default']['OPTIONS']['{name}']" in str(message.msg)
        with pytest.raises(ImproperlyConfigured, match=re.escape(str(message.msg))):
            add.enqueue(1, 2)


def test_a_task_may_enqueue_while_its_alias_is_shut_down(
    alias: str, gate: Gate
) -> None:
    outer = add_by_task.using(backend=alias).enqueue(alias, 1, 2)
    held = hold.using(backend=alias).enqueue(gate.port)
    gate.next_visitor().let_go()
    shutdown_executor(alias)
    assert outer.wait(LONG_S) == 3
    assert held.is_finished or held.wait(LONG_S) == ""


def test_no_test_sleeps() -> None:
    pause = re.compile(r"sleep\((?!0\))")
    sources = {
        path.name: path.read_text() for path in Path(__file__).parent.glob("*.py")
    }
    del sources[Path(__file__).name]
    assert [name for name, source in sources.items() if pause.search(source)] == []


def test_the_package_is_typed() -> None:
    assert (files("django_tasks_local") / "py.typed").is_file()
