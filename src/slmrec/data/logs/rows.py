"""Rows of text tables with their line numbers.

DuckDB's `read_csv(store_rejects=true)` does not replace this module: its `line` counts rows, so a quoted field with a
line break shifts all later line numbers (after 200,000 such rows it reports line 200,002 instead of 400,002), and an
unclosed quote rejects all following rows together with its own line.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from slmrec.data.logs.files import InputFiles, text_lines
from slmrec.data.logs.formats import QUOTED, delimiter_of

_MAX_FIELD_CHARACTERS = 2_000_000
csv.field_size_limit(_MAX_FIELD_CHARACTERS)


class Row(NamedTuple):
    """A row of a text table as it is in the file."""

    line: int
    """The number of its first line, from 1."""
    cells: list[str]
    """Empty for an empty line."""
    text: str
    """Its first line."""
    error: str | None = None
    """Why the line cannot be parsed; such a row ends with its first line."""


def read_rows(files: InputFiles, file: Path) -> Iterator[Row]:
    """Yield the rows of one file of a text table, including the lines that cannot be parsed."""
    rows = _quoted_rows if files.format in QUOTED else _plain_rows
    yield from rows(text_lines(files, file), delimiter_of(files.format))


def _plain_rows(text: Iterable[str], delimiter: str) -> Iterator[Row]:
    for number, line in enumerate(text, 1):
        if not line:  # a `sep=` line
            continue
        stripped = line.rstrip("\r\n")
        yield Row(number, stripped.split(delimiter) if stripped else [], stripped)


def _quoted_rows(text: Iterable[str], delimiter: str) -> Iterator[Row]:
    text, number = iter(text), 1
    first = next(text, "")
    if not first:  # a `sep=` line
        number += 1
    lines = _Lines(chain([first] if first else [], text))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.current.clear()
        try:
            cells, message = next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            cells, message = [], f"quotes are not closed, or text follows a closing one ({error})"
            lines.push_back()
        yield Row(number, cells, lines.current[0].rstrip("\r\n"), message)
        number += len(lines.current)


class _Lines:
    """Iterator over lines that can be rewound to the second line of the current row."""

    def __init__(self, text: Iterable[str]) -> None:
        self._text = iter(text)
        self._pending: deque[str] = deque()
        self.current: list[str] = []
        """The lines of the current row."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.current.append(self._pending.popleft() if self._pending else next(self._text))
        return self.current[-1]

    def push_back(self) -> None:
        """Return all lines of the current row but the first, so that the next row begins there."""
        self._pending.extendleft(reversed(self.current[1:]))
        del self.current[1:]
