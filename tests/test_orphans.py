"""No worker process outlives the process that it works for, whatever holds its pipe."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import script_environ, write_files
from .gates import LONG_S, Gate
from .leftovers import descendants, wait_until_gone

PARENT = """
    import os, sys
    from tests.small_project import TASKS, configure
    configure()
    from tests.gates import pass_gate
    from tests.small_tasks import fork_and_hold, hold, own_pid

    if __name__ == "__main__":
        gate, held_gate, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        on_process = lambda task: task.using(backend="cpu")
        workers = [on_process(own_pid).enqueue().wait(30)]
        if kind == "grandchild":
            on_process(fork_and_hold).enqueue(gate).wait(30)
        on_process(hold).enqueue(held_gate, "busy")
        if kind == "fork" and os.fork() == 0:
            pass_gate(gate, os.getpid())
            os._exit(0)
        pass_gate(gate, "parent")
"""


@contextmanager
def parent(
    directory: Path, kind: str, gate: Gate, held: Gate
) -> Generator[subprocess.Popen[bytes]]:
    script = write_files(directory, {"script.py": PARENT}) / "script.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(gate.port), str(held.port), kind],
        env=script_environ(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(LONG_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
@pytest.mark.parametrize("kind", ["nobody", "fork", "grandchild"])
def test_they_leave_though_others_hold_their_pipe(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    with Gate() as gate, Gate() as held, parent(tmp_path, kind, gate, held) as process:
        names = {gate.next_visitor().name for _ in range(1 if kind == "nobody" else 2)}
        assert held.next_visitor().name == "busy"
        (holder,) = map(int, names - {"parent"}) if len(names) == 2 else (0,)
        workers = descendants(process.pid) - {holder}
        assert len(workers) >= 2  # the server, and the worker that is busy
        process.send_signal(number)
        process.wait(LONG_S)
        assert [pid for pid in workers if not wait_until_gone(pid)] == []
        if holder:
            os.kill(holder, 0)  # it is still there, and holds what it holds
