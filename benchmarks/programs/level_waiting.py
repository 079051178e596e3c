"""What a task takes that waits: of the process's memory, and of the store's disk.

Of memory what `tracemalloc` counts, the handles dropped. While all slots are taken.
"""

import gc
import logging
import os
import signal
import sqlite3
import time
import tracemalloc
from typing import Any

from django.conf import settings
from django.db import connection

from .cluster import Cluster
from .contenders import tell, told
from .levels import level

_HANDED_IN = 1_000
"""`DaskBackend`'s ``MAX_WORKERS``: more wait here until the cluster takes them."""
_HANDING_IN_S = 3.0


def _take_slots(alias: str, slots: int, dask: Cluster | None) -> None:
    from . import store_tasks

    hold = store_tasks.hold.using(backend=alias)
    if dask is not None:
        dask.scheduler.interrupt(signal.SIGSTOP)
        for _ in range(_HANDED_IN):
            hold.enqueue()
        time.sleep(_HANDING_IN_S)  # nobody says when that is done
        return
    handles: list[Any] = [hold.enqueue() for _ in range(slots)]
    for handle in handles:
        while handle.status != "RUNNING":
            time.sleep(0.01)
            handle.refresh()


def _stored_bytes(name: str) -> int:
    """How large the store's file, or the database, is."""
    if name == "sqlite":
        tasks: Any = settings.TASKS
        path = tasks["sqlite"]["OPTIONS"]["STORE_OPTIONS"]["PATH"]
        file = sqlite3.connect(path)
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        file.close()
        return os.stat(path).st_size
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        return int(cursor.fetchone()[0])


def _measure(name: str, alias: str, count: int) -> dict[str, float]:
    from . import store_tasks

    echo = store_tasks.echo.using(backend=alias)
    has_file = name in ("sqlite", "database")
    numbers = list(range(count))  # the caller's own
    stored_before = _stored_bytes(name) if has_file else 0
    gc.collect()
    tracemalloc.start()
    for number in numbers:
        echo.enqueue(number, note="hello")
    gc.collect()
    figures = {"waiting_bytes": tracemalloc.get_traced_memory()[0] / count}
    tracemalloc.stop()
    if has_file:
        figures["stored_bytes"] = (_stored_bytes(name) - stored_before) / count
    return figures


def main() -> None:
    _, arguments = told()
    name: str = arguments["level"]
    with level(name) as dask:
        from . import functions

        _take_slots(arguments["alias"], arguments["slots"], dask)
        tell(_measure(name, arguments["alias"], arguments["waiting"]))
        logging.disable()  # it is meant that they never run
        functions.released.set()
    os._exit(0)  # what waits need not run


if __name__ == "__main__":
    main()
