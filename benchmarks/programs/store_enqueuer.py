"""A process that enqueues and runs what `store_waking` asks for."""

import sys

import django


def main() -> None:
    django.setup()
    from . import store_tasks

    end_after = store_tasks.end_after.using(backend=sys.argv[1])
    for line in sys.stdin:
        print(end_after.enqueue(float(line)).id, flush=True)


if __name__ == "__main__":
    main()
