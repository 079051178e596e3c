"""Care for the database connections of a thread that Django knows nothing of."""

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .logs import log_exception

__all__ = [
    "close_broken_connections",
    "close_connections",
    "close_old_connections",
    "close_open_transactions",
    "tidy_connections",
]


def tidy_connections(*, rests: bool) -> None:
    """Close all of this thread's connections where it `rests`, the old ones if not."""
    if rests:
        close_connections()
    else:
        close_old_connections()


def close_old_connections() -> None:
    """Care for this thread's database connections, as is done after a request.

    After each task; before one there is nothing to care for, since a worker that
    rests holds none. Those on which a task left a transaction open are dropped.
    """
    for connection in connections.all(initialized_only=True):
        try:
            if connection.in_atomic_block:
                _drop(connection)
            else:
                connection.close_if_unusable_or_obsolete()
        except Exception:  # a driver's, of a connection that is already broken
            log_exception("A database connection could not be closed")


def close_open_transactions() -> None:
    """Close those of this thread's connections on which a task left one open.

    It is not the next task's. Django would keep its state, so that task gets another
    connection.
    """
    for connection in connections.all(initialized_only=True):
        try:
            if connection.in_atomic_block:
                _drop(connection)
        except Exception:  # as above
            log_exception("A database connection could not be closed")


def _drop(connection: BaseDatabaseWrapper) -> None:
    """Close it, and have who comes next get another one."""
    try:
        connection.close()
    finally:
        del connections[connection.alias]


def close_broken_connections() -> None:
    """Close those of this thread's connections that have failed, if they are broken.

    The others are kept, however old they are, for those who are using them.
    """
    for connection in connections.all(initialized_only=True):
        if connection.errors_occurred and not connection.in_atomic_block:
            close_at, connection.close_at = connection.close_at, None
            try:
                connection.close_if_unusable_or_obsolete()
            except Exception:  # as above
                log_exception("A database connection could not be closed")
            finally:
                connection.close_at = close_at


def close_connections() -> None:
    """Close this thread's database connections.

    Those on which a task left a transaction open are dropped.
    """
    for connection in connections.all(initialized_only=True):
        try:
            if connection.in_atomic_block:
                _drop(connection)
            else:
                connection.close()
        except Exception:  # as above
            log_exception("A database connection could not be closed")
