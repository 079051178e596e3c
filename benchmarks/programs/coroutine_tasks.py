"""The coroutines whose running is measured. 2.0 has none."""

from django_tasks_local import task

from . import functions

no_op = task(functions.no_op_coroutine, backend="coroutines")
sleep = task(functions.sleep, backend="coroutines")
hold = task(functions.hold, backend="coroutines")
