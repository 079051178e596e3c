"""What becomes of tasks on a Dask cluster whose parts die, leave and come back."""

import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import TaskResultStatus
from django.tasks.signals import task_started

from django_tasks_local import (
    ClusterUnreachable,
    DaskTLS,
    LocalTaskResult,
    QueueFull,
    WorkerLost,
)
from django_tasks_local.errors import path_of
from django_tasks_local.executors import dask, dask_cluster
from django_tasks_local.state import shutdown_executor

from .conftest import RunScript, write_files
from .dask_certificates import Certificates, make_certificates
from .dask_clusters import DaskCluster, DaskProcess
from .dask_tasks import ALIAS, note_and_hold, note_and_hold_twice
from .elsewhere import OtherProcess
from .gates import LONG_S, Gate
from .kept import DASK, find, serve, setting_of, sharing
from .tasks import add, hold
from .test_dask import error_of, on

READY = TaskResultStatus.READY
LOST = path_of(WorkerLost)


@pytest.fixture
def own(nothing_left_behind: None, tmp_path: Path) -> Iterator[DaskCluster]:
    """A cluster that the test starts, and may destroy."""
    with DaskCluster(tmp_path) as cluster:
        yield cluster


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def lines(path: Path) -> list[str]:
    return path.read_text().split()


def wait_until_refused(waiting: LocalTaskResult[Any]) -> str:
    """Enqueue now and then until that raises; what it says."""
    ends_at = time.monotonic() + LONG_S
    while time.monotonic() < ends_at:
        with pytest.raises(TimeoutError):
            waiting.wait(0.1)
        try:
            add.using(backend=ALIAS).enqueue(1, 2)
        except ClusterUnreachable as err:
            return str(err)
    raise AssertionError


class TestWorkers:
    def test_task_of_a_worker_that_is_killed_is_lost_and_never_runs_again(
        self, own: DaskCluster, gate: Gate, tmp_path: Path
    ) -> None:
        own.start_scheduler()
        workers = [own.start_worker(threads=1) for _ in range(2)]
        path = tmp_path / "begun"
        with on(own.address):
            held = [
                note_and_hold.using(backend=ALIAS).enqueue(str(path), gate.port, name)
                for name in ("a", "b")
            ]
            for _ in held:
                gate.next_visitor()
            waiting = [add.using(backend=ALIAS).enqueue(n, 1) for n in range(4)]
            doomed, victim = workers[0]
            (lost,) = [h for h in held if find_worker(h) == victim]
            (kept,) = [h for h in held if h is not lost]
            doomed.kill()
            assert error_of(lost) == LOST
            assert victim in lost.errors[0].traceback
            gate.open()
            assert kept.wait(LONG_S) in ("a", "b")
            assert [handle.wait(LONG_S) for handle in waiting] == [1, 2, 3, 4]
            assert lost.attempts == 1
        assert len(lines(path)) == 2  # each has begun once

    def test_it_runs_again_on_another_where_it_may(
        self, own: DaskCluster, gate: Gate, tmp_path: Path
    ) -> None:
        own.start_scheduler()
        workers: dict[str, DaskProcess] = {}
        for _ in range(2):
            worker, address = own.start_worker(threads=1)
            workers[address] = worker
        path = tmp_path / "begun"
        with on(own.address):
            handle = note_and_hold_twice.using(backend=ALIAS).enqueue(
                str(path), gate.port
            )
            gate.next_visitor()
            first = find_worker(handle)
            workers[first].kill()
            visitor = gate.next_visitor()
            visitor.let_go()
            assert handle.wait(LONG_S) == int(visitor.name)
            assert handle.worker_ids == [first, *(workers.keys() - {first})]
            assert [error.exception_class_path for error in handle.errors] == [LOST]
        assert len(lines(path)) == 2
        # Of which the scheduler never forgets any.
        assert own.groups() == {note_and_hold_twice.module_path}

    def test_one_that_dies_while_its_start_is_saved_has_used_up_an_attempt(
        self, own: DaskCluster, gate: Gate, tmp_path: Path
    ) -> None:
        has_begun, goes_on = threading.Event(), threading.Event()

        def hear(**_: object) -> None:
            has_begun.set()
            goes_on.wait(LONG_S)

        scheduler = own.start_scheduler()
        workers: dict[str, DaskProcess] = {}
        for _ in range(2):
            worker, address = own.start_worker(threads=1)
            workers[address] = worker
        path = tmp_path / "begun"
        task_started.connect(hear)
        try:
            with on(own.address):
                handle = note_and_hold_twice.using(backend=ALIAS).enqueue(
                    str(path), gate.port
                )
                assert has_begun.wait(LONG_S)
                workers[find_worker(handle)].kill()
                scheduler.wait_for_line(r"(Remove worker)")
                goes_on.set()
                visitor = gate.next_visitor()
                visitor.let_go()
                assert handle.wait(LONG_S) == int(visitor.name)
                assert handle.attempts == 2
                assert [each.exception_class_path for each in handle.errors] == [LOST]
        finally:
            task_started.disconnect(hear)
        assert len(lines(path)) == 1

    def test_one_that_joins_takes_what_waits_and_one_that_leaves_does_not(
        self, own: DaskCluster, gate: Gate
    ) -> None:
        own.start_scheduler()
        with on(own.address):
            waiting = [add.using(backend=ALIAS).enqueue(n, 1) for n in range(3)]
            own.wait_for_tasks(3)
            assert {handle.status for handle in waiting} == {READY}
            worker, address = own.start_worker(threads=1)
            assert [handle.wait(LONG_S) for handle in waiting] == [1, 2, 3]
            held = hold.using(backend=ALIAS).enqueue(gate.port, "held")
            gate.next_visitor()
            own.pause_worker(address)
            paused = add.using(backend=ALIAS).enqueue(1, 2)
            own.wait_for_tasks(2)
            gate.open()
            assert held.wait(LONG_S) == "held"  # what runs may end
            paused.refresh()
            assert paused.status is READY
            own.start_worker(threads=1)
            assert paused.wait(LONG_S) == 3
            assert worker.pid  # it is there still


def find_worker(handle: LocalTaskResult[Any]) -> str:
    """Where the latest attempt of a task has begun."""
    handle.refresh()
    return handle.worker_ids[-1]


class TestScheduler:
    def test_what_is_enqueued_before_there_is_one_waits_for_it(
        self, own: DaskCluster
    ) -> None:
        port = free_port()
        with on(f"tcp://127.0.0.1:{port}", MAX_PENDING=5, MAX_WORKERS=2):
            handles = [add.using(backend=ALIAS).enqueue(n, 1) for n in range(5)]
            with pytest.raises(QueueFull, match="5 tasks are waiting, and"):
                add.using(backend=ALIAS).enqueue(5, 1)
            assert {handle.status for handle in handles} == {READY}
            own.start_scheduler(port=port)
            own.start_worker()
            assert [handle.wait(LONG_S) for handle in handles] == [1, 2, 3, 4, 5]
            assert add.using(backend=ALIAS).enqueue(5, 1).wait(LONG_S) == 6

    def test_once_it_was_away_for_too_long_nothing_is_taken_until_it_is_back(
        self, own: DaskCluster
    ) -> None:
        port = free_port()
        with on(f"tcp://127.0.0.1:{port}", CONNECT_TIMEOUT=0.5):
            first = add.using(backend=ALIAS).enqueue(1, 2)
            with pytest.raises(TimeoutError):
                first.wait(0.6)
            with pytest.raises(ClusterUnreachable, match=rf"'dask'.*127.0.0.1:{port}"):
                add.using(backend=ALIAS).enqueue(1, 2)
            own.start_scheduler(port=port)
            own.start_worker()
            assert first.wait(LONG_S) == 3
            assert add.using(backend=ALIAS).enqueue(3, 4).wait(LONG_S) == 7

    def test_what_listens_and_says_nothing_is_tried_again(
        self, own: DaskCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dask, "_OPEN_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port: int = silent.getsockname()[1]
            silent.settimeout(LONG_S)
            stack = ExitStack()
            stack.enter_context(on(f"tcp://127.0.0.1:{port}", CONNECT_TIMEOUT=0.5))
            first = add.using(backend=ALIAS).enqueue(1, 2)
            callers = [silent.accept()[0] for _ in range(3)]
            assert "it does not answer" in wait_until_refused(first)
            for caller in callers:
                caller.close()
        monkeypatch.undo()  # a scheduler that just starts may take longer to answer
        with stack:
            own.start_scheduler(port=port)
            own.start_worker()
            assert first.wait(LONG_S) == 3

    def test_what_listens_and_says_nothing_holds_up_no_end(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            with on(f"tcp://127.0.0.1:{port}", SHUTDOWN_TIMEOUT=0.1):
                handle = add.using(backend=ALIAS).enqueue(1, 2)
                shutdown_executor(ALIAS)
                assert error_of(handle) == LOST

    def test_nothing_is_taken_while_one_stands_still_for_too_long(
        self, own: DaskCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dask_cluster, "_PULSE_S", 0.05)
        scheduler = own.start_scheduler()
        own.start_worker()
        with on(own.address, CONNECT_TIMEOUT=0.5):
            assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
            scheduler.interrupt(signal.SIGSTOP)
            first = add.using(backend=ALIAS).enqueue(3, 4)
            assert "it does not answer" in wait_until_refused(first)
            scheduler.interrupt(signal.SIGCONT)
            assert first.wait(LONG_S) == 7
            assert add.using(backend=ALIAS).enqueue(5, 6).wait(LONG_S) == 11

    def test_one_that_stands_still_and_dies_was_away_all_the_time(
        self, own: DaskCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dask_cluster, "_PULSE_S", 0.05)
        monkeypatch.setattr(dask, "_FIRST_PAUSE_S", LONG_S)
        scheduler = own.start_scheduler()
        with on(own.address, CONNECT_TIMEOUT=0.5, SHUTDOWN_TIMEOUT=0.1):
            first = add.using(backend=ALIAS).enqueue(1, 2)
            own.wait_for_tasks(1)
            scheduler.interrupt(signal.SIGSTOP)
            wait_until_refused(first)
            scheduler.kill()
            # The loss is seen when it is seen: nothing is taken before and after.
            ends_at = time.monotonic() + 0.5
            while time.monotonic() < ends_at:
                with pytest.raises(ClusterUnreachable):
                    add.using(backend=ALIAS).enqueue(1, 2)

    def test_who_asks_one_that_stands_still_is_answered_later(
        self, own: DaskCluster, gate: Gate, tmp_path: Path
    ) -> None:
        asked = tmp_path / "asked"
        scheduler = own.start_scheduler()
        own.start_worker(
            "--preload",
            "tests.dask_impatient",
            threads=1,
            environ={"TESTS_ASKED": str(asked)},
        )
        with on(own.address):
            first = hold.using(backend=ALIAS).enqueue(gate.port, "x")
            visitor = gate.next_visitor()
            # One more waits on the worker.
            others = [add.using(backend=ALIAS).enqueue(n, 1) for n in range(2)]
            own.wait_for_tasks(3)
            before = len(lines(asked))
            scheduler.interrupt(signal.SIGSTOP)
            visitor.let_go()
            ends_at = time.monotonic() + LONG_S
            while len(lines(asked)) < before + 20:
                assert time.monotonic() < ends_at
            scheduler.interrupt(signal.SIGCONT)
            assert first.wait(LONG_S) == "x"
            assert [other.wait(LONG_S) for other in others] == [1, 2]
            assert {other.attempts for other in others} == {1}

    def test_one_that_is_killed_and_comes_back_leaves_nothing_behind(
        self, own: DaskCluster, gate: Gate, other_gate: Gate, tmp_path: Path
    ) -> None:
        port = free_port()
        path = tmp_path / "begun"
        scheduler = own.start_scheduler(port=port)
        worker, _ = own.start_worker(threads=1)
        with on(own.address):
            running = note_and_hold.using(backend=ALIAS).enqueue(str(path), gate.port)
            gate.next_visitor()
            waiting = [
                note_and_hold.using(backend=ALIAS).enqueue(
                    str(path), other_gate.port, number
                )
                for number in range(3)
            ]
            own.wait_for_tasks(4)
            scheduler.kill()
            assert error_of(running) == LOST
            assert "connection to the Dask scheduler" in running.errors[0].traceback
            worker.kill()
            own.start_scheduler(port=port)
            own.start_worker(threads=1)
            for _ in waiting:
                other_gate.next_visitor().let_go()
            assert [handle.wait(LONG_S) for handle in waiting] == [0, 1, 2]
            assert {handle.attempts for handle in waiting} == {1}
        assert len(lines(path)) == 4  # each has begun once


class TestClients:
    def test_process_that_takes_over_loses_nothing_and_runs_nothing_twice(
        self, own: DaskCluster, gate: Gate, tmp_path: Path
    ) -> None:
        own.start_scheduler()
        own.start_worker(threads=2)
        store, path = tmp_path / "results", tmp_path / "begun"
        options = {"ADDRESS": own.address, "MAX_WORKERS": 10}
        with OtherProcess(store, setting_of(store, DASK, **options)) as other:
            held = [
                other.enqueue(note_and_hold, str(path), gate.port, n) for n in range(2)
            ]
            for _ in held:
                gate.next_visitor()
            waiting = other.enqueue_many(add, 5, 3, 4)
            own.wait_for_tasks(7)
            with sharing(store, DASK, **options):
                other.kill()
                serve()
                gate.open()  # nobody asks any more for what runs, but it runs on
                assert [find(each).wait(LONG_S) for each in waiting] == [7] * 5
                assert {error_of(find(each)) for each in held} == {LOST}
        assert len(lines(path)) == 2
        assert own.groups() == {note_and_hold.module_path, add.module_path}


OTHER_VERSION = {
    "django_tasks_local-9.9.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: django-tasks-local\nVersion: 9.9\n"
    )
}
OTHER_PROJECT = {
    "other_settings.py": (
        "from tests.dask_settings import *\nINSTALLED_APPS = ['shop']\n"
    ),
    "shop/__init__.py": "",
}


class TestDeployments:
    def test_preload_sets_the_project_up_before_the_first_task(
        self, own: DaskCluster
    ) -> None:
        own.start_scheduler()
        _, preloaded = own.start_worker()
        _, other = own.start_worker(preload=())
        assert own.has_set_up(preloaded)
        assert not own.has_set_up(other)

    def test_worker_without_the_preload_sees_the_project_that_is_named(
        self, own: DaskCluster
    ) -> None:
        own.start_scheduler()
        own.start_worker(preload=(), environ={"DJANGO_SETTINGS_MODULE": ""})
        with on(own.address):
            assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3

    @pytest.mark.parametrize(
        "files, environ, difference",
        [
            (OTHER_VERSION, {}, "9.9"),
            (
                OTHER_PROJECT,
                {"DJANGO_SETTINGS_MODULE": "other_settings"},
                "another version of the project",
            ),
        ],
        ids=["library", "project"],
    )
    def test_worker_with_another_version_is_refused(
        self,
        own: DaskCluster,
        tmp_path: Path,
        files: dict[str, str],
        environ: dict[str, str],
        difference: str,
    ) -> None:
        write_files(tmp_path / "other", files)
        path = os.pathsep.join(
            filter(None, [str(tmp_path / "other"), os.environ.get("PYTHONPATH")])
        )
        own.start_scheduler()
        own.start_worker(environ={"PYTHONPATH": path, **environ})
        with on(own.address):
            handle = add.using(backend=ALIAS).enqueue(1, 2)
            assert error_of(handle) == path_of(ImproperlyConfigured)
            assert difference in handle.errors[0].traceback

    def test_scheduler_without_the_library_says_so(
        self, own: DaskCluster, tmp_path: Path
    ) -> None:
        write_files(
            tmp_path / "none",
            {"django_tasks_local.py": "raise ModuleNotFoundError('It is not here.')\n"},
        )
        path = os.pathsep.join(
            filter(None, [str(tmp_path / "none"), os.environ.get("PYTHONPATH")])
        )
        own.start_scheduler(environ={"PYTHONPATH": path})
        own.start_worker()
        with on(own.address):
            handle = add.using(backend=ALIAS).enqueue(1, 2)
            assert error_of(handle) == LOST
            assert "It is not here." in handle.errors[0].traceback

    def test_worker_that_cannot_see_the_project_says_why(
        self, own: DaskCluster
    ) -> None:
        own.start_scheduler()
        own.start_worker(preload=(), environ={"DJANGO_SETTINGS_MODULE": "no.such"})
        with on(own.address):
            handle = add.using(backend=ALIAS).enqueue(1, 2)
            assert error_of(handle) == LOST
            assert "No module named 'no'" in handle.errors[0].traceback


class TestTLS:
    def test_only_who_has_a_certificate_gets_in(
        self, own: DaskCluster, tmp_path: Path
    ) -> None:
        ours = make_certificates(tmp_path / "ours")
        others = make_certificates(tmp_path / "others")
        own.options = ours.dask_options
        own.start_scheduler()
        _, worker = own.start_worker()
        assert own.address.startswith("tls://")
        with on(own.address, TLS=ours.tls):
            assert add.using(backend=ALIAS).enqueue(1, 2).wait(LONG_S) == 3
        address = own.address
        strangers = DaskTLS(CA_FILE=ours.ca_file, CERT=others.cert, KEY=others.key)
        for refused, tls in (
            (address, others.tls),
            (address, strangers),
            (address.replace("tls", "tcp"), None),
        ):
            with on(refused, TLS=tls, CONNECT_TIMEOUT=0.1, SHUTDOWN_TIMEOUT=0.1):
                handle = add.using(backend=ALIAS).enqueue(1, 2)
                with pytest.raises(TimeoutError):
                    handle.wait(0.5)
                with pytest.raises(ClusterUnreachable):
                    add.using(backend=ALIAS).enqueue(1, 2)
        for address in (own.address, worker):
            assert "CERTIFICATE_REQUIRED" in alert(address, ours)
            assert "ALERT" in alert(address, ours, others)

    def test_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        ours = make_certificates(tmp_path / "ours")
        ours.key.unlink()
        with on(
            "tls://127.0.0.1:1",
            TLS=ours.tls,
            CONNECT_TIMEOUT=0.1,
            SHUTDOWN_TIMEOUT=0.1,
        ):
            first = add.using(backend=ALIAS).enqueue(1, 2)
            assert str(ours.key) in wait_until_refused(first)


def alert(
    address: str, authority: Certificates, own: Certificates | None = None
) -> str:
    """What who listens there says to somebody with that certificate, or none."""
    context = ssl.create_default_context(cafile=authority.ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # which they are not made for
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    host, port = address.removeprefix("tls://").rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), LONG_S) as plain,
        pytest.raises(ssl.SSLError) as refused,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        connection.recv(1)
    return str(refused.value)


class Hosts(NamedTuple):
    """Two network namespaces with a cable between them: as good as two machines."""

    names: tuple[str, str]
    addresses: tuple[str, str] = ("10.231.77.1", "10.231.77.2")

    def inside(self, number: int) -> list[str]:
        """The command that runs another on that host."""
        return ["ip", "netns", "exec", self.names[number]]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    hosts = Hosts((f"tasks-a-{os.getpid()}", f"tasks-b-{os.getpid()}"))
    ends = ("tasks-a", "tasks-b")
    a, b = hosts.names
    try:
        ip("netns", "add", a)
        ip("netns", "add", b)
        ip("-n", a, "link", "add", ends[0], "type", "veth", "peer", ends[1], "netns", b)
        for name, end, address in zip(hosts.names, ends, hosts.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            for device in ("lo", end):
                ip("-n", name, "link", "set", device, "up")
        yield hosts
    finally:
        for name in hosts.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as err:
        pytest.skip(f"This machine makes no network namespaces: {err}")


class TestHosts:
    def test_worker_may_be_on_another_host(
        self, own: DaskCluster, hosts: Hosts, run_script: RunScript
    ) -> None:
        here, there = hosts.addresses
        own.start_scheduler(host=here, inside=hosts.inside(0))
        own.start_worker(host=there, inside=hosts.inside(1))
        done = run_script(
            """
            import sys
            from tests.small_project import configure

            if __name__ == "__main__":
                backend = "django_tasks_local.DaskBackend"
                options = {"ADDRESS": sys.argv[1]}
                configure(TASKS={"default": {"BACKEND": backend, "OPTIONS": options}})
                from tests.small_tasks import double

                handle = double.enqueue(4)
                print(handle.wait(50), *handle.worker_ids)
            """,
            own.address,
            inside=hosts.inside(0),
        )
        assert done.stdout.startswith(f"8 tcp://{there}:")
