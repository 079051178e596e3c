"""Who gets which slot when."""

import time
from contextvars import Context

from django_tasks_local.jobs import Job
from django_tasks_local.slots import Slots
from django_tasks_local.testing.records import ready_record

from .tasks import add


def test_of_many_deferred_tasks_the_first_one_says_when_to_ring() -> None:
    slots = Slots(alias="default", max_workers=1, max_pending=None)
    now = time.time()
    for delays in ([0.2, 3600.0], [3600.0, 0.2]):
        jobs = [
            Job(
                ready_record(0)._replace(due_at=now + delay_s),
                task=add,
                context=Context(),
            )
            for delay_s in delays
        ]
        slots.admit(jobs)
        ring_in_s = slots.push(jobs, [], [])
        assert ring_in_s is not None
        assert ring_in_s <= 0.2
