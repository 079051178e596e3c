"""A timer rings when it is time, and has a thread only while that is awaited."""

import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from django_tasks_local.timer import Timer

from .gates import LONG_S

NAME = "django-tasks-test-timer"
HOUR_S = 3600.0


def timer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def wait_until_no_thread() -> None:
    for thread in timer_threads():
        thread.join(LONG_S)
    assert timer_threads() == []


class Bell:
    """A timer's `ring`: each time it waits until the test says what comes of it."""

    def __init__(self) -> None:
        self._begun = threading.Semaphore(0)
        self._results: deque[Callable[[], float | None]] = deque()
        self._may_end = threading.Semaphore(0)
        self.count = 0
        self.timer = Timer(self._ring, name=NAME)
        self._waiting = threading.Semaphore(0)
        self._wait = self.timer._changed.wait
        # There is no other way to know that a thread waits.
        self.timer._changed.wait = self._wait_and_tell  # type: ignore[method-assign]

    def _wait_and_tell(self, timeout: float | None = None) -> bool:
        # The timer's lock is held: who takes it next finds the thread waiting.
        self._waiting.release()
        return self._wait(timeout)

    def _ring(self) -> float | None:
        self.count += 1
        self._begun.release()
        assert self._may_end.acquire(timeout=LONG_S)
        return self._results.popleft()()

    def wait_until_rung(self) -> None:
        """Until it is in `ring`, which then stays there until `let_go`."""
        assert self._begun.acquire(timeout=LONG_S)

    def wait_until_waiting(self) -> None:
        """Until the timer's thread waits for its time."""
        assert self._waiting.acquire(timeout=LONG_S)

    def let_go(self, result: Callable[[], float | None]) -> None:
        self._results.append(result)
        self._may_end.release()


@pytest.fixture
def bell() -> Iterator[Bell]:
    bell = Bell()
    yield bell
    bell.timer.end()
    bell.let_go(lambda: None)


@pytest.fixture
def _often_switching() -> Iterator[None]:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.parametrize("seconds", [0, -1, -math.inf])
def test_rings_at_once_on_a_daemon_thread_of_its_name(
    bell: Bell, seconds: float
) -> None:
    assert timer_threads() == []

    assert bell.timer.wake_in(seconds)

    bell.wait_until_rung()
    (thread,) = timer_threads()
    assert thread.daemon


def test_does_not_ring_too_early() -> None:
    rung_at: list[float] = []

    def ring() -> float | None:
        rung_at.append(time.monotonic())
        return 0.05 if len(rung_at) == 1 else None

    asked_at = time.monotonic()
    Timer(ring, name=NAME).wake_in(0.05)
    wait_until_no_thread()

    assert rung_at[0] - asked_at >= 0.05
    assert rung_at[1] - rung_at[0] >= 0.05


def test_thread_ends_when_nothing_is_awaited_and_starts_anew(bell: Bell) -> None:
    for count in (1, 2, 3):
        bell.timer.wake_in(0)
        bell.wait_until_rung()
        bell.let_go(lambda: None)
        wait_until_no_thread()
        assert bell.count == count


def test_rings_again_when_ring_wants_it(bell: Bell) -> None:
    bell.timer.wake_in(0)
    for _ in range(3):
        bell.wait_until_rung()
        bell.let_go(lambda: 0)
    bell.wait_until_rung()
    bell.let_go(lambda: None)
    wait_until_no_thread()

    assert bell.count == 4


@pytest.mark.parametrize("seconds", [HOUR_S, 1e30, math.inf])
def test_earlier_wish_wakes_the_thread_that_waits(bell: Bell, seconds: float) -> None:
    bell.timer.wake_in(seconds)
    bell.wait_until_waiting()
    bell.timer.wake_in(0)
    bell.wait_until_rung()
    bell.let_go(lambda: seconds)
    bell.wait_until_waiting()
    bell.timer.wake_in(0)
    bell.wait_until_rung()

    assert len(timer_threads()) == 1


def test_later_wish_is_met_by_an_earlier_ring(bell: Bell) -> None:
    bell.timer.wake_in(0.05)
    bell.timer.wake_in(HOUR_S)
    bell.wait_until_rung()
    bell.let_go(lambda: None)
    wait_until_no_thread()

    assert bell.count == 1


@pytest.mark.parametrize(
    "asked, returned", [(0.0, None), (0.0, HOUR_S), (HOUR_S, 0.0), (math.inf, 0.0)]
)
def test_wish_during_a_ring_is_kept(
    bell: Bell, asked: float, returned: float | None
) -> None:
    bell.timer.wake_in(0)
    bell.wait_until_rung()
    assert bell.timer.wake_in(asked)
    bell.let_go(lambda: returned)

    bell.wait_until_rung()

    assert bell.count == 2
    assert len(timer_threads()) == 1


def test_ring_may_call_its_own_timer() -> None:
    rings: list[bool] = []

    def ring() -> None:
        if len(rings) == 2:
            timer.end()
        rings.append(timer.wake_in(0))

    timer = Timer(ring, name=NAME)
    timer.wake_in(0)
    wait_until_no_thread()

    assert rings == [True, True, False]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)])
def test_ring_that_raises_is_logged_and_is_called_again(
    bell: Bell, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail() -> float | None:
        raise error

    bell.timer.wake_in(0)
    bell.wait_until_rung()
    bell.let_go(lambda: 0)
    bell.wait_until_rung()
    bell.timer.wake_in(0)
    bell.let_go(fail)
    bell.wait_until_rung()  # as was asked for before it failed
    bell.let_go(fail)
    wait_until_no_thread()
    bell.timer.wake_in(0)  # after it has failed
    bell.wait_until_rung()

    logged = [r for r in caplog.records if r.name == "django_tasks_local"]
    assert [r.levelno for r in logged] == [logging.ERROR, logging.ERROR]
    assert all(r.exc_info and r.exc_info[1] is error for r in logged)
    assert NAME in logged[0].getMessage()


def test_does_not_ring_once_it_has_ended(bell: Bell) -> None:
    bell.timer.wake_in(HOUR_S)
    bell.timer.end()
    bell.timer.end()
    wait_until_no_thread()

    assert not bell.timer.wake_in(0)
    assert timer_threads() == []
    assert bell.count == 0


def test_ring_during_which_it_ends_is_the_last(bell: Bell) -> None:
    bell.timer.wake_in(0)
    bell.wait_until_rung()
    bell.timer.wake_in(0)
    bell.timer.end()
    assert not bell.timer.wake_in(0)
    bell.let_go(lambda: 0)
    wait_until_no_thread()

    assert bell.count == 1


def test_end_of_a_timer_that_was_never_used(bell: Bell) -> None:
    bell.timer.end()

    assert not bell.timer.wake_in(0)
    assert timer_threads() == []


def test_says_when_no_thread_can_be_started(
    bell: Bell, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not bell.timer.wake_in(0)
        assert not bell.timer.wake_in(HOUR_S)

    assert caplog.records == []
    assert bell.timer.wake_in(0)
    bell.wait_until_rung()


def test_thread_whose_start_was_interrupted_ends(
    bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted: list[threading.Thread] = []

    def interrupt(thread: threading.Thread) -> None:
        interrupted.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bell.timer.wake_in(HOUR_S)
    assert bell.timer.wake_in(HOUR_S)
    (thread,) = timer_threads()
    bell.wait_until_waiting()

    interrupted[0].start()  # it comes to life only now, when there is another one
    interrupted[0].join(LONG_S)

    assert timer_threads() == [thread]
    bell.timer.wake_in(0)
    bell.wait_until_rung()


@pytest.mark.usefixtures("_often_switching")
@pytest.mark.parametrize("thread_count", [1, 8])
def test_no_wish_is_lost_while_threads_end_and_start(thread_count: int) -> None:
    wishes: deque[threading.Event] = deque()
    ringing = threading.Lock()

    def ring() -> None:
        assert ringing.acquire(blocking=False)  # never two at once
        while wishes:
            wishes.popleft().set()
        ringing.release()

    timer = Timer(ring, name=NAME)

    def wish() -> bool:
        for _ in range(1000 // thread_count):
            heard = threading.Event()
            wishes.append(heard)
            if not timer.wake_in(0) or not heard.wait(LONG_S):
                return False
        return True

    with ThreadPoolExecutor(thread_count) as pool:
        wishers = [pool.submit(wish) for _ in range(thread_count)]
    assert all(wisher.result() for wisher in wishers)
    wait_until_no_thread()


@pytest.mark.usefixtures("_often_switching")
def test_last_of_many_wishes_at_once_is_heard() -> None:
    made = heard = 0
    making = threading.Lock()

    def ring() -> None:
        nonlocal heard
        heard = made

    timer = Timer(ring, name=NAME)

    def wish() -> None:
        nonlocal made
        for number in range(500):
            with making:
                made += 1
            timer.wake_in(0 if number % 2 or number == 499 else 0.0001)

    with ThreadPoolExecutor(8) as pool:
        wishers = [pool.submit(wish) for _ in range(8)]
    for wisher in wishers:
        wisher.result()
    wait_until_no_thread()

    assert heard == made == 8 * 500
