"""What a type checker says about ``TASKS``."""

from django_tasks_local import (
    OtherBackendSetting,
    PoolOptions,
    ProcessPoolOptions,
    ProcessPoolSetting,
    TasksSetting,
    ThreadPoolSetting,
)
from django_tasks_local.executors.processes import ProcessExecutor
from django_tasks_local.stores.memory import MemoryStore

smallest: TasksSetting = {
    "default": {"BACKEND": "django_tasks_local.ThreadPoolBackend"},
}

several: TasksSetting = {
    "default": {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 10},
    },
    "cpu": {"BACKEND": "django_tasks_local.ProcessPoolBackend"},
    "io": {
        "BACKEND": "django_tasks_local.EventLoopBackend",
        "OPTIONS": {"LOOP": "uvloop", "SYNC_THREADS": 5, "SLOW_CALLBACK_S": None},
    },
    "old": {"BACKEND": "django_tasks_local.backend.ThreadPoolBackend"},
    "now": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"},
    "never": {"BACKEND": "django.tasks.backends.dummy.DummyBackend", "QUEUES": []},
}

every_option: TasksSetting = {
    "default": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "QUEUES": ["default", "mail"],
        "OPTIONS": {
            "MAX_WORKERS": 2,
            "MAX_RESULTS": None,
            "MAX_PENDING": 1000,
            "SHUTDOWN_TIMEOUT": 10.5,
            "STORE": "memory",
            "STORE_OPTIONS": {},
            "EXECUTOR": "project.executors.Executor",
            "EXECUTOR_OPTIONS": {"nice": 5},
        },
    },
}

with_classes: PoolOptions = {"STORE": MemoryStore, "EXECUTOR": ProcessExecutor}
of_processes: ProcessPoolOptions = {
    "MAX_WORKERS": 2,
    "MAX_TASKS_PER_CHILD": 100,
    "MAX_MEMORY_PER_CHILD_MB": 512.5,
    "IDLE_TIMEOUT": None,
    "CONTEXT": ["project.tenants.current"],
}
queues_of_any_kind: ThreadPoolSetting = {
    "BACKEND": "django_tasks_local.ThreadPoolBackend",
    "QUEUES": ("a", "b"),
}

with_another_backend: dict[str, ThreadPoolSetting | OtherBackendSetting] = {
    "default": {"BACKEND": "django_tasks_local.ThreadPoolBackend"},
    "other": {"BACKEND": "project.Backend", "OPTIONS": {"ANYTHING": object()}},
}

# Mistakes.

typo: PoolOptions = {"MAX_WORKER": 4}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportAssignmentType]
wrong_value: PoolOptions = {"MAX_WORKERS": "ten"}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]
none_for_a_number: PoolOptions = {"SHUTDOWN_TIMEOUT": None}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]
store_of_no_kind: PoolOptions = {"STORE": 1}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]
no_store: PoolOptions = {"STORE": dict}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]
not_of_threads: PoolOptions = {"IDLE_TIMEOUT": 5.0}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportAssignmentType]
no_executor: PoolOptions = {"EXECUTOR": MemoryStore}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]
no_backend: ProcessPoolSetting = {"OPTIONS": {}}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]
another_backend: ThreadPoolSetting = {"BACKEND": "project.Backend"}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]

typo_in_tasks: TasksSetting = {
    "default": {  # type: ignore[misc, dict-item]
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {"MAX_WORKER": 10},  # pyright: ignore[reportAssignmentType]
    },
}
wrong_value_in_tasks: TasksSetting = {
    "default": {  # type: ignore[misc, dict-item]
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {"MAX_WORKERS": "ten"},  # pyright: ignore[reportAssignmentType]
    },
}
option_in_the_wrong_place: TasksSetting = {
    "default": {  # type: ignore[dict-item]
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "MAX_WORKERS": 10,  # pyright: ignore[reportAssignmentType]
    },
}
typo_in_a_backend: TasksSetting = {
    "default": {  # type: ignore[misc, dict-item]
        "BACKEND": "django_tasks_local.ThreadsBackend",  # pyright: ignore[reportAssignmentType]
    },
}
