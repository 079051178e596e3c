"""How long a call to a process takes, there and back, one at a time."""

import statistics
import time

from .contenders import begin, contender, tell


def main() -> None:
    name, arguments = begin()
    from . import tasks

    pool = contender(name, "processes-2")
    samples_s: list[float] = []
    for number in range(arguments["samples"]):
        before = time.perf_counter()
        value = pool.wait(pool.submit(tasks.echo, number))
        samples_s.append(time.perf_counter() - before)
        assert value == number
    del samples_s[: len(samples_s) // 10]  # the processes started
    tell({"p50_us": statistics.median(samples_s) * 1e6})


if __name__ == "__main__":
    main()
