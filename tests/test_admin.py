"""Results of the database store in the admin."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.tasks import TaskResultStatus, task_backends
from django.test import Client, override_settings
from django.test.utils import (
    CaptureQueriesContext,
    setup_test_environment,
    teardown_test_environment,
)

from django_tasks_local import LocalTaskResult, TaskCancelled
from django_tasks_local.errors import path_of
from django_tasks_local.stores.database import admin
from django_tasks_local.stores.database.models import StoredResult, UnreadableResult

from .gates import LONG_S, Gate
from .kept import ALIAS, find
from .tasks import add, echo, fail, hold
from .test_database_store import keeping

RESULTS = "/admin/django_tasks_local_database/storedresult/"
UNREADABLE = "/admin/django_tasks_local_database/unreadableresult/"


@pytest.fixture(autouse=True)
def _site(database: None) -> Iterator[None]:  # for its effect alone
    with (
        override_settings(ROOT_URLCONF="tests.admin_urls"),
        keeping("default", MAX_WORKERS=1),
    ):
        setup_test_environment()  # pages tell with what they were made
        yield
        teardown_test_environment()
        task_backends[ALIAS].close()  # type: ignore[attr-defined]  # it is ours
    for model in (StoredResult, UnreadableResult, User):
        model._default_manager.all().delete()


def client_of(*permissions: str) -> Client:
    """A browser of somebody who may do that; without permissions: everything."""
    if permissions:
        user = User.objects.create_user("staff", is_staff=True)
        named = Permission.objects.filter(codename__in=permissions)
        assert len(named) == len(permissions)
        user.user_permissions.set(named)
    else:
        user = User.objects.create_superuser("root")
    client = Client()
    client.force_login(user)
    return client


def listed(client: Client, query: str = "") -> list[str]:
    """The ids of the results that a list shows."""
    response = client.get(RESULTS + query)
    assert response.status_code == 200
    return [row.result_id for row in response.context["cl"].result_list]


def do(
    client: Client,
    action: str,
    *results: LocalTaskResult[Any],
    are_all_selected: bool = False,
) -> list[str]:
    """Select results, or all of the list, and have that done; what is said of it."""
    ids = [each.id for each in results]
    rows = StoredResult.objects.filter(result_id__in=ids)
    data = {
        "action": action,
        "_selected_action": [str(row.pk) for row in rows],
        "select_across": "1" if are_all_selected else "0",
    }
    response = client.post(RESULTS, data, follow=True)
    assert response.status_code == 200
    return [str(message) for message in response.context["messages"]]


@pytest.fixture
def results() -> list[LocalTaskResult[Any]]:
    """Two that are SUCCESSFUL, and one FAILED."""
    results: list[LocalTaskResult[Any]] = [
        add.using(backend=ALIAS).enqueue(1, 2),
        echo.using(backend=ALIAS).enqueue({"größe": "<b>"}),
        fail.using(backend=ALIAS).enqueue(),
    ]
    for result in results:
        result.join(LONG_S)
    return results


class TestList:
    def test_the_latest_come_first(self, results: list[LocalTaskResult[Any]]) -> None:
        ids = [result.id for result in results]
        assert listed(client_of()) == ids[::-1]

    def test_filters(self, results: list[LocalTaskResult[Any]]) -> None:
        client = client_of()
        first, second, failed = (result.id for result in results)
        assert listed(client, "?status=FAILED") == [failed]
        assert listed(client, "?status=SUCCESSFUL") == [second, first]
        assert listed(client, "?status=READY") == []
        assert listed(client, f"?alias={ALIAS}&queue_name=default") == [
            *(failed, second, first)
        ]
        assert listed(client, "?alias=other") == []
        page = client.get(RESULTS).content.decode()
        assert f'<a href="?alias={ALIAS}">{ALIAS}</a>' in page
        assert '<a href="?queue_name=default">default</a>' in page

    def test_search_by_id_and_by_a_part_of_the_path(
        self, results: list[LocalTaskResult[Any]]
    ) -> None:
        client = client_of()
        first, second, failed = (result.id for result in results)
        assert listed(client, f"?q={second}") == [second]
        assert listed(client, "?q=tasks.ADD") == [first]
        assert listed(client, "?q=tests.tasks") == [failed, second, first]
        assert listed(client, "?q=nothing") == []
        assert listed(client, "?q=tests&status=FAILED") == [failed]

    def test_nothing_is_counted_to_its_end(
        self, results: list[LocalTaskResult[Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = client_of()
        monkeypatch.setattr(admin, "MOST_LISTED", 2)
        for query in ("", "?status=SUCCESSFUL", "?q=tests.tasks"):
            with CaptureQueriesContext(connection) as queries:
                response = client.get(RESULTS + query)
            assert response.context["cl"].result_count == 2
            counts = [
                each["sql"]
                for each in queries.captured_queries
                if "COUNT" in each["sql"]
            ]
            assert counts
            assert all("LIMIT 2" in sql for sql in counts)

    def test_a_page_shows_what_a_task_took_and_gave(
        self, results: list[LocalTaskResult[Any]]
    ) -> None:
        client = client_of()
        _, echoed, failed = (
            client.get(f"{RESULTS}{row.pk}/change/").content.decode()
            for row in StoredResult.objects.order_by("number")
        )
        assert "größe&quot;: &quot;&lt;b&gt;" in echoed
        assert "ValueError" in failed
        assert "Traceback (most recent call last)" in failed
        assert "Save" not in echoed

    def test_who_may_only_look_finds_no_action(
        self, results: list[LocalTaskResult[Any]]
    ) -> None:
        client = client_of("view_storedresult")
        assert len(listed(client)) == 3
        assert "Cancel the selected tasks" not in client.get(RESULTS).content.decode()
        assert Client().get(RESULTS).status_code == 302

    def test_unreadable_rows_are_listed(self) -> None:
        UnreadableResult.objects.create(
            alias=ALIAS, noticed_at=0.0, reason="ValueError: why", content="{}"
        )
        page = client_of().get(UNREADABLE).content.decode()
        assert "ValueError: why" in page


class TestActions:
    def test_cancel(self, gate: Gate, results: list[LocalTaskResult[Any]]) -> None:
        held = hold.using(backend=ALIAS).enqueue(gate.port)
        gate.next_visitor()
        waiting = add.using(backend=ALIAS).enqueue(1, 2)
        assert do(client_of(), "cancel", held, waiting, results[0]) == [
            "Tasks that were finished already: 1.",
            "Tasks that were asked to end: 1.",
            "Tasks that were cancelled: 1.",
        ]
        waiting.join(LONG_S)
        assert waiting.errors[0].exception_class_path == path_of(TaskCancelled)
        assert find(waiting.id).status is TaskResultStatus.FAILED
        gate.open()
        held.join(LONG_S)

    def test_run_again(self, results: list[LocalTaskResult[Any]]) -> None:
        client = client_of()
        said = do(client, "run_again", *results)
        assert said == ["Tasks that were enqueued again: 3."]
        again = [find(result_id) for result_id in listed(client)[2::-1]]
        for result in again:
            result.join(LONG_S)
        assert {result.id for result in again}.isdisjoint(each.id for each in results)
        assert [result.status for result in again] == [
            result.status for result in results
        ]
        assert again[1].return_value == {"größe": "<b>"}

    def test_all_that_are_selected_are_those_that_are_listed(
        self,
        results: list[LocalTaskResult[Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(admin, "MOST_LISTED", 2)
        monkeypatch.setattr(admin, "_AT_ONCE", 1)
        client = client_of()
        said = do(client, "run_again", *results[1:], are_all_selected=True)
        assert said == ["Tasks that were enqueued again: 2."]
        paths = StoredResult.objects.order_by("number").values_list("task_path")
        assert [path for (path,) in paths[3:]] == [
            "tests.tasks.echo",
            "tests.tasks.fail",
        ]

    def test_what_cannot_run_again_is_named(
        self, results: list[LocalTaskResult[Any]]
    ) -> None:
        StoredResult.objects.filter(result_id=results[0].id).update(
            task_path="gone.tasks.vanished"
        )
        StoredResult.objects.filter(result_id=results[1].id).update(alias="gone")
        first, second = do(client_of(), "run_again", *results[:2])
        assert first == (
            f"gone.tasks.vanished {results[0].id}: "
            "There is no task 'gone.tasks.vanished' any more."
        )
        assert second.startswith(f"tests.tasks.echo {results[1].id}: ")
        assert StoredResult.objects.count() == 3

    def test_need_their_permissions(self, results: list[LocalTaskResult[Any]]) -> None:
        client = client_of("view_storedresult", "change_storedresult")
        assert do(client, "cancel", results[0]) == [
            "Tasks that were finished already: 1."
        ]
        assert do(client, "run_again", results[0]) == ["No action selected."]
        assert StoredResult.objects.count() == 3
