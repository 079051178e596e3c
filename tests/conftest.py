"""What all tests share: the project, and that nothing is left behind."""

import compileall
import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import django
import pytest
import uvloop

# Before there is a loop; worker processes inherit it.
os.environ["PYTHONASYNCIODEBUG"] = "1"


def _new_uvloop() -> uvloop.Loop:
    """One without the debug mode, which can crash the process.

    Where an async generator is left early: https://github.com/MagicStack/uvloop/issues/730
    """
    loop = uvloop.Loop()
    loop.set_debug(False)
    return loop


uvloop.new_event_loop = _new_uvloop

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from django.apps import apps  # noqa: E402  # after the set-up
from django.conf import settings  # noqa: E402
from django.db import (  # noqa: E402
    DEFAULT_DB_ALIAS,
    OperationalError,
    connections,
)
from django.db.utils import ConnectionHandler  # noqa: E402
from django.test import override_settings  # noqa: E402
from django.test.utils import setup_databases, teardown_databases  # noqa: E402

from django_tasks_local import task_registry  # noqa: E402
from django_tasks_local.executors import fork_server  # noqa: E402
from django_tasks_local.executors.project import take_project  # noqa: E402
from django_tasks_local.state import shutdown_executor  # noqa: E402

from .blocking import noting_blocking_calls  # noqa: E402
from .dask_clusters import DaskCluster  # noqa: E402
from .databases import SERVERS  # noqa: E402
from .fork_server_anchor import Anchor  # noqa: E402
from .gates import Gate  # noqa: E402
from .leftovers import (  # noqa: E402
    descendants,
    join_new_threads,
    open_files,
    our_threads,
    wait_until_gone,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
BACKENDS = {
    "default": "django_tasks_local.ThreadPoolBackend",
    "cpu": "django_tasks_local.ProcessPoolBackend",
    "loop": "django_tasks_local.EventLoopBackend",
}
MAX_WORKERS = {"default": 4, "cpu": 2, "loop": 4}
# What the first worker of each is called that runs a function.
WORKERS = {"default": "default-0", "cpu": "cpu-0", "loop": "loop-sync-0"}

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are CPUs: tests wait for servers and for processes."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Compile our modules once, not in each of some hundreds of Python processes.

    Also where PYTHONDONTWRITEBYTECODE says that none of these may.
    """
    if not hasattr(config, "workerinput"):  # not in each of pytest-xdist's processes
        compileall.compile_dir(ROOT / "src", quiet=1)
        compileall.compile_dir(ROOT / "tests", quiet=1)


@pytest.fixture(scope="session", autouse=True)
def _fork_server(_test_database: None) -> Iterator[None]:  # for its effect alone
    """Keeps the fork server, and the process that has set this project up.

    To start them takes half a second, and a tenth. That they end with their last user
    is tested in processes of their own.
    """
    user = Anchor()
    with pytest.MonkeyPatch.context() as patch:
        # Nor need each worker process import pytest, which is the main module here.
        patch.delattr(sys.modules["__main__"], "__file__", raising=False)
        patch.setattr(sys.modules["__main__"], "__spec__", None)
        anchor = fork_server.start_child(Anchor(), user=user, project=take_project())
        yield
    anchor.close()
    fork_server.release_server(user)


@pytest.fixture(scope="session", autouse=True)
def _libuv() -> None:  # for its effect alone
    """Opens the pipe that uvloop keeps for all its loops, from the first one on."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_blocks_a_loop() -> Iterator[None]:
    """During each test, no function of ours blocks a running event loop."""
    with noting_blocking_calls() as noted:
        yield
    if noted:
        pytest.fail("\n".join(noted))


@pytest.fixture(autouse=True)
def _tasks_of_one_test(monkeypatch: pytest.MonkeyPatch) -> None:  # for its effect alone
    """A task that a test makes of another's function stands for it in no other test."""
    monkeypatch.setattr(task_registry, "_tasks", dict(task_registry._tasks))


@pytest.fixture(autouse=True)
def nothing_left_behind(
    _fork_server: None,
    _libuv: None,
    _tasks_of_one_test: None,
    nothing_blocks_a_loop: None,
) -> Iterator[None]:
    """After each test, no thread, process or file of ours is left."""
    threads, children, files = set(our_threads()), descendants(), open_files()
    yield
    for alias in [*settings.TASKS, "test"]:
        shutdown_executor(alias)
    join_new_threads(threads)
    connections.close_all()
    assert set(our_threads()) - threads == set()
    assert [pid for pid in descendants() - children if not wait_until_gone(pid)] == []
    if open_files() - files:
        gc.collect()
    assert open_files() - files == set()


LOOPS: dict[str, str | tuple[str, dict[str, Any]]] = {
    "asyncio": "asyncio",
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": "trio",
}


@pytest.fixture(params=[*LOOPS.values()], ids=[*LOOPS])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Each of the event loops in turn: where tests run that carry the mark anyio."""
    return request.param


@pytest.fixture(params=[*BACKENDS], ids=["threads", "processes", "loop"])
def alias(request: pytest.FixtureRequest) -> str:
    """Each of the backends in turn."""
    name: str = request.param
    return name


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Where tasks wait for the test."""
    with Gate() as gate:
        yield gate


@pytest.fixture
def other_gate() -> Iterator[Gate]:
    """A second one."""
    with Gate() as gate:
        yield gate


class Configure(Protocol):
    """Gives aliases of the project other options, until the test ends."""

    def __call__(self, *aliases: str, **options: Any) -> None: ...


@pytest.fixture
def configure(nothing_left_behind: None) -> Iterator[Configure]:
    with ExitStack() as stack:

        def configure(*aliases: str, **options: Any) -> None:
            tasks = {name: dict(value) for name, value in settings.TASKS.items()}
            for name in aliases:
                tasks[name]["OPTIONS"] = {"SHUTDOWN_TIMEOUT": 10.0, **options}
            stack.enter_context(override_settings(TASKS=tasks))

        yield configure


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler of Dask's, and two workers of four threads each."""
    with DaskCluster(tmp_path_factory.mktemp("dask")) as cluster:
        cluster.start_scheduler()
        for _ in range(2):
            cluster.start_worker(threads=4)
        yield cluster


@pytest.fixture(scope="session")
def _test_database() -> Iterator[None]:
    """The file-based test database, in the place of the project's."""
    names = setup_databases(verbosity=0, interactive=False, aliases={"default": False})
    yield
    teardown_databases(names, verbosity=0)


@pytest.fixture
def database(_test_database: None, nothing_left_behind: None) -> Iterator[None]:
    """The test database, emptied afterwards."""
    yield
    with connections["default"].cursor() as cursor:
        cursor.execute("DELETE FROM django_session")


@pytest.fixture
def postgresql() -> None:
    """There is a PostgreSQL server on which tests may make databases."""
    _require_server("postgresql")


def _require_server(name: str) -> None:
    handler = ConnectionHandler(_as_databases(name))
    connection = handler[name]
    # There is none of ours yet.
    connection.settings_dict["NAME"] = {"postgresql": "postgres"}.get(name)
    try:
        connection.connect()
    except OperationalError as err:
        if os.environ.get("DJANGO_TASKS_LOCAL_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"There is no server for {name} on 127.0.0.1: {err}")
    finally:
        connection.close()


def _as_databases(name: str) -> dict[str, dict[str, Any]]:
    return {DEFAULT_DB_ALIAS: {}, name: deepcopy(SERVERS[name])}


class Databases:
    """The test databases on servers, each made where it is first asked for.

    They are among the project's while a test uses them, and no longer: what looks at
    all of the project's would need all servers.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._settings: dict[str, Any] = {}

    @contextmanager
    def using(self, alias: str) -> Generator[None]:
        if alias in self._settings:
            connections.settings[alias] = self._settings[alias]
        else:
            values = connections.configure_settings(_as_databases(alias))[alias]
            connections.settings[alias] = self._settings[alias] = values
            names = setup_databases(
                verbosity=0, interactive=False, aliases={alias: False}
            )
            self._stack.callback(teardown_databases, names, verbosity=0)
        try:
            yield
        finally:
            connections[alias].close()
            del connections.settings[alias]

    def drop(self) -> None:
        connections.settings.update(self._settings)
        self._stack.close()
        for alias in self._settings:
            del connections.settings[alias]


@pytest.fixture(scope="session")
def _databases() -> Iterator[Databases]:
    databases = Databases()
    yield databases
    databases.drop()


@pytest.fixture(params=["default", *SERVERS], ids=["sqlite", *SERVERS], name="using")
def each_database(
    request: pytest.FixtureRequest,
    _databases: Databases,
    nothing_left_behind: None,
) -> Iterator[str]:
    """An alias of each kind of database in turn, with empty tables for results."""
    alias: str = request.param
    threads = set(our_threads())
    with ExitStack() as stack:
        if alias == "default":
            request.getfixturevalue("_test_database")
        else:
            _require_server(alias)
            stack.enter_context(_databases.using(alias))
        yield alias
        # They could not close connections of a database that is not there any more.
        join_new_threads(threads)
        for model in apps.get_app_config("django_tasks_local_database").get_models():
            model._default_manager.using(alias).all().delete()


@pytest.fixture
def browser() -> "Iterator[Browser]":
    if not CHROMIUM.exists():
        reason = f"the page needs a browser, and {CHROMIUM} is not there"
        if os.environ.get("DJANGO_TASKS_LOCAL_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright  # only where it is needed

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=CHROMIUM_ARGS
        )
        yield browser
        browser.close()


class RunScript(Protocol):
    """Runs Python code in a process of its own, in a directory of its own."""

    def __call__(
        self,
        code: str,
        *arguments: str,
        files: Mapping[str, str] = ...,
        exit_code: int = ...,
        command: Callable[[Path], list[str]] = ...,
        inside: Sequence[str] = ...,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_script(tmp_path: Path) -> RunScript:
    def run(
        code: str,
        *arguments: str,
        files: Mapping[str, str] | None = None,
        exit_code: int = 0,
        command: Callable[[Path], list[str]] = lambda script: [str(script)],
        inside: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        script = (
            write_files(tmp_path, {"script.py": code, **(files or {})}) / "script.py"
        )
        done = subprocess.run(
            [*inside, sys.executable, "-W", "error", *command(script), *arguments],
            cwd=tmp_path,
            env=script_environ(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == exit_code, f"{done.stdout}\n{done.stderr}"
        return done

    return run


def write_files(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return directory


def script_environ() -> dict[str, str]:
    """This process's environment, but without a project."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path}
    del environ["DJANGO_SETTINGS_MODULE"]
    # It writes to the log what is slow, and uvloop's is at fault where generators end.
    del environ["PYTHONASYNCIODEBUG"]
    return environ
