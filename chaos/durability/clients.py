"""Who has tasks enqueued, and notes those that the server has told of."""

import json
import random
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from types import TracebackType
from typing import Self

__all__ = ["Asked", "Client", "Clients"]

_CLIENTS = 4
_WAYS = ("one-by-one", "on-a-loop", "together")
# Most tasks may run but once.
_NAMES = ("run_once", "run_once", "run_once", "run_twice", "fail_first")
_ANSWER_S = 50.0
_MEAN_PAUSE_S = 0.015


@dataclass(frozen=True, slots=True)
class Asked:
    """A task whose enqueue has returned."""

    name: str
    token: str


@dataclass(eq=False)
class Client:
    """Asks one thing after another: what that is, its name and the seed decide."""

    name: str
    seed: int
    address: str
    asked: dict[str, Asked] = field(default_factory=dict)
    """By the results' ids."""
    unanswered: int = 0
    """Requests whose server was killed: nobody knows what became of these."""
    faults: list[str] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.name} {self.seed}")

    def ask(self) -> bool:
        """Have some tasks enqueued; whether that was answered."""
        chance = self._chance
        self._count += 1
        token = f"{self.name}-{self._count}"
        name = chance.choice(_NAMES)
        count = chance.choice((1, 1, 2, 8))
        pause_ms = chance.choice((0, 0, 0, 1, 5, 30))
        in_ms = chance.choice((0, 0, 0, chance.randrange(1, 600)))
        way = chance.choice(_WAYS)
        url = f"{self.address}/{way}/{name}/{token}/{count}/{pause_ms}/{in_ms}"
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_S) as response:
                ids: list[str] = json.load(response)["ids"]
        except (urllib.error.HTTPError, TimeoutError) as err:
            self.faults.append(f"The request {url} failed: {err!r}")
            return False
        except (OSError, HTTPException):
            self.unanswered += 1
            return False
        for number, result_id in enumerate(ids):
            self.asked[result_id] = Asked(name, f"{token}.{number}")
        return True

    def wait(self, over: threading.Event) -> bool:
        """Wait a little; True when it is over."""
        return over.wait(self._chance.expovariate(1 / _MEAN_PAUSE_S))


class Clients:
    """Several, each a thread, from entering to leaving; and `first`, who is none."""

    def __init__(self, address: str, *, seed: int) -> None:
        self.first = Client("first", seed, address)
        others = [
            Client(f"client-{number}", seed, address) for number in range(_CLIENTS)
        ]
        self._all = [self.first, *others]
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(client,)) for client in others
        ]

    @property
    def asked(self) -> dict[str, Asked]:
        """What all of them were told of."""
        return {key: each for client in self._all for key, each in client.asked.items()}

    @property
    def unanswered(self) -> int:
        """How many requests got no answer."""
        return sum(client.unanswered for client in self._all)

    @property
    def faults(self) -> list[str]:
        """What went wrong with all of them."""
        return [fault for client in self._all for fault in client.faults]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """They ask nothing more. May be called twice."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: Client) -> None:
        while not client.wait(self._over):
            client.ask()
