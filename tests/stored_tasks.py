"""Tasks that use the database in which their results are kept."""

from django.contrib.sessions.models import Session
from django.db import transaction

from django_tasks_local import LocalTaskContext, task

from .gates import pass_gate


@task(takes_context=True)
def report_in_transaction(context: LocalTaskContext, using: str, port: int) -> int:
    """Say how far it is, within a transaction of its own."""
    with transaction.atomic(using):
        context.metadata["step"] = 1
        context.save_metadata()
        pass_gate(port)
        return Session.objects.using(using).count()
