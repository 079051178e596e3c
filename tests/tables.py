"""Tables that a module of the tests writes into a page of the documentation."""

from collections.abc import Iterable, Sequence

__all__ = ["as_table", "with_table"]


def as_table(heads: Sequence[str], rows: Iterable[Sequence[str]], /) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_table(text: str, table: str, /, *, name: str) -> str:
    """A page's text with the table between the marks of the module of that name."""
    begin = f"<!-- {name}: written by python -m tests.{name} -->"
    end = f"<!-- end of {name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    assert found_begin, f"no {begin}"
    assert found_end, f"no {end}"
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"
