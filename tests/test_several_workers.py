"""A server with four workers: a result is found, and waited for, in each of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .gates import Gate
from .test_servers import Connection, Site, gunicorn, running

WORKERS = 4
LOOK_UPS = 500
ALIASES = ["default", "cpu", "loop"]

SITE = {
    "site_settings.py": """
        from pathlib import Path
        SECRET_KEY = "x"
        ROOT_URLCONF = "site_urls"
        ALLOWED_HOSTS = ["*"]
        OPTIONS = {"MAX_WORKERS": 2, "SHUTDOWN_TIMEOUT": 20.0}
        KEPT = {**OPTIONS, "STORE": "sqlite"}
        TASKS = {
            "default": {
                "BACKEND": "django_tasks_local.ThreadPoolBackend", "OPTIONS": KEPT,
            },
            "cpu": {
                "BACKEND": "django_tasks_local.ProcessPoolBackend", "OPTIONS": KEPT,
            },
            "loop": {
                "BACKEND": "django_tasks_local.EventLoopBackend", "OPTIONS": KEPT,
            },
            "memory": {
                "BACKEND": "django_tasks_local.ThreadPoolBackend", "OPTIONS": OPTIONS,
            },
        }
    """,
    "site_tasks.py": """
        from django_tasks_local import task
        from tests.gates import pass_gate

        @task
        def hold(port, value):
            if port:
                pass_gate(port, value)
            return value
    """,
    # Its views stand at a gate, each under the name of its process: a worker answers
    # one request at a time, so those who stand there together are different ones.
    "site_urls.py": """
        import os
        from asgiref.sync import sync_to_async
        from django.http import JsonResponse
        from django.tasks.exceptions import TaskResultDoesNotExist
        from django.urls import path
        from site_tasks import hold
        from tests.gates import pass_gate

        def enqueue(request, alias, port, value):
            handle = hold.using(backend=alias).enqueue(port, value)
            return JsonResponse({"pid": os.getpid(), "id": handle.id})

        def look(request, alias, result_id, port):
            try:
                handle = hold.using(backend=alias).get_result(result_id)
            except TaskResultDoesNotExist as err:
                answer = {"missing": str(err)}
            else:
                answer = {"id": handle.id, "value": handle.args[1]}
            pass_gate(port, os.getpid())
            return JsonResponse({"pid": os.getpid(), **answer})

        def wait(request, alias, result_id, port):
            handle = hold.using(backend=alias).get_result(result_id)
            before = handle.status
            pass_gate(port, os.getpid())
            value = handle.wait(20)
            return JsonResponse({"before": before, "value": value})

        async def await_it(request, alias, result_id, port):
            handle = await hold.using(backend=alias).aget_result(result_id)
            before = handle.status
            await sync_to_async(pass_gate)(port, os.getpid())
            value = await handle
            return JsonResponse({"before": before, "value": value})

        urlpatterns = [
            path("enqueue/<alias>/<int:port>/<value>", enqueue),
            path("look/<alias>/<result_id>/<int:port>", look),
            path("wait/<alias>/<result_id>/<int:port>", wait),
            path("await/<alias>/<result_id>/<int:port>", await_it),
        ]
    """,
    "site_wsgi.py": """
        import os
        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        from django.core.wsgi import get_wsgi_application
        application = get_wsgi_application()
    """,
    "site_gunicorn.py": "",
}


@pytest.fixture
def site(nothing_left_behind: None, tmp_path: Path) -> Iterator[Site]:
    with running(gunicorn(WORKERS, "sync"), tmp_path, SITE) as site:
        yield site


def ask_each_worker(
    site: Site, path: str, gate: Gate, *, then: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """What each worker answers; `then` is called once all of them have got that far."""
    connections = [site.connect(f"{path}/{gate.port}") for _ in range(WORKERS)]
    visitors = [gate.next_visitor() for _ in connections]
    assert len({visitor.name for visitor in visitors}) == WORKERS
    for visitor in visitors:
        visitor.let_go()
    then()
    return [_answer_of(connection) for connection in connections]


def _answer_of(connection: Connection) -> dict[str, Any]:
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def test_each_worker_finds_every_result(site: Site, gate: Gate) -> None:
    enqueued_by: set[int] = set()
    answered_by: set[int] = set()
    found = 0
    for number in range(LOOK_UPS // WORKERS):
        enqueued = site.get(f"/enqueue/{ALIASES[number % 3]}/0/value-{number}")
        enqueued_by.add(enqueued["pid"])
        path = f"/look/{ALIASES[number % 3]}/{enqueued['id']}"
        answers = ask_each_worker(site, path, gate)
        for answer in answers:
            answered_by.add(answer.pop("pid"))
            assert answer == {"id": enqueued["id"], "value": f"value-{number}"}
        found += len(answers)
    assert found == LOOK_UPS
    assert len(answered_by) == WORKERS
    assert enqueued_by <= answered_by


@pytest.mark.parametrize("way", ["wait", "await"])
def test_each_worker_can_wait_for_what_one_of_them_runs(
    way: str, site: Site, gate: Gate, other_gate: Gate
) -> None:
    for alias in ALIASES:
        enqueued = site.get(f"/enqueue/{alias}/{other_gate.port}/{alias}")
        task = other_gate.next_visitor()
        path = f"/{way}/{alias}/{enqueued['id']}"
        answers = ask_each_worker(site, path, gate, then=task.let_go)
        assert answers == WORKERS * [{"before": "RUNNING", "value": alias}]


def test_what_only_one_worker_knows_is_explained_by_the_others(
    site: Site, gate: Gate
) -> None:
    enqueued = site.get("/enqueue/memory/0/mine")
    for answer in ask_each_worker(site, f"/look/memory/{enqueued['id']}", gate):
        if answer["pid"] == enqueued["pid"]:
            assert answer["value"] == "mine"
        else:
            message = answer["missing"]
            assert enqueued["id"] in message
            assert "was enqueued in this process" in message
            assert f":{answer['pid']})" in message
            assert "TASKS['memory']['OPTIONS']['STORE'] can be 'sqlite'" in message
            assert "or 'database'" in message
