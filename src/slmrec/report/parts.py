"""Parts of a report: sections of tables, charts, lists and notices."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal

from pyarrow import ArrowException

from slmrec.errors import SlmrecError
from slmrec.files import one_line

Value = str | int | float | None
Faults = Literal["missing", "interrupted", "out of date", "broken"]
READ_FAULTS = (SlmrecError, OSError, ValueError, LookupError, TypeError, AttributeError, ArrowException)
"""Errors that reading a missing, truncated or malformed file can raise."""


@dataclass(frozen=True)
class Column:
    """Column of a table."""

    title: str
    form: str = ""
    """Format of its numbers, as for `format`; empty for text."""
    group: str = ""
    """Heading above neighbouring columns of the same group."""

    @property
    def name(self) -> str:
        """Name of the column in a CSV file."""
        return f"{self.title}, {self.group}" if self.group else self.title

    def shown(self, value: Value) -> str:
        """Return a value as text for people; files contain all digits."""
        if value is None:
            return "–"
        return value if isinstance(value, str) else format(value, self.form)


@dataclass(frozen=True)
class Grid:
    """Table: in the page, and as a CSV file."""

    kind: ClassVar[str] = "grid"
    name: str
    """Name of its file, without suffix."""
    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[Value, ...]]
    note: str = ""

    def groups(self) -> list[tuple[str, int]]:
        """Return the groups of neighbouring columns and their sizes; empty if no column has a group."""
        if not any(column.group for column in self.columns):
            return []
        return [(name, len(list(columns))) for name, columns in groupby(column.group for column in self.columns)]

    def csv(self) -> str:
        """Return the table as CSV, with all digits; unknown values are empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(column.name for column in self.columns)
        writer.writerows(self.rows)
        return stream.getvalue()


@dataclass(frozen=True)
class Chart:
    """Plot of the numbers of a table."""

    kind: ClassVar[str] = "chart"
    numbers: Grid
    """The table; its name and title are those of the chart."""
    caption: str
    draw: Callable[[Any], None]
    """Function that draws on matplotlib axes."""
    height: float = 3.1
    """Height in inches; all charts have the same width."""
    axes: tuple[int, ...] = (1,)
    """Relative heights of the axes below each other; for several, `draw` gets the array of axes."""


@dataclass(frozen=True)
class Facts:
    """List of names and values as text."""

    kind: ClassVar[str] = "facts"
    title: str
    rows: list[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Long text that is collapsed."""

    kind: ClassVar[str] = "text"
    title: str
    text: str


@dataclass(frozen=True)
class Notice:
    """Message about a part that is missing; `optional` is a study that no run needs."""

    kind: ClassVar[str] = "notice"
    fault: Faults | Literal["optional"]
    text: str
    command: str | None = None
    """Command line that makes it."""


@dataclass(frozen=True)
class Shown:
    """Item of a list."""

    title: str
    is_next: bool = False
    """True if the user chose this item next."""


@dataclass(frozen=True)
class Example:
    """A user, and the recommendations of each model."""

    kind: ClassVar[str] = "example"
    user: str
    history: list[Shown]
    """Newest items of the history, oldest first."""
    num_older: int
    """Number of earlier items."""
    chosen: Shown
    """Item that the user chose next."""
    lists: list[tuple[str, list[Shown]]]
    """Top lists by model, best item first."""


@dataclass(frozen=True)
class Finding:
    """Key figure at the top of the page."""

    title: str
    figure: str
    text: str


Block = Grid | Chart | Facts | Text | Notice | Example


@dataclass(frozen=True)
class Section:
    """Section of the page."""

    name: str
    title: str
    lead: str
    """Explanation in one or two sentences."""
    blocks: list[Block] = field(default_factory=list)

    def notices(self) -> list[Notice]:
        """Return the messages about missing parts."""
        return [block for block in self.blocks if isinstance(block, Notice)]


def blocks_or_notice(name: str, make: Callable[[], Iterable[Block]]) -> list[Block]:
    """Return the blocks of a part, or a notice if its files cannot be read, so that other parts are not affected.

    Args:
        name: Name of the part in the notice.
        make: Function that reads files of a run and returns blocks.
    """
    try:
        return list(make())
    except READ_FAULTS as error:
        text = one_line(error, 400)
        message = text if isinstance(error, SlmrecError) else f"{type(error).__name__}: {text}"
        return [Notice("broken", f"{name}: {message}")]
