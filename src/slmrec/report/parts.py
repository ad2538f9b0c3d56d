"""What a report is made of: sections of tables, charts, lists and notices."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal

from pyarrow import ArrowException

from slmrec.errors import SlmrecError

Value = str | int | float | None
Faults = Literal["missing", "interrupted", "out of date", "broken"]
READ_FAULTS = (SlmrecError, OSError, ValueError, LookupError, TypeError, AttributeError, ArrowException)
"""What a file can cause that is not there, is cut off, or holds something else than it should."""


@dataclass(frozen=True)
class Column:
    """Of a table."""

    title: str
    form: str = ""
    """How its numbers are shown, as for `format`; text has none."""
    group: str = ""
    """What it has in common with the columns beside it, told once above them."""

    @property
    def name(self) -> str:
        """Of the column of a CSV file."""
        return f"{self.title}, {self.group}" if self.group else self.title

    def shown(self, value: Value) -> str:
        """A value as people read it; the files have all its digits."""
        if value is None:
            return "–"
        return value if isinstance(value, str) else format(value, self.form)


@dataclass(frozen=True)
class Grid:
    """A table: in the page, and as a CSV file."""

    kind: ClassVar[str] = "grid"
    name: str
    """Of its file, without suffix."""
    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[Value, ...]]
    note: str = ""

    def groups(self) -> list[tuple[str, int]]:
        """The columns' groups, and how many columns stand side by side in each; none if no column is in one."""
        if not any(column.group for column in self.columns):
            return []
        return [(group, len(list(own))) for group, own in groupby(column.group for column in self.columns)]

    def csv(self) -> str:
        """The numbers with all their digits; what is not known is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(column.name for column in self.columns)
        writer.writerows(self.rows)
        return stream.getvalue()


@dataclass(frozen=True)
class Chart:
    """A picture of a table's numbers."""

    kind: ClassVar[str] = "chart"
    numbers: Grid
    """Its name and title are those of the chart."""
    caption: str
    draw: Callable[[Any], None]
    """Draws on the axes of matplotlib that it is given."""
    height: float = 3.1
    """In inches; all charts are of the same width."""
    axes: tuple[int, ...] = (1,)
    """Relative heights of the axes below each other; of more than one, `draw` is given the array."""


@dataclass(frozen=True)
class Facts:
    """Names and what they are, as text."""

    kind: ClassVar[str] = "facts"
    title: str
    rows: list[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Something long to look up, folded away."""

    kind: ClassVar[str] = "text"
    title: str
    text: str


@dataclass(frozen=True)
class Notice:
    """A part that is not there, and why."""

    kind: ClassVar[str] = "notice"
    fault: Faults
    text: str
    command: str | None = None
    """What makes it."""


@dataclass(frozen=True)
class Shown:
    """An item of a list."""

    title: str
    is_next: bool = False
    """Whether the user chose it next."""


@dataclass(frozen=True)
class Example:
    """A user, and what each model would have recommended."""

    kind: ClassVar[str] = "example"
    user: str
    history: list[Shown]
    """The newest items, oldest first."""
    num_older: int
    """Items of the history before these."""
    chosen: Shown
    """What came next."""
    lists: list[tuple[str, list[Shown]]]
    """By model, best first."""


@dataclass(frozen=True)
class Finding:
    """One of the figures at the top."""

    title: str
    figure: str
    text: str


Block = Grid | Chart | Facts | Text | Notice | Example


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    name: str
    title: str
    lead: str
    """What one sees, in a sentence or two."""
    blocks: list[Block] = field(default_factory=list)

    def notices(self) -> list[Notice]:
        """What of it is not there."""
        return [block for block in self.blocks if isinstance(block, Notice)]


def tried(what: str, make: Callable[[], Iterable[Block]]) -> list[Block]:
    """The blocks, or why there are none: what is broken is told in its place, and takes nothing else with it.

    Args:
        what: is made, in words.
        make: reads files of a run, whatever they hold.
    """
    try:
        return list(make())
    except READ_FAULTS as error:
        text = " ".join(str(error).split())[:400]
        named = text if isinstance(error, SlmrecError) else f"{type(error).__name__}: {text}"
        return [Notice("broken", f"{what}: {named}")]
