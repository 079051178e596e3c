"""What is wrong in TASKS is said, by the check and by the first enqueue."""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, override

import pytest
from django.core.checks import Error, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.tasks import task_backends
from django.test import override_settings
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_tasks_local import ProcessPoolBackend, ThreadPoolBackend, task
from django_tasks_local.backoff import exponential, fixed
from django_tasks_local.executors.processes import ProcessExecutor
from django_tasks_local.executors.threads import ThreadExecutor
from django_tasks_local.options import Finding, LocalOptions, parse_options
from django_tasks_local.stores.memory import MemoryStore

from . import tasks

not_callable = 3


class _TakesNothing:
    def __call__(self) -> None:
        raise NotImplementedError

    @override
    def __repr__(self) -> str:
        return "takes_nothing"


takes_nothing = _TakesNothing()


def takes_too_much(options: object, extra: object) -> None:
    pass


def after_a_second(error: BaseException, task_result: object) -> float:
    return 1.0


class Choosy(MemoryStore):
    option_names = ("PATH", "MODE")


class Durable(MemoryStore):
    is_durable = True


class Picky(MemoryStore):
    option_names = ("SIZE",)

    @staticmethod
    def find_wrong_options(given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        if given.get("SIZE") == -1:
            yield "SIZE", "a number above 0"


def parse(
    params: Mapping[Any, Any], *, alias: str = "mail"
) -> LocalOptions | list[Finding]:
    return parse_options(
        alias,
        params,
        backend_name="ThreadPoolBackend",
        default_max_workers=10,
        default_executor=ThreadExecutor,
        has_threads=True,
    )


def parse_for_processes(
    options: Mapping[Any, Any],
) -> LocalOptions | list[Finding]:
    return parse_options(
        "mail",
        {"OPTIONS": options},
        backend_name="ProcessPoolBackend",
        default_max_workers=4,
        default_executor=ProcessExecutor,
        has_processes=True,
    )


def parse_right(options: Mapping[str, Any]) -> LocalOptions:
    parsed = parse({"OPTIONS": options})
    assert isinstance(parsed, LocalOptions), parsed
    return parsed


AT = "TASKS['mail']['OPTIONS']"
KNOWN = (
    "Known are MAX_WORKERS, MAX_RESULTS, MAX_PENDING, SHUTDOWN_TIMEOUT, MAX_ATTEMPTS, "
    "BACKOFF, TIMEOUT, RESULT_TTL, STORE, STORE_OPTIONS, EXECUTOR, EXECUTOR_OPTIONS, "
    "TIMEOUT_ON_THREADS."
)
WHOLE = "an integer of at least 1"
SECONDS = "a number of seconds, 0 or more"
A_DICT = "a dict with strings for keys"
A_STORE = "'memory', 'sqlite' or 'database', or a ResultStoreFactory or its dotted path"
A_TTL = "a number of seconds above 0, such a timedelta, or None"
A_BACKOFF = "a callable or its dotted path"
AN_EXECUTOR = "an ExecutorFactory or its dotted path"


def wrong(key: str, value: object, accepted: str) -> Any:
    message = f"{AT}['{key}'] must be {accepted}, got {value!r}."
    return pytest.param(
        {"OPTIONS": {key: value}}, "E003", message, None, id=f"{key}-{value}"
    )


WRONG = [
    *[
        wrong("MAX_WORKERS", value, WHOLE)
        for value in ("ten", 0, -1, 2.0, True, None, [1])
    ],
    *[
        wrong("MAX_RESULTS", value, "an integer of at least 0, or None")
        for value in ("1000", -1, 1.5, False)
    ],
    *[
        wrong("MAX_PENDING", value, "an integer of at least 1, or None")
        for value in ("10", 0, -5, True)
    ],
    *[
        wrong("SHUTDOWN_TIMEOUT", value, SECONDS)
        for value in ("30", -0.1, None, True, float("nan"), float("inf"))
    ],
    *[
        wrong("MAX_ATTEMPTS", value, WHOLE)
        for value in ("3", 0, -1, 2.0, True, None, float("inf"))
    ],
    *[wrong("BACKOFF", value, A_BACKOFF) for value in (5, 0.5, True, None, "linear")],
    *[wrong("STORE", value, A_STORE) for value in ("redis", "", 3, None)],
    *[
        wrong("RESULT_TTL", value, A_TTL)
        for value in ("7 days", 0, -1, True, float("inf"), timedelta(0), timedelta(-1))
    ],
    pytest.param(
        {"OPTIONS": {"STORE": Picky, "STORE_OPTIONS": {"SIZE": -1}}},
        "E003",
        f"{AT}['STORE_OPTIONS']['SIZE'] must be a number above 0, got -1.",
        None,
        id="option that a store refuses",
    ),
    *[wrong("EXECUTOR", value, AN_EXECUTOR) for value in ("threads", "", 3, None)],
    *[
        wrong(key, value, A_DICT)
        for key in ("STORE_OPTIONS", "EXECUTOR_OPTIONS")
        for value in (None, [("key", 1)], {1: 2})
    ],
    pytest.param(
        {"OPTIONS": {"MAX_WORKER": 4}},
        "E002",
        f"{AT}['MAX_WORKER'] is not an option of ThreadPoolBackend.",
        "Did you mean 'MAX_WORKERS'?",
        id="typo",
    ),
    pytest.param(
        {"OPTIONS": {"max_workers": 4}},
        "E002",
        f"{AT}['max_workers'] is not an option of ThreadPoolBackend.",
        "Did you mean 'MAX_WORKERS'?",
        id="lower case",
    ),
    pytest.param(
        {"OPTIONS": {"COLOUR": "red"}},
        "E002",
        f"{AT}['COLOUR'] is not an option of ThreadPoolBackend.",
        KNOWN,
        id="unknown option",
    ),
    pytest.param(
        {"OPTIONS": {4: 4}},
        "E002",
        f"{AT}[4] is not an option of ThreadPoolBackend.",
        KNOWN,
        id="option that is no string",
    ),
    pytest.param(
        {"MAX_WORKERS": 4},
        "E002",
        "TASKS['mail']['MAX_WORKERS'] is not a setting of a task backend.",
        "Move 'MAX_WORKERS' into OPTIONS.",
        id="option in the wrong place",
    ),
    pytest.param(
        {"QUEUE": ["default"]},
        "E002",
        "TASKS['mail']['QUEUE'] is not a setting of a task backend.",
        "Did you mean 'QUEUES'?",
        id="typo outside OPTIONS",
    ),
    pytest.param(
        {4: 4},
        "E002",
        "TASKS['mail'][4] is not a setting of a task backend.",
        "Known are BACKEND, QUEUES, OPTIONS.",
        id="setting that is no string",
    ),
    *[
        pytest.param(
            {"OPTIONS": options},
            "E001",
            f"TASKS['mail']['OPTIONS'] must be a dict, got {options!r}.",
            None,
            id=f"OPTIONS-{options}",
        )
        for options in (None, ["MAX_WORKERS"], "MAX_WORKERS=4", 4)
    ],
    *[
        pytest.param(
            {"QUEUES": queues},
            "E006",
            f"TASKS['mail']['QUEUES'] must be a list of strings, got {queues!r}.",
            None,
            id=f"QUEUES-{queues}",
        )
        for queues in ("default", None, 3, [1], ["default", None], [["default"]])
    ],
    pytest.param(
        {"OPTIONS": {"STORE": "no_such_module.Store"}},
        "E004",
        f"{AT}['STORE'] names 'no_such_module.Store', which cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'",
        None,
        id="STORE of no module",
    ),
    pytest.param(
        {"OPTIONS": {"EXECUTOR": "tests.tasks.NoExecutor"}},
        "E004",
        f"{AT}['EXECUTOR'] names 'tests.tasks.NoExecutor', which cannot be imported: "
        'ImportError: Module "tests.tasks" does not define a "NoExecutor" '
        "attribute/class",
        None,
        id="EXECUTOR that is not there",
    ),
    pytest.param(
        {"OPTIONS": {"BACKOFF": "no_such_module.backoff"}},
        "E004",
        f"{AT}['BACKOFF'] names 'no_such_module.backoff', which cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'",
        None,
        id="BACKOFF of no module",
    ),
    pytest.param(
        {"OPTIONS": {"BACKOFF": "tests.test_options.not_callable"}},
        "E003",
        f"{AT}['BACKOFF'] must be {A_BACKOFF}, got 3, which cannot be called with "
        "(exception, task_result).",
        None,
        id="BACKOFF that cannot be called",
    ),
    pytest.param(
        {"OPTIONS": {"BACKOFF": "tests.test_options.takes_nothing"}},
        "E003",
        f"{AT}['BACKOFF'] must be {A_BACKOFF}, got {takes_nothing!r}, which cannot be "
        "called with (exception, task_result).",
        None,
        id="BACKOFF that was not called",
    ),
    pytest.param(
        {"MAX_ATTEMPTS": 3},
        "E002",
        "TASKS['mail']['MAX_ATTEMPTS'] is not a setting of a task backend.",
        "Move 'MAX_ATTEMPTS' into OPTIONS.",
        id="MAX_ATTEMPTS in the wrong place",
    ),
    pytest.param(
        {"OPTIONS": {"MAX_ATTEMPT": 3}},
        "E002",
        f"{AT}['MAX_ATTEMPT'] is not an option of ThreadPoolBackend.",
        "Did you mean 'MAX_ATTEMPTS'?",
        id="typo in MAX_ATTEMPTS",
    ),
    pytest.param(
        {"OPTIONS": {"STORE": "."}},
        "E004",
        f"{AT}['STORE'] names '.', which cannot be imported: "
        "ValueError: Empty module name",
        None,
        id="STORE of no name",
    ),
    pytest.param(
        {"OPTIONS": {"EXECUTOR": "tests.test_options.not_callable"}},
        "E005",
        f"{AT}['EXECUTOR'] must be {AN_EXECUTOR}, got 3.",
        None,
        id="EXECUTOR that cannot be called",
    ),
    *[
        pytest.param(
            {"OPTIONS": {"EXECUTOR": executor}},
            "E005",
            f"{AT}['EXECUTOR'] must be {AN_EXECUTOR}, "
            f"got <class '{executor.__module__}.{executor.__name__}'>.",
            "An executor of concurrent.futures needs a "
            "django_tasks_local.executors.plain.ExecutorAdapter around it.",
            id=executor.__name__,
        )
        for executor in (ThreadPoolExecutor, ProcessPoolExecutor)
    ],
    *[
        pytest.param(
            {"OPTIONS": {key: factory}},
            "E005",
            f"{AT}['{key}'] must be {accepted}, got {factory!r}, which cannot be "
            f"called with (options, {keyword}=…).",
            None,
            id=f"{key}-{factory.__name__}",
        )
        for key, accepted, keyword, factory in (
            ("STORE", A_STORE, "alias", dict.fromkeys),
            ("STORE", A_STORE, "alias", takes_too_much),
            ("STORE", A_STORE, "alias", ThreadExecutor),
            ("EXECUTOR", AN_EXECUTOR, "host", takes_too_much),
            ("EXECUTOR", AN_EXECUTOR, "host", MemoryStore),
        )
    ],
    *[
        pytest.param(
            {"OPTIONS": {**options, key: {"PATH": "x"}}},
            "E002",
            f"{AT}['{key}']['PATH'] is not an option of {name}.",
            "It takes none.",
            id=f"{key} of {options}",
        )
        for options, key, name in (
            ({}, "STORE_OPTIONS", "MemoryStore"),
            ({"STORE": "memory"}, "STORE_OPTIONS", "MemoryStore"),
            ({"STORE": MemoryStore}, "STORE_OPTIONS", "MemoryStore"),
            ({}, "EXECUTOR_OPTIONS", "ThreadExecutor"),
            ({"EXECUTOR": ProcessExecutor}, "EXECUTOR_OPTIONS", "ProcessExecutor"),
        )
    ],
    pytest.param(
        {"OPTIONS": {"STORE": Choosy, "STORE_OPTIONS": {"PAHT": "x", "MODE": 1}}},
        "E002",
        f"{AT}['STORE_OPTIONS']['PAHT'] is not an option of Choosy.",
        "Did you mean 'PATH'?",
        id="typo in STORE_OPTIONS",
    ),
]
each_wrong_setting = pytest.mark.parametrize("params, code, message, hint", WRONG)


class TestWrongSettings:
    @each_wrong_setting
    def test_finding_says_what_is_wrong(
        self, params: dict[str, Any], code: str, message: str, hint: str | None
    ) -> None:
        assert parse(params) == [Finding(f"django_tasks_local.{code}", message, hint)]

    def test_all_that_is_wrong_is_found(self) -> None:
        findings = parse(
            {
                "QUEUES": "default",
                "RETRIES": 3,
                "OPTIONS": {"MAX_WORKERS": 0, "MAX_PENDING": 0, "COLOUR": "red"},
            }
        )

        assert isinstance(findings, list)
        assert len(findings) == 5

    def test_all_that_cannot_be_imported_is_found(self) -> None:
        findings = parse({"OPTIONS": {"STORE": "no.Store", "EXECUTOR": "no.Executor"}})

        assert isinstance(findings, list)
        assert [finding.id for finding in findings] == ["django_tasks_local.E004"] * 2

    def test_module_that_fails_to_import_is_a_finding(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "broken_parts.py").write_text("1 / 0")
        monkeypatch.syspath_prepend(tmp_path)

        assert parse({"OPTIONS": {"STORE": "broken_parts.Store"}}) == [
            Finding(
                "django_tasks_local.E004",
                f"{AT}['STORE'] names 'broken_parts.Store', which cannot be imported: "
                "ZeroDivisionError: division by zero",
            )
        ]

    def test_options_are_checked_before_anything_is_imported(self) -> None:
        findings = parse({"OPTIONS": {"MAX_WORKERS": 0, "STORE": "no.such.Store"}})

        assert isinstance(findings, list)
        assert [finding.id for finding in findings] == ["django_tasks_local.E003"]

    def test_finding_names_the_alias_and_the_backend(self) -> None:
        findings = parse_options(
            "it's",
            {"OPTIONS": {"X": 1}},
            backend_name="MyBackend",
            default_max_workers=1,
            default_executor=ThreadExecutor,
        )

        assert isinstance(findings, list)
        assert findings[0].message == (
            """TASKS["it's"]['OPTIONS']['X'] is not an option of MyBackend."""
        )


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["memory", "sqlite", "no.such.module", ".", "..", "json.loads", "10"]
    )
    | st.sampled_from(
        [object(), int, ThreadExecutor, MemoryStore, 10**400, -(10**400)]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=5,
)
OPTION_NAMES = st.sampled_from(list(LocalOptions.__dataclass_fields__)).map(
    lambda name: name.upper().removesuffix("_S")
)
OPTIONS = st.dictionaries(
    OPTION_NAMES | st.text(max_size=5) | st.integers() | st.none(), ANYTHING, max_size=8
)
PARAMS = st.dictionaries(
    st.sampled_from(["BACKEND", "QUEUES", "OPTIONS", "STORE"])
    | st.text()
    | st.integers(),
    ANYTHING,
    max_size=4,
)


@settings(deadline=None)
@given(params=PARAMS, options=OPTIONS)
@example(params={4: 4}, options={})
@example(params={}, options={"SHUTDOWN_TIMEOUT": 10**400})
@example(params={}, options={"MAX_WORKERS": -(10**400)})
def test_no_setting_raises(params: dict[Any, Any], options: dict[Any, Any]) -> None:
    for given_params in (params, {**params, "OPTIONS": options}):
        parsed = parse(given_params)

        assert isinstance(parsed, LocalOptions) or parsed
        # Nor does what Django makes at import time.
        ThreadPoolBackend("mail", given_params)
        ProcessPoolBackend("mail", given_params)


RIGHT_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "MAX_WORKERS": st.integers(1),
        "MAX_RESULTS": st.none() | st.integers(0),
        "RESULT_TTL": st.none() | st.integers(1) | st.floats(0.001, 1e9),
        "MAX_PENDING": st.none() | st.integers(1),
        "SHUTDOWN_TIMEOUT": st.integers(0, 10**6) | st.floats(0, 1e6),
        "MAX_ATTEMPTS": st.integers(1),
        "BACKOFF": st.sampled_from([fixed(1), after_a_second]),
        "EXECUTOR": st.sampled_from([ThreadExecutor, ProcessExecutor]),
        "STORE_OPTIONS": st.fixed_dictionaries({}, optional={"PATH": ANYTHING}),
    },
)


OF_PROCESSES: dict[str, tuple[str, list[Any]]] = {
    "MAX_TASKS_PER_CHILD": ("an integer of at least 1, or None", [0, 1.5, "10", True]),
    "MAX_MEMORY_PER_CHILD_MB": (
        "a number of MiB above 0, or None",
        [0, -1, "500", True, float("inf"), float("nan")],
    ),
    "IDLE_TIMEOUT": (
        "a number of seconds, 0 or more, or None",
        [-1, "60", False, float("inf")],
    ),
    "CONTEXT": (
        "a list of dotted paths of ContextVar objects",
        ["tests.tasks.colour", ["colour"], [3], None, {"tests.tasks.colour"}],
    ),
}


class TestOptionsOfProcesses:
    @pytest.mark.parametrize(
        "key, accepted, value",
        [
            pytest.param(key, accepted, value, id=f"{key}-{value}")
            for key, (accepted, values) in OF_PROCESSES.items()
            for value in values
        ],
    )
    def test_wrong_ones_are_said(self, key: str, accepted: str, value: object) -> None:
        message = f"{AT}['{key}'] must be {accepted}, got {value!r}."
        assert parse_for_processes({key: value}) == [
            Finding("django_tasks_local.E003", message)
        ]

    @pytest.mark.parametrize("key", OF_PROCESSES)
    def test_threads_have_none(self, key: str) -> None:
        message = f"{AT}['{key}'] is not an option of ThreadPoolBackend."
        hint = "Worker processes have it: ProcessPoolBackend takes it."
        assert parse({"OPTIONS": {key: 1}}) == [
            Finding("django_tasks_local.E002", message, hint)
        ]

    def test_variables_that_cannot_be_found_are_said(self) -> None:
        paths = ["nowhere.variable", "tests.tasks.nothing", "tests.tasks.add"]
        findings = parse_for_processes({"CONTEXT": paths})
        assert isinstance(findings, list)
        assert [finding.id[-4:] for finding in findings] == ["E004", "E004", "E003"]
        for path, finding in zip(paths, findings, strict=True):
            assert f"{AT}['CONTEXT'] names {path!r}, which " in finding.message

    def test_right_ones_are_taken_as_given(self) -> None:
        parsed = parse_for_processes(
            {
                "MAX_TASKS_PER_CHILD": 5,
                "MAX_MEMORY_PER_CHILD_MB": 0.5,
                "IDLE_TIMEOUT": None,
                "CONTEXT": ("tests.tasks.colour",),
            }
        )
        assert isinstance(parsed, LocalOptions)
        assert parsed.max_tasks_per_child == 5
        assert parsed.max_memory_per_child_mb == 0.5
        assert parsed.idle_timeout_s is None
        assert parsed.context_vars == {"tests.tasks.colour": tasks.colour}

    def test_processes_end_after_a_minute_without_work_by_default(self) -> None:
        parsed = parse_for_processes({})
        assert isinstance(parsed, LocalOptions)
        assert parsed.idle_timeout_s == 60.0
        assert parsed.max_tasks_per_child is None
        assert parsed.max_memory_per_child_mb is None
        assert parsed.context_vars == {}
        assert parse_right({}).idle_timeout_s is None


class TestRightSettings:
    @settings(deadline=None)
    @given(RIGHT_OPTIONS)
    def test_options_are_taken_as_given(self, options: dict[str, Any]) -> None:
        parsed = parse_right({"STORE": Choosy, **options})

        assert parsed.max_workers == options.get("MAX_WORKERS", 10)
        assert parsed.max_results == options.get("MAX_RESULTS", 1000)
        assert parsed.result_ttl_s == options.get("RESULT_TTL")
        assert parsed.max_pending == options.get("MAX_PENDING")
        assert parsed.shutdown_timeout_s == options.get("SHUTDOWN_TIMEOUT", 30.0)
        assert parsed.max_attempts == options.get("MAX_ATTEMPTS", 1)
        assert parsed.backoff == options.get("BACKOFF", exponential())
        assert parsed.executor is options.get("EXECUTOR", ThreadExecutor)
        assert parsed.store is Choosy
        assert parsed.store_options == options.get("STORE_OPTIONS", {})
        assert parsed.executor_options == {}

    def test_database_store_needs_its_app(self) -> None:
        with override_settings(INSTALLED_APPS=["django_tasks_local"]):
            found = parse({"OPTIONS": {"STORE": "database"}})
        assert isinstance(found, list)
        assert found[-1] == Finding(
            "django_tasks_local.E007",
            f"{AT}['STORE'] is 'database', for which "
            "'django_tasks_local.stores.database' has to stand in INSTALLED_APPS.",
            "Then run 'manage.py migrate'.",
        )

    def test_what_outlives_the_process_is_kept_for_a_week(self) -> None:
        cases: list[tuple[dict[str, Any], int | None, float | None]] = [
            ({}, None, 7 * 24 * 3600.0),
            ({"MAX_RESULTS": 5, "RESULT_TTL": None}, 5, None),
            ({"RESULT_TTL": timedelta(minutes=1)}, None, 60.0),
        ]
        for options, max_results, ttl_s in cases:
            parsed = parse_right({"STORE": Durable, **options})
            assert (parsed.max_results, parsed.result_ttl_s) == (max_results, ttl_s)

    @pytest.mark.parametrize(
        "store",
        ["memory", MemoryStore, "django_tasks_local.stores.memory.MemoryStore"],
        ids=str,
    )
    def test_store_is_named_or_given(self, store: Any) -> None:
        assert parse_right({"STORE": store}).store is MemoryStore

    @pytest.mark.parametrize(
        "backoff",
        [after_a_second, "tests.test_options.after_a_second"],
        ids=["given", "named"],
    )
    def test_backoff_is_named_or_given(self, backoff: Any) -> None:
        assert parse_right({"BACKOFF": backoff}).backoff is after_a_second

    @pytest.mark.parametrize(
        "executor",
        [ProcessExecutor, "django_tasks_local.executors.processes.ProcessExecutor"],
        ids=str,
    )
    def test_executor_is_named_or_given(self, executor: Any) -> None:
        assert parse_right({"EXECUTOR": executor}).executor is ProcessExecutor

    @pytest.mark.parametrize("queues", [[], ["a"], ("a", "b"), {"a"}, frozenset("a")])
    def test_queues_may_be_any_collection_of_strings(self, queues: Any) -> None:
        parsed = parse({"QUEUES": queues})

        assert isinstance(parsed, LocalOptions)
        assert ThreadPoolBackend("mail", {"QUEUES": queues}).queues == set(queues)

    @pytest.mark.parametrize("seconds", [1e10, 1e300, 10**30])
    def test_shutdown_timeout_is_one_that_a_thread_can_wait(
        self, seconds: float
    ) -> None:
        parsed = parse({"OPTIONS": {"SHUTDOWN_TIMEOUT": seconds}})

        if isinstance(parsed, LocalOptions):
            assert parsed.shutdown_timeout_s <= threading.TIMEOUT_MAX

    def test_threads_are_ten_by_default(self) -> None:
        assert ThreadPoolBackend.default_max_workers() == 10

    def test_processes_are_as_many_as_cpus_but_at_most_ten(self) -> None:
        count = len(os.sched_getaffinity(0))
        assert ProcessPoolBackend.default_max_workers() == min(count, 10)


def with_mail(params: Mapping[str, Any]) -> Any:
    """The settings of a project whose alias ``mail`` has those parameters."""
    backend = "django_tasks_local.ThreadPoolBackend"
    return override_settings(TASKS={"mail": {"BACKEND": backend, **params}})


class TestFrontDoor:
    @each_wrong_setting
    def test_check_and_first_enqueue_say_it_and_nothing_before_them(
        self, params: dict[str, Any], code: str, message: str, hint: str | None
    ) -> None:
        with with_mail(params):
            defined = task(backend="mail")(tasks.add.func)
            assert defined.get_backend() is task_backends["mail"]

            assert run_checks() == [
                Error(message, hint=hint, id=f"django_tasks_local.{code}")
            ]
            with pytest.raises(ImproperlyConfigured) as caught:
                defined.enqueue(2, 3)
        assert str(caught.value) == (message if hint is None else f"{message} {hint}")

    def test_check_command_fails_and_shows_id_and_message(self) -> None:
        with (
            with_mail({"OPTIONS": {"MAX_WORKERS": "ten"}}),
            pytest.raises(SystemCheckError) as caught,
        ):
            call_command("check")
        said = (
            f"(django_tasks_local.E003) {AT}['MAX_WORKERS'] must be {WHOLE}, got 'ten'."
        )
        assert said in str(caught.value)

    @pytest.mark.anyio
    async def test_first_aenqueue_raises_it(self) -> None:
        with with_mail({"OPTIONS": {"MAX_WORKERS": "ten"}}):
            add = tasks.add.using(backend="mail")
            with pytest.raises(ImproperlyConfigured) as caught:
                await add.aenqueue(2, 3)
        assert str(caught.value) == (
            "TASKS['mail']['OPTIONS']['MAX_WORKERS'] must be an integer of at least 1, "
            "got 'ten'."
        )

    def test_enqueue_raises_all_that_is_wrong(self) -> None:
        with with_mail({"OPTIONS": {"MAX_WORKERS": 0, "MAX_PENDINGS": 5}}):
            add = tasks.add.using(backend="mail")
            with pytest.raises(ImproperlyConfigured) as caught:
                add.enqueue(2, 3)
        workers, pendings = str(caught.value).splitlines()
        assert workers == f"{AT}['MAX_WORKERS'] must be {WHOLE}, got 0."
        assert pendings == (
            f"{AT}['MAX_PENDINGS'] is not an option of ThreadPoolBackend. "
            "Did you mean 'MAX_PENDING'?"
        )

    def test_enqueue_raises_it_again(self) -> None:
        with with_mail({"OPTIONS": {"MAX_WORKERS": 0}}):
            add = tasks.add.using(backend="mail")
            for _ in range(2):
                with pytest.raises(ImproperlyConfigured):
                    add.enqueue(2, 3)

    def test_enqueue_works_once_it_is_mended(self) -> None:
        with with_mail({"OPTIONS": {"MAX_WORKERS": 0}}):
            add = tasks.add.using(backend="mail")
            with pytest.raises(ImproperlyConfigured):
                add.enqueue(2, 3)
            with with_mail({"OPTIONS": {"MAX_WORKERS": 1}}):
                assert run_checks() == []
                assert add.enqueue(2, 3).wait(10) == 5

    def test_right_settings_pass_the_check(self) -> None:
        call_command("check")

    def test_process_backend_names_itself(self) -> None:
        backend = "django_tasks_local.ProcessPoolBackend"
        with override_settings(
            TASKS={"mail": {"BACKEND": backend, "OPTIONS": {"MAX_TASKS": 1}}}
        ):
            (message,) = run_checks()
        assert "is not an option of ProcessPoolBackend" in message.msg


class TestFreshProject:
    """``manage.py check`` in a project of its own."""

    def check(self, directory: Path, *, apps: list[str]) -> tuple[int, str]:
        (directory / "project_settings.py").write_text(
            textwrap.dedent(
                f"""
                SECRET_KEY = "fresh"
                INSTALLED_APPS = {apps!r}
                TASKS = {{
                    "mail": {{
                        "BACKEND": "django_tasks_local.ThreadPoolBackend",
                        "OPTIONS": {{"MAX_WORKERS": "ten"}},
                    }}
                }}
                """
            )
        )
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", "check"],
            cwd=directory,
            env={
                **os.environ,
                "PYTHONPATH": str(directory),
                "DJANGO_SETTINGS_MODULE": "project_settings",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ran.returncode, ran.stderr

    def test_check_reports_where_nothing_else_imports_tasks(
        self, tmp_path: Path
    ) -> None:
        code, output = self.check(tmp_path, apps=["django_tasks_local"])

        assert code == 1
        assert (
            "(django_tasks_local.E003) TASKS['mail']['OPTIONS']['MAX_WORKERS'] must be "
            "an integer of at least 1, got 'ten'."
        ) in output
        assert "Traceback" not in output

    def test_check_needs_the_app(self, tmp_path: Path) -> None:
        code, _ = self.check(tmp_path, apps=[])

        assert code == 0
