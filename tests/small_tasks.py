"""Tasks of the small project, to be imported once it is configured."""

import logging
import os
import threading

from django_tasks_local import task

from .gates import pass_gate


@task
def double(number: int) -> int:
    return 2 * number


@task
def hold(port: int, name: str) -> str:
    pass_gate(port, name)
    return name


@task
def fork_and_hold(port: int) -> None:
    """Leave a fork behind that stands at a gate, under the name of its own pid."""
    if os.fork() == 0:
        pass_gate(port, os.getpid())
        os._exit(0)


@task
def hold_for_ever() -> None:
    threading.Event().wait()


@task
def log(message: str) -> None:
    logging.getLogger("small").info(message)


@task
def own_pid() -> int:
    return os.getpid()
