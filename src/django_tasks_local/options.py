"""From what a user writes in ``TASKS`` to the checked options that are used inside.

Pure validation: nothing here raises over a setting, and nothing is started. What is
wrong becomes a `Finding`, which `manage.py check` shows and an enqueue raises.
"""

import inspect
import os
import sys
import threading
from asyncio import AbstractEventLoop, new_event_loop
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard, cast

from django.conf import settings
from django.utils.module_loading import import_string

from .backoff import Backoff, exponential
from .protocols import ExecutorFactory, ResultStoreFactory

__all__ = [
    "ClusterOptions",
    "Finding",
    "LocalOptions",
    "default_process_count",
    "is_backoff",
    "is_count",
    "is_duration",
    "is_timeout",
    "parse_options",
    "parse_queues",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """The cluster that runs an alias's tasks."""

    address: str | None = None
    """Its scheduler's; None: a cluster of this process's own."""
    tls: Mapping[str, str] | None = None
    """The paths of ``CA_FILE``, ``CERT`` and ``KEY``; None: no TLS."""
    connect_timeout_s: float = 10.0
    """Seconds out of reach after which no task is taken any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """The options of an alias, checked and complete."""

    max_workers: int
    """How many tasks run at once; at least 1."""
    max_results: int | None
    """How many finished results are kept; None: all."""
    max_pending: int | None
    """How many tasks may wait; None: no limit."""
    shutdown_timeout_s: float
    """Seconds that tasks are given at exit."""
    store: ResultStoreFactory
    store_options: Mapping[str, object]
    executor: ExecutorFactory
    executor_options: Mapping[str, object]
    result_ttl_s: float | None = None
    """How many seconds a finished result is kept; None: any."""
    max_attempts: int = 1
    """How often a task runs at most; at least 1."""
    backoff: Backoff = field(default_factory=exponential)
    """What says when a failed task runs again."""
    timeout_s: float | None = None
    """How many seconds an attempt may take; None: any."""
    raises_in_threads: bool = False
    """Functions on threads may be stopped by an exception from outside."""
    new_event_loop: Callable[[], AbstractEventLoop] = new_event_loop
    """Makes the event loop that coroutines run on."""
    sync_threads: int = 10
    """How many threads run the sync code of an event loop's tasks; at least 1."""
    slow_callback_s: float | None = None
    """Seconds after which a task that blocks the loop is named; None: never."""
    max_tasks_per_child: int | None = None
    """After how many tasks a worker process is replaced; None: never."""
    max_memory_per_child_mb: float | None = None
    """The MiB of resident memory that it may have had at most; None: any."""
    idle_timeout_s: float | None = None
    """Seconds without work after which it ends; None: never."""
    context_vars: Mapping[str, ContextVar[Any]] = field(
        default_factory=dict[str, ContextVar[Any]]
    )
    """What of the enqueuer's context goes along, by dotted path."""
    cluster: ClusterOptions = ClusterOptions()


class Finding(NamedTuple):
    """Something wrong with a setting."""

    id: str
    message: str
    hint: str | None = None


_NOT_A_MAPPING = "django_tasks_local.E001"
_UNKNOWN_KEY = "django_tasks_local.E002"
_WRONG_VALUE = "django_tasks_local.E003"
_NOT_IMPORTABLE = "django_tasks_local.E004"
_NOT_A_FACTORY = "django_tasks_local.E005"
_WRONG_QUEUES = "django_tasks_local.E006"
_NOT_INSTALLED = "django_tasks_local.E007"

_STORES = {
    "memory": "django_tasks_local.stores.memory.MemoryStore",
    "sqlite": "django_tasks_local.stores.sqlite.SqliteStore",
    "database": "django_tasks_local.stores.database.store.DatabaseStore",
}
_DATABASE_APP = "django_tasks_local.stores.database"
_MAX_RESULTS = 1000
_DURABLE_TTL_S = 7 * 24 * 3600.0

_LOOPS = {"asyncio": "asyncio.new_event_loop", "uvloop": "uvloop.new_event_loop"}

# In a project that is being developed.
_SLOW_CALLBACK_S = 0.5

_TLS_NAMES = {"CA_FILE", "CERT", "KEY"}

_NO_OPTIONS: Mapping[str, object] = MappingProxyType({})


def default_process_count() -> int:
    """As many processes as there are CPUs for this one, at most 10."""
    if sys.platform == "linux":
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return min(count, 10)


class _Key(NamedTuple):
    accepted: str
    is_right: Callable[[object], bool]


def _is_whole(value: object, *, at_least: int, or_none: bool = False) -> bool:
    if value is None:
        return or_none
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def is_duration(value: object) -> TypeGuard[int | float]:
    """Whether it is a number of seconds, 0 or more."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= sys.float_info.max
    )


def is_count(value: object) -> bool:
    """Whether it is an integer of at least 1."""
    return _is_whole(value, at_least=1)


def is_backoff(value: object) -> bool:
    """Whether it can be called with an exception and a task's result."""
    return callable(value) and _takes(value, None, None)


def is_timeout(value: object) -> bool:
    """Whether it is a number of seconds above 0."""
    return is_duration(value) and value > 0


# The casts here say what `isinstance` cannot: nothing is known of a user's items yet.


def _is_over_zero(value: object) -> bool:
    return value is None or is_timeout(value)


def _is_duration_or_none(value: object) -> bool:
    return value is None or is_duration(value)


def _is_ttl(value: object) -> bool:
    if isinstance(value, timedelta):
        return value > timedelta(0)
    return _is_over_zero(value)


def _is_address(value: object) -> bool:
    return value is None or (
        isinstance(value, str) and value.startswith(("tcp://", "tls://"))
    )


def _is_tls(value: object) -> bool:
    return value is None or (
        _is_options(value)
        and {*cast("Mapping[str, object]", value)} == _TLS_NAMES
        and all(
            isinstance(path, str | os.PathLike)
            for path in cast("Mapping[str, object]", value).values()
        )
    )


def _is_paths(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(path, str) and "." in path
        for path in cast("Sequence[object]", value)
    )


def _is_options(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) for key in cast("Mapping[object, object]", value)
    )


def _is_store(value: object) -> bool:
    return _is_factory(value) or (isinstance(value, str) and value in _STORES)


def _is_factory(value: object) -> bool:
    return callable(value) or (isinstance(value, str) and "." in value)


def _is_raise(value: object) -> bool:
    return value is None or value == "raise"


def _is_loop(value: object) -> bool:
    return isinstance(value, str) and value in _LOOPS


_KEYS: Mapping[str, _Key] = {
    "MAX_WORKERS": _Key("an integer of at least 1", is_count),
    "MAX_RESULTS": _Key(
        "an integer of at least 0, or None",
        partial(_is_whole, at_least=0, or_none=True),
    ),
    "MAX_PENDING": _Key(
        "an integer of at least 1, or None",
        partial(_is_whole, at_least=1, or_none=True),
    ),
    "SHUTDOWN_TIMEOUT": _Key("a number of seconds, 0 or more", is_duration),
    "MAX_ATTEMPTS": _Key("an integer of at least 1", is_count),
    "BACKOFF": _Key("a callable or its dotted path", _is_factory),
    "TIMEOUT": _Key("a number of seconds above 0, or None", _is_over_zero),
    "RESULT_TTL": _Key(
        "a number of seconds above 0, such a timedelta, or None", _is_ttl
    ),
    "STORE": _Key(
        "'memory', 'sqlite' or 'database', or a ResultStoreFactory or its dotted path",
        _is_store,
    ),
    "STORE_OPTIONS": _Key("a dict with strings for keys", _is_options),
    "EXECUTOR": _Key("an ExecutorFactory or its dotted path", _is_factory),
    "EXECUTOR_OPTIONS": _Key("a dict with strings for keys", _is_options),
}
_THREAD_KEYS: Mapping[str, _Key] = {
    "TIMEOUT_ON_THREADS": _Key("'raise' or None", _is_raise),
}
_CONTEXT = _Key("a list of dotted paths of ContextVar objects", _is_paths)
_PROCESS_KEYS: Mapping[str, _Key] = {
    "MAX_TASKS_PER_CHILD": _Key(
        "an integer of at least 1, or None",
        partial(_is_whole, at_least=1, or_none=True),
    ),
    "MAX_MEMORY_PER_CHILD_MB": _Key("a number of MiB above 0, or None", _is_over_zero),
    "IDLE_TIMEOUT": _Key(
        "a number of seconds, 0 or more, or None", _is_duration_or_none
    ),
    "CONTEXT": _CONTEXT,
}
_LOOP_KEYS: Mapping[str, _Key] = {
    "LOOP": _Key("'asyncio' or 'uvloop'", _is_loop),
    "SYNC_THREADS": _Key("an integer of at least 1", is_count),
    "SLOW_CALLBACK_S": _Key("a number of seconds above 0, or None", _is_over_zero),
}
_CLUSTER_KEYS: Mapping[str, _Key] = {
    "ADDRESS": _Key("an address, 'tcp://…' or 'tls://…', or None", _is_address),
    "TLS": _Key("a dict of the paths 'CA_FILE', 'CERT' and 'KEY', or None", _is_tls),
    "CONNECT_TIMEOUT": _Key("a number of seconds above 0", is_timeout),
    "CONTEXT": _CONTEXT,
}
_ALL_KEYS: Mapping[str, _Key] = {
    **_KEYS,
    **_THREAD_KEYS,
    **_PROCESS_KEYS,
    **_LOOP_KEYS,
    **_CLUSTER_KEYS,
}
_WHOSE = {
    **dict.fromkeys(_CLUSTER_KEYS, "A cluster has it: DaskBackend takes it."),
    **dict.fromkeys(_THREAD_KEYS, "Threads have it: ThreadPoolBackend takes it."),
    **dict.fromkeys(
        _PROCESS_KEYS, "Worker processes have it: ProcessPoolBackend takes it."
    ),
    **dict.fromkeys(_LOOP_KEYS, "An event loop has it: EventLoopBackend takes it."),
}


# What a factory is called with, besides the options.
_KEYWORDS = {"STORE": "alias", "EXECUTOR": "host"}


def parse_queues(params: Mapping[str, Any], /) -> list[str] | None:
    """The names under ``QUEUES``.

    None where they are not given, or not as they should be (`parse_options` says so).
    """
    queues = params.get("QUEUES")
    if isinstance(queues, list | tuple | set | frozenset):
        names = list(cast("Sequence[object]", queues))
        if all(isinstance(name, str) for name in names):
            return cast("list[str]", names)
    return None


def parse_options(
    alias: str,
    params: Mapping[str, Any],
    /,
    *,
    backend_name: str,
    default_max_workers: int,
    default_executor: ExecutorFactory,
    has_threads: bool = False,
    has_processes: bool = False,
    has_event_loop: bool = False,
    has_cluster: bool = False,
) -> LocalOptions | list[Finding]:
    """The options of ``TASKS[alias]``, or all that is wrong with them.

    `has_threads`, `has_processes`, `has_event_loop`, `has_cluster`: the options of
    threads, of worker processes, of an event loop and of a cluster are among those that
    it may have.
    """
    findings = list(_find_wrong_keys(alias, params))
    raw = params.get("OPTIONS", {})
    if not isinstance(raw, Mapping):
        findings.append(
            Finding(
                _NOT_A_MAPPING,
                f"TASKS[{alias!r}]['OPTIONS'] must be a dict, got {raw!r}.",
            )
        )
        return findings
    given = cast("Mapping[object, Any]", raw)
    known = {
        **_KEYS,
        **(_THREAD_KEYS if has_threads else {}),
        **(_PROCESS_KEYS if has_processes else {}),
        **(_LOOP_KEYS if has_event_loop else {}),
        **(_CLUSTER_KEYS if has_cluster else {}),
    }
    findings += _find_wrong_options(alias, given, backend_name, known)
    findings += _find_wrong_cluster(alias, given)
    if findings:
        return findings
    store = _import(alias, "STORE", given.get("STORE", "memory"))
    executor = _import(alias, "EXECUTOR", given.get("EXECUTOR", default_executor))
    for key, factory in (("STORE", store), ("EXECUTOR", executor)):
        if isinstance(factory, Finding):
            findings.append(factory)
        else:
            findings += _find_unknown_names(alias, f"{key}_OPTIONS", given, factory)
            findings += _find_wrong_values(alias, f"{key}_OPTIONS", given, factory)
    if has_cluster and executor is default_executor and not find_spec("distributed"):
        findings.append(
            Finding(
                _NOT_INSTALLED,
                f"TASKS[{alias!r}] runs tasks on a Dask cluster, for which the package "
                "'distributed' is not installed.",
                "Install the extra: pip install 'django-tasks-local[dask]'.",
            )
        )
    backoff = _import_backoff(alias, given.get("BACKOFF"))
    if isinstance(backoff, Finding):
        findings.append(backoff)
    new_loop = _import_loop(alias, given.get("LOOP", "asyncio"))
    if isinstance(new_loop, Finding):
        findings.append(new_loop)
    context_vars: dict[str, ContextVar[Any]] = {}
    for path in given.get("CONTEXT", ()):
        found = _import_context_var(alias, path)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            context_vars[path] = found
    if isinstance(backoff, Finding) or isinstance(new_loop, Finding) or findings:
        return findings
    idle_timeout_s = given.get("IDLE_TIMEOUT", 60.0 if has_processes else None)
    is_durable = getattr(store, "is_durable", False) is True
    return LocalOptions(
        max_workers=given.get("MAX_WORKERS", default_max_workers),
        max_results=given.get("MAX_RESULTS", None if is_durable else _MAX_RESULTS),
        result_ttl_s=_seconds(
            given.get("RESULT_TTL", _DURABLE_TTL_S if is_durable else None)
        ),
        max_pending=given.get("MAX_PENDING"),
        shutdown_timeout_s=float(
            # Longer than that no thread can wait: 292 years.
            min(given.get("SHUTDOWN_TIMEOUT", 30.0), threading.TIMEOUT_MAX)
        ),
        max_attempts=given.get("MAX_ATTEMPTS", 1),
        backoff=backoff,
        timeout_s=given.get("TIMEOUT"),
        raises_in_threads=given.get("TIMEOUT_ON_THREADS") == "raise",
        new_event_loop=new_loop,
        sync_threads=given.get("SYNC_THREADS", 10),
        slow_callback_s=given.get(
            "SLOW_CALLBACK_S", _SLOW_CALLBACK_S if settings.DEBUG else None
        ),
        max_tasks_per_child=given.get("MAX_TASKS_PER_CHILD"),
        max_memory_per_child_mb=given.get("MAX_MEMORY_PER_CHILD_MB"),
        idle_timeout_s=(
            None
            if idle_timeout_s is None
            else float(min(idle_timeout_s, threading.TIMEOUT_MAX))  # as above
        ),
        context_vars=MappingProxyType(context_vars),
        cluster=_cluster(given),
        store=store,
        store_options=given.get("STORE_OPTIONS", _NO_OPTIONS),
        executor=executor,
        executor_options=given.get("EXECUTOR_OPTIONS", _NO_OPTIONS),
    )


def _find_wrong_keys(alias: str, params: Mapping[str, Any]) -> Iterator[Finding]:
    for key in params:
        if key not in ("BACKEND", "QUEUES", "OPTIONS"):
            is_option = key in _ALL_KEYS
            hint = (
                f"Move {key!r} into OPTIONS."
                if is_option
                else _nearest(str(key), ("BACKEND", "QUEUES", "OPTIONS"))
            )
            yield Finding(
                _UNKNOWN_KEY,
                f"TASKS[{alias!r}][{key!r}] is not a setting of a task backend.",
                hint,
            )
    if "QUEUES" in params and parse_queues(params) is None:
        yield Finding(
            _WRONG_QUEUES,
            f"TASKS[{alias!r}]['QUEUES'] must be a list of strings, "
            f"got {params['QUEUES']!r}.",
        )


def _find_wrong_options(
    alias: str,
    given: Mapping[object, Any],
    backend_name: str,
    known: Mapping[str, _Key],
) -> Iterator[Finding]:
    for key, value in given.items():
        rule = known.get(key) if isinstance(key, str) else None
        where = f"TASKS[{alias!r}]['OPTIONS'][{key!r}]"
        if rule is None:
            yield Finding(
                _UNKNOWN_KEY,
                f"{where} is not an option of {backend_name}.",
                _WHOSE.get(str(key)) or _nearest(str(key), known),
            )
        elif not rule.is_right(value):
            yield Finding(
                _WRONG_VALUE, f"{where} must be {rule.accepted}, got {value!r}."
            )


def _find_wrong_cluster(alias: str, given: Mapping[object, Any]) -> Iterator[Finding]:
    is_tls = str(given.get("ADDRESS")).startswith("tls://")
    if is_tls != (given.get("TLS") is not None):
        where = f"TASKS[{alias!r}]['OPTIONS']['TLS']"
        yield Finding(
            _WRONG_VALUE,
            f"{where} must be given for an address 'tls://…', and for no other, got "
            f"{given.get('TLS')!r} for {given.get('ADDRESS')!r}.",
        )


def _cluster(given: Mapping[object, Any]) -> ClusterOptions:
    tls: Mapping[str, str | os.PathLike[str]] | None = given.get("TLS")
    return ClusterOptions(
        address=given.get("ADDRESS"),
        tls=None if tls is None else {name: str(path) for name, path in tls.items()},
        connect_timeout_s=float(given.get("CONNECT_TIMEOUT", 10.0)),
    )


def _find_unknown_names(
    alias: str, key: str, given: Mapping[object, Any], factory: object
) -> Iterator[Finding]:
    """What a factory is given that it says it does not take; most do not say."""
    known: Sequence[str] | None = getattr(factory, "option_names", None)
    if known is not None:
        for name in given.get(key, _NO_OPTIONS):
            if name not in known:
                yield Finding(
                    _UNKNOWN_KEY,
                    f"TASKS[{alias!r}]['OPTIONS'][{key!r}][{name!r}] is not an option "
                    f"of {_name(factory)}.",
                    _nearest(name, known) if known else "It takes none.",
                )


def _find_wrong_values(
    alias: str, key: str, given: Mapping[object, Any], factory: object
) -> Iterator[Finding]:
    """What a factory says of the values that it is given; most say nothing."""
    find: Callable[[Mapping[str, object]], Iterator[tuple[str, str]]] | None = getattr(
        factory, "find_wrong_options", None
    )
    values: Mapping[str, object] = given.get(key, _NO_OPTIONS)
    if find is not None:
        for name, accepted in find(values):
            yield Finding(
                _WRONG_VALUE,
                f"TASKS[{alias!r}]['OPTIONS'][{key!r}][{name!r}] must be {accepted}, "
                f"got {values.get(name)!r}.",
            )


def _has_database_app() -> bool:
    """Whether it, or a configuration of it, stands in INSTALLED_APPS."""
    return any(
        app == _DATABASE_APP or app.startswith(f"{_DATABASE_APP}.")
        for app in settings.INSTALLED_APPS
    )


def _seconds(value: float | timedelta | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _name(factory: object) -> str:
    return getattr(factory, "__name__", repr(factory))


def _nearest(key: str, known: Mapping[str, object] | Sequence[str]) -> str:
    close = get_close_matches(key.upper(), known, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known are {', '.join(known)}."


def _import(alias: str, key: str, value: Any) -> Any:
    """The factory that a setting names or is; a Finding where it is none."""
    where = f"TASKS[{alias!r}]['OPTIONS'][{key!r}]"
    factory: Any = value
    if isinstance(value, str):
        if value == "database" and not _has_database_app():  # its model needs that
            return Finding(
                _NOT_INSTALLED,
                f"{where} is 'database', for which {_DATABASE_APP!r} has to stand in "
                "INSTALLED_APPS.",
                "Then run 'manage.py migrate'.",
            )
        try:
            factory = import_string(_STORES.get(value, value))
        except Exception as err:  # a module of the project's is being imported
            return _not_importable(where, value, err)
    if _is_plain_executor(factory) or not callable(factory):
        return Finding(
            _NOT_A_FACTORY,
            f"{where} must be {_KEYS[key].accepted}, got {factory!r}.",
            "An executor of concurrent.futures needs a "
            "django_tasks_local.executors.plain.ExecutorAdapter around it."
            if _is_plain_executor(factory)
            else None,
        )
    keyword = _KEYWORDS[key]
    if not _can_be_called(factory, keyword):
        return Finding(
            _NOT_A_FACTORY,
            f"{where} must be {_KEYS[key].accepted}, got {factory!r}, which cannot be "
            f"called with (options, {keyword}=…).",
        )
    return factory


def _import_backoff(alias: str, value: Any) -> Backoff | Finding:
    where = f"TASKS[{alias!r}]['OPTIONS']['BACKOFF']"
    if value is None:
        return exponential()
    backoff: Any = value
    if isinstance(value, str):
        try:
            backoff = import_string(value)
        except Exception as err:  # as above
            return _not_importable(where, value, err)
    if not is_backoff(backoff):
        return Finding(
            _WRONG_VALUE,
            f"{where} must be {_KEYS['BACKOFF'].accepted}, got {backoff!r}, which "
            "cannot be called with (exception, task_result).",
        )
    return cast("Backoff", backoff)  # of its parameters nothing is known here


def _import_loop(alias: str, name: str) -> Callable[[], AbstractEventLoop] | Finding:
    where = f"TASKS[{alias!r}]['OPTIONS']['LOOP']"
    try:
        new_loop: Callable[[], AbstractEventLoop] = import_string(_LOOPS[name])
    except Exception as err:  # as above
        return _not_importable(where, name, err)._replace(
            hint="pip install 'django-tasks-local[uvloop]'"
        )
    return new_loop


def _import_context_var(alias: str, path: str) -> ContextVar[Any] | Finding:
    where = f"TASKS[{alias!r}]['OPTIONS']['CONTEXT']"
    try:
        found: object = import_string(path)
    except Exception as err:  # as above
        return _not_importable(where, path, err)
    if not isinstance(found, ContextVar):
        return Finding(
            _WRONG_VALUE,
            f"{where} names {path!r}, which is no ContextVar but {found!r}.",
        )
    return cast("ContextVar[object]", found)


def _not_importable(where: str, path: str, error: Exception) -> Finding:
    return Finding(
        _NOT_IMPORTABLE,
        f"{where} names {path!r}, which cannot be imported: "
        f"{type(error).__name__}: {error}",
    )


def _can_be_called(factory: Callable[..., object], keyword: str) -> bool:
    return _takes(factory, None, **{keyword: None})


def _takes(function: Callable[..., object], *args: object, **kwargs: object) -> bool:
    """Whether a call with as many arguments, of these names, is no TypeError."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not everything has one
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _is_plain_executor(factory: object) -> bool:
    return isinstance(factory, type) and issubclass(factory, Executor)
