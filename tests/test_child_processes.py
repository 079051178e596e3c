"""Worker processes see the project as their parent does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.apps import apps
from django.db import connection
from django.test import override_settings

from .conftest import RunScript, script_environ, write_files
from .gates import LONG_S
from .tasks import count_sessions, see_project, store_session

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["polls"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
TASKS = {
    "default": {"BACKEND": "django_tasks_local.ThreadPoolBackend"},
    "cpu": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 2},
    },
}
"""
PROJECT = {
    "site_settings.py": SETTINGS,
    "manage.py": """
        import os, sys
        if __name__ == "__main__":
            os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
            from django.core.management import execute_from_command_line
            execute_from_command_line(sys.argv)
    """,
    "polls/__init__.py": "",
    "polls/models.py": """
        from django.db import models

        class Poll(models.Model):
            title = models.CharField(max_length=50)
    """,
    "polls/migrations/__init__.py": "",
    "polls/migrations/0001_initial.py": """
        from django.db import migrations, models

        class Migration(migrations.Migration):
            operations = [
                migrations.CreateModel("Poll", [
                    ("id", models.AutoField(primary_key=True)),
                    ("title", models.CharField(max_length=50)),
                ])
            ]
    """,
    "polls/tasks.py": """
        from django.db import connection
        from django_tasks_local import task
        from .models import Poll

        @task(backend="cpu")
        def store(title):
            Poll.objects.create(title=title)
            return str(connection.settings_dict["NAME"])

        @task(backend="cpu")
        def titles():
            return [poll.title for poll in Poll.objects.all()]
    """,
    "polls/tests.py": """
        import multiprocessing
        from django.db import connection
        from django.test import TransactionTestCase, override_settings
        from .models import Poll
        from .tasks import store, titles

        class Cases:
            def test_children_use_the_test_database(self):
                name = str(connection.settings_dict["NAME"])
                self.assertIn("test_polls", name)
                self.assertEqual(store.enqueue(name).wait(30), name)
                self.assertEqual([poll.title for poll in Poll.objects.all()], [name])
                self.assertEqual(titles.enqueue().wait(30), [name])

            def test_in_a_process_of_the_runners(self):
                self.assertTrue(multiprocessing.current_process().daemon)

        class One(Cases, TransactionTestCase):
            pass

        class Two(Cases, TransactionTestCase):
            pass
    """,
}


class TestSettings:
    def test_apps_are_ready(self) -> None:
        seen = see_project.using(backend="cpu").enqueue().wait(LONG_S)
        assert seen["pid"] != os.getpid()
        assert seen["ready"] is True
        assert seen["apps"] == list(apps.app_configs)

    def test_overrides_in_force_are_seen(self) -> None:
        task = see_project.using(backend="cpu")
        assert task.enqueue().wait(LONG_S)["answer"] is None
        with override_settings(ANSWER=42):
            assert task.enqueue().wait(LONG_S)["answer"] == 42
            with override_settings(ANSWER=["inner"], USE_TZ=False):
                seen = task.enqueue().wait(LONG_S)
                assert [seen["answer"], seen["use_tz"]] == [["inner"], False]
            assert task.enqueue().wait(LONG_S)["answer"] == 42
        assert task.enqueue().wait(LONG_S)["answer"] is None

    def test_values_that_cannot_be_pickled_are_named(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with override_settings(ANSWER=lambda: 42):
            seen = see_project.using(backend="cpu").enqueue().wait(LONG_S)
        assert seen["answer"] is None
        (record,) = [r for r in caplog.records if r.name == "django_tasks_local"]
        assert "do not see the setting ANSWER" in record.getMessage()

    def test_a_project_that_cannot_be_imported_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.no_such_settings")
        handle = see_project.using(backend="cpu").enqueue()
        handle.join(LONG_S)
        assert handle.errors[0].exception_class_path.endswith("WorkerLost")
        assert "No module named 'tests.no_such_settings'" in handle.errors[0].traceback


@pytest.mark.usefixtures("database")
class TestDatabase:
    def test_is_the_test_database(self) -> None:
        name = str(connection.settings_dict["NAME"])
        assert str(os.getpid()) in name
        seen = see_project.using(backend="cpu").enqueue().wait(LONG_S)
        assert seen["database"] == name

    def test_both_see_what_the_other_stores(self, alias: str) -> None:
        assert store_session.using(backend=alias).enqueue("theirs").wait(LONG_S) == 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT session_key FROM django_session")
            assert cursor.fetchall() == [("theirs",)]
        assert count_sessions.using(backend=alias).enqueue().wait(LONG_S) == 1


SCRIPT = """
    import multiprocessing
    import os
    from tests.small_project import configure
    {top}
    from django_tasks_local import task, ThreadPoolBackend

    {tasks}

    if __name__ == "__main__":
        {begin}
        from tests.small_tasks import double, own_pid
        assert double.using(backend="cpu").enqueue(4).wait(30) == 8
        assert own_pid.using(backend="cpu").enqueue().wait(30) != os.getpid()
        {end}
        assert multiprocessing.get_start_method(allow_none=True) is None
        multiprocessing.set_start_method("spawn")
        assert double.using(backend="cpu").enqueue(5).wait(30) == 10
        assert multiprocessing.get_start_method() == "spawn"
        print("done")
"""
OWN_TASK = """@task(backend="cpu")
    def own(a):
        return [a, __name__, os.getpid()]
"""


class TestScripts:
    def test_that_configure_at_their_top_level(self, run_script: RunScript) -> None:
        end = """name = own.enqueue(7).wait(30)
        assert name[:2] == [7, "__mp_main__"], name
        assert name[2] != os.getpid()"""
        done = run_script(
            SCRIPT.format(top="configure()", tasks=OWN_TASK, begin="", end=end)
        )
        assert [done.stdout, done.stderr] == ["done\n", ""]

    def test_that_configure_under_their_main_guard(self, run_script: RunScript) -> None:
        done = run_script(SCRIPT.format(top="", tasks="", begin="configure()", end=""))
        assert [done.stdout, done.stderr] == ["done\n", ""]

    def test_without_a_guard_get_a_clear_error(self, run_script: RunScript) -> None:
        done = run_script(
            """
            from tests.small_project import configure
            configure()
            from tests.small_tasks import double
            handle = double.using(backend="cpu").enqueue(4)
            handle.join(30)
            print(handle.errors[0].exception_class_path)
            print(handle.errors[0].traceback)
            """
        )
        assert done.stdout.startswith("django_tasks_local.errors.WorkerLost\n")
        assert (
            "Put what a script does under \"if __name__ == '__main__':\"."
            in done.stdout
        )

    def test_of_python_minus_c(self, run_script: RunScript) -> None:
        code = (
            "from tests.small_project import configure; configure(); "
            "from tests.small_tasks import double; "
            "print(double.using(backend='cpu').enqueue(4).wait(30), "
            "double.enqueue(5).wait(30))"
        )
        done = run_script("", command=lambda _: ["-c", code])
        assert [done.stdout, done.stderr] == ["8 10\n", ""]

    def test_of_standard_input(self, tmp_path: Path) -> None:
        code = (
            "from tests.small_project import configure; configure()\n"
            "from tests.small_tasks import double\n"
            "print(double.using(backend='cpu').enqueue(4).wait(30))\n"
        )
        done = subprocess.run(
            [sys.executable, "-"],
            input=code,
            cwd=tmp_path,
            env=script_environ(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert [done.stdout, done.stderr] == ["8\n", ""]

    def test_that_fix_a_start_method_first(self, run_script: RunScript) -> None:
        done = run_script(
            """
            import multiprocessing
            from tests.small_project import configure
            configure()
            from tests.small_tasks import double

            def child(number, results):
                results.put(double.using(backend="cpu").enqueue(number).wait(30))

            if __name__ == "__main__":
                multiprocessing.set_start_method("fork")
                assert double.using(backend="cpu").enqueue(4).wait(30) == 8
                assert multiprocessing.get_start_method() == "fork"
                results = multiprocessing.Queue()
                for daemon in (False, True):
                    process = multiprocessing.Process(
                        target=child, args=(5, results), daemon=daemon
                    )
                    process.start()
                    print(results.get(timeout=30))
                    process.join(30)
                    print(process.exitcode)
                assert double.using(backend="cpu").enqueue(6).wait(30) == 12
            """
        )
        assert [done.stdout, done.stderr] == ["10\n0\n10\n0\n", ""]


class TestManagePy:
    def test_shell(self, tmp_path: Path) -> None:
        code = (
            "from polls.tasks import store, titles; "
            "print(store.enqueue('from the shell').wait(30), titles.enqueue().wait(30))"
        )
        self.manage(tmp_path, "migrate", "--verbosity=0")
        done = self.manage(tmp_path, "shell", "--verbosity=0", "-c", code)
        assert done.stdout == "db.sqlite3 ['from the shell']\n"
        assert done.stderr == ""

    def test_parallel_tests(self, tmp_path: Path) -> None:
        done = self.manage(
            tmp_path,
            "test",
            "--parallel=2",
            settings=SETTINGS.replace(
                '"NAME": "db.sqlite3"',
                '"NAME": "db.sqlite3", "TEST": {"NAME": "test_polls.sqlite3"}',
            ),
        )
        assert "Ran 4 tests" in done.stderr
        assert "\nOK\n" in done.stderr
        assert list(tmp_path.glob("*polls*sqlite3")) == []

    def manage(
        self, directory: Path, *arguments: str, settings: str = SETTINGS
    ) -> subprocess.CompletedProcess[str]:
        write_files(directory, {**PROJECT, "site_settings.py": settings})
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=directory,
            env=script_environ(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done
