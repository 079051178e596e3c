"""Tasks that the tests enqueue; worker processes import them too."""

from django_tasks_local import task


@task
def add(a: int, b: int) -> int:
    return a + b
