"""Contract suites for executors and stores that others write.

Provisional, as the Protocols are. Each suite is a plain class whose ``test_`` methods
use plain asserts: subclass it in a module of your tests, say how to make what is
tested, and pytest runs it; for unittest, derive from `unittest.TestCase` as well. The
project's settings must be set up. Nothing here imports a test framework.
"""
# ruff: noqa: D102  # the name of a test says what is promised

import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, ClassVar, NamedTuple, Self, override

from django.tasks.base import TaskResultStatus

from .context import LocalTaskContext, current_result_id, lending_slot
from .errors import WorkerLost
from .executors.threads import ThreadExecutor
from .identity import new_result_id, this_process
from .json_text import decode_value, encode_arguments, encode_value
from .options import LocalOptions
from .protocols import ExecutorFactory, ResultStore, ResultStoreFactory, TaskExecutor
from .records import (
    Call,
    EnqueueRequest,
    ErrorRecord,
    GetRequest,
    Outcome,
    Record,
    Refusal,
    TaskSpec,
    Timestamp,
    apply_outcome,
    apply_start,
)
from .stores.memory import MemoryStore

__all__ = ["ExecutorContract", "RecordingHost", "ResultStoreContract", "Start"]

_ALIAS = "contract"


def _options(
    *,
    max_workers: int = 2,
    store: ResultStoreFactory = MemoryStore,
    executor: ExecutorFactory = ThreadExecutor,
) -> LocalOptions:
    return LocalOptions(
        max_workers=max_workers,
        max_results=None,
        max_pending=None,
        shutdown_timeout_s=10.0,
        store=store,
        store_options={},
        executor=executor,
        executor_options={},
    )


def _in_threads[R](
    functions: Sequence[Callable[[], R]], *, timeout_s: float
) -> list[R]:
    """What the functions return that begin at the same time, a thread each."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], R]) -> R:
        barrier.wait(timeout_s)
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        futures = [threads.submit(run, function) for function in functions]
        return [future.result(timeout_s) for future in futures]


# Stores.


def _ready(number: int, *, enqueued_at: Timestamp | None = None) -> Record:
    return Record(
        id=new_result_id(),
        task=TaskSpec("project.tasks.work", 0, "default", _ALIAS, False),
        alias=_ALIAS,
        arguments=f"[[{number}],{{}}]",
        run_after=None,
        owner=this_process(),
        enqueued_at=1_000.0 + number if enqueued_at is None else enqueued_at,
    )


def _running(record: Record) -> Record:
    return apply_start(record, worker_id="host:1:worker", at=2_000.0)


def _finished(record: Record, *, at: Timestamp = 3_000.0) -> Record:
    return apply_outcome(record, Outcome(record.id, at, "null"))


def _nothing() -> None:
    pass


class ResultStoreContract:
    """What a `ResultStore` promises, as tests. Override `make_store`."""

    timeout_s: ClassVar[float] = 30.0
    """What takes longer than this many seconds has failed."""
    racers: ClassVar[int] = 8
    """How many threads use the store at once."""

    def make_store(self, options: LocalOptions, /, *, alias: str) -> ResultStore:
        """A new and empty store, as its `ResultStoreFactory` would make it.

        Called once a test. `options` has no ``store_options``: use
        `dataclasses.replace` to give some. The suite closes the store.
        """
        raise NotImplementedError

    @contextmanager
    def _store(self) -> Generator[ResultStore]:
        store = self.make_store(_options(store=self.make_store), alias=_ALIAS)
        try:
            yield store
        finally:
            store.close()

    @staticmethod
    def _add(store: ResultStore, *records: Record) -> None:
        store.add(records, on_visible=_nothing)

    @staticmethod
    def _add_finished(store: ResultStore, count: int) -> list[Record]:
        """Records that were added in one order and finished in the opposite one."""
        records = [_ready(number) for number in range(count)]
        store.add(records, on_visible=_nothing)
        finished = [
            _finished(record, at=3_000.0 + position)
            for position, record in enumerate(reversed(records))
        ]
        for record in finished:
            assert list(store.save([record])) == [True]
        return finished

    def test_says_what_it_is(self) -> None:
        with self._store() as store:
            assert isinstance(store.is_shared, bool)
            assert isinstance(store.is_durable, bool)
            assert isinstance(store.may_block, bool)

    # add

    def test_added_records_are_there(self) -> None:
        first, second = _ready(1), _ready(2)
        with self._store() as store:
            self._add(store, first, second)

            assert dict(store.get([first.id, second.id])) == {
                first.id: first,
                second.id: second,
            }

    def test_on_visible_is_called_once(self) -> None:
        calls: list[str] = []
        with self._store() as store:
            store.add([_ready(1), _ready(2)], on_visible=lambda: calls.append("seen"))

            assert calls == ["seen"]

    def test_others_see_the_records_when_on_visible_is_called(self) -> None:
        records = [_ready(1), _ready(2)]
        ids = [record.id for record in records]
        seen: list[set[str]] = []
        with self._store() as store:

            def look() -> None:
                (found,) = _in_threads(
                    [lambda: store.get(ids)], timeout_s=self.timeout_s
                )
                seen.append(set(found))

            store.add(records, on_visible=look)

            assert seen == [set(ids)]

    def test_on_visible_may_use_the_store(self) -> None:
        record = _ready(1)
        began = _running(record)
        saved: list[bool] = []
        with self._store() as store:
            store.add([record], on_visible=lambda: saved.extend(store.save([began])))

            assert saved == [True]
            assert store.get([record.id])[record.id] == began

    def test_id_that_is_there_is_refused(self) -> None:
        record = _ready(1)
        with self._store() as store:
            self._add(store, record)
            for again in (record, _ready(2)._replace(id=record.id)):
                self._assert_refused(store, [again])

            assert store.get([record.id])[record.id] == record

    def test_id_of_a_finished_record_is_refused(self) -> None:
        with self._store() as store:
            (finished,) = self._add_finished(store, 1)
            self._assert_refused(store, [_ready(2)._replace(id=finished.id)])

            assert store.get([finished.id])[finished.id] == finished

    def test_all_are_added_or_none(self) -> None:
        kept, first, last = _ready(1), _ready(2), _ready(3)
        with self._store() as store:
            self._add(store, kept)
            self._assert_refused(store, [first, kept, last])

            assert set(store.get([kept.id, first.id, last.id])) == {kept.id}
            assert [record.id for record in store.unfinished()] == [kept.id]

    def _assert_refused(self, store: ResultStore, records: Sequence[Record]) -> None:
        calls: list[str] = []
        try:
            store.add(records, on_visible=lambda: calls.append("seen"))
        except ValueError:
            pass
        else:
            raise AssertionError("an id that is there already was added again")
        assert calls == []

    def test_of_many_that_add_one_id_one_wins(self) -> None:
        record = _ready(0)
        rivals = [record._replace(owner=f"host:{n}") for n in range(self.racers)]
        with self._store() as store:

            def adder(rival: Record) -> Callable[[], bool]:
                def add() -> bool:
                    try:
                        self._add(store, rival)
                    except ValueError:
                        return False
                    return True

                return add

            won = _in_threads(
                [adder(rival) for rival in rivals], timeout_s=self.timeout_s
            )

            assert won.count(True) == 1
            assert store.get([record.id])[record.id] == rivals[won.index(True)]

    # get

    def test_unknown_ids_are_left_out(self) -> None:
        record = _ready(1)
        with self._store() as store:
            self._add(store, record)

            assert dict(store.get([new_result_id(), record.id, "no id"])) == {
                record.id: record
            }
            assert dict(store.get([new_result_id()])) == {}
            assert dict(store.get([])) == {}

    def test_ids_may_come_from_a_generator_and_twice(self) -> None:
        record = _ready(1)
        with self._store() as store:
            self._add(store, record)

            assert dict(store.get(record.id for _ in range(2))) == {record.id: record}

    def test_records_come_back_as_they_were(self) -> None:
        ready = Record(
            id=new_result_id(),
            task=TaskSpec("project.tasks.Größe", -100, "späť 🚚", "other", True),
            alias=_ALIAS,
            arguments=encode_arguments(
                ["ü", "\n", "漢字", "🧵"], {"größe": [None, 1.5]}
            ),
            run_after=1_700_000_000.123456,
            owner="höst:123",
            enqueued_at=1_699_999_999.987654,
        )
        running = apply_start(ready, worker_id="höst:123:ein Arbeiter 🧵", at=0.1 + 0.2)
        failed = apply_outcome(
            running,
            Outcome(
                ready.id,
                1_700_000_001.000001,
                error=ErrorRecord("project.Größenfehler", "Zeile 1\n\t“漢字”\r\n🧵\n"),
            ),
        )
        with self._store() as store:
            self._add(store, ready)
            self._assert_same(store, ready)
            for record in (running, failed):
                assert list(store.save([record])) == [True]
                self._assert_same(store, record)

    def test_large_texts_come_back_as_they_were(self) -> None:
        text = "größer 🧵 " * 200_000
        record = _ready(1)._replace(arguments=encode_arguments([text], {}))
        finished = apply_outcome(
            _running(record), Outcome(record.id, 3_000.0, encode_value(text))
        )
        with self._store() as store:
            self._add(store, record)
            self._assert_same(store, record)
            assert list(store.save([finished._replace(revision=1)])) == [True]
            self._assert_same(store, finished._replace(revision=1))

    @staticmethod
    def _assert_same(store: ResultStore, record: Record) -> None:
        found = store.get([record.id])[record.id]
        assert found == record
        # Tuples are equal whatever their classes are, and statuses are strings.
        assert type(found) is Record
        assert type(found.task) is TaskSpec
        assert type(found.task.takes_context) is bool
        assert type(found.status) is TaskResultStatus
        assert type(found.errors) is tuple
        assert all(type(error) is ErrorRecord for error in found.errors)
        assert type(found.worker_ids) is tuple

    # save

    def test_next_revision_replaces_a_record(self) -> None:
        record = _ready(1)
        running = _running(record)
        finished = _finished(running)
        with self._store() as store:
            self._add(store, record)
            for changed in (running, finished):
                assert list(store.save([changed])) == [True]
                assert store.get([record.id])[record.id] == changed

    def test_any_other_revision_is_refused(self) -> None:
        record = _ready(1)
        running = _running(record)
        with self._store() as store:
            self._add(store, record)
            assert list(store.save([running])) == [True]
            for revision in (-1, 0, 1, 3):
                other = _finished(running)._replace(revision=revision)
                assert list(store.save([other])) == [False]

            assert store.get([record.id])[record.id] == running

    def test_record_that_is_not_there_is_refused(self) -> None:
        record = _ready(1)
        with self._store() as store:
            assert list(store.save([_running(record)])) == [False]

            assert dict(store.get([record.id])) == {}
            assert list(store.unfinished()) == []

    def test_save_says_for_each_record_whether_it_was_taken(self) -> None:
        first, second, unknown = _ready(1), _ready(2), _ready(3)
        stale = _finished(second)._replace(revision=5)
        with self._store() as store:
            self._add(store, first, second)

            saved = store.save([stale, _running(first), _running(unknown)])

            assert list(saved) == [False, True, False]
            assert dict(store.get([first.id, second.id, unknown.id])) == {
                first.id: _running(first),
                second.id: second,
            }
            assert list(store.save([])) == []

    def test_of_many_that_save_one_revision_one_wins(self) -> None:
        record = _ready(0)
        with self._store() as store:
            self._add(store, record)
            for revision in range(1, 11):
                changes = [
                    record._replace(owner=f"host:{number}", revision=revision)
                    for number in range(self.racers)
                ]

                def saver(change: Record) -> Callable[[], bool]:
                    return lambda: store.save([change])[0]

                won = _in_threads(
                    [saver(change) for change in changes], timeout_s=self.timeout_s
                )

                assert won.count(True) == 1
                winner = changes[won.index(True)]
                assert store.get([record.id])[record.id] == winner

    # unfinished

    def test_unfinished_records_come_oldest_first(self) -> None:
        records = [_ready(number) for number in range(6)]
        with self._store() as store:
            for record in records:
                self._add(store, record)
            # What happens to a record does not make it younger.
            for record in (records[4], records[1]):
                store.save([_running(record)])
            store.save([_finished(records[0]), _finished(records[3])])

            assert list(store.unfinished()) == [
                _running(records[1]),
                records[2],
                _running(records[4]),
                records[5],
            ]

    def test_nothing_is_unfinished_at_first(self) -> None:
        with self._store() as store:
            assert list(store.unfinished()) == []

    def test_unfinished_records_are_those_of_the_call(self) -> None:
        first, second, late = _ready(1), _ready(2), _ready(3)
        with self._store() as store:
            self._add(store, first, second)

            unfinished = store.unfinished()
            self._add(store, late)
            store.save([_finished(first)])

            assert list(unfinished) == [first, second]

    # discard

    def test_discard_keeps_those_that_finished_last(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 5)

            assert store.discard(keep=2) == 3
            assert self._left(store, finished) == finished[3:]
            assert store.discard(keep=2) == 0
            assert store.discard(keep=0) == 2
            assert self._left(store, finished) == []

    def test_discard_goes_by_age(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 5)

            # The one that finished at that very moment is not older.
            assert store.discard(finished_before=3_002.0) == 2
            assert self._left(store, finished) == finished[2:]
            assert store.discard(finished_before=3_002.0) == 0

    def test_discard_goes_by_age_or_number(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 6)

            assert store.discard(finished_before=3_002.0, keep=5) == 2
            assert store.discard(finished_before=3_002.0, keep=3) == 1
            assert self._left(store, finished) == finished[3:]

    def test_discard_stops_at_its_limit(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 5)

            assert store.discard(keep=1, limit=2) == 2
            assert self._left(store, finished) == finished[2:]
            assert store.discard(finished_before=9_000.0, limit=1) == 1
            assert self._left(store, finished) == finished[3:]
            assert store.discard(keep=0, limit=0) == 0
            assert store.discard(keep=0, limit=100) == 2

    def test_discard_without_a_condition_forgets_nothing(self) -> None:
        with self._store() as store:
            finished = self._add_finished(store, 3)

            assert store.discard() == 0
            assert self._left(store, finished) == finished

    def test_unfinished_records_are_never_discarded(self) -> None:
        waiting, running = _ready(1), _ready(2)
        with self._store() as store:
            self._add(store, waiting, running)
            store.save([_running(running)])
            finished = self._add_finished(store, 3)

            assert store.discard(keep=0, finished_before=9_000.0) == 3
            assert self._left(store, finished) == []
            assert list(store.unfinished()) == [waiting, _running(running)]
            assert store.discard(keep=0, finished_before=9_000.0) == 0

    def test_discarded_record_cannot_be_saved(self) -> None:
        with self._store() as store:
            (finished,) = self._add_finished(store, 1)
            store.discard(keep=0)

            again = finished._replace(revision=finished.revision + 1)
            assert list(store.save([again])) == [False]
            assert dict(store.get([finished.id])) == {}

    @staticmethod
    def _left(store: ResultStore, records: Sequence[Record]) -> list[Record]:
        found = store.get(record.id for record in records)
        return [record for record in records if record.id in found]

    # All of it.

    def test_threads_may_do_everything_at_once(self) -> None:
        with self._store() as store:

            def live(number: int) -> Callable[[], list[str]]:
                def run() -> list[str]:
                    ids: list[str] = []
                    for turn in range(20):
                        record = _ready(turn)
                        self._add(store, record)
                        assert store.save([_running(record)])[0]
                        assert record.id in {each.id for each in store.unfinished()}
                        found = store.get([record.id])
                        assert found == {record.id: _running(record)}
                        if number % 2:
                            assert store.save([_finished(_running(record))])[0]
                            store.discard(keep=3)
                        else:
                            ids.append(record.id)
                    return ids

                return run

            lives = [live(number) for number in range(self.racers)]
            left = _in_threads(lives, timeout_s=self.timeout_s)

            unfinished = {record.id for record in store.unfinished()}
            assert unfinished == {result_id for ids in left for result_id in ids}
            assert store.discard(keep=0) == 3

    def test_store_may_be_closed_twice(self) -> None:
        with self._store() as store:
            self._add(store, _ready(1))
            store.close()
            store.close()


# Executors.


class Start(NamedTuple):
    """What an executor told its host at the start of a call."""

    result_id: str
    worker_id: str
    at: Timestamp


class RecordingHost:
    """A `WorkerHost` for tests: makes calls, and keeps what it is told of them."""

    def __init__(self, *, alias: str = _ALIAS) -> None:
        self.alias = alias
        self.starts: list[Start] = []
        """What `started` was called with, in order."""
        self.requests: list[EnqueueRequest | GetRequest] = []
        """What `serve` was asked; each was refused."""
        self.lent: list[str] = []
        """The ids that `lend_slot` was called with, in order."""
        self.reclaimed: list[str] = []
        """The ids that `reclaim_slot` was called with, in order."""
        self._calls: dict[str, Call] = {}

    def make_call(
        self,
        function: Callable[..., object],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        slot: int = 0,
        takes_context: bool = False,
    ) -> Call:
        """A call of a module-level function, as a dispatcher would submit it."""
        path = f"{function.__module__}.{function.__qualname__}"
        record = Record(
            id=new_result_id(),
            task=TaskSpec(path, 0, "default", self.alias, takes_context),
            alias=self.alias,
            arguments=encode_arguments(args, kwargs or {}),
            run_after=None,
            owner=this_process(),
            enqueued_at=time.time(),
        )
        call = Call(record, slot, function, copy_context())
        self._calls[record.id] = call
        return call

    def starts_of(self, call: Call, /) -> list[Start]:
        """What `started` was called with for that call."""
        return [start for start in self.starts if start.result_id == call.record.id]

    # WorkerHost.

    def started(self, result_id: str, /, *, worker_id: str, at: Timestamp) -> Record:
        self.starts.append(Start(result_id, worker_id, at))
        call = self._calls[result_id]
        return apply_start(call.record, worker_id=worker_id, at=at)

    def serve(self, request: EnqueueRequest | GetRequest, /) -> Record | Refusal:
        self.requests.append(request)
        return Refusal("builtins.LookupError", "A RecordingHost has no results.")

    def on_finished(
        self, alias: str, result_id: str, notify: Callable[[Record], None], /
    ) -> Callable[[], None] | None:
        return None

    def lend_slot(self, result_id: str, /) -> None:
        self.lent.append(result_id)

    def reclaim_slot(self, result_id: str, /) -> None:
        self.reclaimed.append(result_id)


class _Gate:
    """Holds calls wherever they run, until it is opened.

    A held call waits on a connection to this machine's loopback address.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.settimeout(timeout_s)
        self._held: list[socket.socket] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def wait_for_arrivals(self, count: int) -> None:
        """Block until as many more calls are held. Raises TimeoutError."""
        for _ in range(count):
            connection, _ = self._listener.accept()
            self._held.append(connection)

    def open(self) -> None:
        """Let all that were held go on."""
        while self._held:
            self._held.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.open()
        self._listener.close()


# What the calls run. Module-level functions, since a worker process imports them.


def _echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


async def _echo_async(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


def _hold(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)  # nothing comes: the other end closes it
    return "went on"


def _see(context: LocalTaskContext) -> dict[str, Any]:
    result = context.task_result
    return {
        "current_result_id": current_result_id.get(),
        "id": result.id,
        "status": result.status,
        "worker_ids": result.worker_ids,
        "attempt": context.attempt,
    }


class _TwoArguments(Exception):
    """Cannot be unpickled, which breaks pools that send exceptions."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class _Unshowable(Exception):
    @override
    def __str__(self) -> str:
        raise ValueError("no text")


class _FarOut(BaseException):
    pass


def _raise(kind: str) -> None:
    match kind:
        case "SystemExit":
            raise SystemExit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "GeneratorExit":
            raise GeneratorExit
        case "BaseException":
            raise _FarOut("far out")
        case "two arguments":
            raise _TwoArguments("this", "that")
        case "unshowable":
            raise _Unshowable
        case _:
            raise ValueError(f"wrong: {kind}")


def _return_odd(kind: str) -> object:
    match kind:
        case "set":
            return {1, 2}
        case "nan":
            return float("nan")
        case "bytes":
            return b"\xff"
        case "recursive":
            items: list[object] = []
            items.append(items)
            return items
        case _:
            return object()


def _die(exit_code: int) -> None:
    os._exit(exit_code)


def _lend() -> None:
    with lending_slot():  # as one does who waits for a task
        pass


def _get_var() -> str:
    return _var.get()


_var: ContextVar[str] = ContextVar("_var", default="unset")


def _path(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class ExecutorContract:
    """What a `TaskExecutor` promises, as tests. Override `make_executor`."""

    timeout_s: ClassVar[float] = 30.0
    """What takes longer than this many seconds has failed."""
    has_own_processes: ClassVar[bool] = False
    """Calls run in other processes: the suite ends some of these."""

    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> TaskExecutor:
        """A new executor, as its `ExecutorFactory` would make it.

        Called once a test. `options` has no ``executor_options``: use
        `dataclasses.replace` to give some. The suite shuts the executor down.
        """
        raise NotImplementedError

    @contextmanager
    def _executor(
        self, *, max_workers: int = 2
    ) -> Generator[tuple[TaskExecutor, RecordingHost]]:
        host = RecordingHost()
        executor = self.make_executor(_options(max_workers=max_workers), host=host)
        try:
            yield executor, host
        finally:
            executor.shutdown(timeout_s=self.timeout_s)

    def _gate(self) -> _Gate:
        return _Gate(timeout_s=self.timeout_s)

    def _outcome(self, executor: TaskExecutor, call: Call) -> Outcome:
        return self._result(call, executor.submit(call))

    def _result(self, call: Call, future: Future[Outcome]) -> Outcome:
        """The outcome of a Future, which is that of the call."""
        outcome = future.result(self.timeout_s)
        assert type(outcome) is Outcome
        assert outcome.result_id == call.record.id
        assert (outcome.value is None) != (outcome.error is None)
        assert outcome.finished_at >= call.record.enqueued_at
        assert not future.cancelled()
        return outcome

    def _value(self, executor: TaskExecutor, call: Call) -> Any:
        return self._value_of(self._outcome(executor, call))

    @staticmethod
    def _value_of(outcome: Outcome) -> Any:
        assert outcome.error is None, outcome.error.traceback
        assert outcome.value is not None
        return decode_value(outcome.value)

    # What comes of a call.

    def test_function_is_called_with_its_arguments(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_echo, [1, "größe 🧵", None], {"key": [1.5, True]})

            assert self._value(executor, call) == [
                [1, "größe 🧵", None],
                {"key": [1.5, True]},
            ]

    def test_coroutine_function_runs_to_its_end(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_echo_async, [1], {"key": 2})

            assert self._value(executor, call) == [[1], {"key": 2}]

    def test_large_arguments_and_values_arrive(self) -> None:
        text = "größer 🧵 " * 200_000
        with self._executor() as (executor, host):
            assert self._value(executor, host.make_call(_echo, [text])) == [[text], {}]

    def test_exception_is_an_outcome(self) -> None:
        self._assert_raised("input", ValueError, text="wrong: input")

    def test_exception_that_cannot_be_unpickled_is_an_outcome(self) -> None:
        self._assert_raised("two arguments", _TwoArguments, text="this and that")

    def test_exception_that_cannot_be_shown_is_an_outcome(self) -> None:
        self._assert_raised("unshowable", _Unshowable, text="_Unshowable")

    def test_system_exit_is_an_outcome(self) -> None:
        self._assert_raised("SystemExit", SystemExit, text="SystemExit: 3")

    def test_keyboard_interrupt_is_an_outcome(self) -> None:
        self._assert_raised(
            "KeyboardInterrupt", KeyboardInterrupt, text="KeyboardInterrupt"
        )

    def test_any_base_exception_is_an_outcome(self) -> None:
        self._assert_raised("BaseException", _FarOut, text="far out")
        self._assert_raised("GeneratorExit", GeneratorExit, text="GeneratorExit")

    def _assert_raised(
        self, kind: str, error_class: type[BaseException], *, text: str
    ) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_raise, [kind])
            error = self._outcome(executor, call).error

            assert error is not None
            assert error.exception_class_path == _path(error_class)
            assert text in error.traceback
            assert len(host.starts_of(call)) == 1
            # The worker is as good as before.
            assert self._value(executor, host.make_call(_echo)) == [[], {}]

    def test_value_that_is_not_json_is_a_type_error(self) -> None:
        with self._executor() as (executor, host):
            for kind in ("object", "set", "nan", "bytes", "recursive"):
                call = host.make_call(_return_odd, [kind])
                error = self._outcome(executor, call).error

                assert error is not None, kind
                assert error.exception_class_path == _path(TypeError), kind

    def test_function_that_cannot_be_imported_has_an_outcome(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_echo, [1])
            lost = call.record.task._replace(path="no_such_module.tasks.work")
            call = call._replace(record=call.record._replace(task=lost))

            self._outcome(executor, call)  # an error where it had to be imported
            assert self._value(executor, host.make_call(_echo)) == [[], {}]

    # Its start.

    def test_start_is_told_once_and_before_the_function_runs(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            submitted_at = time.time()
            future = executor.submit(call)
            gate.wait_for_arrivals(1)

            (start,) = host.starts_of(call)
            assert start.worker_id
            assert submitted_at <= start.at <= time.time()
            gate.open()
            outcome = self._result(call, future)
            assert outcome.finished_at >= start.at
            assert host.starts_of(call) == [start]

    def test_task_sees_the_record_of_its_start(self) -> None:
        with self._executor() as (executor, host):
            call = host.make_call(_see, takes_context=True)
            seen = self._value(executor, call)

            (start,) = host.starts_of(call)
            assert seen == {
                "current_result_id": call.record.id,
                "id": call.record.id,
                "status": "RUNNING",
                "worker_ids": [start.worker_id],
                "attempt": 1,
            }

    def test_function_runs_in_the_calls_context(self) -> None:
        """For calls in this process: a context cannot be sent to another."""
        if self.has_own_processes:
            return
        with self._executor() as (executor, host):
            call = host.make_call(_get_var)
            assert call.context is not None
            call.context.run(_var.set, "the enqueuer's")

            assert self._value(executor, call) == "the enqueuer's"
            assert self._value(executor, host.make_call(_get_var)) == "unset"

    def test_task_that_waits_lends_its_slot(self) -> None:
        """For calls in this process: in another, waiting takes more than a host."""
        if self.has_own_processes:
            return
        with self._executor() as (executor, host):
            call = host.make_call(_lend)

            assert self._value(executor, call) is None
            assert host.lent == [call.record.id]
            assert host.reclaimed == [call.record.id]

    # Slots.

    def test_submit_does_not_wait_for_the_call(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            future = executor.submit(call)

            assert not future.done()
            gate.wait_for_arrivals(1)
            gate.open()
            assert self._value_of(self._result(call, future)) == "went on"

    def test_slots_run_at_once(self) -> None:
        self._assert_at_once(max_workers=3, slots=range(3))

    def test_more_slots_than_max_workers_run_at_once(self) -> None:
        """Tasks that wait for tasks lend their slots, and the others get new ones."""
        self._assert_at_once(max_workers=1, slots=range(4))

    def _assert_at_once(self, *, max_workers: int, slots: Sequence[int]) -> None:
        with (
            self._executor(max_workers=max_workers) as (executor, host),
            self._gate() as gate,
        ):
            for _ in range(2):  # the second time slots are taken that were used before
                calls = [
                    host.make_call(_hold, [gate.port], slot=slot) for slot in slots
                ]
                futures = [executor.submit(call) for call in calls]
                gate.wait_for_arrivals(len(calls))

                assert not any(future.done() for future in futures)
                gate.open()
                for call, future in zip(calls, futures, strict=True):
                    assert self._value_of(self._result(call, future)) == "went on"

    def test_slot_may_be_taken_again_from_the_callback_of_its_last_call(self) -> None:
        turns = 50
        with self._executor(max_workers=1) as (executor, host):
            outcomes: list[Outcome] = []
            all_done: Future[None] = Future()

            def take(future: Future[Outcome]) -> None:
                try:
                    outcomes.append(future.result(0))
                    submit()
                except BaseException as err:
                    all_done.set_exception(err)
                    raise

            def submit() -> None:
                if len(outcomes) == turns:
                    all_done.set_result(None)
                    return
                call = host.make_call(_echo, [len(outcomes)])
                executor.submit(call).add_done_callback(take)

            submit()
            all_done.result(self.timeout_s)

            values = [self._value_of(outcome) for outcome in outcomes]
            assert values == [[[turn], {}] for turn in range(turns)]
            assert len(host.starts) == turns

    def test_callback_may_take_long(self) -> None:
        goes_on = threading.Event()
        is_over = threading.Event()

        def wait(_: Future[Outcome]) -> None:
            goes_on.wait(self.timeout_s)
            is_over.set()

        with self._executor() as (executor, host), self._gate() as gate:
            slow = host.make_call(_hold, [gate.port], slot=0)
            executor.submit(slow).add_done_callback(wait)
            gate.wait_for_arrivals(1)
            gate.open()

            # Another slot goes on meanwhile.
            assert self._value(executor, host.make_call(_echo, slot=1)) == [[], {}]
            goes_on.set()
            assert is_over.wait(self.timeout_s)

    def test_threads_may_submit_at_once(self) -> None:
        turns = 10
        with self._executor(max_workers=4) as (executor, host):

            def use(slot: int) -> Callable[[], None]:
                def run() -> None:
                    for turn in range(turns):
                        call = host.make_call(_echo, [slot, turn], slot=slot)
                        assert self._value(executor, call) == [[slot, turn], {}]

                return run

            _in_threads([use(slot) for slot in range(4)], timeout_s=self.timeout_s)

            assert len(host.starts) == 4 * turns

    def test_call_whose_worker_dies_fails_alone(self) -> None:
        """For calls in other processes."""
        if not self.has_own_processes:
            return
        with self._executor() as (executor, host), self._gate() as gate:
            held = host.make_call(_hold, [gate.port], slot=1)
            held_future = executor.submit(held)
            gate.wait_for_arrivals(1)
            for exit_code in (0, 3):
                call = host.make_call(_die, [exit_code], slot=0)
                error = self._outcome(executor, call).error

                assert error is not None
                assert error.exception_class_path == _path(WorkerLost)
                assert len(host.starts_of(call)) == 1
                after = host.make_call(_echo, slot=0)
                assert self._value(executor, after) == [[], {}]
            assert not held_future.done()
            gate.open()
            assert self._value_of(self._result(held, held_future)) == "went on"

    # The end.

    def test_unused_executor_may_be_shut_down_twice(self) -> None:
        with self._executor() as (executor, _):
            executor.shutdown(timeout_s=self.timeout_s)
            executor.shutdown(timeout_s=0.0)

    def test_used_executor_may_be_shut_down_twice(self) -> None:
        with self._executor() as (executor, host):
            for slot in range(2):
                call = host.make_call(_echo, slot=slot)
                assert self._value(executor, call) == [[], {}]
            executor.shutdown(timeout_s=self.timeout_s)
            executor.shutdown(timeout_s=self.timeout_s)

    def test_running_call_may_finish_before_the_time_is_over(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            future = executor.submit(call)
            gate.wait_for_arrivals(1)

            def shut_down() -> None:
                executor.shutdown(timeout_s=self.timeout_s)

            _in_threads([shut_down, gate.open], timeout_s=self.timeout_s)

            assert self._value_of(self._result(call, future)) == "went on"

    def test_shutdown_does_not_wait_longer_than_it_may(self) -> None:
        with self._executor() as (executor, host), self._gate() as gate:
            call = host.make_call(_hold, [gate.port])
            future = executor.submit(call)
            gate.wait_for_arrivals(1)
            began = time.monotonic()
            executor.shutdown(timeout_s=0.0)
            assert time.monotonic() - began < self.timeout_s / 2

            gate.open()  # for threads, which go on
            outcome = self._result(call, future)
            if self.has_own_processes:
                assert outcome.error is not None
                assert outcome.error.exception_class_path == _path(WorkerLost)

    def test_executor_may_be_shut_down_from_the_callback_of_its_last_call(self) -> None:
        ended: Future[None] = Future()
        with self._executor() as (executor, host), self._gate() as gate:

            def end(_: Future[Outcome]) -> None:
                try:
                    executor.shutdown(timeout_s=self.timeout_s)
                except BaseException as err:
                    ended.set_exception(err)
                    raise
                ended.set_result(None)

            call = host.make_call(_hold, [gate.port])
            executor.submit(call).add_done_callback(end)
            gate.wait_for_arrivals(1)
            gate.open()
            ended.result(self.timeout_s / 2)
