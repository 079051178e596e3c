"""The connection to a Dask cluster's scheduler, and what is sent through it."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed import Client, Future, LocalCluster, Security

from ..options import ClusterOptions
from .dask_messages import content_of, event_down, topic_of
from .dask_worker import run_call

if TYPE_CHECKING:
    from distributed.batched import BatchedSend

__all__ = ["Connection", "OwnCluster"]

_WORKERS = "all"  # Dask's own topic of what becomes of them
_TRY_S = 3.0
_CLOSE_S = 2.0
_PULSE_S = 1.0
_AT_ONCE = 100
_BYTES_AT_ONCE = 1_000_000  # of ten times as many Dask warns
_SENT_KEPT = 10

# Strongly held while they are open: in a fork of this process they stay, since to let
# go of a client there would have Dask wait for a thread that the fork does not have.
_open = set[Client | LocalCluster]()


class OwnCluster:
    """A cluster of worker processes of this process's own, on this machine.

    Nobody else gets in: its certificates are made for it, and kept in memory.
    """

    def __init__(self, *, n_workers: int, threads_per_worker: int) -> None:
        self._n_workers = n_workers
        self._threads_per_worker = threads_per_worker
        self.security: Security = Security.temporary()
        self.cluster: LocalCluster | None = None

    async def start(self) -> LocalCluster:
        """Start it, unless that is done."""
        if self.cluster is None:
            cluster = LocalCluster(
                asynchronous=True,
                processes=True,
                n_workers=self._n_workers,
                threads_per_worker=self._threads_per_worker,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                security=self.security,
            )
            await cluster
            _open.add(cluster)
            self.cluster = cluster
        return self.cluster

    async def close(self) -> None:
        """End its processes."""
        if self.cluster is not None:
            # It would be alarmed to find workers gone that it has just told to go.
            log = logging.getLogger("distributed.scheduler")
            was_disabled, log.disabled = log.disabled, True
            with suppress(Exception):  # it is lost, whatever Dask says
                await self.cluster.close(timeout=_CLOSE_S)
            log.disabled = was_disabled
            _open.discard(self.cluster)


class Connection:
    """A client of the scheduler's. Only used on the event loop that it is opened on."""

    def __init__(
        self,
        options: ClusterOptions,
        *,
        name: str,
        session: str,
        own: OwnCluster | None,
        take: Callable[[Sequence[Any]], None],
        worker_left: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        self._options = options
        self._name = name
        self._session = session
        self._own = own
        self._take_content = take
        self._worker_left = worker_left
        self._lost = lost
        self._comm: BatchedSend | None = None
        self._client: Client | None = None
        self._outbox: list[tuple[str, str, bytes]] = []
        self._has_mail = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = asyncio.Event()
        self.unanswered_since: float | None = None
        """When the scheduler was asked, by the monotonic clock, for signs of life that
        have not come yet. Any thread may look."""

    @property
    def is_open(self) -> bool:
        """Whether the scheduler is there, as far as is known.

        A client that has lost it connects again by itself, to another one perhaps, and
        without its subscriptions. That is another connection, and this one is over.
        """
        client = self._client
        return (
            client is not None
            and client.status == "running"
            and client.scheduler_comm is self._comm
        )

    async def open(self) -> None:
        """Connect. Raises what tells why the scheduler cannot be reached."""
        self._client = client = Client(
            await self._own.start() if self._own else str(self._options.address),
            asynchronous=True,
            set_as_default=False,
            timeout=_TRY_S,
            name=self._name,
            security=self._security(),
        )
        _open.add(client)
        await client
        self._comm = comm = client.scheduler_comm
        # Dask keeps the last thousand that it has sent, to be looked at when something
        # goes wrong. Of ours each may carry a hundred payloads.
        comm.recent_message_log = deque(maxlen=_SENT_KEPT)
        client.subscribe_topic(topic_of(self._session), self._take)
        client.subscribe_topic(_WORKERS, self._take_news)
        self._tasks = [
            asyncio.create_task(each) for each in (self._deliver(), self._feel_pulse())
        ]

    def _security(self) -> Security | None:
        if self._own is not None:
            return self._own.security
        tls = self._options.tls
        if tls is None:
            return None
        for path in (tls["CA_FILE"], tls["CERT"], tls["KEY"]):
            open(path, "rb").close()  # or an error names it, as no later one does
        return Security(
            tls_ca_file=tls["CA_FILE"],
            tls_client_cert=tls["CERT"],
            tls_client_key=tls["KEY"],
            require_encryption=True,
        )

    def submit(
        self, payloads: Sequence[tuple[str, bytes]], *, priority: int
    ) -> "list[Future[bytes]]":
        """Have Dask run what these say, each under its key."""
        assert self._client is not None  # as it is open
        futures: list[Future[bytes]] = []
        for some in _batches(payloads):
            futures += self._client.map(
                run_call,
                [payload for _, payload in some],
                key=[key for key, _ in some],
                pure=False,
                retries=0,
                priority=priority,
            )
        return futures

    def send(self, worker: str, token: str, packed: bytes) -> None:
        """Send a message to the call of that token, on that worker."""
        self._outbox.append((worker, token, packed))
        self._has_mail.set()

    async def _deliver(self) -> None:
        """One event for all that has come together while the last was on its way."""
        try:
            while not self._is_over.is_set():
                await self._has_mail.wait()
                self._has_mail.clear()
                mail, self._outbox = self._outbox, []
                if mail:
                    await self._send(
                        {worker for worker, _, _ in mail},
                        event_down([(token, packed) for _, token, packed in mail]),
                    )
        except Exception:  # Dask's, or the network's
            self._lost()  # what was not delivered is answered by nobody

    async def _feel_pulse(self) -> None:
        """See whether the scheduler answers: one that stands still keeps its socket."""
        assert self._client is not None  # as it is open
        while not self._is_over.is_set():
            if self.unanswered_since is None:
                self.unanswered_since = time.monotonic()
            with suppress(Exception):  # Dask's, or the network's: so it has not
                await self._client.scheduler.echo(data=b"")
                self.unanswered_since = None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), _PULSE_S)

    async def _send(self, workers: set[str], message: list[object]) -> None:
        assert self._client is not None  # as it is open
        try:
            await self._client.scheduler.log_event(topic=list(workers), msg=message)
        except OSError:  # of one of several connections, which can be made anew
            await self._client.scheduler.log_event(topic=list(workers), msg=message)

    def _take(self, event: tuple[float, Any]) -> None:
        content = content_of(event)
        if content is not None:
            self._take_content(content)

    def _take_news(self, event: tuple[float, Any]) -> None:
        match event[1]:
            case {"action": "remove-worker", "worker": str(address)}:
                self._worker_left(address)
            case _:
                pass

    async def close(self) -> None:
        """Hang up: Dask forgets what it was given, but for what runs."""
        self._is_over.set()
        self._has_mail.set()
        if self._tasks:  # who is cancelled while it connects leaves a socket open
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
        client = self._client
        if client is not None:
            for topic in (topic_of(self._session), _WORKERS):
                with suppress(Exception):  # it is lost, whatever Dask says
                    client.unsubscribe_topic(topic)
            with suppress(Exception):  # likewise
                await asyncio.wait_for(client.close(), _CLOSE_S)
            _open.discard(client)


def _batches(
    payloads: Sequence[tuple[str, bytes]],
) -> Iterator[Sequence[tuple[str, bytes]]]:
    """A few at once: each needs a message, which must not become too long."""
    batch: list[tuple[str, bytes]] = []
    size = 0
    for each in payloads:
        if batch and (len(batch) == _AT_ONCE or size + len(each[1]) > _BYTES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += len(each[1])
    if batch:
        yield batch
