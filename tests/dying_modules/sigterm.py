from django_tasks_local import task

from . import die_in_a_child

die_in_a_child("SIGTERM")


@task
def never_runs() -> None: ...
