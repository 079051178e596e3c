"""One run: all disturbances at once, then the books are closed."""

import gc
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, override

from django.conf import settings

from django_tasks_local.state import get_executor_state, shutdown_executor
from tests.leftovers import kept_waiters, open_files, our_threads, wait_until_gone

from .ledger import Ledger
from .processes import mark, marked
from .tasks import echo, relay
from .visitors import running_site, visiting
from .waiters import Waiters
from .watchdog import Watchdog

__all__ = ["run"]

_KILL_EVERY_S = 0.2
_IN_FLIGHT = 300
_MEAN_PAUSE_S = 0.015
_LONGEST_PAUSE_S = 0.3
_IDLE_S = 60.0
_LARGE = 200_000
_SHOWN = 20


class _Complaints(logging.Handler):
    """What the library logs as a warning or worse, which here is a fault."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"It logged: {self.format(record)}")


def run(*, seed: int, count: int, seconds: float | None, kills_servers: bool) -> int:
    """Disturb and print what came of it. The exit code: 1 if anything was wrong."""
    print(f"seed {seed}", flush=True)
    mark()
    complaints = _Complaints()
    logging.getLogger("django_tasks_local").addHandler(complaints)
    before = _warm_up()
    began_at = time.monotonic()
    ledger = Ledger(kills_servers)
    ledger.connect()
    stage: list[str] = []
    with (
        Watchdog(
            lambda: (len(stage), len(ledger.events), len(ledger.answers))
        ) as watchdog,
        running_site() as site,
    ):
        watchdog.site = site
        with (
            _killing(ledger, seed),
            visiting(site, seed=seed, take=ledger.answers.append) as faults,
        ):
            _run_tasks(ledger, seed=seed, count=count, seconds=seconds)
            stage.append("all tasks have been waited for")
        stage.append("the visitors are gone")
    stage.append("the server has ended")
    took_s = time.monotonic() - began_at
    left = _left_over(ledger, before)
    figures, wrong = ledger.close()
    wrong += [*faults, *site.complaints, *complaints.texts, *left]
    for each in wrong[:_SHOWN]:
        print(each, file=sys.stderr)
    print(
        f"{figures.returned + figures.lost} tasks, {len(ledger.answers)} of them for "
        f"requests, in {took_s:.0f} s; {ledger.kill_count} kills, {site.recycled} web "
        f"workers recycled\n"
        f"returned {figures.returned}, lost {figures.lost}, crossed {figures.crossed}, "
        f"left over {len(left)}, wrong {len(wrong)}"
    )
    return 1 if wrong else 0


def _warm_up() -> int:
    """How many files are open once all is over that is started but once."""
    echo.enqueue("warm-up", 0.0).wait()
    shutdown_executor("default")
    return len(open_files())


def _run_tasks(ledger: Ledger, *, seed: int, count: int, seconds: float | None) -> None:
    """Enqueue and wait for them, some hundreds at once."""
    chance = random.Random(f"tasks {seed}")
    in_flight = threading.BoundedSemaphore(_IN_FLIGHT)
    end_at = None if seconds is None else time.monotonic() + seconds

    def on_done(_: Future[None]) -> None:
        in_flight.release()

    with Waiters(seed) as waiters:
        for number in range(count):
            if end_at is not None and time.monotonic() > end_at:
                break
            in_flight.acquire()
            token = f"task-{number}"
            if chance.randrange(100) == 0:
                token *= _LARGE // len(token)
            pause_s = min(chance.expovariate(1 / _MEAN_PAUSE_S), _LONGEST_PAUSE_S)
            task: Callable[[str, float], Any] = (
                relay.enqueue if chance.randrange(20) == 0 else echo.enqueue
            )
            handle = task(token, pause_s)
            ledger.tokens[handle.id] = token
            ledger.handles.append(handle)
            waiters.wait_for(handle, on_done)
        waiters.finish()
    # A task whose worker was killed while it waited for another leaves that to run.
    if not get_executor_state("default").wait_until_idle(_IDLE_S):
        raise TimeoutError("Tasks that nobody waits for do not end.")


@contextmanager
def _killing(ledger: Ledger, seed: int) -> Generator[None]:
    """Have worker processes killed, those of the web workers too."""
    command = [sys.executable, "-m", "chaos.killer", str(os.getpid()), str(seed)]
    killer = subprocess.Popen(
        [*command, str(_KILL_EVERY_S), *(["servers"] if ledger.kills_servers else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killer.stdin is not None
    assert killer.stdout is not None
    pids: list[str] = []
    reader = threading.Thread(target=pids.extend, args=(killer.stdout,))
    reader.start()
    try:
        yield
    finally:
        killer.stdin.close()
        code = killer.wait()
        reader.join()
        killer.stdout.close()
        assert code == 0  # else nothing was killed, and nothing shown
    ledger.kill_count = len(pids)
    ledger.killed.update(map(int, pids))


def _left_over(ledger: Ledger, files_before: int) -> list[str]:
    """What is still there once everything has been shut down."""
    for alias in settings.TASKS:
        shutdown_executor(alias)
    for thread in our_threads():
        thread.join(10)
    left = [f"{thread} was left" for thread in our_threads()]
    left += [f"Process {pid} was left" for pid in marked() if not wait_until_gone(pid)]
    for handle in ledger.handles:
        waiters = kept_waiters(handle)
        left += [f"{waiter} was left waiting for {handle.id}" for waiter in waiters]
    gc.collect()
    files = open_files()
    if len(files) > files_before:
        left.append(f"{len(files)} files are open instead of {files_before}: {files}")
    return left
