"""One run: so many servers are killed, one more may end, then the books are closed."""

import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from django_tasks_local.protocols import OwnedResultStore
from django_tasks_local.recovery import owned_store
from django_tasks_local.state import get_executor_state, shutdown_executor
from tests.leftovers import wait_until_gone

from ..processes import mark, marked
from ..watchdog import Watchdog
from .books import Books
from .clients import Clients
from .server import listening, running
from .settings import LEDGER, LONGEST_LIFE_S

__all__ = ["run"]

# One server in so many is killed at a moment of its start.
_EARLY_EVERY = 4
_LONGEST_START_S = 0.8
_FINISH_S = 120.0
_FINISH = [sys.executable, "-m", "django", "local_tasks", "run", "--until-empty"]
_SHOWN = 20


def run(directory: Path, *, seed: int, rounds: int) -> int:
    """Kill, and print what came of it. The exit code: 1 if anything was wrong."""
    print(f"seed {seed}", flush=True)
    mark()
    log = directory / "log"
    began_at = time.monotonic()
    with listening() as listener:
        clients = Clients("http://{}:{}".format(*listener.getsockname()), seed=seed)
        killed = _kill_servers(listener, clients, log=log, seed=seed, rounds=rounds)
    took_s = time.monotonic() - began_at
    store = _store()
    _finish(store)
    books = Books(store, asked=clients.asked, killed=killed)
    shutdown_executor("default")
    wrong = [
        *books.wrong,
        *clients.faults,
        *_complaints(log),
        *(f"Process {pid} was left" for pid in marked() if not wait_until_gone(pid)),
    ]
    for each in [*books.untraced, *books.twice, *wrong][:_SHOWN]:
        print(each, file=sys.stderr)
    print(
        f"{rounds} rounds in {took_s:.0f} s, {books.tasks} tasks ({len(clients.asked)} "
        f"of them told of, {clients.unanswered} requests unanswered): successful "
        f"{books.successful}, lost {books.lost} (and {books.again} attempts of those "
        f"that ran again), lost without trace {len(books.untraced)}, twice "
        f"{len(books.twice)}, wrong {len(wrong)}"
    )
    return 1 if books.untraced or books.twice or wrong else 0


def _kill_servers(
    listener: socket.socket, clients: Clients, *, log: Path, seed: int, rounds: int
) -> set[int]:
    """One after another, and let one more end; which processes were killed."""
    chance = random.Random(f"kills {seed}")
    killed: set[int] = set()
    with Watchdog(lambda: (len(killed), _ledger_size())), clients:
        for number in range(rounds):
            preloads = chance.random() < 0.5
            with running(listener, log=log, preloads=preloads) as server:
                if number % _EARLY_EVERY == 0:
                    time.sleep(chance.uniform(0.0, _LONGEST_START_S))
                else:
                    clients.first.ask()
                    time.sleep(chance.uniform(0.0, LONGEST_LIFE_S))
                killed |= server.kill()
        with running(listener, log=log) as server:
            clients.first.ask()
            clients.leave()
            server.stop()
    return killed


def _ledger_size() -> int:
    return LEDGER.stat().st_size if LEDGER.exists() else 0


def _store() -> OwnedResultStore:
    store = owned_store(get_executor_state("default").store)
    assert store is not None
    return store


def _finish(store: OwnedResultStore) -> None:
    """Have all run that is left, and what is not due yet."""
    end_at = time.monotonic() + _FINISH_S
    while any(True for _ in store.unfinished()) and time.monotonic() < end_at:
        subprocess.run(_FINISH, check=True, stdout=subprocess.DEVNULL)


def _complaints(log: Path) -> list[str]:
    """What the servers should not have had to say."""
    wrong = re.compile("warn|error|critical|exception|traceback|fatal", re.IGNORECASE)
    return [line for line in log.read_text().splitlines() if wrong.search(line)]
