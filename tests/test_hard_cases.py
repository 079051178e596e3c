"""Cases that look harmless and are not."""

import logging
import sys
from collections.abc import Iterator

import pytest

from django_tasks_local import LocalTask, TaskFailed

from .conftest import Configure, RunScript
from .gates import LONG_S
from .hard_tasks import enqueue_twice, fan_out, raise_interrupting, raise_unspeakable
from .tasks import add

PROJECT = """
    import os, threading
    from django.conf import settings
    from django.tasks import task

    settings.configure(TASKS={
        "default": {
            "BACKEND": "django_tasks_local.ThreadPoolBackend",
            "OPTIONS": {"MAX_WORKERS": 1},
        },
    })
"""


@pytest.mark.parametrize(
    "task", [raise_unspeakable, raise_interrupting], ids=lambda task: task.name
)
def test_an_exception_that_cannot_be_shown_fails_only_its_task(
    alias: str, configure: Configure, task: "LocalTask[[], None]"
) -> None:
    configure(alias, MAX_WORKERS=1)
    with pytest.raises(TaskFailed, match="cannot be shown"):
        task.using(backend=alias).enqueue().wait(LONG_S)
    assert add.using(backend=alias).enqueue(1, 2).wait(LONG_S) == 3


@pytest.fixture
def raising_filter() -> Iterator[None]:
    """A filter of the project's that raises for each record of Django's."""

    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError(record.name)

    loggers = [logging.getLogger(n) for n in ("django.tasks", "django_tasks_local")]
    for each in loggers:
        each.addFilter(refuse)
    yield
    for each in loggers:
        each.removeFilter(refuse)


@pytest.mark.usefixtures("raising_filter")
def test_logging_that_raises_changes_nothing(alias: str) -> None:
    with pytest.raises(TaskFailed):
        raise_unspeakable.using(backend=alias).enqueue().wait(LONG_S)
    assert add.using(backend=alias).enqueue(1, 2).wait(LONG_S) == 3


@pytest.mark.parametrize("inner_alias", ["default", "cpu"])
def test_a_task_keeps_the_outcomes_that_the_store_forgets(
    alias: str, inner_alias: str, configure: Configure
) -> None:
    configure("default", "cpu", MAX_RESULTS=2)
    assert fan_out.using(backend=alias).enqueue(inner_alias, 20).wait(LONG_S) == 190


def test_a_task_may_be_enqueued_under_another_name_than_its_functions(
    alias: str,
) -> None:
    assert enqueue_twice.using(backend=alias).enqueue(alias, 4).wait(LONG_S) == 8


def test_a_fork_that_a_task_makes_runs_none_of_its_parents_tasks(
    run_script: RunScript,
) -> None:
    done = run_script(
        PROJECT
        + """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads

    @task
    def tell(number):
        os.write(1, f"{number} {os.getpid() == parent}\\n".encode())

    @task
    def fork():
        child = os.fork()
        if child == 0:
            tell.enqueue("child's").wait(30)
            os._exit(0)
        os.waitpid(child, 0)

    parent = os.getpid()
    forked = fork.enqueue()
    told = [tell.enqueue(number) for number in range(3)]
    forked.wait(30)
    for handle in told:
        handle.wait(30)
    """
    )
    told = sorted(done.stdout.splitlines())
    assert told == ["0 True", "1 True", "2 True", "child's False"]


@pytest.mark.parametrize("was_used", [True, False])
def test_what_other_threads_enqueue_at_the_end_runs_too(
    run_script: RunScript, was_used: bool
) -> None:
    done = run_script(
        PROJECT
        + f"""
    import atexit

    @task
    def add(a, b):
        os.write(1, f"{{a + b}}\\n".encode())

    def late():
        threading.main_thread().join()
        add.enqueue(3, 4)

    atexit.register(lambda: add.enqueue(5, 6).wait(30))
    if {was_used}:
        add.enqueue(1, 2).wait(30)
    threading.Thread(target=late).start()
    """
    )
    told = sorted(done.stdout.split(), key=int)
    early = ["3"] if was_used else []
    if told == early and sys.version_info < (3, 13):
        # Early releases of Python 3.12 start no thread by then, and the tasks say so.
        assert done.stderr.count("WorkerLost: can't") >= 2
    else:
        assert told == [*early, "7", "11"]
