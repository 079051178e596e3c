"""``python -m benchmarks``: measures, tells, and writes the docs' table and picture.

Nothing here fails because something is slow: a benchmark only reports.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from .environments import CHECKOUT, Environments
from .plan import FIGURES, MEASUREMENTS, Measurement, Part
from .report import as_text, write
from .results import Results

_PARTS: dict[str, Part] = {each.measurement: each.part for each in FIGURES}
"""What each measurement is of."""


def _parse() -> argparse.Namespace:
    names = [each.name for each in MEASUREMENTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less of everything, in two minutes; writes nothing unless --out is given",
    )
    for part, title in (
        ("stores", "the stores"),
        ("cluster", "a Dask cluster"),
        ("levels", "how far each way to run tasks goes"),
    ):
        parser.add_argument(
            f"--{part}",
            dest="parts",
            action="append_const",
            const=part,
            help=f"only what stands in the docs' tables of {title}, which it writes",
        )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=names,
        help=f"of {', '.join(names)}; writes nothing unless --out is given",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIRECTORY", help="where to write (docs)"
    )
    return parser.parse_args()


def _run(
    environments: Environments,
    measurement: Measurement,
    results: Results,
    *,
    is_quick: bool,
) -> None:
    """Run a measurement: the contenders in turns, as often as the plan says."""
    arguments = {**measurement.arguments, **(measurement.quick if is_quick else {})}
    repeats = measurement.quick_repeats if is_quick else measurement.repeats
    for _ in range(repeats):
        for contender in measurement.contenders:
            printed = environments.run(
                measurement.program, contender, json.dumps(arguments)
            )
            results.add(measurement.name, contender, json.loads(printed))


def main() -> None:
    options = _parse()
    environments = Environments()
    results = Results()
    began_at = time.monotonic()
    for measurement in MEASUREMENTS:
        is_wanted = options.only is None or measurement.name in options.only
        is_of_part = not options.parts or _PARTS[measurement.name] in options.parts
        if is_wanted and is_of_part:
            print(f"{measurement.name} …", end="", file=sys.stderr, flush=True)
            before = time.monotonic()
            _run(environments, measurement, results, is_quick=options.quick)
            print(f" {time.monotonic() - before:.0f} s", file=sys.stderr)
    print(as_text(results))
    print(f"\nAll in {time.monotonic() - began_at:.0f} s.")
    out: Path | None = options.out
    if out is None and not options.quick and options.only is None:
        out = CHECKOUT / "docs"
    if out is not None:
        write(results, out)


if __name__ == "__main__":
    main()
