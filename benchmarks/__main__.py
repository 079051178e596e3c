"""``python -m benchmarks``: measures, tells, and writes the docs' table and picture.

Nothing here fails because something is slow: a benchmark only reports.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from .environments import CHECKOUT, Environments
from .plan import FIGURES, MEASUREMENTS, Measurement
from .report import as_text, write
from .results import Results

_OF_STORES = {figure.measurement for figure in FIGURES if figure.is_of_stores}


def _parse() -> argparse.Namespace:
    names = [each.name for each in MEASUREMENTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less of everything, in two minutes; writes nothing unless --out is given",
    )
    parser.add_argument(
        "--stores",
        action="store_true",
        help="only what stands in the docs' table of the stores, which it writes",
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
        if is_wanted and (measurement.name in _OF_STORES or not options.stores):
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
