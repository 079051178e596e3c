"""A second process of the same level, that runs as many tasks when it is told to."""

import sys
from typing import Any

import django
from django.tasks import Task

__all__ = ["run"]


def run(task: "Task[..., Any]", count: int, *args: float) -> None:
    """Enqueue it so many times, and wait for all."""
    handles: list[Any] = [task.enqueue(*args) for _ in range(count)]
    for handle in handles:
        handle.wait()


def main() -> None:
    alias, count = sys.argv[1], int(sys.argv[2])
    django.setup()
    from . import store_tasks

    no_op = store_tasks.no_op.using(backend=alias)
    run(no_op, count // 5)
    print("ready", flush=True)
    sys.stdin.readline()
    run(no_op, count)
    print("done", flush=True)


if __name__ == "__main__":
    main()
