"""Ids cannot be guessed and are never given twice; processes have names."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

from django_tasks_local.identity import host_name, new_result_id, this_process


def test_ids_are_random_uuids() -> None:
    for _ in range(200):
        result_id = new_result_id()
        parsed = UUID(result_id)

        assert str(parsed) == result_id
        assert parsed.version == 4
        assert parsed.variant == RFC_4122


def test_all_of_an_id_that_may_be_random_is() -> None:
    numbers = [UUID(new_result_id()).int for _ in range(2000)]
    ever_set = ever_clear = 0
    for number in numbers:
        ever_set |= number
        ever_clear |= ~number

    # All bits but the four of the version and the two of the variant.
    assert (ever_set & ever_clear & (2**128 - 1)).bit_count() == 122


def test_threads_get_different_ids() -> None:
    threads, each = 8, 500
    barrier = threading.Barrier(threads)

    def draw(_: int) -> list[str]:
        barrier.wait(30)
        return [new_result_id() for _ in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        drawn = [
            result_id for ids in pool.map(draw, range(threads)) for result_id in ids
        ]

    assert len(set(drawn)) == threads * each


def test_this_process_is_named_by_host_and_pid() -> None:
    assert this_process() == f"{host_name()}:{os.getpid()}"


FORKING = """
import os, sys
from django_tasks_local.identity import new_result_id, this_process
before = new_result_id()
read_end, write_end = os.pipe()
pid = os.fork()
ids = [new_result_id() for _ in range(200)]
mine = "\\n".join([this_process(), str(os.getpid()), *ids])
if pid == 0:
    with os.fdopen(write_end, "w") as pipe:
        pipe.write(mine)
    os._exit(0)
os.close(write_end)
with os.fdopen(read_end) as pipe:
    print(pipe.read())
print("--")
print(mine)
os.waitpid(pid, 0)
"""


def test_fork_has_its_own_name_and_its_own_ids() -> None:
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    child, parent = (part.strip().splitlines() for part in output.split("--\n"))

    for name, pid, *_ in (child, parent):
        assert name == f"{host_name()}:{pid}"
    assert child[1] != parent[1]
    assert len({*child[2:], *parent[2:]}) == 400
