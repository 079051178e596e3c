"""Ends any process that imports it but the first, which is that of the tests."""

import os
import sys

from django_tasks_local import task

if "pytest" not in sys.modules:
    os._exit(9)


@task
def never_runs() -> None: ...
