"""What an enqueue costs while more and more tasks wait, and what the collector adds."""

import gc
import os
import statistics
import time

from .contenders import begin, contender, tell

_WARM_UP = 500


class _Collections:
    """The garbage collector's pauses since the last `reset`."""

    def __init__(self) -> None:
        self._began_at = self.total_s = self.longest_s = 0.0
        gc.callbacks.append(self._on_phase)

    def reset(self) -> None:
        self.total_s = self.longest_s = 0.0

    def _on_phase(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began_at = time.perf_counter()
        else:
            pause_s = time.perf_counter() - self._began_at
            self.total_s += pause_s
            self.longest_s = max(self.longest_s, pause_s)


def main() -> None:
    name, arguments = begin()
    from . import functions, tasks

    threads = contender(name, "threads-2")
    for number in range(_WARM_UP):
        threads.wait(threads.submit(tasks.echo, number, note="hello"))
    threads.submit(tasks.block)
    threads.submit(tasks.block)
    functions.blocked.wait()

    collections = _Collections()
    figures: dict[str, float] = {}
    pending = 0
    for depth in arguments["depths"]:
        collections.reset()
        samples_ns: list[int] = []
        began_at = time.perf_counter()
        filled = depth - pending
        for number in range(filled):
            threads.submit(tasks.echo, number, note="hello")
        for number in range(arguments["samples"]):
            before_ns = time.perf_counter_ns()
            threads.submit(tasks.echo, number, note="hello")
            samples_ns.append(time.perf_counter_ns() - before_ns)
        took_s = time.perf_counter() - began_at
        count = filled + len(samples_ns)
        pending += count
        figures[f"p50_us at {depth}"] = statistics.median(samples_ns) / 1e3
        figures[f"mean_us at {depth}"] = took_s / count * 1e6
        figures[f"gc_percent at {depth}"] = collections.total_s / took_s * 100
        figures[f"gc_longest_ms at {depth}"] = collections.longest_s * 1e3
    tell(figures)
    os._exit(0)  # what waits need not run


if __name__ == "__main__":
    main()
