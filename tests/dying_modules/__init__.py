"""Modules of tasks that a worker process does not survive importing."""

import sys

from ..fault_tasks import die


def die_in_a_child(cause: str) -> None:
    """Die, but in the process of the tests, which needs to know the task."""
    if "pytest" not in sys.modules:
        die(cause)
