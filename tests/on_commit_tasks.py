"""Tasks that enqueue others on commit; worker processes import them too."""

from typing import Any

from django.db import transaction

from django_tasks_local import task

from .gates import pass_gate
from .tasks import hold, store_session


@task
def enqueue_after_commit(alias: str, port: int) -> list[bool]:
    """Whether a gate was reached within the transaction; its task goes there after."""
    with transaction.atomic():
        hold.using(backend=alias).enqueue_on_commit(port, "inner")
        pass_gate(port, "outer")
    return []


class RolledBack(Exception):
    pass


@task
def enqueue_and_roll_back(alias: str) -> str:
    try:
        with transaction.atomic():
            store_session.using(backend=alias).enqueue_on_commit("rolled back")
            raise RolledBack
    except RolledBack:
        return "rolled back"


@task
def echo_named(**named: Any) -> dict[str, Any]:
    return named
