"""``python -m chaos``: disturbs, counts, and fails if anything is wrong."""

import argparse
import os
import random

# Worker processes import this module too, so what they do not need is imported later.


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos")
    parser.add_argument("--tasks", type=int, default=10_000, metavar="NUMBER")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="NUMBER",
        help="enqueue no longer than this, however many tasks there were",
    )
    parser.add_argument(
        "--seed", type=int, help="of the tasks' lengths, and of who is disturbed when"
    )
    parser.add_argument(
        "--kill-servers",
        action="store_true",
        help="kill fork servers too, not only worker processes",
    )
    return parser.parse_args()


def main() -> None:
    options = _parse()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    os.environ["DJANGO_SETTINGS_MODULE"] = "chaos.settings"
    import django

    django.setup()
    from .run import run

    raise SystemExit(
        run(
            seed=seed,
            count=options.tasks,
            seconds=options.seconds,
            kills_servers=options.kill_servers,
        )
    )


if __name__ == "__main__":
    main()
