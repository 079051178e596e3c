"""The tables of the database store."""

from datetime import datetime
from typing import ClassVar, override

from django.db import models
from django.db.models.expressions import Combinable

__all__ = ["OwnerLease", "StoredResult", "UnreadableResult"]

# Only django-stubs make fields generic. Nobody asks these for what they stand for.
type _Number = models.BigAutoField[int, int]
type _Priority = models.SmallIntegerField[int, int]
type _Revision = models.PositiveIntegerField[int, int]
type _Flag = models.BooleanField[bool, bool]
type _Name = models.CharField[str, str]
type _Text = models.TextField[str, str]
type _Value = models.TextField[str | None, str | None]
type _KnownTime = models.FloatField[float, float]
type _Time = models.FloatField[float | None, float | None]
type _Moment = models.DateTimeField[datetime | Combinable, datetime]


class StoredResult(models.Model):
    """A task's result: the columns of `stores.rows`, in that order.

    Times are seconds since the epoch, and what a task takes and gives is JSON text, so
    that each database gives back exactly what it was given.
    """

    number: _Number = models.BigAutoField(primary_key=True)
    result_id: _Name = models.CharField("id", max_length=64)
    task_path: _Name = models.CharField("task", max_length=255)
    priority: _Priority = models.SmallIntegerField()
    queue_name: _Name = models.CharField("queue", max_length=255)
    task_backend: _Name = models.CharField(max_length=255)
    takes_context: _Flag = models.BooleanField()
    alias: _Name = models.CharField(max_length=255)
    arguments: _Text = models.TextField()
    run_after: _Time = models.FloatField(null=True)
    enqueued_at: _KnownTime = models.FloatField()
    owner: _Name = models.CharField(max_length=255)
    status: _Name = models.CharField(max_length=16)
    started_at: _Time = models.FloatField(null=True)
    last_attempted_at: _Time = models.FloatField(null=True)
    finished_at: _Time = models.FloatField(null=True)
    value: _Value = models.TextField(null=True)
    errors: _Text = models.TextField()
    worker_ids: _Text = models.TextField()
    metadata: _Text = models.TextField()
    due_at: _Time = models.FloatField(null=True)
    is_cancel_requested: _Flag = models.BooleanField()
    revision: _Revision = models.PositiveIntegerField()

    class Meta:
        """No name of a project's own table is taken."""

        verbose_name = "task result"
        constraints: ClassVar[list[models.BaseConstraint]] = [
            # Not `unique`, which on PostgreSQL brings a second index, for LIKE.
            models.UniqueConstraint(fields=["result_id"], name="tasks_local_id"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            # What is unfinished, of an owner, in its order; and what finished when.
            models.Index(
                fields=["alias", "finished_at", "owner", "number"],
                name="tasks_local_owned",
            ),
            # Few: those that have been asked to stop.
            models.Index(
                fields=["is_cancel_requested", "finished_at"],
                name="tasks_local_cancelled",
            ),
            # The admin's filters and its search, each newest first.
            models.Index(fields=["status", "number"], name="tasks_local_status"),
            models.Index(fields=["alias", "number"], name="tasks_local_alias"),
            models.Index(fields=["queue_name", "number"], name="tasks_local_queue"),
            models.Index(fields=["task_path", "number"], name="tasks_local_task"),
        ]

    @override
    def __str__(self) -> str:
        return f"{self.task_path} {self.result_id}"


class UnreadableResult(models.Model):
    """A row that was no result, set aside so that nobody meets it again."""

    id: _Number = models.BigAutoField(primary_key=True)
    alias: _Name = models.CharField(max_length=255)
    noticed_at: _KnownTime = models.FloatField()
    reason: _Text = models.TextField()
    content: _Text = models.TextField()

    class Meta:
        """As above."""

        verbose_name = "unreadable result"

    @override
    def __str__(self) -> str:
        return self.reason


class OwnerLease(models.Model):
    """Somebody owns tasks, and has said so lately by the database's clock."""

    owner: _Name = models.CharField(max_length=255, primary_key=True)
    renewed_at: _Moment = models.DateTimeField()

    class Meta:
        """As above."""

        verbose_name = "owner of tasks"
        verbose_name_plural = "owners of tasks"

    @override
    def __str__(self) -> str:
        return self.owner
