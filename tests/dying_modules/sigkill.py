from django_tasks_local import task

from . import die_in_a_child

die_in_a_child("SIGKILL")


@task
def never_runs() -> None: ...
