"""Its pages, on one uvicorn process."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils import timezone

from django_tasks_local import LocalTaskContext, task
from django_tasks_local.http import event_stream

application = get_asgi_application()


@task(takes_context=True)
def tell(context: LocalTaskContext, count: int, pause_s: float) -> None:
    """Say what time it is, now and then."""
    for _ in range(count):
        time.sleep(pause_s)
        context.metadata["told_at"] = time.monotonic()
        context.save_metadata()


async def start(request: HttpRequest, count: int, pause_ms: int) -> JsonResponse:
    handle = await tell.aenqueue(count, pause_ms / 1000)
    return JsonResponse({"id": handle.id})


async def wait(request: HttpRequest, count: int) -> JsonResponse:
    """Have tasks wait, which never run."""
    later = tell.using(run_after=timezone.now() + timedelta(days=1))
    handles = [await later.aenqueue(1, 1.0) for _ in range(count)]
    return JsonResponse({"ids": [handle.id for handle in handles]})


async def stream(request: HttpRequest, result_id: str) -> HttpResponseBase:
    return event_stream(await tell.aget_result(result_id), request=request)


def memory(request: HttpRequest) -> JsonResponse:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return JsonResponse({"bytes": pages * os.sysconf("SC_PAGE_SIZE")})


# The same without tasks: what Django and uvicorn take of it.


class _News:
    """What a thread tells whoever follows."""

    def __init__(self) -> None:
        self.text = "{}"
        self.changed = asyncio.Event()

    def change(self, text: str) -> None:
        self.text = text
        self.changed.set()
        self.changed = asyncio.Event()


_news = dict[str, _News]()


async def start_bare(request: HttpRequest, count: int, pause_ms: int) -> JsonResponse:
    loop, news = asyncio.get_running_loop(), _News()
    _news["told"] = news

    def tell_bare() -> None:
        for _ in range(count):
            time.sleep(pause_ms / 1000)
            text = f'{{"told_at":{time.monotonic()}}}'
            loop.call_soon_threadsafe(news.change, text)

    threading.Thread(target=tell_bare, daemon=True).start()
    return JsonResponse({"id": "told"})


async def wait_bare(request: HttpRequest, count: int) -> JsonResponse:
    ids = [str(number) for number in range(count)]
    _news.update((name, _News()) for name in ids)
    return JsonResponse({"ids": ids})


async def stream_bare(request: HttpRequest, result_id: str) -> HttpResponseBase:
    news = _news[result_id]

    async def lines() -> AsyncIterator[str]:
        while True:
            changed = news.changed
            yield f"data: {news.text}\n\n"
            await changed.wait()

    return StreamingHttpResponse(lines(), content_type="text/event-stream")


urlpatterns = [
    path("memory", memory),
    path("3/start/<int:count>/<int:pause_ms>", start),
    path("3/wait/<int:count>", wait),
    path("3/stream/<result_id>", stream),
    path("bare/start/<int:count>/<int:pause_ms>", start_bare),
    path("bare/wait/<int:count>", wait_bare),
    path("bare/stream/<result_id>", stream_bare),
]
