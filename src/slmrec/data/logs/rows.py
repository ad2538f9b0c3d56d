"""The rows of tables that are text, as they are in the file, with the numbers of their lines."""

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from slmrec.data.logs.files import Source, open_file
from slmrec.data.logs.formats import QUOTED, delimiter_of

_MAX_FIELD_CHARACTERS = 2_000_000
csv.field_size_limit(_MAX_FIELD_CHARACTERS)


class Record(NamedTuple):
    """A row of a table that is text, as it is in the file."""

    line: int
    """Of its first line, from 1."""
    cells: list[str]
    """None at all for an empty line."""
    text: str
    """Its first line."""
    fault: str | None = None
    """Why it is no row; then it ends with its first line."""


def records(source: Source, file: Path) -> Iterator[Record]:
    """The rows of a table that is text, and the lines that are none."""
    with open_file(file) as stream:
        text = io.TextIOWrapper(stream, encoding=_with_mark(source.encoding), newline="")
        yield from (_quoted_records if source.kind in QUOTED else _plain_records)(text, delimiter_of(source.kind))


def _plain_records(text: Iterable[str], delimiter: str) -> Iterator[Record]:
    for number, line in enumerate(text, 1):
        bare = line.rstrip("\r\n")
        yield Record(number, bare.split(delimiter) if bare else [], bare)


def _quoted_records(text: Iterable[str], delimiter: str) -> Iterator[Record]:
    lines, number = _Lines(text), 1
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.taken.clear()
        try:
            cells, fault = next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            cells, fault = [], f"quotes are not closed, or text follows a closing one ({error})"
            lines.give_back()
        yield Record(number, cells, lines.taken[0].rstrip("\r\n"), fault)
        number += len(lines.taken)


class _Lines:
    """Lines, of which those after the first one of a row that is none can be read again."""

    def __init__(self, text: Iterable[str]) -> None:
        self._text = iter(text)
        self._again: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.taken.append(self._again.popleft() if self._again else next(self._text))
        return self.taken[-1]

    def give_back(self) -> None:
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _with_mark(encoding: str) -> str:
    return "utf-8-sig" if encoding == "utf-8" else encoding
