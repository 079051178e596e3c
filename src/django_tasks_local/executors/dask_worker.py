"""Tasks on a Dask worker, and what to preload there.

``dask worker --preload django_tasks_local.executors.dask_worker …`` sets Django up when
the worker starts; one without it does so at its first task. Either way it has to know
the settings: by ``DJANGO_SETTINGS_MODULE``, or as they are named where the task comes
from.
"""

import asyncio
import os
import pickle
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from itertools import count
from typing import assert_never

import django
from asgiref.sync import sync_to_async
from distributed import Worker, get_client, get_worker
from distributed.threadpoolexecutor import ThreadPoolExecutor
from distributed.threadpoolexecutor import secede as secede_thread
from distributed.worker_state_machine import SecedeEvent
from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE
from django.conf import settings as django_settings

from .. import records
from ..context import set_call_link
from ..interruption import InterruptibleCall
from ..records import (
    Enqueued,
    Interruption,
    MetadataRequest,
    Outcome,
    Record,
    Refusal,
    Timestamp,
)
from ..worker import (
    close_connections,
    close_old_connections,
    lost_outcome,
    run_task,
)
from .dask_messages import (
    Ask,
    Begin,
    BootFailed,
    Decline,
    FromWorker,
    Interrupt,
    Payload,
    Refused,
    Sent,
    ToWorker,
    Unanswered,
    content_of,
    event_down,
    event_up,
    pack,
    pack_payload,
    pack_result,
    topic_of,
    unpack_payload,
    unpack_to_worker,
)
from .deployment import Deployment, this_deployment
from .messages import (
    Lend,
    Reclaim,
    Reply,
    Request,
    Run,
    Unwatch,
    Watch,
    Watched,
    unpack_to_child,
)
from .parents_results import ParentsResult, as_exception, backoff_of
from .project import see_project

__all__ = ["dask_setup", "pack_payload", "run_call"]

_HEARD_S = 0.2
_HEARD_TIMES = 50
_ASK_AGAIN_S = 5.0
# Larger outcomes do not go through the scheduler, which keeps the last events.
_LONGEST_EVENT = 10_000


def dask_setup(worker: Worker) -> None:
    """Called by Dask where this module is preloaded: sets Django up.

    Raises what the project's set-up raises, which Dask logs; the worker starts anyway.
    """
    if not apps.ready:
        _see_directory()
        django.setup()
    this_deployment()  # before anybody deploys something else


async def run_call(data: bytes) -> bytes:
    """Run a call on the Dask worker that this is: all that clients ever submit.

    On the worker's event loop, where asking costs no change of threads; the task itself
    runs on a thread. Dask counts the call among those that run all the while. Never
    raises.
    """
    worker = get_worker()
    try:
        payload = unpack_payload(data)
        if isinstance(payload, Deployment):
            return pack_result(Refused(worker.address, await _deployment()))
        if not (_is_set_up() and worker.address in _channels):
            await asyncio.to_thread(_set_up, payload)
            await _open_channel(worker)
        mine = this_deployment()
        if payload.deployment.difference_from(mine) is not None:
            return pack_result(Refused(worker.address, mine))
        run = unpack_to_child(payload.run)
        assert isinstance(run, Run)  # as it is packed
        channel = _channels[worker.address]
        call = _Call(channel, payload)
    except BaseException:
        return pack_result(BootFailed(worker.address, traceback.format_exc()))
    with channel.open(call):
        return await call.run(run)


async def _deployment() -> Deployment:
    if not _is_set_up():
        return Deployment("unknown", "", "")
    return await asyncio.to_thread(this_deployment)


_setting_up = threading.Lock()


def _is_set_up() -> bool:
    return apps.ready


class _NotSetUpError(Exception):
    """What went wrong before: Django cannot be set up a second time."""


_failure: str | None = None


def _set_up(payload: Payload) -> None:
    global _failure
    with _setting_up:  # several calls may be the first
        if _failure is not None:
            raise _NotSetUpError(_failure)
        if not _is_set_up():
            try:
                _set_up_project(payload)
            except BaseException:
                _failure = traceback.format_exc()
                raise
    this_deployment()


def _see_directory() -> None:
    """Import from the directory that the worker was started in, as manage.py does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _set_up_project(payload: Payload) -> None:
    if payload.project is not None:
        see_project(pickle.loads(payload.project))
        return
    _see_directory()
    is_named = django_settings.configured or os.environ.get(ENVIRONMENT_VARIABLE)
    if not is_named and payload.settings_module is not None:
        os.environ[ENVIRONMENT_VARIABLE] = payload.settings_module
    django.setup()


class _Channel:
    """What a Dask worker hears from the processes whose calls it runs.

    But for `threads`, only the worker's event loop's thread uses it.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.threads = ThreadPoolExecutor(
            worker.state.nthreads, thread_name_prefix="django-tasks"
        )
        self._calls: dict[str, _Call] = {}
        self._hears = asyncio.Event()

    async def listen(self) -> None:
        """Subscribe. Dask does not say when a subscription is in force."""
        client = get_client()
        await client
        address = self.worker.address
        client.subscribe_topic(address, self._take)
        for _ in range(_HEARD_TIMES):
            await client.scheduler.log_event(topic=address, msg=event_down([]))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hears.wait(), _HEARD_S)
                return
        raise TimeoutError("The Dask scheduler does not forward events to this worker.")

    @contextmanager
    def open(self, call: "_Call") -> Generator[None]:
        """Let it get what comes for its token."""
        self._calls[call.token] = call
        try:
            yield
        finally:
            del self._calls[call.token]

    def _take(self, event: tuple[float, object]) -> None:
        content = content_of(event)
        if content is None:
            return
        self._hears.set()
        for token, packed in content[0]:
            call = self._calls.get(token)
            if call is not None:
                call.take(unpack_to_worker(packed))


_channels: dict[str, _Channel] = {}
_opening = asyncio.Lock()


async def _open_channel(worker: Worker) -> None:
    async with _opening:  # one is enough
        if worker.address not in _channels:
            channel = _Channel(worker)
            await channel.listen()
            _channels[worker.address] = channel


class _Call:
    """A call that runs here: its task's host, and the `ParentLink` of its task."""

    def __init__(self, channel: _Channel, payload: Payload) -> None:
        self.token = secrets.token_hex(8)
        self._channel = channel
        self._payload = payload
        self._topic = topic_of(payload.session)
        self._thread_id = 0
        self._began_at = 0.0
        self._beginning: asyncio.Future[Record | Decline] = (
            asyncio.get_running_loop().create_future()
        )
        self._arrival = threading.Condition()
        self._is_cancelled = False
        self._is_given_up = False
        self._interruption: Interruption | None = None
        self._interruptible: InterruptibleCall | None = None
        self._replies: dict[int, records.Answer] = {}
        self._watched: dict[int, tuple[ParentsResult, int | None]] = {}
        self._ids = count()
        self._has_seceded = False
        self._seceding: asyncio.Task[None] | None = None

    async def run(self, run: Run) -> bytes:
        """Ask whether it may begin, and then do; what the Dask task returns."""
        beginning = await self._ask(time.time())
        if beginning is None:
            return pack_result(Unanswered())
        if isinstance(beginning, Decline):
            return pack_result(Sent())
        packed = pack(await self._in_thread(beginning, run))
        if len(packed) > _LONGEST_EVENT:
            return packed
        self._send_packed(packed)
        return pack_result(Sent())

    async def _ask(self, at: Timestamp) -> Record | Decline | None:
        """The answer, for which it waits as long as it takes; None: Dask lets it go.

        One that comes late must find it: the task is RUNNING by then.
        """
        while self._is_wanted():
            self._send(Ask(self._payload.key, at))
            await asyncio.wait([self._beginning], timeout=_ASK_AGAIN_S)
            if self._beginning.done():
                return self._beginning.result()
        return None

    async def _in_thread(self, beginning: Record, run: Run) -> Outcome:
        record = beginning._replace(arguments=run.record.arguments)
        context = copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._channel.threads,
                lambda: context.run(self._run, record, run),
            )
        except RuntimeError as err:  # the worker ends
            return lost_outcome(record.id, str(err))

    def _run(self, record: Record, run: Run) -> Outcome:
        payload = self._payload
        self._thread_id = threading.get_ident()
        self._began_at = time.time()
        interruptible = None
        if payload.is_coroutine or (
            payload.raises_in_threads and payload.timeout_s is not None
        ):
            interruptible = InterruptibleCall(
                attempt=len(record.worker_ids),
                timeout_s=payload.timeout_s,
                is_coroutine=payload.is_coroutine,
            )
            with self._arrival:  # past this an interruption finds it
                self._interruptible = interruptible
                reason = self._interruption
            if reason is not None:
                interruptible.interrupt(reason)
        self._is_cancelled = self._is_cancelled or record.is_cancel_requested
        context = copy_context()
        context.run(set_call_link, self)
        close_old_connections()
        try:
            return run_task(
                record,
                host=self,
                context=context,
                carried=run.context,
                backoff=backoff_of(run),
                interruptible=interruptible,
            )
        finally:
            if (interruptible is not None and interruptible.is_struck) or (
                not self._channel.worker.state.ready
            ):
                close_connections()
            else:
                close_old_connections()

    # What comes for it, on the worker's event loop.

    def take(self, message: ToWorker) -> None:
        """It concerns this call. Does not block."""
        with self._arrival:
            self._take(message)
            self._arrival.notify_all()

    def _take(self, message: ToWorker) -> None:
        match message:
            case Begin():
                self._begin(message.record)
            case Decline():
                self._begin(message)
                self._is_given_up = True
            case Interrupt():
                self._interrupt(message.reason)
            case Reply():
                self._replies[message.request_id] = message.answer
            case Watched():
                watched = self._watched.pop(message.watch_id, None)
                if watched is not None:
                    result, revision = watched
                    threading.Thread(
                        target=result.fetch,
                        args=(revision,),
                        name="django-tasks-wait",
                        daemon=True,
                    ).start()
            case _:
                assert_never(message)

    def _begin(self, beginning: Record | Decline) -> None:
        if not self._beginning.done():  # it may have been asked for twice
            self._beginning.set_result(beginning)

    def _interrupt(self, reason: Interruption) -> None:
        if reason is Interruption.CANCEL:
            self._is_cancelled = True
        if self._interruptible is not None:
            self._interruptible.interrupt(reason)
        elif self._interruption is None:
            self._interruption = reason

    # What the task asks of the process that it comes from.

    def request(self, request: records.Request, /) -> Record | Enqueued | bool:
        message = Request(next(self._ids), request)
        answer = None
        while answer is None:
            if self._is_given_up or not self._is_wanted():
                raise EOFError(
                    "The process that this task comes from has left the cluster."
                )
            self._send(message)  # again: it knows by the id what it has answered
            with self._arrival:
                self._arrival.wait_for(
                    lambda: message.request_id in self._replies or self._is_given_up,
                    timeout=_ASK_AGAIN_S,
                )
                answer = self._replies.pop(message.request_id, None)
        if isinstance(answer, Refusal):
            raise as_exception(answer)
        return answer

    def waitable(self, record: Record, /) -> ParentsResult:
        return ParentsResult(self, record)

    @contextmanager
    def watching(
        self,
        result: ParentsResult,
        /,
        *,
        revision: int | None,
        group: int | None = None,
    ) -> Generator[None]:
        watch_id = next(self._ids)
        record = result.record
        with self._arrival:
            self._watched[watch_id] = (result, revision)
        self._send(Watch(watch_id, record.alias, record.id, revision, group))
        try:
            yield
        finally:
            with self._arrival:
                was_waiting = self._watched.pop(watch_id, None) is not None
            if was_waiting:
                self._send(Unwatch(watch_id))

    def _send(self, message: FromWorker) -> None:
        self._send_packed(pack(message))

    def _send_packed(self, packed: bytes) -> None:
        worker = self._channel.worker
        worker.log_event(
            self._topic,
            event_up(self._payload.session, self.token, worker.address, packed),
        )

    def _is_wanted(self) -> bool:
        """Whether who has submitted it is still there: else Dask lets go of it."""
        state = self._channel.worker.state.tasks.get(self._payload.key)
        return state is not None and state.state != "cancelled"

    # As the host of its task.

    def lend_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        if group is not None:
            self._send(Lend(group))
        if self._has_seceded:
            return
        self._has_seceded = True
        if threading.get_ident() == self._thread_id:
            self._secede()
        else:  # inside `async_to_sync`, for which that thread waits
            with suppress(RuntimeError):  # or in a thread of the task's own
                loop = asyncio.get_running_loop()
                self._seceding = loop.create_task(sync_to_async(self._secede)())

    def _secede(self) -> None:
        """Let the Dask worker run another task meanwhile, on another thread."""
        secede_thread()
        worker = self._channel.worker
        worker.loop.add_callback(
            worker.handle_stimulus,
            SecedeEvent(
                key=self._payload.key,
                compute_duration=time.time() - self._began_at,
                stimulus_id=f"secede-{time.time()}",
            ),
        )

    def reclaim_slot(self, result_id: str, /, *, group: int | None = None) -> None:
        if group is not None:
            self._send(Reclaim(group))

    @property
    def may_block(self) -> bool:
        return True

    def save_metadata(self, result_id: str, metadata: str, /, *, attempt: int) -> None:
        self.request(MetadataRequest(result_id, metadata, attempt))

    def is_cancel_requested(self, result_id: str, /) -> bool:
        return self._is_cancelled or self._is_given_up
