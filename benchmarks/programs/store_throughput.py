"""How many tasks that do nothing run in a second, until their results are stored.

Enqueued by one thread, and run by threads of the same process, or by the worker of
django-tasks-db. Whether they are finished the store is asked, now and then. Beside the
sqlite store stands SQLite itself: see `bare_sqlite`.
"""

import statistics
import time

from django.tasks import TaskResultStatus, task_backends

from .contenders import tell, told
from .stores import project, worker

_ROUNDS = 3
_PAUSE_S = 0.005
_PATIENCE_S = 300.0


def _run(alias: str, count: int) -> float:
    """The seconds that it takes to run so many tasks."""
    from . import store_tasks

    no_op = store_tasks.no_op.using(backend=alias)
    began_at = time.perf_counter()
    ids = [no_op.enqueue().id for _ in range(count)]
    # They begin in turn: when the last is over, only some before it may not be.
    _wait(alias, ids[-20:])
    took_s = time.perf_counter() - began_at
    _wait(alias, ids)
    return took_s


def _wait(alias: str, ids: list[str]) -> None:
    """Block until all have ended well."""
    backend = task_backends[alias]
    gives_up_at = time.perf_counter() + _PATIENCE_S
    for result_id in reversed(ids):
        while not (result := backend.get_result(result_id)).is_finished:
            if time.perf_counter() > gives_up_at:
                raise TimeoutError(f"Task {result_id} does not end.")
            time.sleep(_PAUSE_S)
        assert result.status is TaskResultStatus.SUCCESSFUL, result.errors


def _per_s(alias: str, count: int) -> float:
    _run(alias, count // 5)
    return count / statistics.median(_run(alias, count) for _ in range(_ROUNDS))


def _bare_per_s(count: int) -> float:
    """The same by SQLite itself, in a file that the store has made."""
    from . import bare_sqlite
    from .stores_settings import TASKS, WORKERS

    _run("sqlite", 1)
    path = TASKS["sqlite"]["OPTIONS"]["STORE_OPTIONS"]["PATH"]
    bare_sqlite.run(path, threads=WORKERS, count=count // 5)
    return count / statistics.median(
        bare_sqlite.run(path, threads=WORKERS, count=count) for _ in range(_ROUNDS)
    )


def main() -> None:
    name, arguments = told()
    alias: str = arguments["alias"]
    count: int = arguments["counts"][name]
    if name == "sqlite3":
        with project("3", None):
            tell({"per_s": _bare_per_s(count)})
        return
    with project(name, arguments["engine"]):
        if name == "db":
            with worker():
                tell({"per_s": _per_s("database", count)})
        else:
            figures = {"per_s": _per_s(alias, count)}
            if alias == "sqlite":
                figures["memory_per_s"] = _per_s("memory", count)
            tell(figures)


if __name__ == "__main__":
    main()
