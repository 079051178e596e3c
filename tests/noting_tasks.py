"""A task that leaves a line in a file, and does not end."""

from pathlib import Path

from django_tasks_local import task

from .gates import pass_gate


@task
def note_and_hold(path: str, text: str, port: int) -> None:
    """Write a line that no other writer's can come into, and stand at a gate."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")
    pass_gate(port, text)
