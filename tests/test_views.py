"""Views wait for tasks, in whichever way Django runs them."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpRequest, JsonResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from django_tasks_local import TaskFailed

from .gates import LONG_S
from .tasks import add, async_add, fail

type NewLoop = Callable[[], asyncio.AbstractEventLoop]


def sync_view(request: HttpRequest, alias: str) -> JsonResponse:
    values = [
        plain.using(backend=alias).enqueue(1, 2).wait(LONG_S)
        for plain in (add, async_add)
    ]
    with pytest.raises(TaskFailed):
        fail.using(backend=alias).enqueue().wait(LONG_S)
    return JsonResponse({"values": values})


async def async_view(request: HttpRequest, alias: str) -> JsonResponse:
    async with asyncio.timeout(LONG_S):
        handles = [
            await plain.using(backend=alias).aenqueue(1, 2)
            for plain in (add, async_add)
        ]
        values = await asyncio.gather(*handles)
        with pytest.raises(TaskFailed):
            await (await fail.using(backend=alias).aenqueue())
    return JsonResponse({"values": values})


def sync_view_of_async(request: HttpRequest, alias: str) -> JsonResponse:
    return async_to_sync(async_view)(request, alias)


async def async_view_of_sync(request: HttpRequest, alias: str) -> JsonResponse:
    return await sync_to_async(sync_view)(request, alias)


VIEWS: dict[str, Callable[..., Any]] = {
    "sync": sync_view,
    "async": async_view,
    "sync-of-async": sync_view_of_async,
    "async-of-sync": async_view_of_sync,
}
urlpatterns = [path(f"{name}/<alias>", view) for name, view in VIEWS.items()]


@pytest.fixture(autouse=True)
def _own_urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__):
        yield


@pytest.mark.parametrize("view", VIEWS)
class TestClients:
    def test_under_wsgi(self, alias: str, view: str) -> None:
        assert Client().get(f"/{view}/{alias}").json() == {"values": [3, 3]}

    @pytest.mark.parametrize(
        "new_loop",
        [asyncio.new_event_loop, uvloop.new_event_loop],
        ids=["asyncio", "uvloop"],
    )
    def test_under_asgi(self, alias: str, view: str, new_loop: NewLoop) -> None:
        """Several at once."""

        async def main() -> list[object]:
            client = AsyncClient()
            requests = [client.get(f"/{view}/{alias}") for _ in range(5)]
            return [each.json() for each in await asyncio.gather(*requests)]

        answers = asyncio.run(main(), loop_factory=new_loop)
        assert answers == [{"values": [3, 3]}] * 5
