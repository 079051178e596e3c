"""How long a worker process lives, what it is given, and what it leaves."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import TaskResultStatus
from django.test import override_settings

from django_tasks_local import WorkerLost
from django_tasks_local.executors.starts import Starts

from .conftest import Configure, RunScript
from .fault_tasks import DiesUnpickled, crash_in_fork_and_exit
from .gates import LONG_S, Gate
from .leftovers import is_gone, wait_until_gone
from .tasks import (
    add,
    colour,
    enqueue_see_colour,
    fill_memory,
    hold,
    kill_self,
    own_pid,
    see_colour,
    see_colour_async,
)


def worker_pid() -> int:
    return own_pid.using(backend="cpu").enqueue().wait(LONG_S)


class TestReplacement:
    def test_comes_after_so_many_tasks(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1, MAX_TASKS_PER_CHILD=2)
        handles = [own_pid.using(backend="cpu").enqueue() for _ in range(5)]
        one, two, three, four, five = [handle.wait(LONG_S) for handle in handles]
        assert one == two != three == four != five
        assert wait_until_gone(one)
        assert wait_until_gone(three)
        assert not is_gone(five)
        assert [handle.errors for handle in handles] == [[]] * 5

    def test_counts_tasks_that_fail(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1, MAX_TASKS_PER_CHILD=2)
        pid = worker_pid()
        refused = add.using(backend="cpu").enqueue("one", 2)  # type: ignore[arg-type]  # to fail
        refused.join(LONG_S)
        assert refused.status is TaskResultStatus.FAILED
        assert worker_pid() != pid

    def test_comes_after_the_task_that_took_too_much_memory(
        self, configure: Configure
    ) -> None:
        configure("cpu", MAX_WORKERS=1, MAX_MEMORY_PER_CHILD_MB=400)
        pid = worker_pid()
        assert worker_pid() == pid
        assert fill_memory.using(backend="cpu").enqueue(500).wait(LONG_S) == pid
        assert wait_until_gone(pid)
        assert worker_pid() != pid

    def test_is_off_by_default(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1)
        assert len({worker_pid() for _ in range(20)}) == 1


class TestIdleProcesses:
    def test_go_and_come_again(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1, IDLE_TIMEOUT=0.05)
        pid = worker_pid()
        assert wait_until_gone(pid)
        assert worker_pid() != pid

    def test_do_not_go_while_a_task_runs(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("cpu", MAX_WORKERS=2, IDLE_TIMEOUT=0.05)
        held = hold.using(backend="cpu").enqueue(gate.port, "held")
        visitor = gate.next_visitor()
        assert wait_until_gone(worker_pid())  # the other one
        visitor.let_go()
        assert held.wait(LONG_S) == "held"

    def test_leave_no_process_and_no_thread_at_all(self, run_script: RunScript) -> None:
        done = run_script(
            """
    from tests.small_project import TASKS, configure
    configure(TASKS={"default": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "OPTIONS": {"IDLE_TIMEOUT": 0.05},
    }})
    from tests.leftovers import descendants, our_threads, wait_until_gone
    from tests.small_tasks import double

    if __name__ == "__main__":
        for _ in range(2):
            handles = [double.enqueue(n) for n in range(8)]
            assert [handle.wait(30) for handle in handles] == [2 * n for n in range(8)]
            for thread in our_threads():
                thread.join(30)
            for pid in descendants():
                assert wait_until_gone(pid)
        print(our_threads(), descendants())
            """
        )
        assert done.stdout == "[] set()\n"


class TestCrashReports:
    def test_say_where_a_segmentation_fault_was(self) -> None:
        lost = kill_self.using(backend="cpu").enqueue(signal.SIGSEGV)
        lost.join(LONG_S)
        (error,) = lost.errors
        assert error.exception_class is WorkerLost
        assert "was killed by SIGSEGV after running tests.tasks.kill_self" in (
            error.traceback
        )
        assert "Fatal Python error: Segmentation fault" in error.traceback
        assert "in kill_self" in error.traceback

    def test_are_those_of_one_process(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1)
        for number in (signal.SIGABRT, signal.SIGKILL):
            lost = kill_self.using(backend="cpu").enqueue(number)
            lost.join(LONG_S)
            text = lost.errors[0].traceback
            assert number.name in text
            assert ("Fatal Python error" in text) is (number == signal.SIGABRT)

    def test_of_a_fork_are_not_its_workers(self) -> None:
        lost = crash_in_fork_and_exit.using(backend="cpu").enqueue()
        lost.join(LONG_S)
        text = lost.errors[0].traceback
        assert "exited with code 3" in text
        assert "Fatal Python error" not in text


class TestStarts:
    def test_wait_longer_with_each_failure_and_not_after_a_success(self) -> None:
        now = 50.0
        starts = Starts(clock=lambda: now)
        waits = [starts.wait_s]
        for _ in range(9):
            now += starts.wait_s
            starts.failed()
            waits.append(starts.wait_s)
        assert waits == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
        starts.succeeded()
        assert starts.wait_s == 0
        starts.wait()

    def test_that_fail_at_once_count_as_one(self) -> None:
        starts = Starts(clock=lambda: 50.0)
        for _ in range(8):
            starts.failed()
        assert starts.wait_s == pytest.approx(0.1)

    def test_wait_no_longer_once_all_ends(self) -> None:
        starts = Starts(clock=lambda: 50.0)
        starts.failed()
        starts.end()
        starts.wait()

    def test_wait_by_the_clock(self) -> None:
        starts = Starts()
        starts.failed()
        begin = time.monotonic()
        starts.wait()
        assert time.monotonic() - begin > 0.05

    def test_that_fail_fail_their_tasks_alone(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1)
        with override_settings(ANSWER=DiesUnpickled("exit")):
            lost = [add.using(backend="cpu").enqueue(1, 2) for _ in range(3)]
            for handle in lost:
                handle.join(LONG_S)
                (error,) = handle.errors
                assert error.exception_class is WorkerLost
                assert "No worker process could be started" in error.traceback
                assert "exited with code 3 while it started." in error.traceback
        assert add.using(backend="cpu").enqueue(1, 2).wait(LONG_S) == 3


class Unpicklable:
    def __reduce__(self) -> tuple[object, ...]:
        raise LookupError("not this one")


class PickledOnly:
    def __reduce__(self) -> tuple[object, ...]:
        return int, ("not a number",)


class TestContext:
    @pytest.fixture(autouse=True)
    def _one_variable(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=1, CONTEXT=["tests.tasks.colour"])

    @pytest.mark.parametrize(
        "task", [see_colour, see_colour_async], ids=lambda task: task.name
    )
    def test_goes_along_and_changes_stay_with_the_task(self, task: Any) -> None:
        on_process = task.using(backend="cpu")
        token = colour.set("red")
        try:
            first, second = on_process.enqueue(), on_process.enqueue()
            colour.set("blue")
            third = on_process.enqueue()
            seen = [handle.wait(LONG_S) for handle in (first, second, third)]
        finally:
            colour.reset(token)
        assert seen == ["red", "red", "blue"]
        assert on_process.enqueue().wait(LONG_S) == "none"

    @pytest.mark.parametrize("alias", ["default", "cpu"])
    def test_goes_along_with_what_a_task_enqueues(self, alias: str) -> None:
        token = colour.set("red")
        try:
            outer = enqueue_see_colour.using(backend="cpu").enqueue(alias)
        finally:
            colour.reset(token)
        assert outer.wait(LONG_S) == "red"

    @pytest.mark.parametrize(
        "value, reason",
        [
            (Unpicklable(), "context variable tests.tasks.colour cannot be pickled"),
            (PickledOnly(), "invalid literal for int()"),
        ],
        ids=["pickled", "unpickled"],
    )
    def test_that_cannot_be_sent_fails_only_its_task(
        self, value: Any, reason: str
    ) -> None:
        pid = worker_pid()
        token = colour.set(value)
        try:
            handle = see_colour.using(backend="cpu").enqueue()
        finally:
            colour.reset(token)
        handle.join(LONG_S)
        assert handle.status is TaskResultStatus.FAILED
        assert reason in handle.errors[0].traceback
        assert worker_pid() == pid

    def test_that_is_not_there_is_an_error_of_the_settings(
        self, configure: Configure
    ) -> None:
        configure("cpu", CONTEXT=["tests.tasks.nothing"])
        with pytest.raises(ImproperlyConfigured, match=r"'tests\.tasks\.nothing'"):
            worker_pid()


def test_log_records_carry_the_result_id_everywhere(
    run_script: RunScript, tmp_path: Path
) -> None:
    done = run_script(
        """
    import sys
    from tests.small_project import configure
    configure(LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"result_id": {"()": "django_tasks_local.ResultIdFilter"}},
        "formatters": {"line": {"format": "%(result_id)s|%(name)s|%(message)s"}},
        "handlers": {"file": {
            "class": "logging.FileHandler", "filename": "site.log",
            "filters": ["result_id"], "formatter": "line",
        }},
        "root": {"handlers": ["file"], "level": "INFO"},
    })
    from tests.small_tasks import log

    if __name__ == "__main__":
        for alias in ("default", "cpu"):
            handle = log.using(backend=alias).enqueue(alias)
            handle.wait(30)
            print(handle.id)
        log.func("nowhere")
        """
    )
    thread_id, process_id = done.stdout.split()
    lines = (tmp_path / "site.log").read_text().splitlines()
    assert f"{thread_id}|small|default" in lines
    assert f"{process_id}|small|cpu" in lines
    assert "|small|nowhere" in lines
    for result_id in (thread_id, process_id):
        for status in ("RUNNING", "SUCCESSFUL"):
            text = f"Task id={result_id} path=tests.small_tasks.log state={status}"
            assert f"{result_id}|django.tasks|{text}" in lines
