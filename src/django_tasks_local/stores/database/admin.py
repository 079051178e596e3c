"""The results in the admin: a list that stays quick, and what can be done to them.

With millions of rows neither all of them are counted, nor what a filter leaves: a list
shows the latest `MOST_LISTED` of these.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import batched
from typing import TYPE_CHECKING, Any, override

from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.tasks import task_backends
from django.tasks.base import TaskResultStatus
from django.tasks.exceptions import TaskException, TaskResultDoesNotExist
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.timezone import is_aware, localtime

from ...times import to_datetime
from .models import StoredResult, UnreadableResult

__all__ = ["MOST_LISTED"]

# Only django-stubs make these generic.
if TYPE_CHECKING:
    type _ModelAdmin = admin.ModelAdmin[Any]
    _Paginator = Paginator[StoredResult]
    _StoredAdmin = admin.ModelAdmin[StoredResult]
    _UnreadableAdmin = admin.ModelAdmin[UnreadableResult]
else:
    _Paginator = Paginator
    _StoredAdmin = _UnreadableAdmin = admin.ModelAdmin

MOST_LISTED = 10_000
"""How many results a list shows at most, the latest ones."""

_AT_ONCE = 200
_TOO_LATE = "finished already"
_CANCELLED = "cancelled"
_SAID = {
    TaskResultStatus.RUNNING: "asked to end",
    TaskResultStatus.SUCCESSFUL: _TOO_LATE,
}


def _values_of(rows: QuerySet[StoredResult], field: str) -> Iterator[str]:
    """The different values of an indexed field, from one to the next."""
    rows = rows.order_by(field)
    last = ""
    while found := rows.filter(**{f"{field}__gt": last}).values_list(field)[:1]:
        ((last,),) = found
        yield last


class _Latest(_Paginator):
    """Counts no further than `MOST_LISTED`."""

    @cached_property
    @override
    def count(self) -> int:
        rows = self.object_list
        assert isinstance(rows, QuerySet)  # as the admin's list gives it
        return rows.order_by()[:MOST_LISTED].count()


class _FieldFilter(admin.SimpleListFilter):
    """By a field that has an index, and only a few different values."""

    @override
    def lookups(
        self, request: HttpRequest, model_admin: "_ModelAdmin"
    ) -> Sequence[tuple[str, str]]:
        rows = model_admin.get_queryset(request)
        assert self.parameter_name is not None
        return [(value, value) for value in _values_of(rows, self.parameter_name)]

    @override
    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        if self.value() is None:
            return None
        assert self.parameter_name is not None
        return queryset.filter(**{self.parameter_name: self.value()})


class _StatusFilter(_FieldFilter):
    title = "status"
    parameter_name = "status"

    @override
    def lookups(
        self, request: HttpRequest, model_admin: "_ModelAdmin"
    ) -> Sequence[tuple[str, str]]:
        return [(status.value, status.value) for status in TaskResultStatus]


class _AliasFilter(_FieldFilter):
    title = "alias"
    parameter_name = "alias"


class _QueueFilter(_FieldFilter):
    title = "queue"
    parameter_name = "queue_name"


type _Text = Callable[["_ModelAdmin", StoredResult], str]


def _time(field: str, title: str) -> _Text:
    """A time, to the millisecond, in the current time zone."""

    @admin.display(description=title)
    def time(_: "_ModelAdmin", row: StoredResult) -> str:
        seconds: float | None = getattr(row, field)
        return "-" if seconds is None else _as_text(seconds)

    return time


def _as_text(seconds: float) -> str:
    at = to_datetime(seconds)
    at = localtime(at) if is_aware(at) else at
    return at.isoformat(sep=" ", timespec="milliseconds")


def _text(field: str, title: str) -> _Text:
    """JSON, as it can be read."""

    @admin.display(description=title)
    def text(_: "_ModelAdmin", row: StoredResult) -> str:
        value: str | None = getattr(row, field)
        return "" if value is None else format_html("<pre>{}</pre>", _readable(value))

    return text


def _readable(value: str) -> str:
    try:
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):  # somebody has changed it
        return value


class _StoredResultAdmin(_StoredAdmin):
    """Results, the latest first. Nothing of them can be edited."""

    list_display = (
        "task_path",
        "status",
        "alias",
        "queue_name",
        "enqueued",
        "finished",
        "result_id",
    )
    list_filter = (_StatusFilter, _AliasFilter, _QueueFilter)
    ordering = ("-number",)
    sortable_by = ()
    list_per_page = 50
    paginator = _Latest
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    # For the box: `get_search_results` does it.
    search_fields = ("result_id",)
    search_help_text = "A result's id, or a part of a task's path."
    actions = ("cancel", "run_again")
    fields = (
        "result_id",
        "task_path",
        "status",
        "alias",
        "queue_name",
        "priority",
        "call",
        "return_value",
        "tracebacks",
        "metadata_text",
        "workers",
        "owner",
        "is_cancel_requested",
        "enqueued",
        "not_before",
        "due",
        "started",
        "last_attempted",
        "finished",
    )
    readonly_fields = fields

    call: _Text = _text("arguments", "arguments")
    return_value: _Text = _text("value", "return value")
    metadata_text: _Text = _text("metadata", "metadata")
    workers: _Text = _text("worker_ids", "workers, one an attempt")
    enqueued: _Text = _time("enqueued_at", "enqueued")
    not_before: _Text = _time("run_after", "run after")
    due: _Text = _time("due_at", "due")
    started: _Text = _time("started_at", "started")
    last_attempted: _Text = _time("last_attempted_at", "last attempted")
    finished: _Text = _time("finished_at", "finished")

    @admin.display(description="errors")
    def tracebacks(self, row: StoredResult) -> str:
        """All of them, one an attempt."""
        try:
            return format_html_join("", "<pre>{1}</pre>", json.loads(row.errors))
        except (ValueError, LookupError, TypeError, RecursionError):  # as above
            return row.errors

    @override
    def has_add_permission(self, request: HttpRequest) -> bool:
        """Tasks are enqueued by code."""
        return False

    @override
    def has_change_permission(
        self, request: HttpRequest, obj: StoredResult | None = None
    ) -> bool:
        """Whoever runs a task changes its result, and nobody else."""
        return False

    @override
    def has_delete_permission(
        self, request: HttpRequest, obj: StoredResult | None = None
    ) -> bool:
        """RESULT_TTL and MAX_RESULTS say what goes."""
        return False

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Who may change results may have tasks cancelled."""
        return super().has_change_permission(request)

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Who may add results may have tasks run."""
        return super().has_add_permission(request)

    @override
    def get_search_results(
        self,
        request: HttpRequest,
        queryset: QuerySet[StoredResult],
        search_term: str,
    ) -> tuple[QuerySet[StoredResult], bool]:
        """By id, or else by a part of the path, by way of indexes."""
        term = search_term.strip()
        if not term:
            return queryset, False
        by_id = queryset.filter(result_id=term)
        if by_id.exists():
            return by_id, False
        paths = [
            path
            for path in _values_of(self.get_queryset(request), "task_path")
            if term.lower() in path.lower()
        ]
        return queryset.filter(task_path__in=paths), False

    @admin.action(description="Cancel the selected tasks", permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[StoredResult]) -> None:
        """End what waits at once, and ask what runs to end."""

        def cancel(row: StoredResult) -> str:
            backend = task_backends[row.alias]
            # One of this library's has it.
            cancel = getattr(backend, "cancel", None)
            if cancel is None:
                raise TaskException(f"TASKS[{row.alias!r}] cannot cancel tasks.")
            if not cancel(row.result_id):
                return _TOO_LATE
            try:
                status = backend.get_result(row.result_id).status
            except TaskResultDoesNotExist:  # nothing is kept of what has ended
                return _CANCELLED
            return _SAID.get(status, _CANCELLED)

        self._do(request, queryset, cancel)

    @admin.action(description="Run the selected tasks again", permissions=["run"])
    def run_again(self, request: HttpRequest, queryset: QuerySet[StoredResult]) -> None:
        """Enqueue each once more, with the same arguments."""

        def run_again(row: StoredResult) -> str:
            backend = task_backends[row.alias]
            result = backend.get_result(row.result_id)
            backend.enqueue(result.task, result.args, result.kwargs)
            return "enqueued again"

        self._do(request, queryset, run_again)

    def _do(
        self,
        request: HttpRequest,
        rows: QuerySet[StoredResult],
        action: Callable[[StoredResult], str],
    ) -> None:
        """Do it to each, and tell to how many what was done."""
        counts = Counter[str]()
        for row in _listed(rows):
            try:
                counts[action(row)] += 1
            # TypeError: a task that has changed since may not take its arguments.
            # NotImplementedError: the alias has a backend that keeps no results.
            except (
                TaskException,
                ImproperlyConfigured,
                TypeError,
                NotImplementedError,
            ) as err:
                text = f"{row.task_path} {row.result_id}: {err}"
                self.message_user(request, text, messages.ERROR)
        for done, count in counts.items():
            level = messages.WARNING if done == _TOO_LATE else messages.SUCCESS
            self.message_user(request, f"Tasks that were {done}: {count}.", level)


def _listed(rows: QuerySet[StoredResult]) -> Iterator[StoredResult]:
    """Those that a list shows, the earliest first.

    Where all of them are selected, Django gives also what the list does not show.
    """
    numbers = rows.order_by("-number").values_list("number", flat=True)[:MOST_LISTED]
    for some in batched(sorted(numbers), _AT_ONCE):
        yield from rows.filter(number__in=some).order_by("number")


class _UnreadableResultAdmin(_UnreadableAdmin):
    """Rows that were no results. They can be looked at, and deleted."""

    list_display = ("alias", "reason", "noticed")
    list_filter = ("alias",)

    @admin.display(description="noticed")
    def noticed(self, row: UnreadableResult) -> str:
        """When that was."""
        return _as_text(row.noticed_at)

    @override
    def has_add_permission(self, request: HttpRequest) -> bool:
        """The store sets them aside."""
        return False

    @override
    def has_change_permission(
        self, request: HttpRequest, obj: UnreadableResult | None = None
    ) -> bool:
        """They are kept as they were found."""
        return False


admin.site.register(StoredResult, _StoredResultAdmin)
admin.site.register(UnreadableResult, _UnreadableResultAdmin)
