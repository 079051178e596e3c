"""Logging that cannot harm who logs, and that is not done for nobody."""

import logging
from contextlib import suppress
from types import FunctionType

from django.conf import settings
from django.utils.log import AdminEmailHandler, RequireDebugTrue

__all__ = [
    "log_error",
    "log_exception",
    "log_info",
    "log_warning",
    "reaches_nobody",
]

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


def log_info(message: str, /, *args: object) -> None:
    """Log what is not wrong."""
    with suppress(Exception):  # as above
        _logger.info(message, *args)


def _is_pythons_own(function: object) -> bool:
    # A wrapper may well look and compare like what it wraps.
    return type(function) is FunctionType and function.__globals__ is logging.__dict__


# Tools that watch a program put functions of their own into these places.
_log, _handle, _call_handlers = (
    function if _is_pythons_own(function) else None
    for function in (
        logging.Logger._log,
        logging.Logger.handle,
        logging.Logger.callHandlers,
    )
)


_untouched_mailing = (
    AdminEmailHandler.handle,
    AdminEmailHandler.emit,
    AdminEmailHandler.send_mail,
)


def reaches_nobody(logger: logging.Logger, level: int, /) -> bool:
    """Whether what a logger is given at a level is surely thrown away.

    With Django's default logging it is, as long as DEBUG is off, and from ERROR on as
    long as there are no ADMINS either: but only by the handlers, once a record of it
    has been made, which takes longer than all else about a small task. Where anything
    has a part in it that is neither `logging`'s own nor Django's, nothing is sure.
    """
    if not logger.isEnabledFor(level):
        return True
    kind = type(logger)
    if (
        kind is not logging.Logger
        or logger.filters
        or kind._log is not _log
        or kind.handle is not _handle
        or kind.callHandlers is not _call_handlers
        or logging.getLogRecordFactory() is not logging.LogRecord
    ):
        return False
    is_handled = False
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            is_handled = True
            if handler.level <= level and not _refuses_everything(handler):
                return False
        at = at.parent if at.propagate else None
    last_resort = logging.lastResort  # whose affair it is where there is no other
    return is_handled or last_resort is None or level < last_resort.level


def _refuses_everything(handler: logging.Handler) -> bool:
    kind = type(handler)
    if kind is AdminEmailHandler:  # its `emit` does the same
        return (
            not getattr(settings, "ADMINS", True)  # as below
            and vars(handler).get("send_mail") is None
            and (kind.handle, kind.emit, kind.send_mail) == _untouched_mailing
        )
    return (
        bool(handler.filters)
        and type(handler.filters[0]) is RequireDebugTrue
        # For a moment there are no settings while they are being overridden.
        and not getattr(settings, "DEBUG", True)
        and kind.handle is logging.Handler.handle
        and kind.filter is logging.Handler.filter
    )
