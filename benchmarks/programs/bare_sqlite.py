"""What the sqlite store does for tasks that do nothing, and nothing else.

Each is written three times, by the store's own statements into its own tables, and each
time whoever writes waits for the commit: who enqueues, and the thread that begins and
ends the task. The values are made beforehand; there are no records, handles or signals.
"""

import sqlite3
import threading
import time
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from django.tasks import TaskResultStatus

from django_tasks_local.records import Record, TaskSpec
from django_tasks_local.stores.rows import changing_of, row_of
from django_tasks_local.stores.sqlite import (
    _ADD,
    _CHANGE_OTHERS,
    _FINISH,
)

__all__ = ["run"]

_ALIAS = "bare"  # nobody's
_OWNER = "host:12345:0123456789abcdef"
_READY = Record(
    str(uuid.UUID(int=0)),
    TaskSpec("benchmarks.programs.store_tasks.no_op", 0, "default", "sqlite", False),
    _ALIAS,
    "[[], {}]",
    None,
    _OWNER,
    time.time(),
)
_RUNNING = _READY._replace(
    status=TaskResultStatus.RUNNING,
    started_at=time.time(),
    last_attempted_at=time.time(),
    worker_ids=("host:12345:sqlite-0",),
    revision=1,
)
_SUCCESSFUL = _RUNNING._replace(
    status=TaskResultStatus.SUCCESSFUL,
    finished_at=time.time(),
    value="null",
    revision=2,
)


class _Write:
    """A statement, and whether it has been committed."""

    def __init__(self, statement: str, values: tuple[object, ...]) -> None:
        self.statement = statement
        self.values = values
        self.is_done = False


class _File:
    """One connection: whoever has its lock writes for all who wait."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint = 8192")  # as the store
        self._db.execute("DELETE FROM result")
        self._lock = threading.Lock()
        self._waiting = deque[_Write]()

    def write(self, statement: str, values: tuple[object, ...]) -> None:
        write = _Write(statement, values)
        self._waiting.append(write)
        with self._lock:
            if not write.is_done:
                self._write_all()

    def _write_all(self) -> None:
        is_alone = len(self._waiting) == 1
        if not is_alone:
            self._db.execute("BEGIN IMMEDIATE")
        done: list[_Write] = []
        while self._waiting and not (is_alone and done):
            write = self._waiting.popleft()
            self._db.execute(write.statement, write.values)
            done.append(write)
        if not is_alone:
            self._db.execute("COMMIT")
        for write in done:
            write.is_done = True

    def close(self, *, count: int) -> None:
        """So many have to have ended."""
        ended = "SELECT count(*) FROM result WHERE alias = ? AND finish = ?"
        assert self._db.execute(ended, (_ALIAS, count)).fetchone() == (1,)
        self._db.close()


def run(path: Path, *, threads: int, count: int) -> float:
    """The seconds that it takes for so many tasks, in a file of the store's."""
    file = _File(path)
    owner, *started, is_cancel_requested, revision = changing_of(_RUNNING)
    ended = changing_of(_SUCCESSFUL)

    def work(result_id: str) -> None:
        file.write(
            _CHANGE_OTHERS,
            (
                *(*started, revision),
                *(result_id, _ALIAS, _READY.revision),
                *(owner, is_cancel_requested),
            ),
        )
        file.write(_FINISH, (*ended, _ALIAS, result_id, _ALIAS, _RUNNING.revision))

    began_at = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(count):
            result_id = str(uuid.uuid4())
            file.write(_ADD, row_of(_READY._replace(id=result_id)))
            pool.submit(work, result_id)
    took_s = time.perf_counter() - began_at
    file.close(count=count)
    return took_s
