"""Between the clock's seconds, which records keep, and Django's times."""

from datetime import UTC, datetime

from django.conf import settings

__all__ = ["to_datetime", "to_timestamp"]


def to_datetime(at: float, /) -> datetime:
    """The time as Django's `timezone.now` would have given it: naive without USE_TZ."""
    return datetime.fromtimestamp(at, tz=UTC if settings.USE_TZ else None)


def to_timestamp(at: datetime | None, /) -> float | None:
    """The seconds since the epoch; a naive time is local."""
    return None if at is None else at.timestamp()
