"""How far a running task has got, as it says itself: part of its metadata."""

import math
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, cast

from .logs import log_exception
from .times import to_datetime

__all__ = [
    "METADATA_KEY",
    "Progress",
    "ProgressWriter",
    "as_progress",
    "check_progress",
]

METADATA_KEY = "progress"
"""Where it stands in a task's metadata, as a dict with Progress's fields."""

_PAUSE_S = 0.05  # at most 20 writes a second


class Progress(NamedTuple):
    """How far a task has got (`LocalTaskResult.progress`)."""

    done: float
    """How much is done, in whatever the task counts."""
    total: float | None
    """How much there is to do; None: it is not known."""
    message: str
    at: datetime
    """When the task said so."""


def as_progress(metadata: object, /) -> Progress | None:
    """What stands in a task's metadata; None where it is no progress."""
    if not isinstance(metadata, dict):
        return None
    fields = cast("dict[str, Any]", metadata)  # of its items nothing is known yet
    try:
        done, total = fields["done"], fields["total"]
        message, at = fields["message"], to_datetime(fields["at"])
        check_progress(done, total, message)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return Progress(done, total, message, at)


def check_progress(done: object, total: object, message: object, /) -> None:
    """Raise TypeError or ValueError where this is no progress."""
    for name, value in (("done", done), ("total", total)):
        if name == "total" and value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}.")
    if not isinstance(message, str):
        raise TypeError(f"message must be a string, got {message!r}.")


class ProgressWriter:
    """Writes what a task reports, at most 20 times a second, the last one always.

    What comes too early is written when its time has come, by a thread that exists
    only for that.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], /) -> None:
        self._write = write
        self._state = threading.Condition()
        self._latest: dict[str, Any] = {}
        self._next_at = 0.0
        self._is_being_written = False
        self._is_closed = False

    def report(self, progress: dict[str, Any], /) -> None:
        """Write it now or soon, unless another one comes before. Raises as `write`."""
        with self._state:  # decides who writes
            self._latest = progress
            if self._is_being_written or self._is_closed:
                return
            self._is_being_written = True
            is_due = time.monotonic() >= self._next_at
        if is_due:
            try:
                is_latest = self._write_latest()
            except BaseException:
                self._stop_writing()
                raise
            if is_latest:
                return
        try:
            threading.Thread(
                target=self._write_later, name="django-tasks-progress", daemon=True
            ).start()
        except RuntimeError:  # no thread can be started: the next report writes
            self._stop_writing()

    def close(self) -> None:
        """Write nothing more: the task has ended. A second call does nothing."""
        with self._state:
            self._is_closed = True
            self._state.notify_all()

    def _write_later(self) -> None:
        try:
            is_latest = False
            while not is_latest:
                with self._state:
                    self._state.wait_for(
                        lambda: self._is_closed, self._next_at - time.monotonic()
                    )
                    if self._is_closed:
                        return
                is_latest = self._write_latest()
        except BaseException:  # what the task says at its end is kept
            if not self._is_closed:  # or it came as the attempt ended
                log_exception("A task's progress could not be saved")
            self._stop_writing()

    def _write_latest(self) -> bool:
        """Whether nothing else was reported meanwhile; then nobody writes any more."""
        with self._state:
            progress = self._latest
        self._write(progress)
        with self._state:  # decides whether this one was the last
            self._next_at = time.monotonic() + _PAUSE_S
            self._is_being_written = self._latest is not progress
            return not self._is_being_written

    def _stop_writing(self) -> None:
        with self._state:
            self._is_being_written = False
