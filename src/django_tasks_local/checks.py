"""What is wrong with the settings, as messages of ``manage.py check``."""

from collections.abc import Sequence

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured

from .options import Finding

__all__ = ["as_check_messages", "as_exception"]


def as_check_messages(findings: Sequence[Finding], /) -> list[CheckMessage]:
    """A check error for each finding, with the finding's id."""
    return [
        Error(finding.message, hint=finding.hint, id=finding.id) for finding in findings
    ]


def as_exception(findings: Sequence[Finding], /) -> ImproperlyConfigured:
    """All findings in one exception, to be raised by an enqueue."""
    return ImproperlyConfigured(
        "\n".join(
            finding.message
            if finding.hint is None
            else f"{finding.message} {finding.hint}"
            for finding in findings
        )
    )
