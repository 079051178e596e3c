"""What a second process brings to tasks that keep a CPU busy."""

import time

from .contenders import begin, contender, tell

_PRIMES_BELOW = 20_000


def main() -> None:
    name, arguments = begin()
    from . import tasks

    count = arguments["count"]
    figures: dict[str, float] = {}
    for processes in (1, 2):
        pool = contender(name, f"processes-{processes}")
        for started in [pool.submit(tasks.count_primes, 5_000) for _ in range(8)]:
            pool.wait(started)
        began_at = time.perf_counter()
        submitted = [
            pool.submit(tasks.count_primes, _PRIMES_BELOW) for _ in range(count)
        ]
        for each in submitted:
            pool.wait(each)
        figures[f"per_s on {processes}"] = count / (time.perf_counter() - began_at)
    figures["speed_up"] = figures["per_s on 2"] / figures["per_s on 1"]
    tell(figures)


if __name__ == "__main__":
    main()
