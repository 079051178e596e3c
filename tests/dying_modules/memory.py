import sys

from django_tasks_local import task

from ..fault_tasks import take_too_much_memory

if "pytest" not in sys.modules:
    take_too_much_memory.func()


@task
def never_runs() -> None: ...
