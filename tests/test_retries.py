"""Tasks that fail and are tried again."""

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
import pytest
from django.dispatch import Signal
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import override_settings

from django_tasks_local import LocalTask, LocalTaskResult, TaskFailed, task
from django_tasks_local.backoff import exponential, fixed
from django_tasks_local.state import shutdown_executor

from . import retry_tasks
from .conftest import Configure, RunScript
from .gates import LONG_S, Gate
from .retry_tasks import (
    ANSWERS,
    die_at_first,
    fail_for_an_hour,
    fail_for_good,
    fail_noted,
    fail_only_once,
    fail_until,
    fail_until_async,
    fail_until_by_default,
    fail_until_with_lambda,
    fail_with_answer,
    hold_and_fail_for_an_hour,
    hold_with_attempts,
    raise_at_first,
    see_and_set_colour,
    stay_at_first,
)
from .tasks import add, colour, fail

READY, FAILED = TaskResultStatus.READY, TaskResultStatus.FAILED
WORKER_LOST = "django_tasks_local.errors.WorkerLost"
TASK_TIMEOUT = "django_tasks_local.errors.TaskTimeout"


def error_names(handle: LocalTaskResult[Any]) -> list[str]:
    return [each.exception_class_path.rpartition(".")[2] for each in handle.errors]


def notes(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def join_first_attempt(handle: LocalTaskResult[Any]) -> LocalTaskResult[Any]:
    """The result between its first attempt and its second."""
    return next(
        each
        for each in handle.watch_sync()
        if each.is_finished or (each.status is READY and each.attempts == 1)
    )


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    return tmp_path / "notes"


BACKOFF = "a callable that takes (exception, task_result)"


class TestAttempts:
    @pytest.mark.parametrize(
        "task", [fail_until, fail_until_async], ids=["def", "async"]
    )
    def test_go_on_until_one_succeeds(self, alias: str, task: Any) -> None:
        handle = task.using(backend=alias).enqueue(3)
        assert handle.wait(LONG_S) == 3
        assert handle.attempts == 3
        assert [each.exception_class for each in handle.errors] == [ValueError] * 2
        for number, error in enumerate(handle.errors, 1):
            assert error.traceback.endswith(f"ValueError: attempt {number}\n")
        pids = [worker_id.split(":")[1] for worker_id in handle.worker_ids]
        assert len(pids) == 3
        assert (set(pids) == {str(os.getpid())}) is (alias != "cpu")
        assert handle.started_at is not None
        assert handle.last_attempted_at is not None
        assert handle.finished_at is not None
        assert handle.started_at < handle.last_attempted_at <= handle.finished_at

    def test_are_as_many_as_it_may_have(self, alias: str) -> None:
        handle = fail_until.using(backend=alias).enqueue(99)
        with pytest.raises(TaskFailed, match=r"ValueError: attempt 5$"):
            handle.wait(LONG_S)
        assert handle.status is FAILED
        assert [handle.attempts, len(handle.errors)] == [5, 5]
        assert len(handle.worker_ids) == 5

    @pytest.mark.anyio
    async def test_are_awaited_to_the_last(self, alias: str) -> None:
        assert await (await fail_until.using(backend=alias).aenqueue(3)) == 3

    def test_are_waited_for_by_tasks(self, alias: str, configure: Configure) -> None:
        configure(alias, MAX_WORKERS=1)
        others = [fail_until.using(backend=alias).enqueue(number) for number in (2, 3)]
        assert [handle.wait(LONG_S) for handle in others] == [2, 3]

    def test_leave_the_task_ready_in_between(self, alias: str) -> None:
        handle = fail_for_an_hour.using(backend=alias).enqueue()
        between = join_first_attempt(handle)
        found = fail_for_an_hour.using(backend=alias).get_result(handle.id)
        for each in (between, found):
            assert each.status is READY
            assert [each.attempts, error_names(each)] == [1, ["ValueError"]]
            assert len(each.worker_ids) == 1
            assert each.finished_at is None
            assert each.started_at == each.last_attempted_at is not None
            assert each.task.run_after is None
        assert handle.cancel()
        handle.join(LONG_S)
        assert [handle.attempts, error_names(handle)] == [
            1,
            ["ValueError", "TaskCancelled"],
        ]

    def test_wait_without_a_worker(self, alias: str, configure: Configure) -> None:
        configure(alias, MAX_WORKERS=1)
        handle = fail_for_an_hour.using(backend=alias).enqueue()
        join_first_attempt(handle)
        assert add.using(backend=alias).enqueue(1, 2).wait(LONG_S) == 3
        assert handle.cancel()

    def test_begin_with_a_fresh_copy_of_the_enqueuers_context(
        self, alias: str, configure: Configure
    ) -> None:
        if alias == "cpu":
            configure(alias, CONTEXT=["tests.tasks.colour"])
        token = colour.set("the enqueuer's")
        try:
            handle = see_and_set_colour.using(backend=alias).enqueue()
        finally:
            colour.reset(token)
        assert handle.wait(LONG_S) == "the enqueuer's"
        for error in handle.errors:
            assert error.traceback.endswith("ValueError: the enqueuer's\n")
        assert handle.attempts == 3

    def test_are_signalled_once_each_and_their_end_once(self, alias: str) -> None:
        seen: list[tuple[str, int, str]] = []
        with (
            connected(task_enqueued, "enqueued", seen),
            connected(task_started, "started", seen),
            connected(task_finished, "finished", seen),
        ):
            fail_until.using(backend=alias).enqueue(3).wait(LONG_S)
        assert seen == [
            ("enqueued", 0, "READY"),
            ("started", 1, "RUNNING"),
            ("started", 2, "RUNNING"),
            ("started", 3, "RUNNING"),
            ("finished", 3, "SUCCESSFUL"),
        ]


@contextmanager
def connected(
    signal: Signal, name: str, seen: list[tuple[str, int, str]]
) -> Generator[None]:
    def receive(*, task_result: LocalTaskResult[Any], **_: Any) -> None:
        seen.append((name, task_result.attempts, task_result.status.value))

    signal.connect(receive)
    try:
        yield
    finally:
        signal.disconnect(receive)


class TestWhatIsTriedAgain:
    def test_any_exception(self, alias: str) -> None:
        kinds = [
            "SystemExit",
            "KeyboardInterrupt",
            "GeneratorExit",
            "OwnBase",
            "Unpicklable",
            "TwoArguments",
            "RaisingStr",
        ]
        task = raise_at_first.using(backend=alias)
        for kind, handle in [(kind, task.enqueue(kind)) for kind in kinds]:
            assert handle.wait(LONG_S) == 2
            assert error_names(handle) == [kind]

    def test_a_lost_worker_for_which_the_parent_asks(self, noted: Path) -> None:
        handle = die_at_first.using(backend="cpu").enqueue(str(noted))
        assert handle.wait(LONG_S) == 2
        (error,) = handle.errors
        assert error.exception_class_path == WORKER_LOST
        first, second = (each.split(":")[1] for each in handle.worker_ids)
        assert first != second
        (asked,) = notes(noted)
        assert asked["pid"] == os.getpid()
        assert [asked["error"], asked["status"]] == ["WorkerLost", "FAILED"]
        assert asked["errors"] == [WORKER_LOST]
        assert "3" in asked["text"]
        assert asked["worker_ids"] == handle.worker_ids[:1]

    def test_a_timeout(self, alias: str, gate: Gate, noted: Path) -> None:
        handle = stay_at_first.using(backend=alias).enqueue(str(noted), gate.port)
        attempts = handle.wait(LONG_S)
        assert attempts >= 2
        # A machine that is busy may have needed more time for the later ones too.
        assert [each.exception_class_path for each in handle.errors] == (
            [TASK_TIMEOUT] * (attempts - 1)
        )
        for asked in notes(noted):
            assert asked["pid"] == os.getpid()
            assert [asked["error"], asked["status"]] == ["TaskTimeout", "FAILED"]
            assert "0.3 s" in asked["text"]


class TestBackoffs:
    def test_are_asked_where_the_exception_is(self, alias: str, noted: Path) -> None:
        handle = fail_noted.using(backend=alias).enqueue(str(noted))
        handle.join(LONG_S)
        assert handle.attempts == 4
        asked = notes(noted)
        assert [each["attempts"] for each in asked] == [1, 2, 3]  # not after the last
        for number, each in enumerate(asked, 1):
            worker_ids = handle.worker_ids[:number]
            assert each["worker_ids"] == worker_ids
            assert each["pid"] == int(worker_ids[-1].split(":")[1])
            assert (each["pid"] == os.getpid()) is (alias != "cpu")
            assert [each["error"], each["attempt"]] == ["Noted", number]
            assert each["status"] == "FAILED"
            assert each["errors"] == ["tests.retry_tasks.Noted"] * number

    def test_are_not_asked_for_a_single_attempt(
        self, alias: str, noted: Path, configure: Configure
    ) -> None:
        configure(alias, MAX_ATTEMPTS=3)  # the task's own counts
        handle = fail_only_once.using(backend=alias).enqueue(str(noted))
        handle.join(LONG_S)
        assert [handle.attempts, error_names(handle)] == [1, ["ValueError"]]
        assert not noted.exists()

    def test_may_end_it(self, alias: str) -> None:
        handle = fail_for_good.using(backend=alias).enqueue()
        handle.join(LONG_S)
        assert handle.status is FAILED
        assert [handle.attempts, error_names(handle)] == [1, ["ValueError"]]

    def test_may_be_lambdas_of_the_decorator(self, alias: str) -> None:
        handle = fail_until_with_lambda.using(backend=alias).enqueue(2)
        assert handle.wait(LONG_S) == 2

    def test_that_raise_end_the_task_with_their_own_error(self, alias: str) -> None:
        task = fail_with_answer.using(backend=alias)
        for answer, error in (("raises", ZeroDivisionError), ("exits", SystemExit)):
            handle = task.enqueue(answer)
            handle.join(LONG_S)
            assert [handle.status, handle.attempts] == [FAILED, 1]
            first, second = handle.errors
            assert first.traceback.endswith("ValueError: wrong value\n")
            assert second.exception_class is error
            assert "in fail_as_asked" in second.traceback

    def test_that_answer_nonsense_end_the_task_with_an_error_that_says_so(
        self, alias: str
    ) -> None:
        task = fail_with_answer.using(backend=alias)
        for answer in ("text", "negative", "nan", "infinity", "bool", "list"):
            handle = task.enqueue(answer)
            handle.join(LONG_S)
            assert [handle.status, handle.attempts] == [FAILED, 1]
            first, second = handle.errors
            assert first.traceback.endswith("ValueError: wrong value\n")
            assert second.exception_class is TypeError
            assert second.traceback.endswith(
                "The backoff of task tests.retry_tasks.fail_with_answer must return a "
                "number of seconds, 0 or more, or None; "
                f"it returned {ANSWERS[answer]()!r}.\n"
            )


class TestDefaults:
    def test_a_task_is_tried_once(self, alias: str) -> None:
        handle = fail_until_by_default.using(backend=alias).enqueue(2)
        handle.join(LONG_S)
        assert [handle.attempts, error_names(handle)] == [1, ["ValueError"]]

    @pytest.mark.parametrize(
        "backoff",
        ["tests.retry_tasks.at_once", fixed(0)],
        ids=["path", "fixed"],
    )
    def test_are_those_of_the_settings(
        self, alias: str, configure: Configure, backoff: Any
    ) -> None:
        configure(alias, MAX_ATTEMPTS=3, BACKOFF=backoff)
        task = fail_until_by_default.using(backend=alias)
        assert task.enqueue(3).wait(LONG_S) == 3
        failing = task.enqueue(99)
        failing.join(LONG_S)
        assert failing.attempts == 3

    def test_stand_for_what_a_task_leaves_open(
        self, alias: str, configure: Configure
    ) -> None:
        configure(alias, MAX_ATTEMPTS=3, BACKOFF="tests.retry_tasks.fail_as_asked")
        # Its backoff is its own, and so is its number of attempts.
        assert fail_until.using(backend=alias).enqueue(5).wait(LONG_S) == 5

    def test_may_be_a_lambda_of_the_settings_module(
        self, run_script: RunScript
    ) -> None:
        done = run_script(
            """
    import os
    os.environ["DJANGO_SETTINGS_MODULE"] = "shop_settings"
    import django
    django.setup()
    from shop_tasks import fail

    if __name__ == "__main__":
        for alias in ("default", "cpu"):
            handle = fail.using(backend=alias).enqueue()
            handle.join(30)
            print(handle.attempts, len(handle.errors))
            """,
            files={
                "shop_settings.py": """
                    SECRET_KEY = "x"
                    ANSWERS = {1: 0, 2: 0, 3: None}
                    OPTIONS = {
                        "MAX_ATTEMPTS": 5,
                        "BACKOFF": lambda error, result: ANSWERS[result.attempts],
                    }
                    TASKS = {
                        alias: {
                            "BACKEND": f"django_tasks_local.{kind}PoolBackend",
                            "OPTIONS": OPTIONS,
                        }
                        for alias, kind in (("default", "Thread"), ("cpu", "Process"))
                    }
                    """,
                "shop_tasks.py": """
                    from django_tasks_local import task

                    @task
                    def fail():
                        raise ValueError
                    """,
            },
        )
        assert done.stdout == "3 3\n3 3\n"


def never_run() -> None:
    raise AssertionError


class TestDefinitions:
    @pytest.mark.parametrize(
        "name, value, accepted",
        [
            *[
                pytest.param(
                    "max_attempts",
                    value,
                    "an integer of at least 1",
                    id=f"max_attempts-{value!r}",
                )
                for value in (0, -1, 1.5, "3", True, float("inf"))
            ],
            *[
                pytest.param("backoff", value, BACKOFF, id=f"backoff-{value!r}")
                for value in (5, 0.0, "linear", True, [1])
            ],
            pytest.param("backoff", exponential, BACKOFF, id="backoff-not-called"),
        ],
    )
    def test_that_are_wrong_are_refused(
        self, alias: str, name: str, value: object, accepted: str
    ) -> None:
        options: dict[str, Any] = {"backend": alias, name: value}
        with pytest.raises(InvalidTask) as caught:
            task(**options)(never_run)
        assert str(caught.value) == (
            f"{name} of task tests.test_retries.never_run must be {accepted}, "
            f"got {value!r}."
        )

    def test_with_djangos_own_decorator_are_as_good(self, alias: str) -> None:
        if django.VERSION < (6, 1):
            pytest.skip("Before 6.1 django.tasks.task takes no other keywords.")
        task = retry_tasks.fail_until_djangos
        assert type(task) is LocalTask
        assert task.max_attempts == 3
        handle = task.using(backend=alias).enqueue(3)
        assert handle.wait(LONG_S) == 3

    def test_keep_their_options_when_others_are_changed(self, alias: str) -> None:
        other = fail_until.using(backend=alias, priority=3)
        assert [other.max_attempts, other.backoff] == [5, fixed(0)]
        assert other.enqueue(2).wait(LONG_S) == 2


class TestDjangosBackends:
    def test_immediate_tries_once(self) -> None:
        backend = "django.tasks.backends.immediate.ImmediateBackend"
        with override_settings(TASKS={"default": {"BACKEND": backend}}):
            handle = fail_until.enqueue(3)
            assert handle.status is FAILED
            assert [handle.attempts, error_names(handle)] == [1, ["ValueError"]]
            with pytest.raises(TaskFailed):
                handle.wait()

    def test_dummy_never_tries(self) -> None:
        backend = "django.tasks.backends.dummy.DummyBackend"
        with override_settings(TASKS={"default": {"BACKEND": backend}}):
            handle = fail_until.enqueue(3)
            assert handle.status is READY
            assert handle.attempts == 0
            (result,) = vars(task_backends["default"])["results"]
            assert result.id == handle.id


class TestEnds:
    """What comes of a task that is to be tried again, when its alias is shut down."""

    def shut_down(self, alias: str, configure: Configure) -> None:
        shutdown_executor(alias)

    def change_settings(self, alias: str, configure: Configure) -> None:
        configure(alias, MAX_WORKERS=1)

    each_way = pytest.mark.parametrize(
        "end", [shut_down, change_settings], ids=["shutdown", "settings"]
    )

    @each_way
    def test_between_attempts_it_fails_at_once(
        self, alias: str, configure: Configure, end: Callable[..., None]
    ) -> None:
        handle = fail_for_an_hour.using(backend=alias).enqueue()
        join_first_attempt(handle)
        end(self, alias, configure)
        handle.join(0)
        assert handle.attempts == 1
        assert error_names(handle) == ["ValueError", "WorkerLost"]
        assert "before the task was due" in handle.errors[1].traceback

    def test_an_attempt_that_runs_is_the_last_where_the_next_would_be_late(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        handle = hold_and_fail_for_an_hour.using(backend=alias).enqueue(gate.port)
        gate.next_visitor()
        configure(alias, MAX_WORKERS=1)
        gate.open()
        handle.join(LONG_S)
        assert handle.attempts == 1
        assert error_names(handle) == ["ValueError", "WorkerLost"]

    def test_an_attempt_that_is_due_at_once_is_made(
        self, alias: str, gate: Gate
    ) -> None:
        handle = retry_tasks.fail_at_first.using(backend=alias).enqueue(gate.port)
        gate.next_visitor()
        shutdown_executor(alias, wait=False)
        gate.open()
        assert handle.wait(LONG_S) == 2

    def test_a_killed_one_is_not_tried_again(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("cpu", SHUTDOWN_TIMEOUT=0.1)
        handle = hold_with_attempts.using(backend="cpu").enqueue(gate.port)
        gate.next_visitor()
        shutdown_executor("cpu")
        handle.join(LONG_S)
        assert handle.status is FAILED
        assert handle.attempts == 1
        assert set(error_names(handle)) == {"WorkerLost"}
        assert gate.is_deserted()

    def test_a_function_that_fails_after_the_end_is_not_tried_again(
        self, configure: Configure, gate: Gate
    ) -> None:
        configure("default", SHUTDOWN_TIMEOUT=0.1)
        handle = retry_tasks.fail_at_first.enqueue(gate.port)
        gate.next_visitor()
        shutdown_executor("default")
        gate.open()
        handle.join(LONG_S)
        assert handle.status is FAILED
        assert handle.attempts == 1
        assert error_names(handle)[0] == "ValueError"

    def test_enqueues_go_on_afterwards(self, alias: str) -> None:
        handle = fail_for_an_hour.using(backend=alias).enqueue()
        join_first_attempt(handle)
        shutdown_executor(alias)
        assert fail_until.using(backend=alias).enqueue(2).wait(LONG_S) == 2
        failing = fail.using(backend=alias).enqueue()
        failing.join(LONG_S)
        assert failing.attempts == 1
