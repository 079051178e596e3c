"""Which version of everything a process has: both ends of a call need the same."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import django
from django.apps import apps

__all__ = ["Deployment", "this_deployment"]

_INSTALLED = {"site-packages", "dist-packages"}


class Deployment(NamedTuple):
    """What was deployed, as seen from within. Plain strings."""

    library: str
    """The version of django-tasks-local."""
    django: str
    """The version of Django."""
    project: str
    """A digest of the source of the project's own apps."""

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
                "it has another version of the project: the source of the project's "
                "apps is not the same there as here"
            )
        return None


@cache
def this_deployment() -> Deployment:
    """What this process has, as it was at the first call. Django has to be set up.

    Of the project that is the source of its own apps: those in INSTALLED_APPS that are
    not among the installed packages. Settings may differ from process to process.
    """
    try:
        library = version("django-tasks-local")
    except PackageNotFoundError:  # it was not installed, but is on the path
        library = "unknown"
    digest = hashlib.sha256()
    for name, path in sorted(_sources()):
        digest.update(name.encode() + b"\0")
        # One that cannot be read was not imported either.
        with suppress(OSError):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Deployment(library, django.get_version(), digest.hexdigest())


def _sources() -> Iterator[tuple[str, Path]]:
    """Each with a name that is the same wherever it was deployed."""
    for config in apps.get_app_configs():
        root = Path(config.path)
        if config.name.partition(".")[0] != __name__.partition(".")[0]:
            for path in root.rglob("*.py"):
                if path.is_file() and _INSTALLED.isdisjoint(path.parts):
                    name = path.relative_to(root).as_posix()
                    yield f"{config.name}/{name}", path
