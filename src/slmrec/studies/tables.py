"""Tables of the studies, on the terminal and in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

MIN_WIDTH = 130
"""Width of the terminal that is assumed at least."""
MAX_NAME = 24
"""Length from which names are wrapped where a table is wide."""


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column holds names."""
    console = Console(width=max(Console().width, MIN_WIDTH), markup=False, highlight=False)
    table = Table(title=title, title_justify="left")
    rows = list(rows)
    table.add_column(columns[0], min_width=min(MAX_NAME, max((len(row[0]) for row in rows), default=0)))
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_sentences(sentences: Iterable[str]) -> None:
    """Print sentences, each on lines of its own."""
    console = Console(width=max(Console().width, MIN_WIDTH), markup=False, highlight=False)
    for sentence in sentences:
        console.print(sentence)


def signed(result: Mapping[str, Any]) -> str:
    """Return a difference and its interval.

    Example:
        >>> signed({"difference": 0.01, "low": -0.002, "high": 0.022})
        '+0.0100 (-0.0020 to +0.0220)'
    """
    return f"{result['difference']:+.4f} ({result['low']:+.4f} to {result['high']:+.4f})"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Example:
        >>> print(markdown_table(["a", "b"], [["1", "2"]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
