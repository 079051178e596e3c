"""The threads beside an event loop: a few, for all sync code of its tasks."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from itertools import cycle
from operator import attrgetter
from typing import NamedTuple, override

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from ..connections import (
    close_broken_connections,
    close_connections,
    close_old_connections,
    close_open_transactions,
)
from ..context import current_result_id
from ..locks import give_way

__all__ = ["Place", "SyncThreads", "Work", "with_future"]

_SHUT_DOWN = "The alias of this event loop was shut down."
_coroutines = attrgetter("coroutines")


class Work(NamedTuple):
    """What a thread is to do. None of it may raise."""

    run: Callable[[], None]
    give_up: Callable[[], None]
    """Called instead, by anybody, where no thread will come to it."""
    owner: str = ""
    """The id of the result of the task that it is part of."""


class Place:
    """One of the threads that there may be. Only `SyncThreads` changes it."""

    __slots__ = (
        "__weakref__",
        "calls",
        "changed",
        "coroutines",
        "has_function",
        "is_busy",
        "owner",
        "thread",
        "tidied",
        "token",
        "used",
    )

    def __init__(self, changed: threading.Condition) -> None:
        self.changed: threading.Condition = changed
        self.calls: deque[Work] = deque()
        """What this thread, and no other, has to do."""
        self.thread: threading.Thread | None = None
        self.is_busy: bool = False
        self.owner: str = ""
        """Whose work its thread does just now."""
        self.has_function: bool = False
        self.coroutines: int = 0
        """How many have it. Only the loop's thread changes this."""
        self.used: int = 0
        """How much was done here that may leave connections open."""
        self.tidied: int = 0
        """How much of that has nothing open any more."""
        self.token: ThreadSensitiveContext = ThreadSensitiveContext()
        """What brings asgiref here, as the value of its context variable."""


class SyncThreads:
    """So many threads, each started when it is first used.

    Each coroutine has a place at one of them, for what it calls through
    `sync_to_async`, as the ORM does: so it keeps its database connection. A function
    runs on whichever is free. Where something waits for another task on such a thread,
    it steps aside: a thread more does the rest of its work meanwhile.

    All of a thread's connections are closed once no task has a place there. Until then
    only broken ones are: the tasks share them. Any thread may call any method.
    """

    def __init__(self, *, name: str, count: int) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._errands: deque[Work] = deque()
        self._functions: deque[Work] = deque()
        self._threads: set[threading.Thread] = set()
        self._takes_functions = True
        self._is_shut_down = False
        self._places = [Place(threading.Condition(self._lock)) for _ in range(count)]
        self._turns = cycle(self._places)
        for place in self._places:
            SyncToAsync.context_to_thread_executor[place.token] = _PlaceExecutor(
                self, place
            )

    def take_place(self) -> Place:
        """A place for a coroutine that begins. On the loop's thread only.

        In turn, but rather not where a function keeps the thread busy.
        """
        place = next(self._turns)
        for _ in self._places:
            if not place.has_function:
                break
            place = next(self._turns)
        place.coroutines += 1
        return place

    def leave(self, place: Place, /) -> None:
        """The coroutine has ended. On the loop's thread only."""
        place.coroutines -= 1
        if place.used == place.tidied:
            return
        with suppress(RuntimeError):  # it is shut down, or no thread can be started
            if place.coroutines:
                tidy = Work(close_broken_connections, give_up=close_broken_connections)
                self.submit_to(place, tidy)
                return
        give_way(self._lock)
        with self._lock:  # then its thread sees that nobody needs a connection
            place.changed.notify()

    def submit(self, work: Work, /, *, is_errand: bool = False) -> None:
        """Have something done on whichever thread is free; an errand comes first.

        Raises RuntimeError after `shutdown`, and where there is no thread and none
        can be started.
        """
        waiting = self._errands if is_errand else self._functions
        give_way(self._lock)
        with self._lock:  # decides whether a free thread begins, or the next to be free
            self._check_that_it_is_open()
            if not is_errand and not self._takes_functions:
                raise RuntimeError(_SHUT_DOWN)
            waiting.append(work)
            free = [place for place in self._places if not place.is_busy]
            if free:
                try:
                    self._wake(min(free, key=_coroutines))
                except RuntimeError:
                    # No thread can be started, as while Python 3.12.1 exits (CPython
                    # issue 113964): then one of those that there are does it.
                    if not self._threads:
                        waiting.remove(work)
                        raise
                    for place in self._places:
                        place.changed.notify()

    def submit_to(self, place: Place, work: Work, /) -> None:
        """Have it done on that very thread, as `submit`."""
        give_way(self._lock)
        with self._lock:
            self._check_that_it_is_open()
            place.calls.append(work)
            try:
                self._wake(place)
            except RuntimeError:
                place.calls.pop()
                raise
            place.used += 1

    def step_aside(self, owner: str, /) -> None:
        """What runs for that task is about to wait: let another thread do the rest.

        Does nothing where it runs on none of these threads.
        """
        give_way(self._lock)
        with self._lock:  # decides who goes on with the work of that thread
            for place in self._places:
                if place.owner == owner and place.thread is not None:
                    place.thread = None
                    place.owner = ""
                    place.is_busy = False
                    if place.calls or self._errands or self._functions:
                        self._wake(place)

    def refuse_functions(self) -> None:
        """Give up what no thread has begun, but for errands, and take no more of it."""
        with self._lock:  # decides whether a thread begins it, or nobody does
            self._takes_functions = False
            left = list(self._functions)
            self._functions.clear()
        for work in left:
            work.give_up()

    def shutdown(self, *, timeout_s: float) -> None:
        """Let each thread end after its work; wait for them `timeout_s` seconds.

        What no thread has begun by then is given up.
        """
        with self._lock:
            self._is_shut_down = True
            for place in self._places:
                place.changed.notify()
            threads = list(self._threads)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:  # decides whether a thread begins it, or nobody does
            left: list[Work] = []
            for works in (
                self._errands,
                *(place.calls for place in self._places),
                self._functions,
            ):
                left += works
                works.clear()
        for work in left:
            work.give_up()

    def _check_that_it_is_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError(_SHUT_DOWN)

    def _wake(self, place: Place) -> None:
        """Have what is there done. To be called under the lock."""
        if place.thread is not None:
            place.is_busy = True
            place.changed.notify()
            return
        thread = threading.Thread(
            target=self._work,
            args=(place,),
            name=f"{self._name}-{self._places.index(place)}",
            daemon=True,
        )
        thread.start()
        self._threads.add(thread)
        place.thread = thread
        place.is_busy = True

    def _work(self, place: Place) -> None:
        try:
            while (call := self._next(place)) is not None:
                call()
                del call  # nothing of it is held while the next is waited for
        finally:
            close_connections()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self, place: Place) -> Callable[[], None] | None:
        """What this thread does now; None when it has to end."""
        me = threading.current_thread()
        give_way(self._lock)
        with self._lock:  # decides who does what, and who is not needed any more
            if place.thread is None:
                place.thread = me  # it stepped aside, and no other had to come
            while place.thread is me:
                work = self._take(place)
                place.is_busy = work is not None
                place.owner = "" if work is None else work.owner
                if work is not None:
                    return work.run
                if place.used != place.tidied and not place.coroutines:
                    return partial(self._let_connections_go, place, place.used)
                if self._is_shut_down:
                    place.thread = None
                    break
                place.changed.wait()
            return None

    def _take(self, place: Place) -> Work | None:
        """What is next at a place. To be called under the lock."""
        if self._errands:
            place.used += 1
            return self._errands.popleft()
        if place.calls:
            return place.calls.popleft()
        if self._functions:
            place.used += 1
            place.has_function = True
            work = self._functions.popleft()
            return work._replace(run=partial(self._run, place, work.run))
        return None

    @staticmethod
    def _run(place: Place, function: Callable[[], None]) -> None:
        function()
        place.has_function = False
        close_open_transactions()
        close_broken_connections()

    @staticmethod
    def _let_connections_go(place: Place, used: int) -> None:
        close_old_connections()
        close_connections()
        place.tidied = used


class _PlaceExecutor(Executor):
    """One of the threads, as asgiref sees it."""

    def __init__(self, threads: SyncThreads, place: Place) -> None:
        # asgiref keeps this for as long as there is the token, which the place has.
        self._threads = weakref.ref(threads)
        self._place = weakref.ref(place)

    @override
    def submit[**P, R](
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        threads, place = self._threads(), self._place()
        if threads is None or place is None:
            raise RuntimeError(_SHUT_DOWN)
        future, work = with_future(partial(function, *args, **kwargs))
        threads.submit_to(place, work)
        return future


def with_future[R](function: Callable[[], R]) -> tuple[Future[R], Work]:
    """The Future of a function, and what resolves it: part of the task that is here."""
    future: Future[R] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except BaseException as err:  # who waits for it gets it
            future.set_exception(err)

    def give_up() -> None:
        if future.set_running_or_notify_cancel():
            future.set_exception(RuntimeError(_SHUT_DOWN))

    return future, Work(run, give_up, current_result_id.get(""))
