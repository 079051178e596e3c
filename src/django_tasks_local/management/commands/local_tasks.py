"""``manage.py local_tasks``: see to tasks whose store outlives the processes."""

import signal
import threading
from argparse import ArgumentParser
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, override

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist

from django_tasks_local.backend import FuturesBackend
from django_tasks_local.errors import StoreError
from django_tasks_local.protocols import OwnedResultStore
from django_tasks_local.recovery import owned_store
from django_tasks_local.state import ExecutorState

__all__ = ["Command"]

_STATUSES = ("READY", "RUNNING", "SUCCESSFUL", "FAILED", "UNREADABLE")
_PATIENCE_S = 0.5

_TOO_LATE = "was finished already"
_CANCELLED = "is cancelled"
_SAID = {
    TaskResultStatus.RUNNING: "runs, and is asked to end",
    TaskResultStatus.SUCCESSFUL: _TOO_LATE,
}


class Command(BaseCommand):
    """Runs, shows, cancels and prunes tasks in stores that outlive their processes."""

    help = (
        "Sees to the tasks of aliases whose STORE outlives processes, as 'sqlite' and "
        "'database' do."
    )

    @override
    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        run = actions.add_parser(
            "run",
            help="take over what ended processes have left, and run it, until SIGTERM",
        )
        run.add_argument(
            "--until-empty",
            action="store_true",
            help="end as soon as nothing is left that is due",
        )
        status = actions.add_parser(
            "status", help="how many tasks there are, and whose"
        )
        cancel = actions.add_parser("cancel", help="cancel tasks, wherever they are")
        cancel.add_argument("ids", nargs="+", metavar="ID", help="a result's id")
        prune = actions.add_parser(
            "prune", help="forget what MAX_RESULTS and RESULT_TTL do not keep"
        )
        for action in (run, status, cancel, prune):
            _add_aliases(action)

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        states = _states(options["aliases"])
        try:
            match options["action"]:
                case "run":
                    self._run(states, until_empty=options["until_empty"])
                case "status":
                    self._status(states)
                case "cancel":
                    self._cancel(states, options["ids"])
                case _:
                    self._prune(states)
        except StoreError as err:
            raise CommandError(str(err)) from err

    def _run(self, states: Sequence[ExecutorState], *, until_empty: bool) -> None:
        with _until_signal() as is_over:
            # What a store that is away leaves undone is tried again.
            for state in states:
                state.serve()
            while not is_over.is_set():
                if until_empty and self._are_done(states):
                    break
                is_over.wait(_PATIENCE_S)
        count = sum(state.adopted_count for state in states)
        self.stdout.write(f"{count} tasks of ended processes were taken over.")

    def _are_done(self, states: Sequence[ExecutorState]) -> bool:
        adopted = sum(state.adopt() for state in states)
        return not adopted and all(state.wait_until_idle(0.0) for state in states)

    def _status(self, states: Sequence[ExecutorState]) -> None:
        for state in states:
            store = _store_of(state)
            counts = store.counts()
            numbers = ", ".join(
                f"{counts.get(status, 0)} {status}"
                for status in _STATUSES
                if status != "UNREADABLE" or counts.get(status)
            )
            self.stdout.write(f"{state.alias}: {numbers}")
            for owner in store.owners():
                is_alive = store.ownership.is_alive(owner)
                self.stdout.write(f"  {owner} {'runs' if is_alive else 'has ended'}")

    def _cancel(self, states: Sequence[ExecutorState], ids: Sequence[str]) -> None:
        unknown: list[str] = []
        for result_id in ids:
            for state in states:
                try:
                    said = _cancel(state, result_id)
                except TaskResultDoesNotExist:
                    continue
                self.stdout.write(f"{result_id} {said}.")
                break
            else:
                unknown.append(result_id)
        if unknown:
            raise CommandError(f"There is no result {', '.join(unknown)}.")

    def _prune(self, states: Sequence[ExecutorState]) -> None:
        for state in states:
            self.stdout.write(f"{state.alias}: {state.prune()} results are forgotten.")


def _add_aliases(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--alias",
        action="append",
        dest="aliases",
        help="only this alias of TASKS; may be given several times",
    )


def _states(aliases: Sequence[str] | None) -> list[ExecutorState]:
    """Those of the aliases whose store can be seen from here."""
    for alias in aliases or ():
        if alias not in task_backends:
            raise CommandError(f"TASKS has no alias {alias!r}.")
    backends = [task_backends[alias] for alias in aliases or task_backends]
    states = [
        backend.state
        for backend in backends
        if isinstance(backend, FuturesBackend) and backend.outlives_processes
    ]
    if not states:
        named = "None of these aliases" if aliases else "No alias of TASKS"
        raise CommandError(
            f"{named} has a store that outlives its process: OPTIONS['STORE'] of "
            "'sqlite' or 'database'."
        )
    return states


def _cancel(state: ExecutorState, result_id: str) -> str:
    """Cancel a task; what has become of it. Raises TaskResultDoesNotExist."""
    if not state.cancel(result_id):
        return _TOO_LATE
    try:
        status = state.get_result(result_id).status
    except TaskResultDoesNotExist:  # nothing is kept of what has ended
        return _CANCELLED
    return _SAID.get(status, _CANCELLED)


def _store_of(state: ExecutorState) -> OwnedResultStore:
    store = owned_store(state.store)
    assert store is not None  # `_states` has looked
    return store


@contextmanager
def _until_signal() -> Generator[threading.Event]:
    """Set at SIGTERM and Ctrl-C, so that what runs may finish."""
    is_over = threading.Event()

    def end(number: int, frame: object) -> None:
        is_over.set()

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield is_over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
