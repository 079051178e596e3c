"""Tasks of test_stress.py; worker processes import them too."""

from typing import Any

from django_tasks_local import task
from django_tasks_local.state import shutdown_executor


@task
def echo(value: Any) -> Any:
    return value


@task
def echo_by_task(alias: str, value: Any) -> Any:
    return echo.using(backend=alias).enqueue(value).wait()


@task
def shut_down(aliases: list[str], value: Any) -> Any:
    """Twice each, with tasks before, between and after."""
    for alias in aliases * 2:
        before = echo.using(backend=alias).enqueue(value)
        shutdown_executor(alias)
        assert before.wait() == value
        assert echo.using(backend=alias).enqueue(value).wait() == value
    return value
