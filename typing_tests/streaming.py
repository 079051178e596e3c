"""What a view returns that streams a result, of whatever task and backend."""

from typing import assert_type

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.tasks import task as djangos_task

from django_tasks_local import task
from django_tasks_local.http import event_stream


@task
def count(path: str) -> int:
    return len(path)


@djangos_task
def of_django(path: str) -> int:
    return len(path)


def in_a_sync_view(request: HttpRequest) -> HttpResponseBase:
    return event_stream(count.enqueue("a"), request=request)


async def in_an_async_view(request: HttpRequest) -> HttpResponseBase:
    response = event_stream(await of_django.aenqueue("a"), heartbeat_s=5)
    assert_type(response, HttpResponse | StreamingHttpResponse)
    return event_stream(
        await count.aget_result("id"), request=request, include_return_value=True
    )


def mistakes(request: HttpRequest) -> None:
    event_stream("id")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event_stream(count.enqueue("a"), request)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
