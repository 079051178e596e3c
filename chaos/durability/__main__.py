"""``python -m chaos.durability``: kills servers, counts, fails if anything is wrong."""

import argparse
import random


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos.durability")
    parser.add_argument("--rounds", type=int, default=100, metavar="NUMBER")
    parser.add_argument(
        "--backend", choices=["threads", "processes", "loop"], default="threads"
    )
    parser.add_argument("--store", choices=["sqlite", "database"], default="sqlite")
    parser.add_argument(
        "--database",
        choices=["sqlite", "postgresql"],
        default="sqlite",
        help="where the database store keeps its tables",
    )
    parser.add_argument(
        "--durability",
        choices=["normal", "full"],
        default="normal",
        help="of the sqlite store: whether each enqueue waits for the disk",
    )
    parser.add_argument(
        "--seed", type=int, help="of the tasks, and of when servers are killed"
    )
    return parser.parse_args()


def main() -> None:
    options = _parse()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    from .project import project

    with project(
        backend=options.backend,
        store=options.store,
        database=options.database,
        durability=options.durability,
    ) as directory:
        from .run import run  # once the project is set up

        code = run(directory, seed=seed, rounds=options.rounds)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
