"""Preloaded into a Dask worker: it asks again and again, and notes how often."""

import os
from pathlib import Path
from typing import Any

from django_tasks_local.executors import dask_worker
from django_tasks_local.executors.dask_messages import Ask

_send = dask_worker._Call._send


def _note_and_send(self: Any, message: Any) -> None:
    _send(self, message)
    if isinstance(message, Ask):
        with Path(os.environ["TESTS_ASKED"]).open("a") as file:
            file.write(f"{message.key}\n")


dask_worker._ASK_AGAIN_S = 0.02
dask_worker._Call._send = _note_and_send  # type: ignore[method-assign]
