"""Tasks written against this library run on other libraries' queues.

On django-tasks-db and django-tasks-rq, with their own worker processes and on real
servers.
"""

import asyncio
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connections, transaction
from django.tasks import TaskResultStatus, task_backends
from django.tasks import task as django_task
from django.tasks.exceptions import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
)
from django.test import override_settings

from django_tasks_local import (
    IgnoredOptionsWarning,
    LocalTask,
    LocalTaskResult,
    TaskFailed,
    as_completed,
    task,
    wait,
)
from django_tasks_local.backoff import fixed
from django_tasks_local.results import to_handle
from django_tasks_local.state import shutdown_executor

from .conftest import ROOT, RunScript
from .gates import LONG_S, Gate
from .leftovers import join_new_threads, our_threads
from .queue_tasks import own_id_or_none, relay, return_set, tell_all
from .queues import (
    NOBODYS,
    Queue,
    open_database_queue,
    open_redis_queue,
    start_manage,
)
from .tasks import add, async_add, echo, fail, hold

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
QUEUES = {"django-tasks-db": open_database_queue, "django-tasks-rq": open_redis_queue}

type OpenQueue = Callable[[], AbstractContextManager[Queue]]


@pytest.fixture(scope="module", params=QUEUES.values(), ids=[*QUEUES])
def project(request: pytest.FixtureRequest) -> Iterator[Queue]:
    """A project that has one of the two, in turn."""
    open_queue: OpenQueue = request.param
    with open_queue() as queue:
        yield queue


@pytest.fixture(params=QUEUES.values(), ids=[*QUEUES])
def own_project(request: pytest.FixtureRequest) -> Iterator[Queue]:
    """Another one, whose queue no other test's worker looks at."""
    open_queue: OpenQueue = request.param
    with open_queue() as queue:
        yield queue


@pytest.fixture(scope="module")
def worker(project: Queue) -> Iterator["subprocess.Popen[bytes]"]:
    """Its worker process."""
    with project.working() as process:
        yield process


@pytest.fixture
def alias(
    project: Queue, worker: "subprocess.Popen[bytes]", nothing_left_behind: None
) -> Iterator[str]:
    """Its alias, in a web process of the project."""
    threads = set(our_threads())
    with project.in_force():
        task_backends[project.alias]  # imported here, not on an event loop
        yield project.alias
        shutdown_executor("default")
        join_new_threads(threads)  # they look at what is not there afterwards
        asyncio.run(sync_to_async(connections.close_all)())


def is_django_tasks_rq(alias: str) -> bool:
    return type(task_backends[alias]).__name__ == "RQBackend"


# Waiting.


def _join(handle: LocalTaskResult[Any]) -> Any:
    handle.join(LONG_S)
    return handle.return_value


def _watch_sync(handle: LocalTaskResult[Any]) -> Any:
    return list(handle.watch_sync())[-1].return_value


def _complete(handle: LocalTaskResult[Any]) -> Any:
    (done,) = as_completed([handle], LONG_S)
    return done.return_value


async def _await(handle: LocalTaskResult[Any]) -> Any:
    return await handle


async def _wait(handle: LocalTaskResult[Any]) -> Any:
    return await wait(handle, LONG_S)


async def _watch(handle: LocalTaskResult[Any]) -> Any:
    return [seen async for seen in handle.watch()][-1].return_value


async def _acomplete(handle: LocalTaskResult[Any]) -> Any:
    (done,) = [done async for done in as_completed([handle], LONG_S)]
    return done.return_value


def _wait_in_thread(handle: LocalTaskResult[Any]) -> Any:
    copy: LocalTaskResult[Any] = pickle.loads(pickle.dumps(handle))
    try:
        return copy.wait(LONG_S)
    finally:
        connections.close_all()


SYNC: list[Callable[[LocalTaskResult[Any]], Any]] = [
    lambda handle: handle.wait(LONG_S),
    _join,
    _watch_sync,
    _complete,
]
ASYNC = [_await, _wait, _watch, _acomplete]


class TestWaiting:
    def test_in_all_ways_that_sync_code_has(self, alias: str) -> None:
        handles = add.using(backend=alias).enqueue_many(
            [([number, 1], {}) for number in range(len(SYNC))]
        )
        values = [way(handle) for way, handle in zip(SYNC, handles, strict=True)]
        assert values == [1, 2, 3, 4]
        assert {handle.status for handle in handles[:2]} == {SUCCESSFUL}

    @pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
    def test_in_all_ways_that_coroutines_have(
        self, alias: str, run: Callable[..., Any]
    ) -> None:
        handles = async_add.using(backend=alias).enqueue_many(
            [([number, 1], {}) for number in range(len(ASYNC))]
        )

        async def wait_for_all() -> dict[int, Any]:
            values: dict[int, Any] = {}

            async def wait_for(number: int) -> None:
                values[number] = await ASYNC[number](handles[number])

            async with anyio.create_task_group() as group:
                for number in range(len(ASYNC)):
                    group.start_soon(wait_for, number)
            return values

        coroutine = wait_for_all() if run is asyncio.run else wait_for_all
        assert run(coroutine) == {0: 1, 1: 2, 2: 3, 3: 4}

    def test_until_it_is_let_go(self, alias: str, gate: Gate) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port, "held")
        visitor = gate.next_visitor()
        watch = handle.watch_sync()
        assert next(watch).status is RUNNING
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError, match="is still RUNNING after"):
                handle.wait(timeout)
        with pytest.raises(TimeoutError):
            asyncio.run(wait(handle, 0.02))
        with ThreadPoolExecutor(20) as pool:  # however many wait
            waiting = [pool.submit(_wait_in_thread, handle) for _ in range(20)]
            visitor.let_go()
            assert {future.result(LONG_S) for future in waiting} == {"held"}
        assert [seen.status for seen in watch] == [SUCCESSFUL]

    def test_for_many_at_once(self, alias: str) -> None:
        task = echo.using(backend=alias)
        handles = task.enqueue_many([([number], {}) for number in range(10)])
        done = [each.return_value for each in as_completed(handles, LONG_S)]
        assert sorted(done) == list(range(10))

    def test_for_one_that_no_worker_ever_runs(self, alias: str) -> None:
        handle = add.using(backend=alias, queue_name=NOBODYS).enqueue(1, 2)
        with pytest.raises(TimeoutError, match="is still READY after"):
            handle.wait(0.05)
        with pytest.raises(TimeoutError):
            trio.run(handle.ajoin, 0.05)
        with pytest.raises(TimeoutError, match="1 of 1 tasks are unfinished"):
            list(as_completed([handle], 0.05))
        assert handle.enqueued_at is not None

    def test_failure_is_task_failed(self, alias: str) -> None:
        handle = fail.using(backend=alias).enqueue()
        with pytest.raises(TaskFailed, match="wrong value") as failure:
            handle.wait(LONG_S)
        assert failure.value.exception_class_path == "builtins.ValueError"
        assert handle.status is FAILED
        with pytest.raises(TaskFailed, match="wrong value"):
            asyncio.run(wait(handle))

    def test_value_that_is_not_json_is_told(self, alias: str) -> None:
        handle = return_set.using(backend=alias).enqueue()
        # One refuses it, the other keeps whatever can be pickled.
        error = TypeError if is_django_tasks_rq(alias) else TaskFailed
        with pytest.raises(error, match="not JSON"):
            handle.wait(LONG_S)

    def test_results_of_djangos_own_task(self, alias: str) -> None:
        function = add.func
        theirs = django_task(backend=alias)(function)
        result = theirs.enqueue(1, 2)
        assert asyncio.run(wait(result, LONG_S)) == 3
        assert to_handle(result).wait(LONG_S) == 3

    def test_from_a_task_that_runs_here(self, alias: str) -> None:
        depth = 6  # more than MAX_WORKERS
        assert relay.enqueue(alias, depth).wait(LONG_S) == 3


class TestHandles:
    def test_are_found_by_id(self, alias: str) -> None:
        handle = add.using(backend=alias).enqueue(1, 2)
        task = add.using(backend=alias)
        found = task.get_result(handle.id)
        assert found == handle
        assert found.wait(LONG_S) == 3
        assert (found.args, found.task.func) == ([1, 2], add.func)
        assert asyncio.run(task.aget_result(handle.id)).return_value == 3
        with pytest.raises(TaskResultMismatch):
            echo.using(backend=alias).get_result(handle.id)

    def test_of_an_unknown_id(self, alias: str) -> None:
        task = add.using(backend=alias)
        unknown = "6f1e0cf4-8b9f-4a0e-9a0b-1f3d5b7c9e2a"
        with pytest.raises(TaskResultDoesNotExist):
            task.get_result(unknown)
        with pytest.raises(TaskResultDoesNotExist):
            asyncio.run(task.aget_result(unknown))

    def test_that_the_queue_has_forgotten(self, alias: str, gate: Gate) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port)
        visitor = gate.next_visitor()
        copy = pickle.loads(pickle.dumps(handle))
        copy = copy.__class__.__reduce__(copy)[0](copy.record._replace(id=_UNKNOWN))
        for look in (copy.refresh, copy.wait, lambda: asyncio.run(wait(copy))):
            with pytest.raises(TaskResultDoesNotExist):
                look()
        visitor.let_go()
        handle.join(LONG_S)

    def test_that_were_pickled(self, alias: str) -> None:
        handle = add.using(backend=alias).enqueue(1, 2)
        copy: LocalTaskResult[int] = pickle.loads(pickle.dumps(handle))
        assert copy.wait(LONG_S) == 3

    def test_say_what_the_queue_knows(self, alias: str) -> None:
        handle = add.using(backend=alias).enqueue(1, 2)
        handle.join(LONG_S)
        assert handle.enqueued_at is not None
        assert handle.started_at is not None
        assert handle.finished_at is not None
        assert handle.attempts == 1
        assert (handle.metadata, handle.progress) == ({}, None)

    def test_cannot_be_cancelled(self, alias: str) -> None:
        handle = add.using(backend=alias, queue_name=NOBODYS).enqueue(1, 2)
        with pytest.raises(NotImplementedError, match="cannot cancel tasks"):
            handle.cancel()


_UNKNOWN = "0b3f9f8a-5b8e-4a55-8f0e-0d1c2b3a4f5e"


class TestEnqueueing:
    def test_after_the_transaction(
        self, alias: str, database: None, gate: Gate
    ) -> None:
        holding = hold.using(backend=alias)
        with transaction.atomic():
            holding.enqueue_on_commit(gate.port, "committed")
            assert gate.is_deserted()
        with transaction.atomic():
            holding.enqueue_on_commit(gate.port, "rolled back")
            transaction.set_rollback(True)
        handle = holding.enqueue(gate.port, "afterwards")
        for name in ("committed", "afterwards"):  # its one worker runs them in turn
            visitor = gate.next_visitor()
            assert visitor.name == name
            visitor.let_go()
        assert handle.wait(LONG_S) == "afterwards"

    def test_arguments_that_are_not_json_are_refused(self, alias: str) -> None:
        task = echo.using(backend=alias)
        with pytest.raises(TypeError):
            task.enqueue(object())
        with pytest.raises(TypeError, match="must be JSON"):
            task.enqueue_many([([1], {}), ([object()], {})])
        with pytest.raises(TypeError, match="must be JSON"):
            task.enqueue_on_commit(object())

    async def _enqueue(self, alias: str) -> list[int]:
        task = add.using(backend=alias)
        handles = [
            await task.aenqueue(1, 2),
            *await task.aenqueue_many([([3, 4], {}), ([5], {"b": 6})]),
        ]
        found = [await task.aget_result(handle.id) for handle in handles]
        return [await handle for handle in found]

    @pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
    def test_from_coroutines(self, alias: str, run: Callable[..., Any]) -> None:
        given = (
            (self._enqueue(alias),) if run is asyncio.run else (self._enqueue, alias)
        )
        assert run(*given) == [3, 7, 11]

    def test_what_the_queue_cannot_do_is_refused(self, alias: str) -> None:
        with pytest.raises(InvalidTask, match="Queue 'unknown' is not valid"):
            add.using(backend=alias, queue_name="unknown")
        if is_django_tasks_rq(alias):
            with pytest.raises(InvalidTask, match="does not support setting priority"):
                add.using(backend=alias, priority=5)


class TestTheContext:
    def test_keeps_what_a_task_tells_to_itself(self, alias: str) -> None:
        handle = tell_all.using(backend=alias).enqueue(7)
        assert handle.wait(LONG_S) == {
            "type": "LocalTaskContext",
            "id": handle.id,
            "status": "RUNNING",
            "current_result_id": handle.id,
            "attempt": 1,
            "is asked to stop": False,
            "metadata": ["number", "progress"],
        }
        assert (handle.metadata, handle.progress) == ({}, None)

    def test_without_one_a_task_does_not_know_its_id(self, alias: str) -> None:
        assert own_id_or_none.using(backend=alias).enqueue().wait(LONG_S) is None


def test_calls_run_here(project: Queue, nothing_left_behind: None) -> None:
    with project.in_force():
        assert add.using(backend=project.alias).call(1, 2) == 3
        told = tell_all.using(backend=project.alias).call(7)
        assert (told["type"], told["current_result_id"]) == ("LocalTaskContext", None)


# The example.


def test_example_runs_there(
    own_project: Queue, tmp_path: Path, nothing_left_behind: None
) -> None:
    """With nothing changed but its settings."""
    project = own_project
    text = (ROOT / "example.py").read_text()
    begin, end = text.index("TASKS: TasksSetting = {"), text.index("# At the top level")
    backends = {name: {"BACKEND": project.backend} for name in ("default", "cpu")}
    databases = dict.fromkeys(["default"], *project.databases.values())
    given = f"INSTALLED_APPS={[*project.apps]!r}, RQ_QUEUES={project.rq_queues!r},"
    if project.databases:
        given += f" DATABASES={databases!r},"
    (tmp_path / "example.py").write_text(
        f"{text[:begin]}TASKS: TasksSetting = {backends!r}\n\n{text[end:]}".replace(
            "settings.configure(\n", f"settings.configure(\n    {given}\n", 1
        )
    )
    tree = tmp_path / "tree" / "package"
    tree.mkdir(parents=True)
    for name in ("one", "two", "three"):
        (tree / f"{name}.py").write_text(f"{name} = {name!r}\n")
    workers = [
        start_manage(arguments, cwd=tmp_path, first="import example")
        for arguments in _workers_of(project)
    ]
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-c", "import example; example.main()"),
                *("--once", "--path", str(tree.parent)),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        for process in workers:
            process.terminate()
            process.communicate(timeout=20)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^package +3 +18 ", done.stdout, re.MULTILINE), done.stdout
    # One line says what the queue does not know of the task that asks for more.
    (warning,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert re.search(
        r"example\.py:\d+: IgnoredOptionsWarning: TASKS\['cpu'\] is a \w+, which does "
        r"not know max_attempts, backoff: task example.count_tokens runs there without",
        warning,
    )


def _workers_of(project: Queue) -> list[list[str]]:
    if project.databases:
        return [
            [*project.worker[:1], "--backend", name, *project.worker[3:]]
            for name in ("default", "cpu")
        ]
    return [[*project.worker[:4]]]


# Options that the queue does not know.


def plain() -> None: ...


@pytest.fixture
def foreign(nothing_left_behind: None) -> Iterator[str]:
    """An alias of a backend that knows Django's own options alone."""
    foreign = {"BACKEND": "tests.foreign_backends.ForeignBackend"}
    with override_settings(TASKS={**settings.TASKS, "foreign": foreign}):
        yield "foreign"


IGNORED = (
    "TASKS['foreign'] is a ForeignBackend, which does not know max_attempts, backoff, "
    "timeout: task tests.test_other_backends.plain runs there without."
)


class TestOptionsThatAreNotKnown:
    def _define(self, alias: str) -> LocalTask[[], None]:
        options = task(backend=alias, max_attempts=3, backoff=fixed(1), timeout=60)
        return options(plain)

    def test_are_warned_of_once_where_the_task_is_defined(self, foreign: str) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            definitions = [self._define(foreign) for _ in range(2)]
            for each in definitions:
                each.using(priority=0).enqueue()
                each.get_result(each.enqueue().id)
        (warning,) = caught
        assert warning.category is IgnoredOptionsWarning
        assert str(warning.message) == IGNORED
        assert warning.filename == __file__
        assert (warning.line or "").strip() in ("", "return options(plain)")

    def test_are_warned_of_where_a_call_asks_for_them(self, foreign: str) -> None:
        here = task(max_attempts=2)(plain)
        for using, names in (
            (lambda: here.using(backend=foreign), "max_attempts"),
            (lambda: add.using(backend=foreign, metadata={"key": 1}), "metadata"),
        ):
            with pytest.warns(IgnoredOptionsWarning, match=f"know {names}:") as caught:
                using()
            assert [warning.filename for warning in caught] == [__file__]

    def test_make_an_invalid_task_where_a_filter_says_so(self, foreign: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", IgnoredOptionsWarning)
            for _ in range(2):  # not only once
                with pytest.raises(InvalidTask) as refused:
                    self._define(foreign)
                assert str(refused.value) == IGNORED
            with pytest.raises(InvalidTask, match="does not know metadata"):
                add.using(backend=foreign, metadata={"key": 1})

    def test_are_no_news_where_nothing_is_asked(self, foreign: str) -> None:
        task(backend=foreign)(plain).using(metadata={}).enqueue()
        add.using(backend=foreign, priority=0).enqueue(1, 2)

    @pytest.mark.parametrize("name", ["immediate.Immediate", "dummy.Dummy"])
    def test_are_no_news_in_tests(self, name: str, nothing_left_behind: None) -> None:
        backend = {"BACKEND": f"django.tasks.backends.{name}Backend"}
        with override_settings(TASKS={"default": backend}):
            self._define("default").using(metadata={"key": 1}).enqueue()

    def test_are_no_news_where_the_backends_tasks_have_them(
        self, nothing_left_behind: None
    ) -> None:
        backend = {"BACKEND": "tests.foreign_backends.KnowingBackend"}
        with override_settings(TASKS={"default": backend}):
            task(timeout=60)(plain)
            with pytest.warns(IgnoredOptionsWarning, match="know max_attempts:"):
                task(timeout=60, max_attempts=2)(plain)


def test_the_settings_say_what_becomes_of_them(run_script: RunScript) -> None:
    done = run_script(
        """
        import warnings
        from django_tasks_local import IgnoredOptionsWarning
        warnings.filterwarnings("error", category=IgnoredOptionsWarning)
        from tests.small_project import configure
        foreign = {"BACKEND": "tests.foreign_backends.ForeignBackend"}
        configure(TASKS={"default": foreign})
        from django.tasks.exceptions import InvalidTask
        from django_tasks_local import task

        def charge():
            ...

        try:
            task(timeout=5)(charge)
        except InvalidTask as err:
            print(err)
        """,
        command=lambda script: ["-W", "default", str(script)],
    )
    assert done.stdout.startswith("TASKS['default'] is a ForeignBackend, which does")
    assert done.stderr == ""
