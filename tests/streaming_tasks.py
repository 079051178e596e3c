"""Tasks whose changes are streamed; worker processes import them too."""

from django_tasks_local import LocalTaskContext, task

from .gates import pass_gate


@task(takes_context=True)
def tell_steps(context: LocalTaskContext, port: int, count: int = 2) -> str:
    """Tell of some steps, and wait at a gate after each."""
    for number in range(count):
        context.metadata["step"] = number
        context.save_metadata()
        pass_gate(port, number)
    return "a secret"


@task(takes_context=True)
def tell_often(context: LocalTaskContext, count: int, port: int) -> None:
    """Change the metadata as fast as it can, then wait at a gate."""
    for number in range(1, count + 1):
        context.metadata["number"] = number
        context.save_metadata()
    pass_gate(port)


@task(takes_context=True)
def report_and_fail(context: LocalTaskContext) -> None:
    context.metadata["text"] = "two\nlines: ü\u2028\x85"
    context.report_progress(1, 2, "half\r\nway")
    raise LookupError("a secret")
