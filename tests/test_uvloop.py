"""Tasks on uvloop's event loop: ``OPTIONS["LOOP"] = "uvloop"``."""

import asyncio
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import task_backends

from django_tasks_local import task

from .awaiting_tasks import ALL_OF_IT, use_everything, use_everything_as_task
from .conftest import BACKENDS, Configure, RunScript
from .gates import LONG_S

ALIASES = list(BACKENDS)


@task(backend="loop")
async def which_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.mark.parametrize(
    "options, module",
    [
        ({"LOOP": "uvloop"}, "uvloop"),
        ({"LOOP": "asyncio"}, "asyncio.unix_events"),
        ({}, "asyncio.unix_events"),
    ],
    ids=["uvloop", "asyncio", "default"],
)
def test_tasks_run_on_the_loop_that_the_settings_name(
    configure: Configure, options: dict[str, str], module: str
) -> None:
    configure("loop", **options)
    assert which_loop.enqueue().wait(LONG_S) == module


@pytest.mark.parametrize(
    "name, finding, hint",
    [
        ("trio", "E003", None),
        ("uvloop", "E004", "pip install 'django-tasks-local[uvloop]'"),
    ],
)
def test_what_cannot_be_a_loop_is_told(
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    finding: str,
    hint: str | None,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it was not installed
    configure("loop", LOOP=name)
    (error,) = task_backends["loop"].check()
    assert [error.id, error.hint] == [f"django_tasks_local.{finding}", hint]
    assert error.msg.startswith("TASKS['loop']['OPTIONS']['LOOP'] ")
    assert f"'{name}'" in error.msg
    with pytest.raises(ImproperlyConfigured, match="'LOOP'"):
        which_loop.enqueue()


def test_coroutines_use_tasks_of_all_aliases(configure: Configure) -> None:
    configure("loop", LOOP="uvloop")
    handle = use_everything_as_task.using(backend="loop").enqueue(ALIASES)
    assert handle.wait(LONG_S) == [*[ALL_OF_IT] * len(ALIASES), []]


@pytest.mark.anyio
async def test_other_loops_use_its_tasks(configure: Configure) -> None:
    configure("loop", LOOP="uvloop")
    assert await use_everything("loop") == ALL_OF_IT


def test_a_fork_has_a_loop_of_its_own(run_script: RunScript) -> None:
    done = run_script(
        """
        import os, sys
        from tests.small_project import TASKS, configure
        TASKS["loop"] = {
            "BACKEND": "django_tasks_local.EventLoopBackend",
            "OPTIONS": {"LOOP": "uvloop"},
        }
        configure()
        import asyncio
        from django_tasks_local import task
        from tests.gates import Gate, apass_gate

        @task(backend="loop")
        async def name_loop(port=None):
            if port is not None:
                await apass_gate(port)
            return type(asyncio.get_running_loop()).__module__

        if __name__ == "__main__":
            with Gate() as gate:
                held = name_loop.enqueue(gate.port)
                gate.next_visitor()
                pid = os.fork()
                if pid == 0:
                    print(name_loop.enqueue().wait(30), flush=True)
                    sys.exit(7)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(held.wait(30), name_loop.enqueue().wait(30))
        """
    )
    assert [done.stdout, done.stderr] == ["uvloop\n7\nuvloop uvloop\n", ""]
