"""The project as a process sees it, so that its children can see it in the same way."""

import os
import pickle
import sys
import time
from functools import cache
from multiprocessing import process, spawn
from types import ModuleType
from typing import Any, NamedTuple, cast

import django
from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, Settings, UserSettingsHolder, settings
from django.db import connections

from ..logs import log_warning

__all__ = [
    "Foundation",
    "Project",
    "ProjectKey",
    "Surroundings",
    "find_main",
    "join_project",
    "project_key",
    "see_project",
    "take_project",
]


class ProjectKey(NamedTuple):
    """Tells whether a child still sees the project as it is."""

    settings: object
    """What the settings stand on; `override_settings` puts another in its place."""
    database_names: tuple[tuple[str, object], ...]

    def is_same(self, other: "ProjectKey", /) -> bool:
        """Whether both see the same settings and databases."""
        return (
            self.settings is other.settings
            and self.database_names == other.database_names
        )


class Surroundings(NamedTuple):
    """What a child has to see as it is at the child's own start. Picklable."""

    environ: dict[str, str]
    process: dict[str, Any]
    """As `multiprocessing.spawn` prepares its children, without the start method,
    which is the project's own affair."""


class Foundation(NamedTuple):
    """What is imported and set up, once: forks have it too. Picklable."""

    main: dict[str, str]
    """How the main module is imported."""
    settings_module: str | None
    configured: dict[str, bytes] | None
    """The values given to `settings.configure`, each pickled; None where a settings
    module is in use."""
    overrides: dict[str, bytes]
    """Settings that `override_settings` has in force, each pickled."""
    deleted: frozenset[str]
    """Settings that are deleted for the time being."""
    database_names: bytes
    """The databases' names, pickled: during tests those of the test databases."""


class Project(NamedTuple):
    """What a child needs to see the project as its parent does. Picklable."""

    surroundings: Surroundings
    foundation: Foundation


def project_key() -> ProjectKey:
    """What the project stands on right now."""
    names = tuple(
        (alias, config["NAME"]) for alias, config in connections.settings.items()
    )
    return ProjectKey(_wrapped_settings(), names)


def _wrapped_settings() -> object:
    # Django's own `override_settings` works with it; the stubs do not know it.
    return vars(settings)["_wrapped"]


def take_project() -> Project:
    """What this process sees."""
    key = project_key()
    layers: list[UserSettingsHolder] = []
    base: object = key.settings
    while isinstance(base, UserSettingsHolder):
        layers.append(base)
        base = base.default_settings
    configured = None
    if not isinstance(base, Settings) and layers:
        # `settings.configure` puts a layer upon a module of defaults.
        holder = layers.pop()
        configured = _pickled({**_own_defaults(base), **_values(holder)})
    overrides: dict[str, Any] = {}
    deleted: set[str] = set()
    for layer in reversed(layers):
        overrides.update(_values(layer))
        # The stubs leave it out.
        deleted |= cast("set[str]", layer.__dict__["_deleted"])
        deleted -= overrides.keys() & _values(layer).keys()
    foundation = Foundation(
        main=find_main(),
        settings_module=os.environ.get(ENVIRONMENT_VARIABLE),
        configured=configured,
        overrides=_pickled(overrides),
        deleted=frozenset(deleted),
        database_names=pickle.dumps(key.database_names),
    )
    return Project(_surroundings(), foundation)


def _values(layer: UserSettingsHolder) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name.isupper()}


def _own_defaults(base: object) -> dict[str, Any]:
    if (
        not isinstance(base, ModuleType)
        or base.__name__ == "django.conf.global_settings"
    ):
        return {}
    return {name: value for name, value in vars(base).items() if name.isupper()}


def _pickled(values: dict[str, Any]) -> dict[str, bytes]:
    pickled: dict[str, bytes] = {}
    for name, value in values.items():
        try:
            pickled[name] = pickle.dumps(value)
        except Exception as err:  # the value's own code
            log_warning(
                "Worker processes do not see the setting %s: it cannot be pickled (%s)",
                name,
                err,
            )
    return pickled


def _surroundings() -> Surroundings:
    # What `spawn.get_preparation_data` gives, without the start method, which that
    # function would fix for the whole process.
    data: dict[str, Any] = {
        "authkey": bytes(process.current_process().authkey),
        "sys_argv": sys.argv,
        "sys_path": [path or os.getcwd() for path in sys.path],
        "dir": os.getcwd(),
    }
    return Surroundings(dict(os.environ), data)


@cache
def find_main() -> dict[str, str]:
    """How a child imports the main module.

    To be called while that still runs: Python takes its ``__file__`` away at its end,
    when tasks may still be waiting.
    """
    main = sys.modules["__main__"]
    name = getattr(main.__spec__, "name", None)
    path = getattr(main, "__file__", None)
    if name is not None:
        return {"init_main_from_name": name}
    if path is not None and os.path.exists(path):  # not "<stdin>"
        return {"init_main_from_path": os.path.abspath(path)}
    return {}


def join_project(project: Project, /) -> None:
    """As `see_project`, in a process that somebody else has started.

    What it has of an environment, and of places to import from, it keeps.
    """
    for name, value in project.surroundings.environ.items():
        os.environ.setdefault(name, value)
    paths: list[str] = project.surroundings.process["sys_path"]
    sys.path.extend(path for path in paths if path not in sys.path)
    _set_up(project.foundation)


_seen: Foundation | None = None


def see_project(project: Project, /) -> None:
    """Make this process see the project. May raise anything.

    A fresh one, or a fork of one that has done so: that has the project's modules,
    settings and apps already, and gets only its own surroundings.
    """
    global _seen
    _enter(project.surroundings)
    if _seen != project.foundation:
        _set_up(project.foundation)
        _seen = project.foundation


def _enter(surroundings: Surroundings) -> None:
    time_zone = os.environ.get("TZ")
    os.environ.clear()
    os.environ.update(surroundings.environ)
    if os.environ.get("TZ") != time_zone:
        time.tzset()
    spawn.prepare(surroundings.process)


def _set_up(foundation: Foundation) -> None:
    """First the main module, which may configure the settings itself.

    Then whatever of the settings it did not; then `django.setup`; then the databases'
    names.
    """
    spawn.prepare(dict(foundation.main))
    if foundation.configured is not None and not settings.configured:
        settings.configure(**_unpickled(foundation.configured))
    if foundation.overrides or foundation.deleted:
        project_key()  # has a settings module loaded
        holder = UserSettingsHolder(_wrapped_settings())
        for name, value in _unpickled(foundation.overrides).items():
            setattr(holder, name, value)
        for name in foundation.deleted:
            delattr(holder, name)
        # Assigned, so that the values that were read before are forgotten.
        setattr(settings, "_wrapped", holder)  # noqa: B010
        if apps.ready and "INSTALLED_APPS" in foundation.overrides:
            # The main module has set Django up, without the overrides.
            apps.set_installed_apps(settings.INSTALLED_APPS)
    django.setup()
    for alias, name in pickle.loads(foundation.database_names):
        connections.settings[alias]["NAME"] = name


def _unpickled(values: dict[str, bytes]) -> dict[str, Any]:
    return {name: pickle.loads(value) for name, value in values.items()}
