"""Which version of everything a process has: both ends of a call need the same."""

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import django
from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE

__all__ = ["Deployment", "this_deployment"]


class Deployment(NamedTuple):
    """What was deployed, as seen from within. Plain strings."""

    library: str
    """The version of django-tasks-local."""
    django: str
    """The version of Django."""
    project: str
    """A digest of the source of the installed apps and of the settings."""

    def difference_from(self, other: "Deployment", /) -> str | None:
        """What the `other` has another version of, in words; None: nothing."""
        if self.library != other.library:
            return (
                f"it has version {other.library} of django-tasks-local, and this "
                f"process has {self.library}"
            )
        if self.django != other.django:
            return (
                f"it has version {other.django} of Django, and this process has "
                f"{self.django}"
            )
        if self.project != other.project:
            return (
                "it has another version of the project: the source of its installed "
                "apps, or of its settings, is not the same as here"
            )
        return None


@cache
def this_deployment() -> Deployment:
    """What this process has, as it was at the first call. Django has to be set up.

    Reads the source files of all installed apps but Django's own.
    """
    try:
        library = version("django-tasks-local")
    except PackageNotFoundError:  # it was not installed, but is on the path
        library = "unknown"
    digest = hashlib.sha256()
    for root, path in sorted(_sources(), key=lambda each: each[1]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Deployment(library, django.get_version(), digest.hexdigest())


def _sources() -> Iterator[tuple[Path, Path]]:
    """Each with what it is relative to: the same wherever it was deployed."""
    for config in apps.get_app_configs():
        if config.name.partition(".")[0] not in ("django", "django_tasks_local"):
            root = Path(config.path)
            for path in root.rglob("*.py"):
                yield root.parent, path
    settings_module = os.environ.get(ENVIRONMENT_VARIABLE)
    if settings_module is not None:
        spec = find_spec(settings_module)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin)
            yield path.parent, path
