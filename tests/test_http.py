"""A result's changes reach a page, and who leaves leaves nothing behind."""

import asyncio
import io
import json
import pickle
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.models import Session
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.tasks import TaskResult, TaskResultStatus, task_backends
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from playwright.sync_api import Browser, expect

from django_tasks_local import LocalTaskResult
from django_tasks_local.http import event_stream
from django_tasks_local.state import shutdown_executor

from .conftest import Configure
from .foreign_backends import ForeignBackend, forget, tell
from .gates import LONG_S, Gate
from .leftovers import kept_waiters
from .streaming_tasks import report_and_fail, tell_often, tell_steps
from .tasks import add, hold
from .test_servers import SITE, Connection, Server, granian, gunicorn, running, uvicorn

HEARTBEAT = b":\n\n"
FIELDS = {"id", "status", "is_finished", "metadata", "progress", "error"}

type AnyResult = TaskResult[..., Any]


class Event(NamedTuple):
    id: str
    data: dict[str, Any]


def read_event(readline: Callable[[], bytes]) -> Event | None:
    """The next one; None at the end. Comments are passed over."""
    fields: dict[str, str] = {}
    while line := readline().decode():
        if line == "\n":
            if fields:
                return Event(fields["id"], json.loads(fields["data"]))
        elif not line.startswith(":"):
            name, value = line.rstrip("\n").split(": ", 1)
            fields[name] = value
    assert fields == {}
    return None


def event_of(chunk: bytes) -> Event:
    event = read_event(io.BytesIO(chunk).readline)
    assert event is not None
    return event


def stream_of(
    result: AnyResult, *, last_event_id: str | None = None, **options: Any
) -> Iterator[bytes]:
    """What a sync consumer gets."""
    if last_event_id is not None:
        headers = {"Last-Event-ID": last_event_id}
        options["request"] = RequestFactory().get("/", headers=headers)
    response = event_stream(result, **options)
    assert isinstance(response, StreamingHttpResponse)
    return iter(response)


def astream_of(result: AnyResult, **options: Any) -> AsyncIterator[bytes]:
    response = event_stream(result, **options)
    assert isinstance(response, StreamingHttpResponse)
    return aiter(response)


# The pages, for Django's test clients.


def sync_view(request: HttpRequest, alias: str, result_id: str) -> HttpResponseBase:
    result = task_backends[alias].get_result(result_id)
    return event_stream(result, request=request, heartbeat_s=LONG_S)


async def async_view(
    request: HttpRequest, alias: str, result_id: str
) -> HttpResponseBase:
    await sync_to_async(list[int])()  # as the ORM and others do
    result = await task_backends[alias].aget_result(result_id)
    return event_stream(result, request=request, heartbeat_s=LONG_S)


def database_view(request: HttpRequest, alias: str, result_id: str) -> HttpResponseBase:
    assert not Session.objects.exists()
    return sync_view(request, alias, result_id)


urlpatterns = [  # what tests.urls has, while a test looks here
    path("sync/<alias>/<result_id>", sync_view),
    path("async/<alias>/<result_id>", async_view),
    path("database/<alias>/<result_id>", database_view),
]


def wrapping_middleware(
    get_response: Callable[[HttpRequest], StreamingHttpResponse],
) -> Callable[[HttpRequest], StreamingHttpResponse]:
    """Wraps a response's content as that says it is, as those that compress do."""

    def middleware(request: HttpRequest) -> StreamingHttpResponse:
        response = get_response(request)
        content: Any = response.streaming_content

        def wrapped() -> Iterator[bytes]:
            for chunk in content:
                yield chunk.replace(b"view", b"wrapping")

        async def awrapped() -> AsyncIterator[bytes]:
            async for chunk in content:
                yield chunk.replace(b"view", b"wrapping")

        response.streaming_content = awrapped() if response.is_async else wrapped()
        return response

    return middleware


GZIP = "django.middleware.gzip.GZipMiddleware"
MIDDLEWARE = {
    "plain": [],
    "gzip": [GZIP],
    "wrapping": [f"{__name__}.wrapping_middleware"],
    "wrapping-and-gzip": [GZIP, f"{__name__}.wrapping_middleware", GZIP],
}

WRAPPED_BY = {
    "plain": "view",
    "gzip": "view",
    "wrapping": "wrapping",
    "wrapping-and-gzip": "wrapping",
}

each_view = pytest.mark.parametrize("view", ["sync", "async"])


@pytest.fixture(params=MIDDLEWARE)
def pages(request: pytest.FixtureRequest, nothing_left_behind: None) -> Iterator[str]:
    """The pages above, behind some middleware."""
    name: str = request.param
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=MIDDLEWARE[name]):
        yield name


@pytest.fixture
def database_page(database: None) -> Iterator[None]:
    """The one whose view uses the database."""
    with override_settings(ROOT_URLCONF=__name__):
        yield


def check_headers(response: HttpResponseBase) -> None:
    assert response.status_code == 200
    assert response["Content-Type"] == "text/event-stream"
    assert response["Cache-Control"] == "no-store, no-transform"
    assert response["X-Accel-Buffering"] == "no"
    assert response["Content-Encoding"] == "identity"


class TestViews:
    @each_view
    def test_each_change_is_an_event_for_a_sync_client(
        self, pages: str, view: str, gate: Gate
    ) -> None:
        handle = tell_steps.using(metadata={"by": "view"}).enqueue(gate.port)
        headers = {"Accept-Encoding": "gzip"}
        response: Any = Client().get(f"/{view}/default/{handle.id}", headers=headers)
        check_headers(response)
        with closing(response):
            chunks = iter(response.streaming_content)
            for number in range(2):
                visitor = gate.next_visitor()
                data = event_of(next(chunks)).data
                assert data["status"] == "RUNNING"
                assert data["metadata"] == {"by": WRAPPED_BY[pages], "step": number}
                visitor.let_go()
            assert event_of(next(chunks)).data["status"] == "SUCCESSFUL"
            assert list(chunks) == []

    @each_view
    @pytest.mark.asyncio
    async def test_each_change_is_an_event_for_an_async_client(
        self, pages: str, view: str, gate: Gate
    ) -> None:
        handle = await tell_steps.using(metadata={"by": "view"}).aenqueue(gate.port)
        headers = {"Accept-Encoding": "gzip"}
        url = f"/{view}/default/{handle.id}"
        response: Any = await AsyncClient().get(url, headers=headers)
        check_headers(response)
        async with aclosing(response.streaming_content) as chunks:
            for number in range(2):
                visitor = await asyncio.to_thread(gate.next_visitor)
                data = event_of(await anext(chunks)).data
                assert data["status"] == "RUNNING"
                assert data["metadata"] == {"by": WRAPPED_BY[pages], "step": number}
                visitor.let_go()
            assert event_of(await anext(chunks)).data["status"] == "SUCCESSFUL"
            assert [chunk async for chunk in chunks] == []

    def test_an_open_stream_holds_no_database_connection(
        self, database_page: None, gate: Gate
    ) -> None:
        handle = hold.enqueue(gate.port)
        gate.next_visitor()
        for is_atomic in (False, True):  # as tests are that roll back
            with transaction.atomic() if is_atomic else closing(io.BytesIO()):
                response: Any = Client().get(f"/database/default/{handle.id}")
                with closing(response):
                    assert connection.connection is not None
                    next(iter(response.streaming_content))
                    assert (connection.connection is not None) is is_atomic
                    assert not Session.objects.exists()  # it can be used

    @pytest.mark.asyncio
    async def test_an_open_stream_holds_no_database_connection_under_asgi(
        self, database_page: None, gate: Gate
    ) -> None:
        handle = await hold.aenqueue(gate.port)
        await asyncio.to_thread(gate.next_visitor)
        is_open = sync_to_async(lambda: connection.connection is not None)
        response: Any = await AsyncClient().get(f"/database/default/{handle.id}")
        assert await is_open()
        async with aclosing(response.streaming_content) as chunks:
            await anext(chunks)
            assert not await is_open()


class TestEvents:
    def test_data_says_what_the_handle_says(
        self, configure: Configure, alias: str, gate: Gate
    ) -> None:
        configure(alias, MAX_WORKERS=1)
        hold.using(backend=alias).enqueue(gate.port)
        gate.next_visitor()
        handle = tell_steps.using(backend=alias, metadata={"given": 1}).enqueue(0)
        stream = stream_of(handle)
        first = event_of(next(stream))
        assert first.data == {
            "id": handle.id,
            "status": "READY",
            "is_finished": False,
            "metadata": {"given": 1},
            "progress": None,
            "error": None,
        }
        gate.open()
        *_, last = map(event_of, stream)
        assert last.data == {
            **first.data,
            "status": "SUCCESSFUL",
            "is_finished": True,
            "metadata": {"given": 1, "step": 1},
        }

    def test_a_failure_is_told_by_the_name_of_its_class_alone(self, alias: str) -> None:
        handle = report_and_fail.using(backend=alias).enqueue()
        handle.join(LONG_S)
        (chunk,) = stream_of(handle, include_return_value=True)
        assert b"secret" not in chunk
        # Whatever ends a line in the format, or in Python, stands in none.
        assert len(re.split(r"\r\n|[\r\n\x85\u2028]", chunk.decode())) == 4
        data = event_of(chunk).data
        assert data["status"] == "FAILED"
        assert data["is_finished"] is True
        assert data["error"] == "LookupError"
        assert data["return_value"] is None
        assert data["metadata"] == handle.metadata
        assert data["metadata"]["text"] == "two\nlines: ü\u2028\x85"
        assert handle.progress is not None
        assert data["progress"] == {
            "done": 1,
            "total": 2,
            "message": "half\r\nway",
            "at": handle.progress.at.isoformat(),
        }

    def test_a_return_value_is_told_only_where_that_is_asked_for(self) -> None:
        handle = add.enqueue(1, 2)
        handle.join(LONG_S)
        (chunk,) = stream_of(handle)
        assert event_of(chunk).data.keys() == FIELDS
        (chunk,) = stream_of(handle, include_return_value=True)
        assert event_of(chunk).data["return_value"] == 3

    def test_a_stale_handle_does_not_hide_what_has_happened_since(
        self, alias: str
    ) -> None:
        handle = add.using(backend=alias).enqueue(1, 2)
        task_backends[alias].get_result(handle.id)
        stale = pickle.loads(pickle.dumps(handle))
        handle.join(LONG_S)
        for each in (stale, LocalTaskResult.__copy__(stale)):
            (chunk,) = stream_of(each)
            assert event_of(chunk).data["status"] == "SUCCESSFUL"

    def test_changes_that_come_at_once_are_one_event(
        self, alias: str, gate: Gate
    ) -> None:
        handle = tell_often.using(backend=alias).enqueue(2_000, gate.port)
        stream = stream_of(handle)
        numbers: list[int] = []
        for chunk in stream:
            data = event_of(chunk).data
            numbers.append(data["metadata"].get("number", 0))
            if numbers[-1] == 2_000:
                break
        assert numbers == sorted(numbers)
        assert len(numbers) < 200
        gate.open()
        assert event_of(next(stream)).data["status"] == "SUCCESSFUL"
        assert next(stream, None) is None

    def test_a_heartbeat_is_sent_where_nothing_happens(self, gate: Gate) -> None:
        handle = hold.enqueue(gate.port)
        gate.next_visitor()
        stream = stream_of(handle, heartbeat_s=0.01)
        assert event_of(next(stream)).data["status"] == "RUNNING"
        assert [next(stream), next(stream)] == [HEARTBEAT, HEARTBEAT]
        gate.open()
        *heartbeats, last = stream
        assert set(heartbeats) <= {HEARTBEAT}
        assert event_of(last).data["status"] == "SUCCESSFUL"

    @pytest.mark.asyncio
    async def test_a_heartbeat_is_sent_in_async_code_too(self, gate: Gate) -> None:
        handle = await hold.aenqueue(gate.port)
        await asyncio.to_thread(gate.next_visitor)
        stream = astream_of(handle, heartbeat_s=0.01)
        assert event_of(await anext(stream)).data["status"] == "RUNNING"
        assert [await anext(stream), await anext(stream)] == [HEARTBEAT, HEARTBEAT]
        gate.open()
        *heartbeats, last = [chunk async for chunk in stream]
        assert set(heartbeats) <= {HEARTBEAT}
        assert event_of(last).data["status"] == "SUCCESSFUL"

    @pytest.mark.parametrize("heartbeat_s", [0, -1.0, float("nan")])
    def test_a_heartbeat_without_a_pause_is_refused(self, heartbeat_s: float) -> None:
        with pytest.raises(ValueError, match="heartbeat_s must be more than 0"):
            event_stream(add.enqueue(1, 2), heartbeat_s=heartbeat_s)

    @pytest.mark.asyncio
    async def test_a_reader_that_is_cancelled_leaves_no_waiter(
        self, gate: Gate
    ) -> None:
        handle = await hold.aenqueue(gate.port, "unharmed")
        await asyncio.to_thread(gate.next_visitor)
        stream = astream_of(handle)
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(stream)
        assert kept_waiters(handle) == []
        gate.open()
        assert await handle == "unharmed"

    @pytest.mark.asyncio
    async def test_it_does_not_block_an_event_loop(self) -> None:
        response: Any = event_stream(await add.aenqueue(1, 2))
        content = response.streaming_content  # asynchronous, here
        assert isinstance(content, AsyncIterator)
        response.is_async = False
        with pytest.raises(SynchronousOnlyOperation, match="async for"):
            next(iter(response))


class TestReconnecting:
    def test_what_is_known_is_not_told_again_and_what_has_changed_is(
        self, alias: str, gate: Gate
    ) -> None:
        handle = tell_steps.using(backend=alias).enqueue(gate.port, 3)
        visitor = gate.next_visitor()
        event_id, data = event_of(next(stream_of(handle)))
        assert data["metadata"] == {"step": 0}
        # Back before anything has changed: the answer begins at once even so.
        stream = stream_of(handle, last_event_id=event_id)
        assert next(stream) == HEARTBEAT
        visitor.let_go()
        visitor = gate.next_visitor()
        event_id, data = event_of(next(stream))
        assert data["metadata"] == {"step": 1}
        # Back after something has.
        visitor.let_go()
        gate.next_visitor()
        stream = stream_of(handle, last_event_id=event_id)
        assert next(stream) == HEARTBEAT
        event_id, data = event_of(next(stream))
        assert data["metadata"] == {"step": 2}
        # Back after the end.
        gate.open()
        handle.join(LONG_S)
        comment, last = stream_of(handle, last_event_id=event_id)
        assert comment == HEARTBEAT
        assert event_of(last).data["status"] == "SUCCESSFUL"

    @pytest.mark.parametrize("include_return_value", [False, True])
    def test_who_knows_the_end_is_told_not_to_come_back(
        self, include_return_value: bool
    ) -> None:
        handle = add.enqueue(1, 2)
        handle.join(LONG_S)
        options: dict[str, Any] = {"include_return_value": include_return_value}
        (chunk,) = stream_of(handle, **options)
        headers = {"Last-Event-ID": event_of(chunk).id}
        request = RequestFactory().get("/", headers=headers)
        response: Any = event_stream(handle, request=request, **options)
        assert response.status_code == 204
        assert response.content == b""
        assert response["Cache-Control"] == "no-store"
        for other in (None, RequestFactory().get("/")):
            assert event_stream(handle, request=other).status_code == 200

    def test_a_head_request_holds_nothing(self, gate: Gate) -> None:
        handle = hold.enqueue(gate.port)
        gate.next_visitor()
        response: Any = event_stream(handle, request=RequestFactory().head("/"))
        assert response.status_code == 200
        assert not response.streaming
        check_headers(response)

    def test_another_process_knows_the_same_ids(self, gate: Gate) -> None:
        # They say what the page knows, whoever has told it.
        first = hold.enqueue(gate.port)
        gate.next_visitor()
        event_id = event_of(next(stream_of(first))).id
        again: LocalTaskResult[Any] = pickle.loads(pickle.dumps(first))
        assert next(stream_of(again, last_event_id=event_id)) == HEARTBEAT
        other = hold.enqueue(gate.port)
        gate.next_visitor()
        assert event_of(next(stream_of(other))).id != event_id


class KeepsNothing(ForeignBackend):
    supports_get_result = False


@pytest.fixture
def other_backends(nothing_left_behind: None) -> Iterator[None]:
    others = {
        "immediate": "django.tasks.backends.immediate.ImmediateBackend",
        "dummy": "django.tasks.backends.dummy.DummyBackend",
        "foreign": "tests.foreign_backends.ForeignBackend",
        "nothing": f"{__name__}.KeepsNothing",
    }
    backends = {alias: {"BACKEND": path} for alias, path in others.items()}
    with override_settings(TASKS={**settings.TASKS, **backends}):
        yield


@pytest.mark.usefixtures("other_backends")
class TestOtherBackends:
    def test_changes_are_looked_up(self) -> None:
        result = add.using(backend="foreign").enqueue(1, 2)
        stream = stream_of(result, include_return_value=True)
        assert event_of(next(stream)).data["status"] == "READY"
        tell(result, TaskResultStatus.RUNNING)
        running_id, data = event_of(next(stream))
        assert data["status"] == "RUNNING"
        tell(result, TaskResultStatus.SUCCESSFUL, [float("nan"), "NaN"])
        assert event_of(next(stream)).data["return_value"] == [None, "NaN"]
        assert next(stream, None) is None
        # Who has missed the end is told it.
        found = task_backends["foreign"].get_result(result.id)
        comment, chunk = stream_of(found, last_event_id=running_id)
        assert comment == HEARTBEAT
        assert event_of(chunk).data["status"] == "SUCCESSFUL"

    @pytest.mark.asyncio
    async def test_changes_are_looked_up_in_async_code_too(self) -> None:
        result = await add.using(backend="foreign").aenqueue(1, 2)
        stream = astream_of(result, heartbeat_s=0.02)
        assert event_of(await anext(stream)).data["status"] == "READY"
        assert await anext(stream) == HEARTBEAT
        tell(result, TaskResultStatus.FAILED)
        *heartbeats, chunk = [chunk async for chunk in stream]
        assert set(heartbeats) <= {HEARTBEAT}
        assert event_of(chunk).data["status"] == "FAILED"

    def test_what_is_finished_at_once_is_one_event(self) -> None:
        result = add.using(backend="immediate").enqueue(1, 2)
        (chunk,) = stream_of(result, include_return_value=True)
        assert event_of(chunk).data["return_value"] == 3

    def test_where_nothing_ever_changes_it_is_refused_at_once(self) -> None:
        result = add.using(backend="dummy").enqueue(1, 2)
        with pytest.raises(RuntimeError, match=r"never runs: TASKS\['dummy'\]"):
            event_stream(result)
        result = add.using(backend="nothing").enqueue(1, 2)
        with pytest.raises(NotImplementedError, match=r"TASKS\['nothing'\]"):
            event_stream(result)

    @pytest.mark.asyncio
    async def test_the_stream_ends_when_the_result_is_forgotten(self) -> None:
        for make, is_open in ((stream_of, True), (stream_of, False)):
            result = add.using(backend="foreign").enqueue(1, 2)
            stream = await asyncio.to_thread(make, result)
            if is_open:
                await asyncio.to_thread(next, stream)
            forget(result)
            assert await asyncio.to_thread(list, stream) == []
            assert await asyncio.to_thread(list, stream) == []
        for is_open in (True, False):
            result = await add.using(backend="foreign").aenqueue(1, 2)
            astream = astream_of(result)
            if is_open:
                await anext(astream)
            forget(result)
            assert [chunk async for chunk in astream] == []

    def test_the_stream_of_another_process_s_result_ends(self, alias: str) -> None:
        handle = pickle.loads(pickle.dumps(add.using(backend=alias).enqueue(1, 2)))
        shutdown_executor(alias)  # what it knew, nobody knows
        assert list(stream_of(handle)) == []


# Real servers.

STREAMING_SITE = {
    **SITE,
    "site_urls.py": '''
        from django.http import HttpResponse, JsonResponse
        from django.tasks import task_backends
        from django.urls import path
        from django_tasks_local.http import event_stream
        from django_tasks_local.state import get_executor_state
        from tests.gates import pass_gate
        from tests.streaming_tasks import tell_steps

        def start(request, alias, port):
            handle = tell_steps.using(backend=alias).enqueue(port)
            return JsonResponse({"id": handle.id})

        def respond(request, result, port):
            heartbeat_s = float(request.GET.get("heartbeat_s", 15.0))
            response = event_stream(result, request=request, heartbeat_s=heartbeat_s)
            close = response.close

            def close_and_tell():
                close()
                pass_gate(port, "closed")

            response.close = close_and_tell
            return response

        def sync_view(request, alias, port, result_id):
            return respond(request, task_backends[alias].get_result(result_id), port)

        async def async_view(request, alias, port, result_id):
            result = await task_backends[alias].aget_result(result_id)
            return respond(request, result, port)

        async def cut_view(request, alias, result_id):
            """Has whoever follows it come back after each event, and at once."""
            result = await task_backends[alias].aget_result(result_id)
            response = event_stream(result, request=request)
            if response.status_code == 200:
                response.streaming_content = cut(response.streaming_content)
            return response

        async def cut(content):
            yield b"retry: 10\\n\\n"
            async for chunk in content:
                yield chunk
                if chunk.startswith(b"id"):
                    return

        def page(request, alias, result_id):
            return HttpResponse(PAGE.replace("STREAM", f"/cut/{alias}/{result_id}"))

        PAGE = """
            <!doctype html>
            <title>A task</title>
            <link rel="icon" href="data:,">
            <ol></ol>
            <script>
              const source = new EventSource("STREAM")
              const say = (text) => {
                const item = document.createElement("li")
                item.textContent = text
                document.querySelector("ol").append(item)
              }
              source.onmessage = (message) => {
                const {status, metadata} = JSON.parse(message.data)
                say(`${status} ${metadata.step}`)
              }
              source.onerror = () => {
                if (source.readyState === EventSource.CLOSED) say("closed")
              }
            </script>
        """

        def look(request, alias, result_id):
            job = get_executor_state(alias).job(result_id)
            return JsonResponse(
                {"status": job.record.status, "waiters": len(job._waiters)}
            )

        urlpatterns = [
            path("start/<alias>/<int:port>", start),
            path("sync/<alias>/<int:port>/<result_id>", sync_view),
            path("async/<alias>/<int:port>/<result_id>", async_view),
            path("cut/<alias>/<result_id>", cut_view),
            path("page/<alias>/<result_id>", page),
            path("look/<alias>/<result_id>", look),
        ]
    ''',
    # As runserver serves, on a socket that listens already.
    "site_runserver.py": """
        import signal, socket, sys
        from site_wsgi import application
        from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

        class Server(ThreadedWSGIServer):
            daemon_threads = True

            def server_bind(self):
                self.socket.close()
                self.socket = socket.socket(fileno=int(sys.argv[1]))
                self.server_address = self.socket.getsockname()
                self.server_name, self.server_port = self.server_address
                self.setup_environ()

        if __name__ == "__main__":
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
            with Server(("127.0.0.1", 0), WSGIRequestHandler) as server:
                server.set_app(application)
                server.serve_forever()
    """,
}
STREAMING_SITE["site_settings.py"] += f"""
        MIDDLEWARE = ["{GZIP}"]
"""

STREAMING_SERVERS = {
    "uvicorn": uvicorn(1),
    "granian": granian(1),
    "gunicorn-gthread": gunicorn(1, "gthread"),
    "runserver": Server(["site_runserver.py", "{fd}"], "sync", 1),
}


@pytest.mark.parametrize("name", STREAMING_SERVERS)
def test_a_server_streams_and_who_leaves_leaves_no_waiter(
    name: str, tmp_path: Path, gate: Gate, other_gate: Gate
) -> None:
    server = STREAMING_SERVERS[name]
    strict = ["-W", "error:StreamingHttpResponse", *server.command]
    closings = other_gate
    with (
        Gate() as ending,
        running(
            replace(server, command=strict),
            tmp_path,
            STREAMING_SITE,
            ENDING=ending,
            HELD=gate,
            CLOSING=closings,
        ) as site,
    ):

        def connect(path: str, **headers: str) -> Connection:
            headers = {"Accept-Encoding": "gzip", **headers}
            return site.connect(path, **headers)

        for view, alias in (("sync", "default"), ("async", "cpu")):
            result_id = site.get(f"/start/{alias}/{gate.port}")["id"]
            task = gate.next_visitor()
            url = f"/{view}/{alias}/{closings.port}/{result_id}"

            # One that leaves: under ASGI the server says so; under WSGI a heartbeat
            # finds it out.
            query = "?heartbeat_s=0.05" if server.kind == "sync" else ""
            leaver = connect(f"{url}{query}")
            response = leaver.getresponse()
            event = read_event(response.readline)
            assert event is not None
            assert event.data["metadata"] == {"step": 0}
            response.close()
            leaver.close()
            closings.next_visitor().let_go()
            look = site.get(f"/look/{alias}/{result_id}")
            assert look == {"status": "RUNNING", "waiters": 0}

            # One that comes back, and stays until the end.
            stayer = connect(url, **{"Last-Event-ID": event.id})
            response = stayer.getresponse()
            assert response.status == 200
            assert response.getheader("Content-Type") == "text/event-stream"
            assert response.readline() == b":\n"
            task.let_go()
            task = gate.next_visitor()
            event = read_event(response.readline)
            assert event is not None
            assert event.data["metadata"] == {"step": 1}
            task.let_go()
            event = read_event(response.readline)
            assert event is not None
            assert event.data["status"] == "SUCCESSFUL"
            closings.next_visitor().let_go()
            assert read_event(response.readline) is None
            stayer.close()

            # It knows the end.
            again = site.connect(url, **{"Last-Event-ID": event.id})
            with closing(again):
                assert again.getresponse().status == 204
                closings.next_visitor().let_go()


def test_a_page_that_comes_back_misses_nothing_and_stops_at_the_end(
    browser: Browser, tmp_path: Path, gate: Gate, other_gate: Gate
) -> None:
    ending = other_gate
    with running(
        uvicorn(1), tmp_path, STREAMING_SITE, ENDING=ending, HELD=gate
    ) as site:
        result_id = site.get(f"/start/default/{gate.port}")["id"]
        visitor = gate.next_visitor()
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{site.url}/page/default/{result_id}")
        items = page.get_by_role("listitem")
        seen: list[str] = []
        for text in ("RUNNING 0", "RUNNING 1", "SUCCESSFUL 1"):
            seen.append(text)
            expect(items.nth(len(seen) - 1)).to_have_text(text)
            visitor.let_go()
            if text == "RUNNING 0":
                visitor = gate.next_visitor()
        seen.append("closed")
        expect(items).to_have_text(seen)
    assert complaints == []
