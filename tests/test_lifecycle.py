"""What starts when, what is left when, and how a process ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist

from django_tasks_local.state import (
    ExecutorState,
    get_executor_state,
    shutdown_executor,
)

from .conftest import Configure, RunScript, script_environ, write_files
from .gates import LONG_S, Gate
from .leftovers import descendants, is_gone, wait_until_gone
from .tasks import add, hold, own_pid, refresh_after

HEAD = """
    import os, sys, threading
    from tests.small_project import TASKS, configure
    configure({settings})
    from tests.small_tasks import double, hold, hold_for_ever, own_pid
"""


def head(settings: str = "") -> str:
    return HEAD.format(settings=settings)


class TestStart:
    def test_nothing_starts_before_the_first_enqueue(
        self, run_script: RunScript
    ) -> None:
        done = run_script(
            head()
            + """
    from django.core.management import call_command
    from django.tasks import task_backends
    from django_tasks_local import ProcessPoolBackend, ThreadPoolBackend, task
    from tests.leftovers import descendants

    @task(backend="cpu")
    def mine(): ...

    if __name__ == "__main__":
        for alias in ("default", "cpu"):
            backend = task_backends[alias]
            double.using(backend=alias, priority=3)
            try:
                backend.get_result("unknown")
            except Exception as err:
                print(type(err).__name__)
        ProcessPoolBackend("other", {"OPTIONS": {"MAX_WORKERS": 3}})
        ThreadPoolBackend("other", {"OPTIONS": {"MAX_WORKERS": "wrong"}})
        call_command("check")
        print(threading.active_count(), descendants())
            """
        )
        assert done.stdout.splitlines()[-1] == "1 set()"
        assert done.stdout.startswith("TaskResultDoesNotExist\n" * 2)

    def test_workers_start_as_they_are_needed(self, configure: Configure) -> None:
        configure("cpu", MAX_WORKERS=8)
        pids = {own_pid.using(backend="cpu").enqueue().wait(LONG_S) for _ in range(5)}
        assert len(pids) == 1


class TestOverrides:
    def test_take_effect_under_the_same_alias(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        old = hold.using(backend=alias).enqueue(gate.port, "old")
        visitor = gate.next_visitor()
        waiting = [hold.using(backend=alias).enqueue(gate.port, n) for n in range(9)]
        state = get_executor_state(alias)
        configure(alias, MAX_WORKERS=1, MAX_PENDING=5)
        assert get_executor_state(alias) is not state
        assert get_executor_state(alias).options.max_pending == 5
        new = add.using(backend=alias).enqueue(1, 2)
        assert new.wait(LONG_S) == 3
        with pytest.raises(TaskResultDoesNotExist):
            hold.using(backend=alias).get_result(old.id)
        old.refresh()
        assert old.status is TaskResultStatus.RUNNING
        visitor.let_go()
        gate.open()
        assert old.wait(LONG_S) == "old"
        assert [handle.wait(LONG_S) for handle in waiting] == list(range(9))

    def test_tasks_from_before_them_find_their_own_results(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        handle = refresh_after.using(backend=alias).enqueue(gate.port)
        visitor = gate.next_visitor()
        configure(alias, MAX_WORKERS=1)
        visitor.let_go()
        assert handle.wait(LONG_S) == ["RUNNING", "RUNNING"]

    def test_backends_from_before_them_take_the_new_settings(
        self, alias: str, configure: Configure
    ) -> None:
        before = task_backends[alias]
        configure(alias, MAX_WORKERS=1, MAX_PENDING=5)
        result = before.enqueue(add, [1, 2], {})
        assert get_executor_state(alias).options.max_pending == 5
        assert add.using(backend=alias).get_result(result.id).wait(LONG_S) == 3

    def test_leave_nothing_behind(self, run_script: RunScript) -> None:
        done = run_script(
            head()
            + """
    from django.test import override_settings
    from tests.leftovers import descendants, open_files, our_threads, wait_until_gone

    def round(number):
        with override_settings(TASKS={**TASKS, "third": TASKS["default"]}):
            # Processes now and then, since the fork server's start takes a while.
            for alias in ["default", "third"] + ["cpu"] * (number % 15 == 0):
                handles = [double.using(backend=alias).enqueue(n) for n in range(4)]
                assert [handle.wait(30) for handle in handles] == [0, 2, 4, 6]
        threads = our_threads()
        for thread in threads:
            thread.join(30)
        for pid in descendants():
            assert wait_until_gone(pid)

    if __name__ == "__main__":
        round(0)
        before = len(open_files())
        for number in range(30):
            round(number)
        print(our_threads(), descendants(), len(open_files()) - before)
            """
        )
        assert done.stdout == "[] set() 0\n"


class TestShutdown:
    def test_waits_for_what_runs_and_waits(
        self, alias: str, configure: Configure, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        handles = [hold.using(backend=alias).enqueue(gate.port, n) for n in range(3)]
        gate.next_visitor()
        gate.open()
        shutdown_executor(alias)
        assert [handle.wait(0) for handle in handles] == [0, 1, 2]
        shutdown_executor(alias)

    def test_without_waiting_lets_all_end_in_the_background(
        self, alias: str, gate: Gate
    ) -> None:
        handles = [hold.using(backend=alias).enqueue(gate.port, n) for n in range(9)]
        shutdown_executor(alias, wait=False)
        gate.open()
        assert [handle.wait(LONG_S) for handle in handles] == list(range(9))

    def test_waits_for_what_another_call_has_begun_to_end(
        self, alias: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle = hold.using(backend=alias).enqueue(gate.port, "done")
        visitor = gate.next_visitor()
        wait_until_idle = ExecutorState.wait_until_idle

        def let_go_and_wait(state: ExecutorState, timeout_s: float) -> bool:
            visitor.let_go()
            return wait_until_idle(state, timeout_s)

        monkeypatch.setattr(ExecutorState, "wait_until_idle", let_go_and_wait)
        shutdown_executor(alias, wait=False)
        shutdown_executor(alias)
        assert handle.wait(0) == "done"

    def test_is_bounded_and_fails_what_could_not_run(
        self,
        alias: str,
        configure: Configure,
        gate: Gate,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        configure(alias, MAX_WORKERS=1, SHUTDOWN_TIMEOUT=0.1)
        running = hold.using(backend=alias).enqueue(gate.port)
        gate.next_visitor()
        waiting = hold.using(backend=alias).enqueue(gate.port)
        shutdown_executor(alias)
        waiting.join(LONG_S)
        assert waiting.errors[0].exception_class_path.endswith("WorkerLost")
        (record,) = [r for r in caplog.records if r.name == "django_tasks_local"]
        assert record.levelname == "WARNING"
        assert f"2 tasks did not finish before SHUTDOWN_TIMEOUT: {running.id}, " in (
            record.getMessage()
        )
        gate.open()
        running.join(LONG_S)
        status = (
            TaskResultStatus.FAILED if alias == "cpu" else TaskResultStatus.SUCCESSFUL
        )
        assert running.status is status


class TestForks:
    def test_begin_empty_and_can_use_everything(self, run_script: RunScript) -> None:
        done = run_script(
            head()
            + """
    import multiprocessing
    from django.tasks.exceptions import TaskResultDoesNotExist
    from tests.gates import Gate

    def use_all(number):
        for alias in ("default", "cpu", "loop"):
            handles = [double.using(backend=alias).enqueue(number) for _ in range(4)]
            assert [handle.wait(30) for handle in handles] == [2 * number] * 4

    def in_fork(handles):
        for handle in handles:
            for method in (handle.refresh, handle.wait):
                try:
                    method()
                except TaskResultDoesNotExist as err:
                    assert "only what was enqueued in this process" in str(err), err
                else:
                    raise AssertionError(handle)
        use_all(2)
        pid = os.fork()
        if pid == 0:
            use_all(3)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        use_all(4)

    if __name__ == "__main__":
        use_all(1)
        with Gate() as gate:
            handles = [
                hold.using(backend=alias).enqueue(gate.port, alias)
                for alias in ("default", "cpu", "loop")
            ]
            for _ in handles:
                gate.next_visitor()
            pid = os.fork()
            if pid == 0:
                in_fork(handles)
                sys.exit(5)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            context = multiprocessing.get_context("fork")
            process = context.Process(target=in_fork, args=(handles,), daemon=True)
            process.start()
            process.join(60)
            print(process.exitcode)
            gate.open()
            print(*(handle.wait(30) for handle in handles))
        use_all(5)
            """
        )
        assert done.stdout == "5\n0\ndefault cpu loop\n"
        assert done.stderr == ""


def test_a_fork_server_that_was_killed_is_started_again(run_script: RunScript) -> None:
    done = run_script(
        head()
        + """
    import signal
    from tests.leftovers import descendants, wait_until_gone

    if __name__ == "__main__":
        task = own_pid.using(backend="cpu")
        worker = task.enqueue().wait(30)
        servers = descendants() - {worker}
        for server in servers:
            os.kill(server, signal.SIGKILL)
            assert wait_until_gone(server)
        assert task.enqueue().wait(30) == worker  # which goes on
        os.kill(worker, signal.SIGKILL)
        assert wait_until_gone(worker)
        assert task.enqueue().wait(30) not in {worker, *servers}
        print("done")
        """
    )
    assert [done.stdout, done.stderr] == ["done\n", ""]


# Says when the exit has begun to wait for tasks.
TELL = """
    from django_tasks_local.state import ExecutorState
    from tests.gates import pass_gate
    wait_until_idle = ExecutorState.wait_until_idle

    def tell_and_wait(state, timeout_s):
        pass_gate(int(sys.argv[1]), "waiting")
        return wait_until_idle(state, timeout_s)

    ExecutorState.wait_until_idle = tell_and_wait
"""

ENDS = {"end": "", "exit": "sys.exit(3)", "exception": "raise ValueError('uncaught')"}


class TestExit:
    @pytest.mark.parametrize("kind", ENDS)
    def test_running_and_queued_tasks_finish(
        self, run_script: RunScript, kind: str
    ) -> None:
        done = run_script(
            head()
            + f"""
    from concurrent.futures import ThreadPoolExecutor
    from django.tasks.signals import task_finished

    def report(task_result, **_):
        text = f"{{task_result.backend}} {{task_result.return_value}}\\n"
        os.write(1, text.encode())

    if __name__ == "__main__":
        task_finished.connect(report)
        for alias in ("default", "cpu"):
            for number in range(6):
                double.using(backend=alias).enqueue(number)
        {ENDS[kind]}
            """,
            exit_code={"end": 0, "exit": 3, "exception": 1}[kind],
        )
        expected = [
            f"{alias} {2 * n}" for alias in ("cpu", "default") for n in range(6)
        ]
        assert sorted(done.stdout.splitlines()) == sorted(expected)
        assert ("ValueError: uncaught" in done.stderr) is (kind == "exception")
        assert "Fatal" not in done.stderr

    @pytest.mark.parametrize("alias", ["default", "cpu", "loop"])
    def test_what_waits_runs_where_no_thread_starts_any_more(
        self, tmp_path: Path, alias: str
    ) -> None:
        # Python 3.12.1 starts none by then (CPython issue 113964).
        with Gate() as gate, Gate() as waits:
            code = (
                head(
                    "TASKS={alias: {**setting, 'OPTIONS': {'MAX_WORKERS': 2}} "
                    "for alias, setting in TASKS.items()}"
                )
                + TELL
                + f"""
    from django.tasks.signals import task_finished

    def report(task_result, **_):
        os.write(1, f"{{task_result.status}}\\n".encode())

    if __name__ == "__main__":
        task_finished.connect(report)
        for number in range(4):
            hold.using(backend={alias!r}).enqueue(int(sys.argv[2]), number)
            """
            )
            script = write_files(tmp_path, {"script.py": code}) / "script.py"
            process = subprocess.Popen(
                [sys.executable, str(script), str(waits.port), str(gate.port)],
                env=script_environ(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            gate.next_visitor()
            gate.next_visitor()
            waits.next_visitor()
            waits.open()
            gate.open()
            out, err = process.communicate(timeout=LONG_S)
        assert [out.split(), err] == [["SUCCESSFUL"] * 4, ""]

    def test_a_stuck_task_cannot_hang_it(self, run_script: RunScript) -> None:
        done = run_script(
            head(
                "TASKS={alias: {**setting, 'OPTIONS': {'MAX_WORKERS': 1, "
                "'SHUTDOWN_TIMEOUT': 0.5}} for alias, setting in TASKS.items()}"
            )
            + """
    import atexit, logging, time

    if __name__ == "__main__":
        logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
        logging.getLogger("django.tasks").setLevel(logging.CRITICAL)
        ids = []
        for alias in ("default", "cpu"):
            double.using(backend=alias).enqueue(1).wait(30)
            stuck = hold_for_ever.using(backend=alias)
            ids += [stuck.enqueue().id, stuck.enqueue().id]
        print(*ids)
        sys.stdout.flush()
        begin = time.monotonic()
        # What is registered last runs first, and what is registered first last.
        atexit.register(lambda: os.write(1, f"{time.monotonic() - begin}".encode()))
        sys.exit(6)
            """,
            exit_code=6,
        )
        assert 0.5 <= float(done.stdout.splitlines()[1]) < 2.5
        ids = done.stdout.splitlines()[0].split()
        (line,) = done.stderr.splitlines()
        begin = "WARNING django_tasks_local 4 tasks did not finish before"
        assert line.startswith(f"{begin} SHUTDOWN_TIMEOUT: ")
        assert all(result_id in line for result_id in ids)

    def test_children_go_with_a_killed_parent(self, tmp_path: Path) -> None:
        with Gate() as gate, Gate() as busy:
            code = (
                head()
                + """
    if __name__ == "__main__":
        idle = own_pid.using(backend="cpu").enqueue().wait(30)
        held = hold.using(backend="cpu").enqueue(int(sys.argv[2]), "held")
        handle = hold.enqueue(int(sys.argv[1]), f"{os.getpid()}")
        handle.wait()
            """
            )
            script = write_files(tmp_path, {"script.py": code}) / "script.py"
            parent = subprocess.Popen(
                [sys.executable, str(script), str(gate.port), str(busy.port)],
                env=script_environ(),
            )
            gate.next_visitor()
            busy.next_visitor()
            children = descendants(parent.pid)
            assert len(children) >= 2  # the server and at least one worker
            parent.kill()
            parent.wait(LONG_S)
            for pid in children:
                assert wait_until_gone(pid)
        assert all(is_gone(pid) for pid in children)

    def test_ctrl_c_ends_without_noise_of_the_children(self, tmp_path: Path) -> None:
        with Gate() as gate:
            code = (
                head()
                + """
    if __name__ == "__main__":
        handles = [hold.using(backend="cpu").enqueue(int(sys.argv[1]), n) for n in "ab"]
        try:
            handles[0].wait()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(handles[0].wait(), handles[1].wait())
            """
            )
            script = write_files(tmp_path, {"script.py": code}) / "script.py"
            process = subprocess.Popen(
                [sys.executable, str(script), str(gate.port)],
                env=script_environ(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            gate.next_visitor()
            gate.next_visitor()
            os.killpg(process.pid, signal.SIGINT)
            assert process.stdout is not None
            assert process.stdout.readline() == "interrupted\n"
            gate.open()
            out, err = process.communicate(timeout=LONG_S)
        assert [out, err, process.returncode] == ["a b\n", "", 0]

    @pytest.mark.parametrize("times", [1, 2])
    def test_ctrl_c_ends_the_wait(self, tmp_path: Path, times: int) -> None:
        with Gate() as gate, Gate() as waits:
            code = (
                head(
                    "TASKS={alias: {**setting, 'OPTIONS': {'MAX_WORKERS': 2, "
                    "'SHUTDOWN_TIMEOUT': 120.0}} for alias, setting in TASKS.items()}"
                )
                + TELL
                + f"""
    if __name__ == "__main__":
        handles = [
            hold.using(backend=alias).enqueue(int(sys.argv[2]), alias)
            for alias in ("default", "cpu")
        ]
        os.write(1, " ".join(handle.id for handle in handles).encode())
        if {times} == 2:
            handles[0].wait()
            """
            )
            script = write_files(tmp_path, {"script.py": code}) / "script.py"
            process = subprocess.Popen(
                [sys.executable, str(script), str(waits.port), str(gate.port)],
                env=script_environ(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            gate.next_visitor()
            gate.next_visitor()
            for _ in range(times - 1):
                os.killpg(process.pid, signal.SIGINT)
            waits.next_visitor()
            waits.open()
            family = descendants(process.pid)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=LONG_S)
            for pid in family:
                assert wait_until_gone(pid)
        assert process.returncode == (0 if times == 1 else -signal.SIGINT)
        (line,) = [line for line in err.splitlines() if "did not finish" in line]
        assert line.startswith("2 tasks did not finish before KeyboardInterrupt: ")
        assert all(result_id in line for result_id in out.split())
        assert "Fatal" not in err

    @pytest.mark.skipif(
        sys.version_info < (3, 12, 2),
        reason="starts no thread by then: CPython issue 113964",
    )
    def test_tasks_can_use_everything_while_it_waits(self, tmp_path: Path) -> None:
        with Gate() as gate, Gate() as waits:
            code = (
                head()
                + TELL
                + """
    from concurrent.futures import ThreadPoolExecutor
    from asgiref.sync import async_to_sync
    from django_tasks_local import task

    async def later(number):
        return await double.enqueue(number)

    @task
    def use_everything(port, alias):
        pass_gate(port, alias)
        with ThreadPoolExecutor(2) as pool:
            total = sum(pool.map(abs, [-1, -2]))
        # At last a task that nobody waits for.
        tell.using(backend=alias).enqueue(
            [alias, total, async_to_sync(later)(2), double.enqueue(4).wait(30)]
        )

    @task
    def tell(what):
        os.write(1, f"{what}\\n".encode())

    if __name__ == "__main__":
        for alias in ("default", "cpu"):
            use_everything.using(backend=alias).enqueue(int(sys.argv[2]), alias)
            """
            )
            script = write_files(tmp_path, {"script.py": code}) / "script.py"
            process = subprocess.Popen(
                [sys.executable, str(script), str(waits.port), str(gate.port)],
                env=script_environ(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            gate.next_visitor()
            gate.next_visitor()
            waits.next_visitor()
            waits.open()
            gate.open()
            out, err = process.communicate(timeout=LONG_S)
        assert sorted(out.splitlines()) == ["['cpu', 3, 4, 8]", "['default', 3, 4, 8]"]
        assert [err, process.returncode] == ["", 0]

    def test_takes_no_longer_than_the_work(self, run_script: RunScript) -> None:
        done = run_script(
            head()
            + """
    import atexit, time

    if __name__ == "__main__":
        # What is registered first runs last.
        atexit.register(lambda: print(time.monotonic() - begin))
        for alias in ("default", "cpu"):
            double.using(backend=alias).enqueue(1).wait(30)
        begin = time.monotonic()
        for alias in ("default", "cpu"):
            double.using(backend=alias).enqueue(1)
            """
        )
        # Less than anything that it would wait for in vain.
        assert float(done.stdout) < 1.0
