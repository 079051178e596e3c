"""The project, of the run itself and of the web workers."""

import os

from django_tasks_local import TasksSetting

SECRET_KEY = "chaos"
USE_TZ = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "chaos.site"
TASKS: TasksSetting = {
    "default": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "OPTIONS": {
            # Web workers say how many they want: there are several of them.
            "MAX_WORKERS": int(os.environ.get("CHAOS_WORKERS", "4")),
            "MAX_RESULTS": None,
        },
    },
}
# Of tasks that fail, Django logs the traceback: here those that were lost.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"null": {"class": "logging.NullHandler"}},
    "loggers": {"django.tasks": {"handlers": ["null"], "propagate": False}},
}
