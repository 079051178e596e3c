"""The project that the tests run in."""

import os
import tempfile
from pathlib import Path

from django_tasks_local import TasksSetting

SECRET_KEY = "tests"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "db.sqlite3",
        # A file of this very process: a worker process that finds it was told so.
        "TEST": {"NAME": f"{tempfile.gettempdir()}/tasks-local-{os.getpid()}.sqlite3"},
    },
}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_tasks_local",
    "django_tasks_local.stores.database",
]
# What the admin asks for.
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["*"]

TASKS: TasksSetting = {
    "default": {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 4, "SHUTDOWN_TIMEOUT": 10.0},
    },
    "cpu": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 2, "SHUTDOWN_TIMEOUT": 10.0},
    },
    "loop": {
        "BACKEND": "django_tasks_local.EventLoopBackend",
        "OPTIONS": {"MAX_WORKERS": 4, "SHUTDOWN_TIMEOUT": 10.0},
    },
}
