"""The databases that tests make on servers of this machine."""

import os
from typing import Any

_NAME = f"tasks_local_results_{os.getpid()}"

SERVERS: dict[str, dict[str, Any]] = {
    "postgresql": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "USER": "postgres",
        "NAME": _NAME,
        "TEST": {"NAME": f"test_{_NAME}", "DEPENDENCIES": []},
    },
    "mariadb": {
        "ENGINE": "tests.mariadb",
        "HOST": "127.0.0.1",
        "USER": "root",
        "NAME": _NAME,
        "TEST": {
            "NAME": f"test_{_NAME}",
            "CHARSET": "utf8mb4",
            "DEPENDENCIES": [],
        },
    },
}
"""As they stand in ``DATABASES``; they are made where a test asks for them."""
