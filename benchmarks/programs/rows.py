"""How long a megabyte of rows takes to a process and back."""

import json
import statistics
import time

from .contenders import begin, contender, tell

_SIZE = 1_000_000


def _rows() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    size = 0
    while size < _SIZE:
        number = len(rows)
        row: dict[str, object] = {
            "id": number,
            "name": f"customer {number}",
            "email": f"customer.{number}@example.com",
            "is_active": number % 3 > 0,
            "balance": number * 1.25,
            "tags": ["new", "paper", None],
        }
        size += len(json.dumps(row)) + 2
        rows.append(row)
    return rows


def main() -> None:
    name, arguments = begin()
    from . import tasks

    pool = contender(name, "processes-2")
    rows = _rows()
    pool.wait(pool.submit(tasks.echo, 1))
    pool.wait(pool.submit(tasks.echo, rows))
    samples_s: list[float] = []
    for _ in range(arguments["samples"]):
        before = time.perf_counter()
        value = pool.wait(pool.submit(tasks.echo, rows))
        samples_s.append(time.perf_counter() - before)
        assert value == rows
    tell({"p50_ms": statistics.median(samples_s) * 1e3})


if __name__ == "__main__":
    main()
