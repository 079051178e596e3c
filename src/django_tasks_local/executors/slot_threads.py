"""A thread for each slot, started when the slot is first used."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Protocol

from ..locks import give_way
from ..records import Call, Outcome
from ..worker import error_record, lost_outcome

__all__ = ["SlotThreads", "SlotWorker"]

type _Done = Callable[[Outcome], None]
type _Inbox = SimpleQueue[tuple[Call, _Done] | None]


class SlotWorker(Protocol):
    """What runs one slot's calls. Only the slot's own thread calls it."""

    is_spent: bool
    """The thread that it was opened on should run nothing more."""

    def run(self, call: Call, /) -> Outcome:
        """Run a call to its end. Never raises."""
        ...

    def tidy(self, *, rests: bool) -> None:
        """A call has ended.

        Where it `rests`, no call waits: let go of what only a busy worker should hold.
        """
        ...

    def close(self) -> None:
        """The thread ends."""
        ...


class SlotThreads:
    """Runs each call on the thread of its slot.

    A slot has a thread of its own so that the one that has just ended a call is also
    the one that runs the slot's next, without a change of threads between them, and
    so that no more threads are started than slots are used at once. A thread ends
    after `idle_timeout_s` seconds without a call (None: never), and starts anew with
    the next; those of slots from `permanent` on, which exist only while tasks wait for
    tasks, end at once. With `tidies_first`, a worker tidies up before its call's end is
    told too: in a pool of database connections, one that it holds may be just the one
    that is waited for then.
    """

    def __init__(
        self,
        *,
        name: str,
        permanent: int,
        open_worker: Callable[[int], SlotWorker],
        idle_timeout_s: float | None = None,
        tidies_first: bool = False,
    ) -> None:
        self._tidies_first = tidies_first
        self._name = name
        self._permanent = permanent
        self._idle_timeout_s = idle_timeout_s
        self._open_worker = open_worker
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._inboxes: dict[int, _Inbox] = {}
        self._threads: set[threading.Thread] = set()

    def submit(self, call: Call, /) -> Future[Outcome]:
        """Put a call into its slot's inbox (see `TaskExecutor.submit`)."""
        future: Future[Outcome] = Future()
        self.run(call, future.set_result)
        return future

    def run(self, call: Call, done: _Done, /) -> None:
        """The same without a Future (see `CallbackExecutor.run`)."""
        reason = self._put(call, done)
        if reason is not None:
            done(lost_outcome(call.record.id, reason))

    def _put(self, call: Call, done: _Done) -> str | None:
        """Why it cannot run, where it cannot."""
        give_way(self._lock)
        with self._lock:  # decides whether the slot's thread still takes calls
            if self._is_shut_down:
                return "Its alias was shut down before the task could run."
            inbox = self._inboxes.get(call.slot)
            if inbox is not None:
                inbox.put((call, done))
                return None
            inbox = self._inboxes[call.slot] = SimpleQueue()
            try:
                self._start(call.slot, inbox)
            except RuntimeError as err:
                # The interpreter is ending, or the system has no thread left.
                del self._inboxes[call.slot]
                return str(err)
            # Only now, so that the call has hardly begun when this returns; with the
            # lock held, so that `shutdown` comes before all of this, or after.
            inbox.put((call, done))
            return None

    def shutdown(self, *, timeout_s: float) -> None:
        """Let each thread end after its calls; wait for them `timeout_s` seconds."""
        with self._lock:
            self._is_shut_down = True
            inboxes = list(self._inboxes.values())
            threads = list(self._threads)
        for inbox in inboxes:
            inbox.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, slot: int, inbox: _Inbox) -> None:
        """Start a slot's thread. To be called under the lock."""
        thread = threading.Thread(
            target=self._work,
            args=(slot, inbox),
            name=f"{self._name}-{slot}",
            daemon=True,
        )
        thread.start()
        self._threads.add(thread)

    def _work(self, slot: int, inbox: _Inbox) -> None:
        worker = self._open_worker(slot)
        try:
            item = inbox.get()
            while item is not None:
                call, done = item
                outcome = _run(worker, call)
                if self._tidies_first:
                    worker.tidy(rests=False)
                done(outcome)
                worker.tidy(rests=inbox.empty())
                # Nothing of a call is held while the next is waited for.
                del item, call, done, outcome
                if worker.is_spent and self._replace(slot, inbox):
                    return
                item = self._next(slot, inbox)
        finally:
            worker.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self, slot: int, inbox: _Inbox) -> tuple[Call, _Done] | None:
        """The next call; None when the thread has to end."""
        patience_s = self._idle_timeout_s if slot < self._permanent else 0.0
        while True:
            try:
                return inbox.get(timeout=patience_s)
            except Empty:
                if self._retire(slot, inbox):
                    return None

    def _replace(self, slot: int, inbox: _Inbox) -> bool:
        """Leave the inbox to another thread; False where none can be started."""
        if self._retire(slot, inbox):
            return True
        try:
            with self._lock:
                self._start(slot, inbox)
        except RuntimeError:  # as above: this one has to go on
            return False
        return True

    def _retire(self, slot: int, inbox: _Inbox) -> bool:
        with self._lock:  # decides whether a call came just now
            if not inbox.empty():
                return False
            del self._inboxes[slot]
            return True


def _run(worker: SlotWorker, call: Call) -> Outcome:
    try:
        return worker.run(call)
    except BaseException as err:  # it should not, but the slot serves other tasks
        return lost_outcome(call.record.id, error_record(err).traceback)
