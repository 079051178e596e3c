"""What was asked for, what became of it, and what of that is wrong."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.tasks import TaskResultStatus
from django.tasks.signals import task_enqueued, task_finished, task_started

from django_tasks_local import LocalTaskResult, WorkerLost

__all__ = ["Answer", "Figures", "Ledger"]

_SUCCESSFUL = TaskResultStatus.SUCCESSFUL
_LOST = f"{WorkerLost.__module__}.{WorkerLost.__qualname__}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a web worker answered a request with."""

    token: str
    result_id: str
    value: str | None
    errors: list[list[str]]
    worker_ids: list[str]


@dataclass(slots=True)
class Figures:
    """What is printed at the end."""

    returned: int = 0
    lost: int = 0
    crossed: int = 0


@dataclass(eq=False)
class Ledger:
    """The books of a run. Any thread may write into its lists."""

    kills_servers: bool
    tokens: dict[str, str] = field(default_factory=dict)
    """The token that each task was enqueued with here, by the result's id."""
    handles: list[LocalTaskResult[Any]] = field(default_factory=list)
    """As `enqueue` gave them; others have waited with them."""
    events: list[tuple[str, LocalTaskResult[Any]]] = field(default_factory=list)
    """What receivers of the signals were given, in this process."""
    answers: list[Answer] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    kill_count: int = 0

    def connect(self) -> None:
        """Have the signals written down."""
        task_enqueued.connect(self._enqueued)
        task_started.connect(self._started)
        task_finished.connect(self._finished)

    def _enqueued(self, task_result: LocalTaskResult[Any], **_: Any) -> None:
        self.events.append(("enqueued", task_result))

    def _started(self, task_result: LocalTaskResult[Any], **_: Any) -> None:
        self.events.append(("started", task_result))

    def _finished(self, task_result: LocalTaskResult[Any], **_: Any) -> None:
        self.events.append(("finished", task_result))

    def close(self) -> tuple[Figures, list[str]]:
        """The figures, and what is wrong, once all is over."""
        figures = Figures()
        return figures, [
            *self._check_counts(),
            *self._check_outcomes(figures),
            *self._check_answers(figures),
            *self._check_worker_losses(),
        ]

    def _check_counts(self) -> Iterator[str]:
        """Each task has begun and ended once, those that tasks enqueued too."""
        counts = Counter((name, result.id) for name, result in self.events)
        for result_id in {result_id for _, result_id in counts} | self.tokens.keys():
            for name in ("enqueued", "started", "finished"):
                count = counts[name, result_id]
                if count != 1:
                    yield f"{result_id} was {name} {count} times"

    def _check_outcomes(self, figures: Figures) -> Iterator[str]:
        finished = self._finished_results()
        for result in finished.values():
            if result.status is _SUCCESSFUL:
                figures.returned += 1
                yield from self._check_value(result, finished, figures)
            else:
                figures.lost += 1
                yield from self._check_loss(
                    result.id, result.worker_ids, _errors_of(result)
                )
        for handle in self.handles:
            end = finished.get(handle.id)
            if end is None:
                yield f"{handle.id} was never finished"
            elif handle.record != end.record:
                yield f"{handle.id} says {handle.record}, but became {end.record}"
            elif end.args[0] != self.tokens[handle.id]:
                figures.crossed += 1
                yield f"{handle.id} ran with the argument of another"

    def _finished_results(self) -> dict[str, LocalTaskResult[Any]]:
        return {result.id: result for name, result in self.events if name == "finished"}

    def _check_value(
        self,
        result: LocalTaskResult[Any],
        finished: dict[str, LocalTaskResult[Any]],
        figures: Figures,
    ) -> Iterator[str]:
        token: str = result.args[0]
        value: Any = result.return_value
        if result.task.name == "relay":
            inner = finished.get(value[0])
            if inner is None or (value[1] is None) is (inner.status is _SUCCESSFUL):
                yield f"{result.id} was told a wrong end of its task {value[0]}"
                return
            value = inner.args[0] if value[1] is None else value[1]
        if value != token:
            figures.crossed += 1
            yield f"{result.id} returned {value!r} instead of {token!r}"

    def _check_answers(self, figures: Figures) -> Iterator[str]:
        counts = Counter(answer.result_id for answer in self.answers)
        for result_id, count in counts.items():
            if count > 1:
                figures.crossed += 1
                yield f"{result_id} answered {count} requests"
        for answer in self.answers:
            if answer.errors:
                figures.lost += 1
                yield from self._check_loss(
                    answer.result_id, answer.worker_ids, answer.errors
                )
            elif answer.value != answer.token:
                figures.crossed += 1
                yield f"A request for {answer.token!r} was answered {answer.value!r}"
            else:
                figures.returned += 1

    def _check_loss(
        self, result_id: str, worker_ids: list[str], errors: list[list[str]]
    ) -> Iterator[str]:
        """It failed because its worker was killed: nothing else is an excuse."""
        if len(errors) != 1 or errors[0][0] != _LOST or len(worker_ids) != 1:
            yield f"{result_id} failed otherwise: {worker_ids} {errors}"
            return
        reason = errors[0][1]
        named = re.search(r"Worker process (\d+) was killed by SIGKILL", reason)
        if named is None:
            if not self._is_excused(reason):
                yield f"{result_id} was lost for no good reason: {reason}"
            return
        if int(named[1]) not in self.killed:
            yield f"{result_id} was lost by a worker that nobody killed: {reason}"
        if named[1] != worker_ids[0].split(":")[1]:
            yield f"{result_id} ran in {worker_ids[0]}, but was lost so: {reason}"

    def _is_excused(self, reason: str) -> bool:
        """The fork server alone knows how a process ended, or starts one."""
        excuses = ("No worker process could be started", "in a way that is not known")
        return self.kills_servers and any(excuse in reason for excuse in excuses)

    def _check_worker_losses(self) -> Iterator[str]:
        """A worker that is killed takes the task that it ran with it, and no other."""
        lost: list[str] = [
            *(
                result.worker_ids[-1]
                for result in self._finished_results().values()
                if result.status is not _SUCCESSFUL and result.worker_ids
            ),
            *(answer.worker_ids[-1] for answer in self.answers if answer.errors),
        ]
        for worker_id, count in Counter(lost).items():
            # The process 0 is none: the fork server was killed before it started one.
            if count > 1 and worker_id.split(":")[1] != "0":
                yield f"{worker_id} has lost {count} tasks"


def _errors_of(result: LocalTaskResult[Any]) -> list[list[str]]:
    return [[error.exception_class_path, error.traceback] for error in result.errors]
