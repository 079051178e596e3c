"""The tests' project as worker processes of other libraries' queues see it."""

import json
import os
from typing import Any

from . import settings as own

_GIVEN: dict[str, Any] = json.loads(os.environ["DJANGO_TASKS_LOCAL_QUEUE"])

SECRET_KEY = own.SECRET_KEY
USE_TZ = own.USE_TZ
DATABASES = _GIVEN["DATABASES"]
INSTALLED_APPS = ["django.contrib.sessions", *_GIVEN["APPS"]]
RQ_QUEUES = _GIVEN["RQ_QUEUES"]
TASKS = {**own.TASKS, **_GIVEN["TASKS"]}
