"""``manage.py local_tasks`` sees to tasks that outlive their processes."""

import io
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.tasks import TaskResultStatus

from django_tasks_local.identity import this_process

from .conftest import RunScript, script_environ
from .elsewhere import OtherProcess
from .gates import LONG_S, Gate
from .kept import ALIAS, find, setting_of, sharing
from .tasks import add, hold

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

READY = TaskResultStatus.READY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite3"


def run(*arguments: str) -> list[str]:
    """The lines that it writes."""
    output = io.StringIO()
    call_command("local_tasks", *arguments, stdout=output)
    return output.getvalue().splitlines()


class TestStatus:
    def test_counts_and_owners(self, path: Path, gate: Gate) -> None:
        with sharing(path), OtherProcess(path, setting_of(path)) as other:
            for number in range(3):
                find(other.enqueue(add, number, 1)).join(LONG_S)
            held = other.enqueue_many(hold, 2, gate.port)
            gate.next_visitor()
            gate.next_visitor()
            other.enqueue_many(add, 1, 1, 2, in_s=3600.0)
            counts, owner = run("status")
            assert counts == (f"{ALIAS}: 1 READY, 2 RUNNING, 3 SUCCESSFUL, 0 FAILED")
            host = this_process().partition(":")[0]
            assert owner.startswith(f"  {host}:{other.pid}:")
            assert owner.endswith(" runs")
            other.kill()
            assert run("status")[1].endswith(" has ended")
            assert {find(each).status for each in held} == {TaskResultStatus.RUNNING}

    def test_of_nothing(self, path: Path) -> None:
        with sharing(path):
            assert run("status") == [
                f"{ALIAS}: 0 READY, 0 RUNNING, 0 SUCCESSFUL, 0 FAILED"
            ]


class TestRun:
    def test_until_nothing_is_left(self, path: Path, gate: Gate) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            other.enqueue(hold, gate.port)
            gate.next_visitor()
            waiting = other.enqueue_many(add, 3, 1, 2)
            later = other.enqueue_many(add, 1, 1, 2, in_s=3600.0)
            other.kill()
        with sharing(path):
            said = run("run", "--until-empty")
            assert said == ["5 tasks of ended processes were taken over."]
            assert [find(each).status for each in waiting] == 3 * [
                TaskResultStatus.SUCCESSFUL
            ]
            assert find(later[0]).status is READY

    def test_until_it_is_told_to_end(self, path: Path, gate: Gate) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            other.enqueue(hold, gate.port)
            gate.next_visitor()
            waiting = other.enqueue(hold, gate.port)
            other.kill()
        code = (
            "from tests.small_project import TASKS, configure\n"
            f"configure(TASKS={{**TASKS, **{setting_of(path)!r}}},"
            " INSTALLED_APPS=['django_tasks_local', 'django.contrib.sessions'])\n"
            "from django.core.management import call_command\n"
            "call_command('local_tasks', 'run')\n"
        )
        with (
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", code],
                env=script_environ(),
                stdout=subprocess.PIPE,
                text=True,
            ) as process,
            ExitStack() as stack,
        ):
            stack.callback(process.kill)
            visitor = gate.next_visitor()
            process.send_signal(signal.SIGTERM)
            visitor.let_go()
            output, _ = process.communicate(timeout=LONG_S)
        assert process.returncode == 0
        assert output == "2 tasks of ended processes were taken over.\n"
        with sharing(path):
            assert find(waiting).status is TaskResultStatus.SUCCESSFUL


class TestCancel:
    def test_wherever_they_are(self, path: Path, gate: Gate) -> None:
        with (
            sharing(path),
            OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other,
        ):
            ended = other.enqueue(add, 1, 2)
            find(ended).join(LONG_S)
            running = other.enqueue(hold, gate.port)
            gate.next_visitor()
            waiting = other.enqueue(add, 1, 2)
            assert run("cancel", waiting, ended, running) == [
                f"{waiting} is cancelled.",
                f"{ended} was finished already.",
                f"{running} runs, and is asked to end.",
            ]
            find(waiting).join(LONG_S)
            assert find(waiting).attempts == 0
            gate.open()

    def test_unknown_ones_are_named(self, path: Path) -> None:
        with (
            sharing(path),
            pytest.raises(CommandError, match=r"There is no result one, two\."),
        ):
            run("cancel", "one", "two")


class TestPrune:
    def test_forgets_now(self, path: Path) -> None:
        with sharing(path, MAX_RESULTS=1, MAX_WORKERS=1):
            for result in [add.using(backend=ALIAS).enqueue(1, 2) for _ in "abc"]:
                result.join(LONG_S)
            assert run("prune") == [f"{ALIAS}: 2 results are forgotten."]


class TestAliases:
    def test_only_the_one_that_is_named(self, path: Path) -> None:
        with sharing(path):
            assert len(run("status", "--alias", ALIAS)) == 1

    def test_unknown_ones_are_refused(self) -> None:
        with pytest.raises(CommandError, match="TASKS has no alias 'lost'"):
            run("status", "--alias", "lost")

    def test_those_in_memory_are_refused(self) -> None:
        message = "None of these aliases has a store that outlives its process"
        with pytest.raises(CommandError, match=message):
            run("run", "--until-empty", "--alias", "default")
        with pytest.raises(CommandError, match="No alias of TASKS has a store"):
            run("status")


def test_a_store_that_cannot_be_used_says_so(path: Path) -> None:
    path.write_bytes(os.urandom(8192))
    with sharing(path), pytest.raises(CommandError, match=str(path)):
        run("status")


def test_other_commands_take_nothing_over(
    path: Path, gate: Gate, run_script: RunScript
) -> None:
    with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
        other.enqueue(hold, gate.port)
        gate.next_visitor()
        waiting = other.enqueue(add, 1, 2)
        other.kill()
    run_script(
        f"""
        from tests.small_project import configure
        configure(
            TASKS={setting_of(path)!r},
            INSTALLED_APPS=["django_tasks_local", "django.contrib.sessions"],
            DATABASES={{
                "default": {{
                    "ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"
                }}
            }},
        )
        from django.core.management import call_command
        from django.tasks import task_backends
        call_command("migrate", verbosity=0)
        call_command("check")
        assert task_backends[{ALIAS!r}].get_result({waiting!r}).status == "READY"
        """
    )
    with sharing(path):
        assert find(waiting).status is READY
        assert run("status")[1].endswith(" has ended")
