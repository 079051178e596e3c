"""Every executor keeps what `TaskExecutor` promises."""

from django_tasks_local.executors.processes import ProcessExecutor
from django_tasks_local.executors.threads import ThreadExecutor
from django_tasks_local.options import LocalOptions
from django_tasks_local.testing import ExecutorContract, RecordingHost


class TestThreadExecutor(ExecutorContract):
    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> ThreadExecutor:
        return ThreadExecutor(options, host=host)


class TestProcessExecutor(ExecutorContract):
    has_own_processes = True

    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> ProcessExecutor:
        return ProcessExecutor(options, host=host)
