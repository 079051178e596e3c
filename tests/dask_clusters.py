"""Real Dask clusters, started by Dask's own command line."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from distributed import Client, Status

__all__ = ["DaskCluster", "DaskProcess"]

PRELOAD = ("--preload", "django_tasks_local.executors.dask_worker")
_LONG_S = 60.0


class DaskProcess:
    """A scheduler or a worker, with all that it starts. What it prints is kept."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str],
        inside: Sequence[str] = (),
    ) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [*inside, sys.executable, "-m", "dask", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environ},
                start_new_session=True,
            )
        self.pid: int = self._process.pid

    def wait_for_line(self, pattern: str) -> str:
        """Block until it has printed that; the first group of the pattern."""
        found = None
        ends_at = time.monotonic() + _LONG_S
        while found is None:
            found = re.search(pattern, self.log.read_text(errors="replace"))
            if found is None:
                has_ended = self._is_gone_after(0.05)
                assert not has_ended, self.log.read_text(errors="replace")
                assert time.monotonic() < ends_at, self.log.read_text(errors="replace")
        return found.group(1)

    def wait_until_gone(self) -> None:
        """Block until it has ended by itself."""
        self._process.wait(_LONG_S)

    def _is_gone_after(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def interrupt(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to it and to all that it has started; it is gone afterwards."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class DaskCluster:
    """A scheduler and its workers on this machine, until the ``with`` ends."""

    def __init__(
        self,
        directory: Path,
        *,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self.options = options
        self._environ = {
            "DASK_DISTRIBUTED__ADMIN__LOG_FORMAT": "%(name)s %(levelname)s %(message)s",
            "DASK_TEMPORARY_DIRECTORY": str(directory),
            # Nobody but a test pauses a worker, or lets it go on.
            "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
            "PYTHONASYNCIODEBUG": "",
            "DJANGO_SETTINGS_MODULE": "tests.dask_settings",
            **(environ or {}),
        }
        self._processes: list[DaskProcess] = []
        self.address: str = ""
        self.worker_addresses: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()

    def start_scheduler(
        self,
        *,
        port: int = 0,
        environ: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> DaskProcess:
        """Start it and wait until it listens; with a port of its own or this one.

        `inside` is a command that runs another.
        """
        process = self._start(
            "scheduler",
            "--host",
            host,
            "--port",
            str(port),
            "--no-dashboard",
            environ=environ,
            inside=inside,
        )
        self.address = process.wait_for_line(r"Scheduler at: +(\S+)")
        self.scheduler = process
        return process

    def start_worker(
        self,
        *options: str,
        threads: int = 2,
        environ: Mapping[str, str] | None = None,
        preload: Sequence[str] = PRELOAD,
        nanny: bool = False,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> tuple[DaskProcess, str]:
        """Start one and wait until it takes tasks; and its address.

        With a `nanny`, another takes its place when it has died.
        """
        process = self._start(
            "worker",
            self.address,
            "--nanny" if nanny else "--no-nanny",
            "--no-dashboard",
            "--host",
            host,
            "--nthreads",
            str(threads),
            *preload,
            *options,
            environ=environ,
            inside=inside,
        )
        address = process.wait_for_line(r"Start worker at: +(\S+)")
        process.wait_for_line(r"(Registered to)")
        self.worker_addresses.append(address)
        return process, address

    def pause_worker(self, address: str) -> None:
        """Have it take no task any more, as one that is short of memory does."""
        with Client(self.address, set_as_default=False) as client:
            client.run(_pause, workers=[address])

    def has_set_up(self, address: str) -> bool:
        """Whether a worker has set Django up."""
        with Client(self.address, set_as_default=False) as client:
            answers: dict[str, bool] = client.run(_is_set_up, workers=[address])
        return answers[address]

    def known_keys(self) -> set[str]:
        """What the tasks are called that the scheduler has known lately."""
        with Client(self.address, set_as_default=False) as client:
            keys: set[str] = client.run_on_scheduler(_keys)
        return keys

    def groups(self) -> set[str]:
        """The groups that the scheduler has made of all tasks that it has known."""
        with Client(self.address, set_as_default=False) as client:
            groups: set[str] = client.run_on_scheduler(_groups)
        return groups

    def wait_for_tasks(self, count: int) -> None:
        """Block until the scheduler has been told of so many that have not ended."""
        ends_at = time.monotonic() + _LONG_S
        with Client(self.address, set_as_default=False) as client:
            while client.run_on_scheduler(_count_tasks) < count:
                assert time.monotonic() < ends_at

    def _start(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> DaskProcess:
        number = len(self._processes)
        process = DaskProcess(
            [*arguments, *self.options],
            log=self._directory / f"dask-{number}.log",
            environ={**self._environ, **(environ or {})},
            inside=inside,
        )
        self._processes.append(process)
        return process


def _keys(dask_scheduler: Any) -> set[str]:
    return {key for key, *_ in dask_scheduler.transition_log}


def _groups(dask_scheduler: Any) -> set[str]:
    return set(dask_scheduler.task_prefixes)


def _count_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def _is_set_up() -> bool:
    from django.apps import apps

    return apps.ready


def _pause(dask_worker: Any) -> None:
    dask_worker.status = Status.paused
