"""The sqlite store's file: what can be wrong with it, and what it lives through."""

import contextlib
import dis
import inspect
import itertools
import json
import linecache
import logging
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.test import override_settings

from django_tasks_local.errors import StoreError
from django_tasks_local.identity import new_owner
from django_tasks_local.options import LocalOptions
from django_tasks_local.records import Record
from django_tasks_local.state import shutdown_executor
from django_tasks_local.stores import sqlite_file, sqlite_opening
from django_tasks_local.stores.lock_files import LockFiles
from django_tasks_local.stores.sqlite import SqliteStore
from django_tasks_local.stores.sqlite_file import SqliteFile
from django_tasks_local.testing import contract
from django_tasks_local.testing.contract import in_threads, options_for
from django_tasks_local.testing.records import (
    do_nothing,
    finished_record,
    ready_record,
)

from .conftest import RunScript
from .elsewhere import OtherProcess
from .gates import LONG_S, Gate
from .kept import ALIAS, THREADS, find, serve, setting_of, sharing
from .tasks import add, echo, hold

NAME = "results.sqlite3"
READY = TaskResultStatus.READY
DAMAGED = (
    "it is damaged. Move it away, with the files '-wal' and '-shm' beside it, and a "
    "new one is made; the sqlite3 program's '.recover' may save what was in it "
    "(database disk image is malformed)."
)
FOREIGN = (
    "was not made by django-tasks-local, which leaves it as it is. Name another file "
    "in STORE_OPTIONS['PATH'], or remove this one."
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def options_of(path: Path, **store_options: object) -> LocalOptions:
    given = {"PATH": path, **store_options}
    return replace(options_for(store=SqliteStore), store_options=given)


@contextmanager
def stores_of(
    path: Path, count: int = 1, *, alias: str = contract.ALIAS
) -> Generator[list[SqliteStore]]:
    """As many stores of the alias, which share the file."""
    stores = [SqliteStore(options_of(path), alias=alias) for _ in range(count)]
    try:
        yield stores
    finally:
        for store in stores:
            store.close()


@contextmanager
def opened(path: Path) -> Generator[sqlite3.Connection]:
    """The file, past the store."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def keep(store: SqliteStore, *records: Record) -> None:
    store.add(records, on_visible=do_nothing)


def refusal(path: Path) -> str:
    """What an enqueue and a look-up raise, while another alias goes on."""
    with sharing(path):
        with pytest.raises(StoreError) as enqueued:
            add.using(backend=ALIAS).enqueue(1, 2)
        with pytest.raises(StoreError) as looked_up:
            find("6b3c5d0e")
        assert add.enqueue(1, 2).wait(LONG_S) == 3
    assert str(enqueued.value) == str(looked_up.value)
    return str(enqueued.value)


class TestWhatIsWrongWithTheFile:
    def test_newer_schema_is_left_alone(self, path: Path) -> None:
        with stores_of(path) as (store,):
            keep(store, ready_record(1))
        with opened(path) as db:
            db.execute("PRAGMA user_version = 2")

        assert refusal(path) == (
            f"{path} was made by another version of django-tasks-local (its schema is "
            "2, this version's is 1). Install that version again, or name another file "
            "in STORE_OPTIONS['PATH']."
        )
        with opened(path) as db:
            assert db.execute("SELECT count(*) FROM result").fetchone() == (1,)

    def test_file_of_another_program_is_left_as_it_is(self, path: Path) -> None:
        with opened(path) as db:
            db.execute("CREATE TABLE note (text)")
        before = path.read_bytes()

        assert refusal(path) == f"{path} {FOREIGN}"
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [NAME]

    def test_file_that_another_program_has_marked_is_left_as_it_is(
        self, path: Path
    ) -> None:
        with opened(path) as db:
            db.execute("PRAGMA application_id = 7")

        assert refusal(path) == f"{path} {FOREIGN}"

    def test_what_is_no_database_is_left_as_it_is(self, path: Path) -> None:
        before = random.Random(1).randbytes(20_000)
        path.write_bytes(before)

        assert refusal(path) == (
            f"{path}: it is no SQLite database. Name another file in "
            "STORE_OPTIONS['PATH'] (file is not a database)."
        )
        assert path.read_bytes() == before

    def test_directory_in_its_place_is_an_error(self, path: Path) -> None:
        path.mkdir()

        assert refusal(path) == (
            f"{path}: it cannot be opened: this process has to be able to read and "
            "write the file and its directory (unable to open database file)."
        )

    def test_directory_that_is_not_there_is_not_made(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere" / NAME

        assert refusal(path) == (
            f"{path} cannot be made: No such file or directory. Its directory has to "
            "be there, and to be writable."
        )
        assert os.listdir(tmp_path) == []

    def test_damaged_file_is_an_error_until_it_is_moved_away(self, path: Path) -> None:
        with stores_of(path) as (store,):
            keep(store, *(ready_record(number) for number in range(500)))
        damage(path)

        assert refusal(path) == f"{path}: {DAMAGED}"
        with sharing(path):
            with pytest.raises(StoreError):
                add.using(backend=ALIAS).enqueue(1, 2)
            move_away(path)
            handle = add.using(backend=ALIAS).enqueue(1, 2)
            assert find(handle.id).wait(LONG_S) == 3

    def test_file_that_is_damaged_while_it_is_used_is_an_error(
        self, path: Path
    ) -> None:
        with stores_of(path, 2) as (store, other):
            records = [ready_record(number) for number in range(500)]
            keep(store, *records)
            other.close()
            with opened(path) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            damage(path)
            with pytest.raises(StoreError) as caught:
                store.get(record.id for record in records)
            assert str(caught.value) == f"{path}: {DAMAGED}"

            move_away(path)

            new = ready_record(1)
            keep(store, new)
            assert list(store.unfinished()) == [new]

    def test_disk_that_cannot_share_memory_is_an_error(self, path: Path) -> None:
        try:  # what no file system lets processes share, in the place of its index
            os.mknod(f"{path}-shm", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root can make device files")

        assert refusal(path) == (
            f"{path}: it lies on a file system on which processes cannot share it, as "
            "network file systems are. Name a file on a local disk in "
            "STORE_OPTIONS['PATH'] (disk I/O error)."
        )

    def test_too_large_for_sqlite_is_an_error_of_its_own(self, path: Path) -> None:
        file = SqliteFile(
            path, schema="CREATE TABLE t (x)", schema_version=1, synchronous="NORMAL"
        )

        def write(db: sqlite3.Connection) -> None:
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
            db.execute("INSERT INTO t VALUES (?)", ("x" * 1001,))

        with pytest.raises(StoreError) as caught:
            file.write(write)
        assert str(caught.value) == (
            f"{path}: what was to be kept in it is too large (string or blob too big)."
        )
        file.write(lambda db: db.execute("INSERT INTO t VALUES (1)"))
        assert file.read("SELECT count(*) FROM t") == [(1,)]
        file.close()


def damage(path: Path) -> None:
    """Overwrite all but its first page."""
    size = path.stat().st_size
    assert size > 3 * 4096
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(1).randbytes(size - 4096))


def move_away(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        if each.is_file():
            each.rename(path.parent / f"old-{each.name}")


# The beginnings of scripts.
STORES = """
    import os, select, sys, threading, warnings
    from contextlib import closing
    from dataclasses import replace
    from pathlib import Path
    from tests.small_project import configure
    configure()
    from django_tasks_local.stores.sqlite import SqliteStore
    from django_tasks_local.testing.contract import ALIAS, in_threads, options_for
    from django_tasks_local.testing.records import do_nothing, ready_record
    def store_of(path):
        given = {"PATH": path}
        options = replace(options_for(store=SqliteStore), store_options=given)
        return SqliteStore(options, alias=ALIAS)
    def keep(store, *records):
        store.add(records, on_visible=do_nothing)
    # To fork where there are threads is what is tested here.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded")
"""
MOUNTS = """
    import json, os, subprocess, sys
    from pathlib import Path
    os.unshare(os.CLONE_NEWNS)  # the mounts end with this process
    def mount(*arguments):
        subprocess.run(["mount", *map(str, arguments)], check=True)
    mount("--make-rprivate", "/")
    disk = Path("disk").absolute()
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
"""
USES = """
    from tests.small_project import configure
    from tests.kept import ALIAS, setting_of
    path = {path}
    THREADS = {{"BACKEND": "django_tasks_local.ThreadPoolBackend"}}
    configure(TASKS={{"default": THREADS, **setting_of(path)}})
    from django_tasks_local.errors import StoreError
    from django_tasks_local.state import shutdown_executor
    from tests.small_tasks import double
    kept = double.using(backend=ALIAS)
    def answer(use):
        try:
            return use()
        except StoreError as err:
            return str(err).replace(str(path), "FILE")
    def enqueue(number=1):
        return answer(lambda: kept.enqueue(number).wait(20))
    def fill():
        with Path(disk / "filling").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
    def make_room():
        (disk / "filling").unlink()
    said = []
"""


def script(*parts: str) -> str:
    return "".join(map(textwrap.dedent, parts))


FULL = "FILE: its disk is full (database or disk is full)."
READ_ONLY_DISK = (
    "FILE cannot be made: Read-only file system. Its directory has to be there, and to "
    "be writable."
)
READ_ONLY_FILE = (
    "FILE: it cannot be written: the file, its directory or its disk is read-only for "
    "this process (attempt to write a readonly database)."
)
NOT_OPENED = (
    "FILE: it cannot be opened: this process has to be able to read and write the file "
    "and its directory (unable to open database file)."
)


@pytest.fixture
def _mounts() -> None:
    """This process may mount."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare, to see whether this process may mount")
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this process may not mount: {tried.stderr}")


@pytest.mark.usefixtures("_mounts")
class TestDisks:
    def run(self, run_script: RunScript, code: str) -> list[Any]:
        uses = USES.format(path=f"disk / {NAME!r}")
        done = run_script(script(MOUNTS, uses, code, "\nprint(json.dumps(said))\n"))
        said: list[Any] = json.loads(done.stdout)
        return said

    def test_full_disk_refuses_until_there_is_room(self, run_script: RunScript) -> None:
        assert self.run(
            run_script,
            """
    handle = kept.enqueue(1)
    said.append(handle.wait(20))
    fill()
    said.append(enqueue())
    said.append(kept.get_result(handle.id).wait(20))
    said.append(double.enqueue(3).wait(20))
    make_room()
    said.append(enqueue())
    shutdown_executor(ALIAS)
            """,
        ) == [2, FULL, 2, 6, 2]

    def test_file_is_made_once_there_is_room(self, run_script: RunScript) -> None:
        assert self.run(
            run_script,
            """
    fill()
    said += [enqueue(), enqueue(), double.enqueue(3).wait(20)]
    make_room()
    said.append(enqueue())
    shutdown_executor(ALIAS)
            """,
        ) == [FULL, FULL, 6, 2]

    def test_read_only_disk_is_an_error_until_it_is_writable(
        self, run_script: RunScript
    ) -> None:
        assert self.run(
            run_script,
            """
    mount("-o", "remount,ro", disk)
    said += [enqueue(), double.enqueue(3).wait(20)]
    mount("-o", "remount,rw", disk)
    said.append(enqueue())
    shutdown_executor(ALIAS)
    mount("-o", "remount,ro", disk)
    said.append(enqueue())
    shutdown_executor(ALIAS)
            """,
        ) == [
            READ_ONLY_DISK,
            6,
            2,
            NOT_OPENED,
        ]

    def test_read_only_file_is_an_error(self, run_script: RunScript) -> None:
        assert self.run(
            run_script,
            """
    said.append(enqueue())
    shutdown_executor(ALIAS)
    mount("--bind", path, path)
    mount("-o", "remount,bind,ro", path)
    said += [enqueue(), double.enqueue(3).wait(20)]
    shutdown_executor(ALIAS)
            """,
        ) == [
            2,
            READ_ONLY_FILE,
            6,
        ]


def test_limit_of_file_sizes_refuses_until_it_is_lifted(
    path: Path, run_script: RunScript
) -> None:
    uses = USES.format(path=f"Path({str(path)!r})")
    limited = """
    import json, resource
    said.append(enqueue())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    said += [enqueue(), double.enqueue(3).wait(20)]
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said.append(enqueue())
    shutdown_executor(ALIAS)
    print(json.dumps(said))
    """
    done = run_script(script("from pathlib import Path\n", uses, limited))

    io_error = "FILE: its disk cannot be read or written (disk I/O error)."
    assert json.loads(done.stdout) == [2, io_error, 6, 2]


class TestTheFile:
    def test_is_its_users_alone_and_carries_its_version(self, path: Path) -> None:
        with stores_of(path) as (store,):
            keep(store, ready_record(1))
            modes = {
                each.name: stat.S_IMODE(each.stat().st_mode)
                for each in path.parent.iterdir()
            }
            assert modes == {NAME: 0o600, f"{NAME}-wal": 0o600, f"{NAME}-shm": 0o600}
        with opened(path) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (1,)
            assert db.execute("PRAGMA application_id").fetchone() == (0x44544C33,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    @pytest.mark.parametrize("name", ["späße ?#%.db", "a%20b.db", "\udcff.db"])
    def test_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        with stores_of(tmp_path / name, 2) as (store, other):
            record = ready_record(1)
            keep(store, record)
            assert list(other.unfinished()) == [record]
        assert os.listdir(tmp_path) == [name]

    def test_path_may_begin_with_two_slashes(self, path: Path) -> None:
        with stores_of(Path(f"/{path}")) as (store,):
            keep(store, ready_record(1))
        assert path.exists()

    def test_may_be_there_already_if_it_is_empty(self, path: Path) -> None:
        path.touch()
        with stores_of(path) as (store,):
            keep(store, ready_record(1))

    def test_what_a_lost_file_has_left_beside_it_does_not_come_back(
        self, path: Path, run_script: RunScript
    ) -> None:
        die = """
            store = store_of(Path(sys.argv[1]))
            for number in range(100):
                keep(store, ready_record(number))
            os._exit(0)
            """
        run_script(script(STORES, die), str(path))
        assert Path(f"{path}-wal").stat().st_size > 0
        path.unlink()

        with stores_of(path) as (store,):
            assert list(store.unfinished()) == []
            record = ready_record(1)
            keep(store, record)
            assert list(store.unfinished()) == [record]

    def test_is_made_again_when_it_was_removed_while_it_is_used(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_file, "_LOOK_S", 0.0)  # or it is so a little later
        with stores_of(path) as (store,):
            old, new = ready_record(1), ready_record(2)
            keep(store, old)
            assert list(store.unfinished()) == [old]
            version = store.version()
            for each in path.parent.glob(f"{NAME}*"):
                each.unlink()

            keep(store, new)

            assert list(store.unfinished()) == [new]
            assert store.version() != version

    def test_stays_the_same_when_a_link_to_its_directory_leads_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_file, "_LOOK_S", 0.0)  # it would be seen at once
        old, new = tmp_path / "old", tmp_path / "new"
        current = tmp_path / "current"
        for directory in (old, new):
            directory.mkdir()
        current.symlink_to(old)
        with stores_of(current / NAME) as (store,):
            records = [ready_record(1), ready_record(2)]
            keep(store, records[0])
            current.unlink()
            current.symlink_to(new)

            keep(store, records[1])

            assert list(store.unfinished()) == records
        assert os.listdir(new) == []

    def test_processes_that_make_it_at_once_share_one(
        self, tmp_path: Path, run_script: RunScript
    ) -> None:
        run_script(
            script(
                STORES,
                """
            go, goes = os.pipe()
            children = []
            for number in range(4):
                pid = os.fork()
                if pid == 0:
                    os.close(goes)
                    os.read(go, 1)  # ends for all of them at once
                    for name in range(20):
                        with closing(store_of(Path(f"{name}.db"))) as store:
                            keep(store, ready_record(number))
                    os._exit(0)
                children.append(pid)
            os.close(goes)
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
            """,
            )
        )

        for name in range(20):
            with stores_of(tmp_path / f"{name}.db") as (store,):
                assert store.counts() == {"READY": 4}
            with opened(tmp_path / f"{name}.db") as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_nothing_is_open_once_it_is_closed(self, path: Path) -> None:
        with stores_of(path) as (store,):
            keep(store, ready_record(1))
            list(store.unfinished())
            store.version()
            store.close()
            assert os.listdir(path.parent) == [NAME]
            for use in (store.version, store.counts, lambda: keep(store)):
                with pytest.raises(StoreError) as caught:
                    use()
                assert str(caught.value) == f"The store in {path} was closed."

    @pytest.mark.parametrize(
        "durability, synchronous", [(None, 1), ("normal", 1), ("full", 2)]
    )
    def test_durability_says_what_a_commit_waits_for(
        self, path: Path, durability: str | None, synchronous: int
    ) -> None:
        given = {} if durability is None else {"DURABILITY": durability}
        store = SqliteStore(options_of(path, **given), alias=contract.ALIAS)
        keep(store, ready_record(1))

        pragma = "PRAGMA synchronous"
        found = store._file.write(lambda db: db.execute(pragma).fetchone())

        assert found == (synchronous,)
        store.close()


SHOP = {
    "shop/__init__.py": "",
    "shop/settings.py": """
        SECRET_KEY = "tests"
        TASKS = {
            "default": {
                "BACKEND": "django_tasks_local.ThreadPoolBackend",
                "OPTIONS": {"STORE": "sqlite"},
            }
        }
        """,
}
ENQUEUE = """
    import os, sys
    sys.path.insert(0, os.getcwd())
    os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
    import django
    django.setup()
    os.chdir("/")
    from django.conf import settings
    from django.test import override_settings
    from tests.small_tasks import double
    from django_tasks_local.state import shutdown_executor
    assert double.enqueue(2).wait(20) == 4
    shutdown_executor("default")
    with override_settings(TASKS=settings.TASKS), override_settings(DEBUG=False):
        assert double.enqueue(3).wait(20) == 6
        shutdown_executor("default")
"""


class TestSettings:
    def test_file_is_beside_the_settings_by_default(
        self, tmp_path: Path, run_script: RunScript
    ) -> None:
        run_script(ENQUEUE, files=SHOP)

        name = "django-tasks-local.sqlite3"
        found = {each.name for each in (tmp_path / "shop").glob("*sqlite*")}
        assert found == {name}
        with opened(tmp_path / "shop" / name) as db:
            assert db.execute("SELECT count(*) FROM result").fetchone() == (2,)

    def test_settings_that_are_no_module_have_to_name_it(
        self, run_script: RunScript
    ) -> None:
        run_script(
            """
            from tests.small_project import configure
            threads = "django_tasks_local.ThreadPoolBackend"
            options = {"STORE": "sqlite"}
            configure(TASKS={"default": {"BACKEND": threads, "OPTIONS": options}})
            from django.core.exceptions import ImproperlyConfigured
            from tests.small_tasks import double
            try:
                double.enqueue(2)
            except ImproperlyConfigured as err:
                assert str(err) == (
                    "TASKS['default']['OPTIONS']['STORE'] is 'sqlite' and the settings "
                    "are no module, beside which its file could be: name one in "
                    "STORE_OPTIONS['PATH']."
                ), err
            else:
                raise AssertionError("it was not refused")
            """
        )

    @pytest.mark.parametrize(
        "given, id_, message",
        [
            (
                {"DURABILITY": "some"},
                "E003",
                "['DURABILITY'] must be 'normal' or 'full', got 'some'.",
            ),
            ({"PATH": 3}, "E003", "['PATH'] must be a path, got 3."),
            ({"PATH": ""}, "E003", "['PATH'] must be a path, got ''."),
            ({"PATH": None}, "E003", "['PATH'] must be a path, got None."),
            ({"PAHT": "x"}, "E002", "['PAHT'] is not an option of SqliteStore."),
        ],
    )
    def test_mistakes_are_found_by_the_check(
        self, given: dict[str, object], id_: str, message: str
    ) -> None:
        options = {"STORE": "sqlite", "STORE_OPTIONS": given}
        tasks = {"mail": {"BACKEND": THREADS, "OPTIONS": options}}
        with override_settings(TASKS=tasks):
            (found,) = task_backends["mail"].check()

        assert found.id == f"django_tasks_local.{id_}"
        assert found.msg == f"TASKS['mail']['OPTIONS']['STORE_OPTIONS']{message}"


class TestFork:
    def test_parent_and_child_both_go_on(
        self, path: Path, run_script: RunScript
    ) -> None:
        run_script(
            script(
                STORES,
                """
            with closing(store_of(Path(sys.argv[1]))) as store:
                over = threading.Event()
                counts = [0] * 4

                def write(number):
                    while not over.is_set():
                        record = ready_record(number)
                        keep(store, record)
                        assert store.get([record.id]) == {record.id: record}
                        store.version()
                        counts[number] += 1

                threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
                for thread in threads:
                    thread.start()
                children = []
                for _ in range(10):
                    pid = os.fork()
                    if pid == 0:
                        for number in range(10):
                            record = ready_record(number)
                            keep(store, record)
                            assert store.get([record.id]) == {record.id: record}
                        store.close()
                        os._exit(0)
                    children.append(pid)
                assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 10
                over.set()
                for thread in threads:
                    thread.join()
                assert store.counts() == {"READY": 100 + sum(counts)}, counts
            """,
            ),
            str(path),
        )

        with opened(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_threads_may_fork_at_once(self, path: Path, run_script: RunScript) -> None:
        run_script(
            script(
                STORES,
                """
            raised = []
            sys.unraisablehook = raised.append
            stores = [store_of(Path(sys.argv[1])) for _ in range(3)]

            def fork():
                for number in range(5):
                    pid = os.fork()
                    if pid == 0:
                        keep(stores[number % 3], ready_record(number))
                        os._exit(0)
                    assert os.waitpid(pid, 0)[1] == 0
                    keep(stores[number % 3], ready_record(number))

            in_threads([fork] * 4, timeout_s=50)
            assert not raised, raised
            assert stores[0].counts() == {"READY": 40}
            for store in stores:
                store.close()
            """,
            ),
            str(path),
        )

    def test_child_of_a_fork_that_could_not_wait_for_a_write_keeps_its_hands_off(
        self, path: Path, run_script: RunScript
    ) -> None:
        run_script(
            script(
                STORES,
                """
                from django_tasks_local.errors import StoreError
                from django_tasks_local.stores import sqlite_file
                sqlite_file.BUSY_S = 0.01  # or the fork would wait for half a minute

                store = store_of(Path(sys.argv[1]))
                keep(store, ready_record(0))
                is_writing, may_end = threading.Event(), threading.Event()

                def write(db):
                    is_writing.set()
                    may_end.wait()

                thread = threading.Thread(target=store._file.write, args=[write])
                thread.start()
                is_writing.wait()
                pid = os.fork()
                if pid == 0:
                    for use in (store.counts, lambda: keep(store, ready_record(1))):
                        try:
                            use()
                        except StoreError as err:
                            assert "cannot be used in this process, which" in str(err)
                        else:
                            os._exit(1)
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
                may_end.set()
                thread.join()
                keep(store, ready_record(2))
                assert store.counts() == {"READY": 2}
                store.close()
                """,
            ),
            str(path),
        )

    def test_held_owner_is_not_the_childs(
        self, path: Path, run_script: RunScript
    ) -> None:
        owner = new_owner()
        with stores_of(path) as (store,):
            done = run_script(
                script(
                    STORES,
                    """
                store = store_of(Path(sys.argv[1]))
                store.ownership.hold(sys.argv[2])
                parent = os.pidfd_open(os.getpid())
                if os.fork() == 0:
                    select.select([parent], [], [])  # until it has ended
                    print(store.ownership.is_alive(sys.argv[2]), flush=True)
                    os._exit(0)
                assert store.ownership.is_alive(sys.argv[2])
                os.kill(os.getpid(), 9)
                """,
                ),
                str(path),
                owner,
                exit_code=-9,
            )
            assert done.stdout == "False\n"
            assert not store.ownership.is_alive(owner)


class TestOwners:
    def test_owner_may_be_held_again_by_who_holds_it(self, path: Path) -> None:
        owners = LockFiles(path)
        owner = new_owner()
        owners.hold(owner)
        owners.hold(owner)  # as where Ctrl-C came before that was noted

        owners.release(owner)

        assert not owners.is_alive(owner)
        assert not path.exists()

    def test_are_the_same_by_whatever_links_the_file_is_found(
        self, tmp_path: Path
    ) -> None:
        paths = [tmp_path / name / NAME for name in ("first", "second")]
        for path in paths:
            path.parent.mkdir()
            path.symlink_to(tmp_path / NAME)
        owner = new_owner()
        with stores_of(paths[0]) as (store,), stores_of(paths[1]) as (other,):
            store.ownership.hold(owner)
            assert other.ownership.is_alive(owner)
            store.ownership.release(owner)

    def test_file_that_is_not_usable_has_none(self, path: Path) -> None:
        path.write_bytes(b"x" * 5000)
        with stores_of(path) as (store,), pytest.raises(StoreError, match="no SQLite"):
            store.ownership.hold(new_owner())
        assert os.listdir(path.parent) == [NAME]


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


# After these, and nowhere else, Python looks whether a signal has come.
POINTS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}
BEGIN = "RESUME"
TOOL = 4
# What an enqueue comes through, whatever becomes of it.
WRITES = {"add", "write", "_has_turn", "_write_some", "_usable", "do", "_end_turn"}


def codes_of(*places: object) -> Iterator[CodeType]:
    """The code of functions and of classes' methods, with what is inside of it."""
    for place in places:
        if isinstance(place, type):
            yield from codes_of(*vars(place).values())
        elif isinstance(place, property):
            yield from codes_of(place.fget)
        elif isinstance(place, FunctionType):
            yield from codes_of(place.__code__, inspect.unwrap(place).__code__)
        elif isinstance(place, CodeType):
            yield place
            yield from codes_of(*place.co_consts)


def names_of(code: CodeType) -> dict[int, tuple[str, str]]:
    """By offset the instruction's name, and that of the one which stands before it."""
    pairs = itertools.pairwise([None, *dis.get_instructions(code)])
    return {
        each.offset: (each.opname, before.opname if before else "")
        for before, each in pairs
        if each is not None
    }


WRITING = {
    code: names_of(code)
    for code in codes_of(
        *vars(sqlite_file).values(),
        *vars(sqlite_opening).values(),
        SqliteStore.add,
        contextlib.suppress,
        contextlib.contextmanager,
        vars(contextlib)["_GeneratorContextManager"],
    )
}


class Interrupter:
    """Interrupts this thread's writing at the point of that number, if there is one."""

    def __init__(self, at: int, on_begin: Callable[[], None] = do_nothing) -> None:
        self._left = at
        self._on_begin = on_begin
        self._thread = threading.get_ident()
        self._last: dict[CodeType, str] = {}
        self.has_interrupted = False
        self.passed: set[str] = set()
        """The functions in which it could have been."""

    def _see(self, code: CodeType, offset: int) -> None:
        if threading.get_ident() != self._thread or self.has_interrupted:
            return
        name, above = WRITING[code][offset]
        before = self._last.get(code, "")
        self._last[code] = name
        if code.co_name == "_write_some" and above == BEGIN:
            self._on_begin()
        has_returned = before in POINTS and name != "PUSH_EXC_INFO"
        if has_returned or above == BEGIN:
            self.passed.add(code.co_name)
            self._left -= 1
            if self._left < 0:
                self.has_interrupted = True
                raise Interrupted

    def run(self, function: Callable[[], None]) -> None:
        event = sys.monitoring.events.INSTRUCTION
        sys.monitoring.use_tool_id(TOOL, "interrupter")
        sys.monitoring.register_callback(TOOL, event, self._see)
        for code in WRITING:
            sys.monitoring.set_local_events(TOOL, code, event)
        try:
            function()
        finally:
            for code in WRITING:
                sys.monitoring.set_local_events(TOOL, code, 0)
            sys.monitoring.register_callback(TOOL, event, None)
            sys.monitoring.free_tool_id(TOOL)


def keep_interrupted(
    store: SqliteStore, record: Record, interrupter: Interrupter
) -> list[Record]:
    """The record, if the store has said that it is there."""
    seen: list[Record] = []

    def add() -> None:
        store.add([record], on_visible=lambda: seen.append(record))

    try:
        interrupter.run(add)
    except Interrupted:
        assert interrupter.has_interrupted
    else:  # Ctrl-C is not swallowed
        assert not interrupter.has_interrupted
    return seen


class TestCtrlC:
    def test_at_any_moment_of_an_enqueue_it_loses_and_doubles_nothing(
        self, path: Path
    ) -> None:
        with stores_of(path) as (store,):
            keep(store, ready_record(0))
            count = 1
            for at in itertools.count():
                record = ready_record(at)
                interrupter = Interrupter(at)

                seen = keep_interrupted(store, record, interrupter)

                assert store.get([record.id]) == {each.id: each for each in seen}
                # Nothing is left of it that the next one would write.
                keep(store, ready_record(0))
                count += len(seen) + 1
                assert store.counts() == {"READY": count}
                if not interrupter.has_interrupted:
                    assert interrupter.passed >= WRITES
                    break

    def test_at_any_moment_of_a_refused_enqueue_it_comes_out(self, path: Path) -> None:
        with stores_of(path) as (store,):
            there = ready_record(0)
            keep(store, there)
            for at in itertools.count():
                interrupter = Interrupter(at)
                with pytest.raises((Interrupted, ValueError)) as caught:
                    interrupter.run(lambda: keep(store, there))

                assert (caught.type is Interrupted) is interrupter.has_interrupted
                keep(store, ready_record(at))
                assert store.counts() == {"READY": at + 2}
                if not interrupter.has_interrupted:
                    assert interrupter.passed >= WRITES
                    break

    def test_at_any_moment_of_an_enqueue_that_the_file_refuses_it_comes_out(
        self, path: Path
    ) -> None:
        with stores_of(path) as (store,), opened(path) as db:
            keep(store, ready_record(0))
            for at in itertools.count():
                db.execute("ALTER TABLE result RENAME TO away")
                refused = ready_record(at)
                interrupter = Interrupter(at)
                with pytest.raises((Interrupted, StoreError)) as caught:
                    interrupter.run(partial(keep, store, refused))
                db.execute("ALTER TABLE away RENAME TO result")

                assert (caught.type is Interrupted) is interrupter.has_interrupted
                keep(store, ready_record(at))
                assert store.counts() == {"READY": at + 2}
                if not interrupter.has_interrupted:
                    assert interrupter.passed >= WRITES
                    break

    @pytest.mark.parametrize("is_refused", [False, True])
    def test_it_keeps_nobody_elses_task_back(
        self, path: Path, is_refused: bool
    ) -> None:
        """Another thread's comes into the same transaction."""
        with stores_of(path) as (store,), ThreadPoolExecutor(1) as pool:
            thread = pool.submit(threading.current_thread).result(LONG_S)
            there = ready_record(0)
            keep(store, there)
            for at in itertools.count():
                mine = ready_record(at)
                others = there if is_refused else ready_record(at)
                futures: list[Future[None]] = []

                def begin(
                    others: Record = others, futures: list[Future[None]] = futures
                ) -> None:
                    futures.append(pool.submit(keep, store, others))
                    while not is_waiting_to_write(thread):
                        pass

                interrupter = Interrupter(at, begin)

                seen = keep_interrupted(store, mine, interrupter)

                for future in futures:
                    error = future.exception(LONG_S)
                    assert isinstance(error, ValueError) is is_refused
                    assert is_refused or error is None
                found = store.get([mine.id, others.id])
                there_by_now = [others] if futures or is_refused else []
                assert found == {each.id: each for each in (*seen, *there_by_now)}
                if not interrupter.has_interrupted:
                    assert interrupter.passed >= WRITES
                    break

    def test_it_takes_the_answer_from_nobody_else(self, path: Path) -> None:
        """Another thread's comes alone, as after one that has failed."""
        with stores_of(path) as (store,):
            keep(store, ready_record(0))
            for at in itertools.count():
                file = store._file
                other = sqlite_file._Write(count_of, is_single=True)
                file._waiting.append(other)
                file._to_be_parted = 1
                interrupter = Interrupter(at)

                keep_interrupted(store, ready_record(at), interrupter)

                keep(store, ready_record(0))  # who comes next does what is left
                assert other.is_done
                assert isinstance(other.result, int)
                if not interrupter.has_interrupted:
                    assert interrupter.passed >= WRITES
                    break

    def test_what_is_done_waits_for_nobody_elses_turn(self, path: Path) -> None:
        with stores_of(path) as (store,):
            file = store._file
            write = sqlite_file._Write(count_of, is_single=False)
            sqlite_file._Batch([write]).is_done = True
            file._turn["whose"] = sqlite_file._Turn()

            assert not file._take_back(write)

            file._turn.clear()

    def test_at_any_moment_of_closing_it_keeps_nobody_waiting(self, path: Path) -> None:
        caught: list[Interrupted] = []  # whose frames live as long as they are kept
        for at in itertools.count():
            with stores_of(path) as (store,):
                keep(store, ready_record(at))
                interrupter = Interrupter(at)
                try:
                    interrupter.run(store.close)
                except Interrupted as err:
                    caught.append(err)
                store.close()
            if not interrupter.has_interrupted:
                assert interrupter.passed >= {"close", "_has_turn", "_end_turn"}
                break

    def test_who_waits_for_a_turn_leaves_nothing_behind(self, path: Path) -> None:
        """Another thread writes meanwhile, and goes on once this one waits."""
        me = threading.current_thread()
        with stores_of(path) as (store,), ThreadPoolExecutor(1) as pool:
            keep(store, ready_record(0))
            for at in itertools.count():
                record = ready_record(at)
                has_begun, is_over = threading.Event(), threading.Event()

                def write(
                    db: sqlite3.Connection,
                    has_begun: threading.Event = has_begun,
                    is_over: threading.Event = is_over,
                ) -> None:
                    has_begun.set()
                    while not (is_over.is_set() or is_waiting_to_write(me)):
                        pass

                other = pool.submit(store._file.write, write)
                assert has_begun.wait(LONG_S)
                interrupter = Interrupter(at)

                seen = keep_interrupted(store, record, interrupter)

                is_over.set()
                other.result(LONG_S)
                assert store.get([record.id]) == {each.id: each for each in seen}
                assert not store._file._waiting
                keep(store, ready_record(0))
                if not interrupter.has_interrupted:
                    assert interrupter.passed >= {"write", "_has_turn"}
                    break


def count_of(db: sqlite3.Connection) -> int:
    """Of the rows that a statement writes, which is all of them."""
    return db.execute("UPDATE result SET finish = finish").rowcount


def is_waiting_to_write(thread: threading.Thread) -> bool:
    """Whether it stands where a write waits for its turn."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code not in WRITING:  # it may be watched there
        frame = frame.f_back
    if frame is None:
        return False
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return "woken.acquire()" in line


def steps(store: SqliteStore, use: Callable[[], object]) -> int:
    """How many hundreds of steps SQLite takes for it."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    file = store._file
    file.write(lambda db: db.set_progress_handler(step, 100))
    file.read("SELECT 1")
    assert file._reader is not None
    file._reader.set_progress_handler(step, 100)
    count = 0
    use()
    return count


def multiply(path: Path, count: int) -> None:
    """As many more rows like the last one."""
    with opened(path) as db:
        (columns,) = db.execute(
            "SELECT group_concat(name) FROM pragma_table_info('result')"
            " WHERE name NOT IN ('number', 'id', 'finish')"
        ).fetchone()
        db.execute(
            f"""
            WITH RECURSIVE n (i) AS (
                SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}
            )
            INSERT INTO result (id, finish, {columns})
            SELECT id || i, finish + i, {columns} FROM n,
                (SELECT * FROM result ORDER BY number DESC LIMIT 1)
            """
        )


class TestManyResults:
    @pytest.mark.parametrize("limit", [1, 100])
    def test_discarding_a_few_costs_the_same_however_many_there_are(
        self, path: Path, limit: int
    ) -> None:
        with stores_of(path) as (store,):
            record = ready_record(1)
            keep(store, record)
            store.save([finished_record(record)])
            multiply(path, 1_000)
            few = steps(store, lambda: store.discard(keep=100, limit=limit))
            multiply(path, 20_000)
            many = steps(store, lambda: store.discard(keep=100, limit=limit))

            assert few > 0
            assert many < 1.5 * few
            assert store.discard(keep=100) == 21_001 - 100 - 2 * limit
            assert store.counts() == {"SUCCESSFUL": 100}

    def test_owners_are_found_as_quickly_however_many_tasks_wait(
        self, path: Path
    ) -> None:
        with stores_of(path) as (store,):
            keep(store, ready_record(1), ready_record(2))
            multiply(path, 20_000)

            assert steps(store, lambda: store.owners()) <= 2

    def test_reading_twice_as_many_costs_twice_as_much(self, path: Path) -> None:
        with stores_of(path) as (store,):
            keep(store, ready_record(1))
            multiply(path, 3_999)
            few = steps(store, lambda: list(store.unfinished()))
            multiply(path, 4_000)
            assert len(list(store.unfinished())) == 8_000

            assert steps(store, lambda: list(store.unfinished())) < 2.5 * few

    def test_time_that_is_none_does_not_keep_what_is_old(self, path: Path) -> None:
        with stores_of(path) as (store,):
            records = [ready_record(number) for number in range(4)]
            keep(store, *records)
            store.save([finished_record(each, at=3_000.0) for each in records])
            with opened(path) as db:
                query = "UPDATE result SET finished_at = ? WHERE id = ?"
                db.execute(query, ("yesterday", records[0].id))
                db.execute(query, (b"\xff", records[1].id))

            assert store.discard(keep=10) == 0
            assert store.discard(finished_before=3_000.0) == 2
            assert store.counts() == {"SUCCESSFUL": 2}


# SQL for what nobody can read.
UNREADABLE: Sequence[tuple[str, str]] = (
    ("status", "'LOST'"),
    ("status", "CAST(x'ff' AS TEXT)"),
    ("status", "'SUCCESSFUL'"),
    ("owner", "CAST(x'ff41' AS TEXT)"),
    ("owner", "x'41'"),
    ("id", "CAST(x'ff42' AS TEXT)"),
    ("id", "x'43'"),
    ("task_path", "x'00'"),
    ("priority", "'high'"),
    ("arguments", "'[[1],{}] '"),
    ("arguments", "CAST(x'ff' AS TEXT)"),
    ("enqueued_at", "'today'"),
    ("enqueued_at", "1e300"),
    ("started_at", "9e999"),
    ("metadata", "'[]'"),
    ("errors", "'[[1, 2]]'"),
    ("revision", "0.5"),
)


class TestUnreadableRows:
    def test_they_keep_no_other_from_being_adopted(
        self, path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        with OtherProcess(path, setting_of(path, MAX_WORKERS=1)) as other:
            other.enqueue(hold, gate.port)
            gate.next_visitor()
            ids = other.enqueue_many(add, len(UNREADABLE) + 3, 3, 4)
            other.kill()
        with opened(path) as db:
            for result_id, (column, value) in zip(ids[1:], UNREADABLE, strict=False):
                query = f"UPDATE result SET {column} = {value} WHERE id = ?"
                assert db.execute(query, (result_id,)).rowcount == 1
        good = [ids[0], *ids[len(UNREADABLE) + 1 :]]

        with sharing(path), stores_of(path, alias=ALIAS) as (store,):
            serve()
            assert [find(each).wait(LONG_S) for each in good] == [7] * 3
            for result_id in ids[1 : len(UNREADABLE) + 1]:
                with pytest.raises(TaskResultDoesNotExist):
                    find(result_id)
            assert list(store.unfinished()) == []

            assert store.counts() == {
                "SUCCESSFUL": 3,
                "FAILED": 1,
                "UNREADABLE": len(UNREADABLE),
            }
        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        ours = [each for each in errors if "set aside" in each.message]
        assert len(ours) == len(UNREADABLE)
        assert {each.name for each in ours} == {"django_tasks_local"}
        assert (
            ours[0].message
            == (
                f"TASKS['kept']: {path}: result {ids[1]!r} cannot be read and was set "
                "aside, in the table 'unreadable': ValueError: 'LOST' is not a valid "
                "TaskResultStatus"
            )
            or ids[1] not in ours[0].message
        )
        with opened(path) as db:
            rows = db.execute("SELECT alias, reason, content FROM unreadable")
            contents = [content for alias, _, content in rows if alias == ALIAS]
        assert len(contents) == len(UNREADABLE)
        assert all(content.isascii() for content in contents)
        assert sum(ids[1] in content for content in contents) == 1

    def test_status_that_is_none_is_counted_as_unreadable(self, path: Path) -> None:
        with stores_of(path) as (store,):
            keep(store, ready_record(1), ready_record(2))
            with opened(path) as db:
                db.execute("UPDATE result SET status = x'ff' WHERE number = 1")

            assert store.counts() == {"READY": 1, "UNREADABLE": 1}

    def test_what_has_taken_its_number_since_stays(self, path: Path) -> None:
        with stores_of(path, 2) as (store, other):
            good, bad, late = (ready_record(number) for number in range(3))
            keep(store, good, bad)
            with opened(path) as db:
                db.execute("UPDATE result SET status = 'LOST' WHERE number = 2")
            rows = store._file.read(
                "SELECT * FROM result WHERE alias = ? ORDER BY number",
                contract.ALIAS,
            )
            assert dict(other.get([bad.id])) == {}  # it is set aside
            keep(other, late)
            with opened(path) as db:
                query = "SELECT number FROM result WHERE id = ?"
                assert db.execute(query, (late.id,)).fetchone() == (2,)

            assert store._readable([row[:-1] for row in rows]) == [good]

            assert list(store.unfinished()) == [good, late]
            assert store.counts() == {"READY": 2, "UNREADABLE": 1}


class TestSharing:
    def test_huge_arguments_and_values_come_back(self, path: Path) -> None:
        text = "größer 🧵 " * 1_000_000
        with sharing(path), stores_of(path, alias=ALIAS) as (other,):
            handle = echo.using(backend=ALIAS).enqueue(text)
            assert handle.wait(LONG_S) == text
            assert find(handle.id).return_value == text
            assert find(handle.id).args == [text]
            assert other.counts() == {"SUCCESSFUL": 1}

    def test_aliases_of_one_file_know_only_their_own(self, path: Path) -> None:
        setting = setting_of(path)
        with override_settings(TASKS={**setting, "default": setting[ALIAS]}):
            mine = add.using(backend=ALIAS).enqueue(1, 2)
            others = add.enqueue(3, 4)
            assert (mine.wait(LONG_S), others.wait(LONG_S)) == (3, 7)
            assert find(mine.id).return_value == 3
            assert add.get_result(others.id).return_value == 7
            for task, other in ((add, mine), (add.using(backend=ALIAS), others)):
                with pytest.raises(TaskResultDoesNotExist):
                    task.get_result(other.id)
            shutdown_executor("default")
            shutdown_executor(ALIAS)

    def test_what_comes_together_is_written_together_and_refused_alone(
        self, path: Path
    ) -> None:
        with stores_of(path) as (store,):
            there = ready_record(0)
            keep(store, there)

            def adder(number: int) -> Callable[[], list[str]]:
                def run() -> list[str]:
                    ids: list[str] = []
                    for _ in range(20):
                        record = ready_record(number)
                        if number % 2:
                            with pytest.raises(ValueError, match="is there already"):
                                keep(store, record, there)
                        else:
                            keep(store, record)
                            ids.append(record.id)
                    return ids

                return run

            added = in_threads([adder(n) for n in range(8)], timeout_s=LONG_S)

            ids = [there.id, *(result_id for each in added for result_id in each)]
            assert {record.id for record in store.unfinished()} == set(ids)
