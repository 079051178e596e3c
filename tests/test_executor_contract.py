"""Every executor keeps what `TaskExecutor` promises."""

from dataclasses import replace

import uvloop

from django_tasks_local.executors.event_loop import EventLoopExecutor
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


class TestEventLoopExecutor(ExecutorContract):
    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> EventLoopExecutor:
        return EventLoopExecutor(options, host=host)


class TestEventLoopExecutorThatMustNotBlock(ExecutorContract):
    """As with a store on a disk: nothing of the host's is called on the loop."""

    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> EventLoopExecutor:
        host.transitions_may_block = True
        return EventLoopExecutor(options, host=host)


class TestEventLoopExecutorOnUvloop(ExecutorContract):
    def make_executor(
        self, options: LocalOptions, /, *, host: RecordingHost
    ) -> EventLoopExecutor:
        on_uvloop = replace(options, new_event_loop=uvloop.new_event_loop)
        return EventLoopExecutor(on_uvloop, host=host)
