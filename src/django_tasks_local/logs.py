"""Logging that cannot harm who logs."""

import logging
from contextlib import suppress

__all__ = ["log_error", "log_exception", "log_warning"]

_logger: logging.Logger = logging.getLogger("django_tasks_local")


def log_exception(message: str, /, *args: object) -> None:
    """Log the exception that is being handled."""
    with suppress(Exception):  # a project's handler or filter: workers must go on
        _logger.exception(message, *args)  # noqa: LOG004  # called by handlers


def log_error(message: str, /, *args: object) -> None:
    """Log an error."""
    with suppress(Exception):  # as above
        _logger.error(message, *args)


def log_warning(message: str, /, *args: object) -> None:
    """Log a warning."""
    with suppress(Exception):  # as above
        _logger.warning(message, *args)
