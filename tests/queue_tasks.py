"""Tasks for other libraries' queues; their workers import them too."""

from typing import Any

from django_tasks_local import LocalTaskContext, current_result_id, task

from .gates import LONG_S
from .tasks import add


@task(takes_context=True)
def tell_all(context: LocalTaskContext, number: int) -> dict[str, Any]:
    """Does all that a task's context is there for."""
    context.metadata["number"] = number
    context.save_metadata()
    context.report_progress(1, 2, "half")
    context.checkpoint()
    return {
        "type": type(context).__name__,
        "id": context.task_result.id,
        "status": context.task_result.status.value,
        "current_result_id": current_result_id.get(None),
        "attempt": context.attempt,
        "is asked to stop": context.cancel_requested,
        "metadata": sorted(context.metadata),
    }


@task
def relay(alias: str, depth: int) -> int:
    """Waits for a task of the queue, within tasks that wait for each other."""
    if depth:
        return relay.enqueue(alias, depth - 1).wait(LONG_S)
    return add.using(backend=alias).enqueue(1, 2).wait(LONG_S)


@task
def own_id_or_none() -> str | None:
    return current_result_id.get(None)


@task
def return_set() -> object:
    return {1, 2}
