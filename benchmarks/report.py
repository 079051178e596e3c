"""The figures as text, as a Markdown table and as a picture."""

import os
import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from . import how_far
from .plan import MEASUREMENTS, Figure, Part
from .results import Results, amount

__all__ = ["as_markdown", "as_svg", "as_text", "write"]

_NAMES = {
    "3": "version 3",
    "2.0": "version 2.0",
    "bare": "bare executor",
    "db": "django-tasks-db",
    "sqlite3": "SQLite alone",
    "dask": "Dask's client",
    "dask-uuid": "… keys that are UUIDs",
}
_CONTENDERS = tuple(_NAMES)
_SHORT = {
    "2.0": "2.0",
    "bare": "bare",
    "db": "django-tasks-db",
    "sqlite3": "SQLite alone",
    "dask": "Dask's client",
    "dask-uuid": "that with UUIDs",
}


class _Section(NamedTuple):
    """A part of the docs' page, written anew when its figures are measured."""

    begin: str
    end: str
    picture: str
    title: str


_SECTIONS: dict[Part, _Section] = {
    "backends": _Section(
        "<!-- figures: written by make bench -->",
        "<!-- end of figures -->",
        "images/benchmarks.svg",
        "Version 3 beside 2.0 and the bare executors",
    ),
    "stores": _Section(
        "<!-- figures of the stores: written by make bench-stores -->",
        "<!-- end of the stores' figures -->",
        "images/benchmarks-stores.svg",
        "The stores beside each other and django-tasks-db",
    ),
    "cluster": _Section(
        "<!-- figures of the cluster: written by make bench-cluster -->",
        "<!-- end of the cluster's figures -->",
        "images/benchmarks-cluster.svg",
        "DaskBackend beside Dask's own client",
    ),
}


def as_text(results: Results) -> str:
    """For the terminal: medians, spreads and ratios, then the targets."""
    lines: list[str] = []
    for figure in results.figures():
        lines.append(figure.title)
        for name in _CONTENDERS:
            value = results.median_of(figure, name)
            if value is None:
                continue
            least, greatest = results.spread_of(figure, name)
            spread = f"({amount(least, '')}– {amount(greatest, '')})"
            comparison = None if name == "3" else results.comparison(figure, name)
            ratio = "" if comparison is None else f"3 is at {comparison}"
            lines.append(
                f"    {_NAMES[name]:<16} {amount(value, figure.unit):>14}  "
                f"{spread:<24} {ratio}".rstrip()
            )
    lines.append("\nTargets")
    for verdict in results.verdicts():
        mark = "met    " if verdict.is_met else "not met"
        lines.append(f"    {mark}  {verdict.text}: {verdict.reached}")
    return "\n".join(lines)


def as_markdown(results: Results, part: Part) -> str:
    """For the docs: where it was measured, the picture, and the tables."""
    section = _SECTIONS[part]
    figures = _figures(results, part)
    where = (
        f"{_where(figures)}; in parentheses the least and the greatest ratio of the "
        "runs of one turn."
    )
    lines = [where, "", f"![{section.title}]({section.picture})"]
    lines += ["", *_table(results, figures)]
    lines += ["", "| What is to be reached | reached | |", "| --- | ---: | --- |"]
    for verdict in results.verdicts():
        if verdict.figure in figures:
            mark = "met" if verdict.is_met else "**not met**"
            lines.append(f"| {verdict.text} | {verdict.reached} | {mark} |")
    return "\n".join(lines)


def _where(figures: Sequence[Figure]) -> str:
    """On what they were measured, and how."""
    names = {figure.measurement for figure in figures}
    most = max(each.repeats for each in MEASUREMENTS if each.name in names)
    return (
        f"CPython {platform.python_version()}, Django {version('django')}, "
        f"{platform.system()}, {os.cpu_count()} cores. Medians of up to {most} runs, "
        "each in a process of its own, in turns"
    )


def _figures(results: Results, part: Part) -> list[Figure]:
    return [each for each in results.figures() if each.part == part]


def _table(results: Results, figures: Sequence[Figure]) -> list[str]:
    """A Markdown table, with a column for each contender that takes part."""
    names = [
        name
        for name in _CONTENDERS
        if any(results.median_of(figure, name) is not None for figure in figures)
    ]
    others = names[1:]
    titles = [_NAMES[name] for name in names] + [f"3 to {_SHORT[n]}" for n in others]
    lines = [f"| | {' | '.join(titles)} |", f"| ---{' | ---:' * len(titles)} |"]
    for figure in figures:
        cells = [amount(results.median_of(figure, name), figure.unit) for name in names]
        ratios = [results.comparison(figure, name) for name in others]
        cells += ["–" if ratio is None else str(ratio) for ratio in ratios]
        lines.append(f"| {figure.title} | {' | '.join(cells)} |")
    return lines


def write(results: Results, docs: Path) -> None:
    """Put the tables into the docs' pages, between their marks, and the pictures."""
    page = docs / "benchmarks.md"
    for part, section in _SECTIONS.items():
        figures = _figures(results, part)
        if not figures:
            continue
        picture = docs / section.picture
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text(as_svg(results, figures))
        _replace(page, section.begin, section.end, as_markdown(results, part))
    figures = _figures(results, "levels")
    if figures:
        page = docs / "how-far-it-goes.md"
        for mark, text in how_far.passages(results, f"{_where(figures)}.").items():
            begin = f"<!-- {mark}: written by make bench-levels -->"
            _replace(page, begin, f"<!-- end of {mark} -->", text)


def _replace(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks."""
    before, begun, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise SystemExit(f"{page} has no {begin} and {end}.")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


_WIDTH = 760
_LABEL_WIDTH = 20
_BAR_WIDTH = 520
_BAR_HEIGHT = 14
_TITLE_HEIGHT = 26
_GAP = 14

_STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #24292f; }
    .title { font-weight: 600; }
    .better, .who { fill: #57606a; }
    .c3 { fill: #1a7f5a; } .c20 { fill: #c9812b; } .cbare { fill: #8c959f; }
    .cdb { fill: #7a6fc0; }
    .csqlite3 { fill: #8c959f; }
    .cdask { fill: #8c959f; } .cdask-uuid { fill: #b0b7be; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; } .better, .who { fill: #9da7b1; }
      .c3 { fill: #3fb98a; } .c20 { fill: #dba15a; } .cbare { fill: #6e7681; }
      .cdb { fill: #a79ce8; }
      .csqlite3 { fill: #6e7681; }
      .cdask { fill: #6e7681; } .cdask-uuid { fill: #545b64; }
    }
"""


def as_svg(results: Results, figures: Sequence[Figure]) -> str:
    """Bars: those of one figure share a scale, figures do not."""
    parts: list[str] = []
    top = _GAP
    for figure in figures:
        if figure.is_pictured:
            bars, height = _bars(results, figure, top)
            parts += bars
            top += height + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        f'role="img" aria-label="Benchmarks">\n  <style>{_STYLE}  </style>\n  '
        + "\n  ".join(parts)
        + "\n</svg>\n"
    )


def _bars(results: Results, figure: Figure, top: int) -> tuple[list[str], int]:
    better = "longer is better" if figure.more_is_better else "shorter is better"
    title = (
        f'<text x="{_LABEL_WIDTH}" y="{top + 14}"><tspan class="title">'
        f"{escape(figure.title)}</tspan>"
        f'<tspan class="better" dx="8">{better}</tspan></text>'
    )
    parts = [title]
    values = {name: results.median_of(figure, name) for name in _CONTENDERS}
    longest = max(value for value in values.values() if value is not None)
    y = top + _TITLE_HEIGHT
    for name, value in values.items():
        if value is None:
            continue
        width = max(1.0, value / longest * _BAR_WIDTH)
        bar = (
            f'<rect class="c{name.replace(".", "")}" x="{_LABEL_WIDTH}" y="{y}" '
            f'width="{width:.1f}" height="{_BAR_HEIGHT}" rx="2"/>'
        )
        label = (
            f'<text x="{_LABEL_WIDTH + width + 6:.1f}" y="{y + 11}">'
            f"{escape(amount(value, figure.unit))}"
            f'<tspan class="who" dx="6">{_NAMES[name]}</tspan></text>'
        )
        parts += [bar, label]
        y += _BAR_HEIGHT + 4
    return parts, y - top
