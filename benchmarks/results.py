"""What was measured: each figure of each contender, once for each repeat."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from .plan import FIGURES, TARGETS, Figure, Target

__all__ = ["Comparison", "Results", "Verdict", "amount"]


@dataclass(frozen=True)
class Comparison:
    """A ratio of medians, and the least and the greatest of the repeats' own ratios."""

    ratio: float
    least: float
    greatest: float

    def __str__(self) -> str:
        spread = f" ({self.least:.2f}–{self.greatest:.2f})"
        return f"{self.ratio:.2f} ×{'' if self.least == self.greatest else spread}"


@dataclass(frozen=True)
class Verdict:
    """What became of a target."""

    figure: Figure
    text: str
    reached: str
    is_met: bool


class Results:
    """Filled while the measurements run; then asked."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def add(self, measurement: str, contender: str, figures: dict[str, float]) -> None:
        """Take what one run of a program measured."""
        for key, value in figures.items():
            self._values[measurement, key, contender].append(value)

    def median_of(self, figure: Figure, contender: str) -> float | None:
        """None where the contender took no part."""
        values = self._values.get((figure.measurement, figure.key, contender))
        return None if values is None else median(values)

    def spread_of(self, figure: Figure, contender: str) -> tuple[float, float]:
        """The least and the greatest value."""
        values = self._values[figure.measurement, figure.key, contender]
        return min(values), max(values)

    def figures(self) -> list[Figure]:
        """Those that were measured, in the plan's order."""
        return [figure for figure in FIGURES if self.median_of(figure, "3") is not None]

    def comparison(self, figure: Figure, against: str) -> Comparison | None:
        """This version's figure by that of another contender."""
        return self._comparison(figure.measurement, figure.key, against, figure.key)

    def verdicts(self) -> list[Verdict]:
        """What became of the targets whose figures were measured."""
        verdicts: list[Verdict] = []
        for target in TARGETS:
            figure = _figure(target.measurement, target.key)
            if target.against is None:
                value = self.median_of(figure, "3")
                reached = amount(value, figure.unit)
            else:
                comparison = self._comparison(
                    target.measurement,
                    target.key,
                    target.against,
                    target.against_key or target.key,
                )
                value = None if comparison is None else comparison.ratio
                reached = str(comparison)
            if value is not None:
                is_met = _is_met(target, value)
                verdicts.append(Verdict(figure, _as_text(target), reached, is_met))
        return verdicts

    def _comparison(
        self, measurement: str, key: str, against: str, against_key: str
    ) -> Comparison | None:
        ours = self._values.get((measurement, key, "3"))
        others = self._values.get((measurement, against_key, against))
        if not ours or not others or not all(others):
            return None
        ratios = [mine / other for mine, other in zip(ours, others, strict=True)]
        return Comparison(median(ours) / median(others), min(ratios), max(ratios))


def _is_met(target: Target, value: float) -> bool:
    return (target.at_most is None or value <= target.at_most) and (
        target.at_least is None or value >= target.at_least
    )


_POSSESSIVES = {
    "2.0": "2.0's",
    "bare": "the bare executor's",
    "db": "django-tasks-db's",
    "dask": "that of Dask's own client",
}


def _as_text(target: Target) -> str:
    figure = _figure(target.measurement, target.key)
    if target.against is None:
        other = figure.unit
    elif target.against_key is not None:
        other = f"× {_figure(target.measurement, target.against_key).title}"
    else:
        other = f"× {_POSSESSIVES[target.against]}"
    if target.at_most is not None:
        return f"{figure.title}: at most {target.at_most:g} {other}"
    return f"{figure.title}: at least {target.at_least:g} {other}"


def _figure(measurement: str, key: str) -> Figure:
    return next(
        each for each in FIGURES if (each.measurement, each.key) == (measurement, key)
    )


def amount(value: float | None, unit: str) -> str:
    """A number with its unit, in three digits or so."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f} {unit}"
    return f"{value:.1f} {unit}" if value >= 10 else f"{value:.2f} {unit}"
