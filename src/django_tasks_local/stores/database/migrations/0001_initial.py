"""The tables of version 3.0."""

from collections.abc import Sequence
from typing import ClassVar

from django.db import migrations, models
from django.db.migrations.operations.base import Operation


class Migration(migrations.Migration):
    operations: ClassVar[Sequence[Operation]] = [
        migrations.CreateModel(
            name="OwnerLease",
            fields=[
                (
                    "owner",
                    models.CharField(max_length=255, primary_key=True, serialize=False),
                ),
                ("renewed_at", models.DateTimeField()),
            ],
            options={
                "verbose_name": "owner of tasks",
                "verbose_name_plural": "owners of tasks",
            },
        ),
        migrations.CreateModel(
            name="UnreadableResult",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("alias", models.CharField(max_length=255)),
                ("noticed_at", models.FloatField()),
                ("reason", models.TextField()),
                ("content", models.TextField()),
            ],
            options={
                "verbose_name": "unreadable result",
            },
        ),
        migrations.CreateModel(
            name="StoredResult",
            fields=[
                ("number", models.BigAutoField(primary_key=True, serialize=False)),
                ("result_id", models.CharField(max_length=64, verbose_name="id")),
                ("task_path", models.CharField(max_length=255, verbose_name="task")),
                ("priority", models.SmallIntegerField()),
                ("queue_name", models.CharField(max_length=255, verbose_name="queue")),
                ("task_backend", models.CharField(max_length=255)),
                ("takes_context", models.BooleanField()),
                ("alias", models.CharField(max_length=255)),
                ("arguments", models.TextField()),
                ("run_after", models.FloatField(null=True)),
                ("enqueued_at", models.FloatField()),
                ("owner", models.CharField(max_length=255)),
                ("status", models.CharField(max_length=16)),
                ("started_at", models.FloatField(null=True)),
                ("last_attempted_at", models.FloatField(null=True)),
                ("finished_at", models.FloatField(null=True)),
                ("value", models.TextField(null=True)),
                ("errors", models.TextField()),
                ("worker_ids", models.TextField()),
                ("metadata", models.TextField()),
                ("due_at", models.FloatField(null=True)),
                ("is_cancel_requested", models.BooleanField()),
                ("revision", models.PositiveIntegerField()),
            ],
            options={
                "verbose_name": "task result",
                "indexes": [
                    models.Index(
                        fields=["alias", "finished_at", "owner", "number"],
                        name="tasks_local_owned",
                    ),
                    models.Index(
                        fields=["is_cancel_requested", "finished_at"],
                        name="tasks_local_cancelled",
                    ),
                    models.Index(
                        fields=["status", "number"], name="tasks_local_status"
                    ),
                    models.Index(fields=["alias", "number"], name="tasks_local_alias"),
                    models.Index(
                        fields=["queue_name", "number"], name="tasks_local_queue"
                    ),
                    models.Index(
                        fields=["task_path", "number"], name="tasks_local_task"
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("result_id",), name="tasks_local_id"
                    )
                ],
            },
        ),
    ]
