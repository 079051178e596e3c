"""Changes of several threads, written by one more, as many at once as there are."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

from ...connections import close_broken_connections, close_connections
from ...records import Record
from ...timer import Timer

__all__ = ["GroupedSaves"]

# A connection that nobody has needed for so long is closed, with its thread.
_IDLE_S = 0.5
_AT_ONCE = 200
# What the database takes longer for is not waited for.
_END_S = 5.0

type _Save = Callable[[Sequence[Record]], Sequence[bool]]


class GroupedSaves:
    """Has records saved by a thread of its own, on its own connection.

    While it waits for the database, what comes meanwhile gathers, and then goes
    together. The thread exists only while there is something to save, and half a second
    longer. Any thread may call any method.
    """

    def __init__(self, save: _Save, save_again: _Save, /, *, name: str) -> None:
        self._save = save
        self._save_again = save_again
        self._waiting = deque[_Saving]()
        self._lock = Lock()
        self._timer = Timer(self._write, name=name, at_end=close_connections)

    def save(self, records: Sequence[Record], /) -> Sequence[bool]:
        """Whether each was taken. Raises what `save` raises; Ctrl-C once that is so."""
        saving = _Saving(records)
        self._waiting.append(saving)
        if not self._timer.wake_in(0.0):  # no thread can be started any more
            self._write_all()
        try:
            return saving.saved.result()
        except KeyboardInterrupt:
            saving.saved.exception()
            raise

    def close(self) -> None:
        """End the thread, and its connection. A second call does nothing."""
        self._timer.end(timeout_s=_END_S)
        self._write_all()  # what came just before

    def _write(self) -> float | None:
        """Save what waits (the timer's)."""
        if not self._waiting:
            return None
        self._write_all()
        close_broken_connections()
        return _IDLE_S

    def _write_all(self) -> None:
        with self._lock:  # one group after the other
            while self._waiting:
                self._write_group()

    def _write_group(self) -> None:
        """Save what waits, but one change of a record at once, so that all can be."""
        group: list[_Saving] = []
        records: dict[str, Record] = {}
        while self._waiting and len(records) < _AT_ONCE:
            saving = self._waiting[0]
            if any(record.id in records for record in saving.records):
                break
            group.append(self._waiting.popleft())
            records.update((record.id, record) for record in saving.records)
        try:
            saved = self._save([*records.values()])
        except BaseException:  # one of them may be at fault, or the connection
            close_broken_connections()
            for saving in group:
                self._write_alone(saving)
            return
        start = 0
        for saving in group:
            end = start + len(saving.records)
            saving.saved.set_result(saved[start:end])
            start = end

    def _write_alone(self, saving: "_Saving") -> None:
        try:
            saving.saved.set_result(self._save_again(saving.records))
        except BaseException as err:  # whoever waits gets it, whatever it is
            saving.saved.set_exception(err)


class _Saving:
    """What a thread wants saved."""

    __slots__ = ("records", "saved")

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.saved: Future[Sequence[bool]] = Future()
