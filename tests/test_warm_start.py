"""Worker processes are forks of one process that has set the project up."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .conftest import RunScript, script_environ, write_files
from .gates import Gate
from .leftovers import wait_until_gone

NOTES = '''
    """Which processes have set the project up, in their order."""
    import os
    from pathlib import Path

    FILE = Path(__file__).with_name("set_up.txt")

    def note():
        with FILE.open("a") as file:
            print(os.getpid(), file=file)
        return len(noted())

    def noted():
        return [int(line) for line in FILE.read_text().split()]
'''
APP = """
    import os, signal, socket, sys, threading
    from django.apps import AppConfig
    from . import notes

    class PollsConfig(AppConfig):
        name = "polls"

        def ready(self):
            number = notes.note()
            {ready}
"""
TASKS = """
    import logging, os, random, sys, time
    from django.apps import apps
    from django.conf import settings
    from django.db import connection
    from django_tasks_local import task

    @task(backend="cpu")
    def pid():
        return os.getpid()

    @task(backend="cpu")
    def hold(port):
        from tests.gates import pass_gate

        pass_gate(port)

    @task(backend="cpu")
    def is_connected():
        return connection.connection is not None

    @task(backend="cpu")
    def draw():
        return random.random()

    @task(backend="cpu")
    def setting(name):
        return getattr(settings, name, "none")

    @task(backend="cpu")
    def app_labels():
        return [config.label for config in apps.get_app_configs()]

    @task(backend="cpu")
    def level(name):
        return logging.getLogger(name).level

    @task(backend="cpu")
    def surroundings():
        return [os.environ.get("VARIABLE"), os.getcwd(), sys.path[-1], time.tzname[0]]
"""
SETTINGS = """
    import os

    SECRET_KEY = "the secret key"
    INSTALLED_APPS = ["polls", "django.contrib.contenttypes"]
    DATABASES = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}
    }
    FROM_ENVIRON = os.environ.get("VARIABLE")
    ANSWER = 42
    TASKS = {
        "default": {"BACKEND": "django_tasks_local.ThreadPoolBackend"},
        "cpu": {
            "BACKEND": "django_tasks_local.ProcessPoolBackend",
            "OPTIONS": {"MAX_WORKERS": 1, "SHUTDOWN_TIMEOUT": 1.0},
        },
    }
"""
# After `renew`, the next task runs in a new worker process.
BEGIN = """
import os, signal, sys
import django
from django.test import override_settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "polls.settings")
django.setup()

from polls import tasks
from polls.notes import noted
from tests.leftovers import descendants, wait_until_gone

def run(task, *args):
    return task.enqueue(*args).wait(30)

def renew():
    pid = run(tasks.pid)
    os.kill(pid, signal.SIGKILL)
    assert wait_until_gone(pid)

"""


def script(code: str) -> str:
    return BEGIN + 'if __name__ == "__main__":\n' + textwrap.indent(code, "    ")


def files(*, ready: str = "pass") -> dict[str, str]:
    """A project with one app, whose `ready` does something."""
    return {
        "polls/__init__.py": "",
        "polls/notes.py": NOTES,
        "polls/settings.py": SETTINGS,
        "polls/apps.py": APP.format(ready=ready),
        "polls/tasks.py": TASKS,
    }


def test_the_project_is_set_up_once_for_all(run_script: RunScript) -> None:
    run_script(
        script("""
first = run(tasks.pid)
renew()
assert run(tasks.pid) != first

parent, template = noted()
assert parent == os.getpid()
assert template in descendants() - {first, run(tasks.pid)}
"""),
        files=files(),
    )


def test_one_set_up_serves_all_aliases(run_script: RunScript) -> None:
    run_script(
        script("""
with override_settings(TASKS={
    name: {"BACKEND": "django_tasks_local.ProcessPoolBackend"} for name in "ab"
}):
    handles = [tasks.pid.using(backend=name).enqueue() for name in "abab"]
    assert os.getpid() not in [handle.wait(30) for handle in handles]
assert len(noted()) == 2
"""),
        files=files(),
    )


def test_no_connection_is_inherited(run_script: RunScript) -> None:
    run_script(
        script("""
assert run(tasks.is_connected) is False
assert len(noted()) == 2
"""),
        files=files(
            ready="from django.db import connection; connection.ensure_connection()"
        ),
    )


def test_nothing_printed_is_printed_again(run_script: RunScript) -> None:
    done = run_script(
        script("""
run(tasks.pid)
renew()
run(tasks.pid)
"""),
        files=files(ready="print('ready', number)"),
    )
    assert sorted(done.stdout.splitlines()) == ["ready 1", "ready 2"]


def test_random_numbers_differ(run_script: RunScript) -> None:
    run_script(
        script("""
first = run(tasks.draw)
renew()
assert run(tasks.draw) != first
assert len(noted()) == 2
"""),
        files=files(ready="import random; random.seed(1)"),
    )


def test_secrets_are_in_no_command_line_and_no_environment(
    run_script: RunScript,
) -> None:
    run_script(
        script("""
with override_settings(SECRET_KEY="hidden"):
    assert run(tasks.setting, "SECRET_KEY") == "hidden"
    family = descendants()
    assert noted()[-1] in family
    for pid in family:
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}", "rb") as file:
                assert b"hidden" not in file.read()
"""),
        files=files(),
    )


class TestFallBack:
    """Where forks would not be sound, each process sets the project up itself."""

    @pytest.mark.parametrize(
        "ready, reason",
        [
            (
                "threading.Thread(target=signal.pause, daemon=True).start()",
                "threads running (Thread-1 (pause))",
            ),
            ("self.pair = socket.socketpair()", "a socket or a pipe open"),
            ("self.pipe = os.pipe()", "a socket or a pipe open"),
            ("if number == 2: raise ValueError('no')", "ValueError: no"),
            ("if number == 2: sys.exit(3)", "SystemExit: 3"),
            ("if number == 2: os._exit(4)", "exit code 4"),
            ("if number == 2: os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
        ],
        ids=["thread", "socket", "pipe", "exception", "exit", "os-exit", "killed"],
    )
    def test_is_for_good_and_said_once(
        self, run_script: RunScript, ready: str, reason: str
    ) -> None:
        done = run_script(
            script("""
for number in range(3):
    assert run(tasks.pid) == noted()[-1]
    with override_settings(ANSWER=number):
        assert run(tasks.setting, "ANSWER") == number
    renew()
"""),
            files=files(ready=ready),
        )
        assert done.stderr.count("Each worker process sets the project up") == 1
        assert reason in done.stderr

    def test_of_many_at_once(self, run_script: RunScript) -> None:
        done = run_script(
            script("""
with override_settings(TASKS={
    name: {"BACKEND": "django_tasks_local.ProcessPoolBackend"} for name in "ab"
}):
    handles = [tasks.pid.using(backend=name).enqueue() for name in "abab" * 4]
    for handle in handles:
        assert handle.wait(30) in noted()[2:]
"""),
            files=files(ready="if number == 2: raise ValueError('no')"),
        )
        assert done.stderr.count("Each worker process sets the project up") == 1

    def test_datagrams_are_shared(self, run_script: RunScript) -> None:
        done = run_script(
            script("""
run(tasks.pid)
renew()
run(tasks.pid)
assert len(noted()) == 2
"""),
            files=files(
                ready="self.log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)"
            ),
        )
        assert done.stderr == ""


class TestChanges:
    def test_of_settings_are_seen(self, run_script: RunScript) -> None:
        run_script(
            script("""
assert run(tasks.setting, "ANSWER") == 42
with override_settings(ANSWER=1):
    assert run(tasks.setting, "ANSWER") == 1
    with override_settings():
        del django.conf.settings.ANSWER
        assert run(tasks.setting, "ANSWER") == "none"
    assert run(tasks.setting, "ANSWER") == 1
assert run(tasks.setting, "ANSWER") == 42
with override_settings(INSTALLED_APPS=["django.contrib.auth", "polls"]):
    assert run(tasks.app_labels) == ["auth", "polls"]
assert run(tasks.app_labels) == ["polls", "contenttypes"]
logging = {"version": 1, "loggers": {"polls": {"level": "ERROR"}}}
with override_settings(LOGGING=logging):
    assert run(tasks.level, "polls") == 40
assert run(tasks.level, "polls") == 0
# None of those processes stays that saw other settings: the server does, of which
# the template is a child, and what is a fork of that.
template = noted()[-1]
with open(f"/proc/{template}/stat") as file:
    server = int(file.read().rpartition(")")[2].split()[1])
for pid in descendants() - {server, template, run(tasks.pid)}:
    assert wait_until_gone(pid)
"""),
            files=files(),
        )

    def test_of_settings_that_are_taken_back_need_no_new_set_up(
        self, run_script: RunScript, gate: Gate
    ) -> None:
        run_script(
            script(f"""
held = tasks.hold.enqueue({gate.port})
next(seen for seen in held.watch_sync() if seen.status == "RUNNING")
with override_settings(ANSWER=1, TASKS={{"cpu": django.conf.settings.TASKS["cpu"]}}):
    assert run(tasks.setting, "ANSWER") == 1
assert run(tasks.setting, "ANSWER") == 42
assert len(noted()) == 3  # this one, and one for each of the settings
"""),
            files=files(),
        )

    def test_of_surroundings_are_seen(
        self, run_script: RunScript, tmp_path: Path
    ) -> None:
        done = run_script(
            script("""
os.environ["VARIABLE"] = "first"
print(run(tasks.surroundings), run(tasks.setting, "FROM_ENVIRON"))
renew()
os.environ.update(VARIABLE="second", TZ="Africa/Nairobi")
os.chdir("polls")
sys.path.append("/nowhere")
print(run(tasks.surroundings))
renew()
del os.environ["VARIABLE"]
# As it was when the project was set up.
print(run(tasks.surroundings)[0], run(tasks.setting, "FROM_ENVIRON"))
assert len(noted()) == 2
"""),
            files=files(),
        )
        first, second, third = done.stdout.splitlines()
        assert first.startswith(f"['first', '{tmp_path}', ")
        assert first.endswith(", 'CST'] first")
        assert second == f"['second', '{tmp_path}/polls', '/nowhere', 'EAT']"
        assert third == "None first"

    def test_of_the_settings_module_are_seen(self, run_script: RunScript) -> None:
        done = run_script(
            script("""
run(tasks.pid)
renew()
os.environ["DJANGO_SETTINGS_MODULE"] = "polls.no_such_settings"
handle = tasks.pid.enqueue()
handle.join(30)
assert "No module named 'polls.no_such_settings'" in handle.errors[0].traceback
"""),
            files=files(),
        )
        assert done.stderr.count("Each worker process sets the project up") == 1


class TestMainModule:
    def test_is_imported_once_and_has_its_tasks(self, run_script: RunScript) -> None:
        done = run_script(
            BEGIN
            + """
print(__name__, flush=True)

from django_tasks_local import task

@task(backend="cpu")
def own():
    return [__name__, os.getpid()]

if __name__ == "__main__":
    name, first = run(own)
    os.kill(first, signal.SIGKILL)
    wait_until_gone(first)
    assert run(own) == [name, run(tasks.pid)]
    assert name == "__mp_main__"
    assert len(noted()) == 2
""",
            files=files(),
        )
        assert done.stdout == "__main__\n__mp_main__\n"

    def test_may_configure_the_settings(self, run_script: RunScript) -> None:
        done = run_script(
            """
            import os
            from tests.small_project import configure
            configure(INSTALLED_APPS=["polls"])
            from tests.small_tasks import own_pid
            from polls.notes import noted

            if __name__ == "__main__":
                handles = [own_pid.using(backend="cpu").enqueue() for _ in range(2)]
                assert os.getpid() not in [handle.wait(30) for handle in handles]
                assert len(noted()) == 2
            """,
            files=files(),
        )
        assert [done.stdout, done.stderr] == ["", ""]


class TestEnds:
    def test_of_the_process_that_set_up_are_made_good(
        self, run_script: RunScript
    ) -> None:
        done = run_script(
            script("""
pid = run(tasks.pid)
os.kill(noted()[1], signal.SIGKILL)
assert wait_until_gone(noted()[1])
assert run(tasks.pid) == pid  # it goes on
renew()
assert run(tasks.pid) not in noted()
assert len(noted()) == 3
"""),
            files=files(),
        )
        assert done.stderr == ""

    def test_of_the_parent_end_a_set_up_that_hangs(
        self, tmp_path: Path, gate: Gate
    ) -> None:
        hang = (
            "if number == 2: from tests.gates import pass_gate; "
            f"pass_gate({gate.port}, os.getpid())"
        )
        write_files(
            tmp_path,
            {**files(ready=hang), "script.py": script("tasks.pid.enqueue().wait()")},
        )
        process = subprocess.Popen(
            [sys.executable, "script.py"], cwd=tmp_path, env=script_environ()
        )
        pid = int(gate.next_visitor().name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert wait_until_gone(pid)

    def test_of_the_parent_wait_for_no_set_up(
        self, run_script: RunScript, tmp_path: Path
    ) -> None:
        done = run_script(
            script("tasks.pid.enqueue()"),
            files=files(ready="if number == 2: threading.Event().wait()"),
        )
        assert "1 tasks did not finish" in done.stderr
        for pid in (tmp_path / "polls/set_up.txt").read_text().split():
            assert wait_until_gone(int(pid))

    def test_of_the_alias_end_a_set_up_that_hangs(
        self, run_script: RunScript, tmp_path: Path
    ) -> None:
        done = run_script(
            script("""
from django_tasks_local.state import shutdown_executor
handle = tasks.pid.enqueue()
shutdown_executor("cpu")
handle.join(30)
print(handle.errors[0].exception_class.__name__)
"""),
            files=files(ready="if number == 2: threading.Event().wait()"),
        )
        assert done.stdout == "WorkerLost\n"
        assert "1 tasks did not finish" in done.stderr
        for pid in (tmp_path / "polls/set_up.txt").read_text().split():
            assert wait_until_gone(int(pid))

    def test_of_forks_leave_it_to_its_owner(self, run_script: RunScript) -> None:
        run_script(
            script("""
first = run(tasks.pid)
pid = os.fork()
if pid == 0:
    assert run(tasks.pid) != first
    assert len(noted()) == 3  # a project of its own
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
renew()
assert run(tasks.pid) != first
assert len(noted()) == 3
"""),
            files=files(),
        )
