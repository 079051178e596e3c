# Needed until `distributed` has types that mypy --strict accepts: of 2026.8 most are
# missing, though it says that it is typed.
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Self

from .batched import BatchedSend

class Status(Enum):
    paused = ...

class Security:
    def __init__(
        self,
        *,
        tls_ca_file: str,
        tls_client_cert: str,
        tls_client_key: str,
        require_encryption: bool,
    ) -> None: ...
    @classmethod
    def temporary(cls) -> Security: ...

class Future[T]:
    key: str
    status: Literal["pending", "cancelled", "finished", "lost", "error"]
    async def exception(self) -> BaseException | None: ...
    async def result(self) -> T: ...
    def release(self) -> None: ...

class _Loop:
    def add_callback(self, callback: Callable[..., Any], *args: Any) -> None: ...

class _Scheduler:
    address: str
    async def echo(self, *, data: bytes) -> bytes: ...
    async def log_event(self, *, topic: str | Sequence[str], msg: object) -> None: ...

class Client:
    status: Literal["running", "connecting", "closing", "closed", "newly-created"]
    id: str
    scheduler: _Scheduler
    scheduler_comm: BatchedSend
    def __init__(
        self,
        address: str | LocalCluster,
        *,
        set_as_default: bool,
        asynchronous: bool = False,
        timeout: float | None = None,
        name: str | None = None,
        security: Security | None = None,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def run(self, function: Callable[..., Any], *, workers: Sequence[str]) -> Any: ...
    def run_on_scheduler(self, function: Callable[..., Any]) -> Any: ...
    def __await__(self) -> Any: ...
    def map(
        self,
        func: Callable[[bytes], Awaitable[bytes]],
        iterable: Sequence[bytes],
        *,
        key: Sequence[str],
        pure: bool,
        retries: int,
        priority: int,
        batch_size: int | None = None,
    ) -> list[Future[bytes]]: ...
    def subscribe_topic(
        self, topic: str, handler: Callable[[tuple[float, Any]], None]
    ) -> None: ...
    def unsubscribe_topic(self, topic: str) -> None: ...
    async def close(self) -> None: ...

class LocalCluster:
    def __init__(
        self,
        *,
        asynchronous: bool,
        processes: bool,
        n_workers: int,
        threads_per_worker: int,
        dashboard_address: str,
        scheduler_kwargs: Mapping[str, object],
        security: Security,
    ) -> None: ...
    def __await__(self) -> Any: ...
    async def close(self, *, timeout: float) -> None: ...

class _TaskState:
    state: str

class _WorkerState:
    tasks: Mapping[str, _TaskState]
    ready: Sequence[Any]
    nthreads: int

class Worker:
    address: str
    loop: _Loop
    state: _WorkerState
    def handle_stimulus(self, *events: object) -> None: ...
    def log_event(self, topic: str, msg: object) -> None: ...

class KilledWorker(Exception):
    last_worker: Any

def get_worker() -> Worker: ...
def get_client() -> Client: ...
