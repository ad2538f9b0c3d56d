"""Settings of `prepare`: raw logs to a data set."""

import codecs
import re
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from pydantic import Field, field_validator, model_validator

from slmrec.config.section import Section, check

LogFormat = Literal["auto", "sequences", "csv", "tsv", "scsv", "ssv", "psv", "dat", "parquet", "jsonl", "reference"]
OnBadRow = Literal["error", "skip"]
IdType = Literal["auto", "text"]
NULL_VALUES = ("NA", "N/A", "#N/A", "<NA>", "NaN", "NaT", "NULL", "None", "undefined", "\\N", "-")
"""Words that programs write where there is no value."""
_DIRECTIVE = re.compile(r"%(-?.?)", re.DOTALL)
_DIRECTIVES = frozenset("aAwdbBmyYHIpMSfgnzZjUWcxXGVu%") | {f"-{letter}" for letter in "dmHIMS"}
"""Directives of `strptime` that the embedded engine reads."""
_ITEM_COLUMNS = ("item", "item_id", "title", "count", "removed")
"""The columns of items.parquet of data sets and models."""
_ASCII = ',;"\n\ta1'
_STRPTIME = "write it as for strptime, for example %d.%m.%Y %H:%M"


def _is_encoding(name: str) -> bool:
    """Return whether Python has an encoding of files that keeps ASCII, or puts zeros between it."""
    try:
        codec, encoded = codecs.lookup(name).name, _ASCII.encode(name)
    except (LookupError, UnicodeError, TypeError):
        return False
    return not codec.startswith(("iso2022", "hz", "utf-7")) and encoded.replace(b"\0", b"").endswith(_ASCII.encode())


class PrepareConfig(Section):
    """Settings of `prepare`: how a log is read, which events are kept, and how they are split."""

    input: str | None = None
    """The log: a file or a folder of parts, plain, .gz, .zst or .zip. For an engine other than DuckDB: a Parquet file
    or the name of a table."""
    format: LogFormat = "auto"
    """The format of the log. `sequences` has one user per line (`user item item ...`). Text tables differ in their
    delimiter: comma (csv), tab (tsv), semicolon (scsv), space (ssv), | (psv) or :: (dat, as MovieLens). `reference` is
    the paper's processed csv with lists. `auto` detects the format from the content."""
    encoding: str | None = None
    """The encoding of text files, also of the table of items, that are not UTF-8 and do not begin with a byte-order
    mark: for example latin-1, cp1252, utf-16-le or gb18030."""
    columns: tuple[str, ...] | None = None
    """The names of all columns, in order, of a file without a header, for example [user_id, item_id, timestamp]."""
    user_col: str | None = None
    """The column of user ids; null: the usual names (user_id, reviewerID, userId)."""
    item_col: str | None = None
    """The column of item ids; null: the usual names (item_id, parent_asin, asin, movieId)."""
    time_col: str | None = None
    """The column of times, whole numbers or dates; null: the usual names (timestamp, unixReviewTime)."""
    time_unit: Literal["auto", "s", "ms", "us", "ns", "mixed"] = "auto"
    """The unit of times that are numbers. `auto` recognises it by the size of the numbers and refuses times of another
    unit; `mixed` converts each time by its own size."""
    time_format: str | None = None
    """The notation of times that are neither numbers nor dates such as 2014-07-23 10:00, as in `strptime`: for example
    %d.%m.%Y %H:%M for 23.07.2014 10:00."""
    rating_col: str | None = None
    """The column of ratings, read only if min_rating is set; null: the usual names (rating, overall)."""
    quantity_col: str | None = None
    """The column of quantities, negative for returns; null: every row is an event. A return removes the newest earlier
    event of its user and item, or nothing where there is none; returns and rows of quantity 0 are no events."""
    tie_col: str | None = None
    """A column that orders events of the same time; null: the order of the file, or, for engines whose rows have no
    order, the order of the item ids."""
    id_type: IdType = "auto"
    """The type of ids. `auto`: whole numbers if all ids of the column are whole numbers, with or without zeros after
    the point (17001.0 is 17001), otherwise text. `text`: text, every id as it is written."""
    null_values: tuple[str, ...] = NULL_VALUES
    """Words that stand for a missing user, item or time, in capitals or not, as blanks do; such rows are invalid."""
    items: str | None = None
    """An optional table of items, with titles and other columns."""
    items_id_col: str | None = None
    """The column of item ids in the table of items; null: the usual names (item_id, parent_asin, asin, movieId)."""
    title_col: str | None = None
    """The column of titles in the table of items; null: the usual names (title, movie_title, name)."""
    item_columns: tuple[str, ...] = ()
    """Columns of the table of items that are kept beside ids and titles, in items.parquet and in model folders; no
    other column is kept."""
    on_bad_row: OnBadRow = "error"
    """How to treat invalid rows: stop at the first one, or skip them, count them, and write them to
    rejected.parquet."""
    preset: Literal["paper"] | None = None
    """`paper`: the rules of the reference's notebook (rating of at least 3, 5 events per user, 20 events per item,
    single pass, no repeats). Settings given explicitly take precedence."""
    min_rating: float | None = None
    """Remove events with a lower rating."""
    min_user_events: int = Field(3, ge=3)
    """Remove users with fewer events; leave-one-out needs 3."""
    min_item_events: int = Field(1, ge=1)
    """Remove items with fewer events."""
    core: Literal["fixed_point", "single_pass"] = "fixed_point"
    """Repeat the last two rules until both hold (k-core), or apply them once: to users, to items, and finally to users
    again."""
    order: Literal["time", "file"] = "time"
    """Order the events of a user by time, or keep the order of the file."""
    repeats: Literal["keep", "drop", "merge"] = "keep"
    """Repeated items in a history: keep them, drop all but the first event, or merge consecutive events of one item."""
    max_history: int | None = Field(None, ge=3)
    """Keep only the newest events of each user; null: all."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """Hold out the last two events of each user, or all events after a point in time that is the same for all users."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """The share of all events in the validation period of a temporal split."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """The share of all events in the test period, the newest one, of a temporal split."""
    engine: str = "duckdb"
    """The engine that computes: `duckdb` (embedded), `spark`, or the connection URL of another Ibis backend. Its
    password is never written: it may stand in the URL, the variable SLMREC_ENGINE_PASSWORD, or a file."""
    engine_password_file: str | None = None
    """A file whose first line is the password of the engine's URL."""
    memory_limit: str = "4GB"
    """The memory that DuckDB may use; larger intermediate results are written to the output's disk."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        """Source: the reference's notebook; its thresholds are in the paper's description of the data sets."""
        if isinstance(values, dict) and values.get("preset") == "paper":
            paper = {"min_rating": 3, "min_user_events": 5, "min_item_events": 20}
            return paper | {"core": "single_pass", "repeats": "drop"} | values
        return values

    @field_validator("item_columns")
    @classmethod
    def _check_item_columns(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        names = [*_ITEM_COLUMNS, *map(str.lower, columns)]
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        check(not twice, f"{', '.join(twice)} would be written twice; {', '.join(_ITEM_COLUMNS)} are our own columns")
        return columns

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            expected = "expected the encoding of a text file, such as latin-1, cp1252, utf-16-le or gb18030"
            check(_is_encoding(encoding), f"{encoding!r} is unknown, or not usual for files; {expected}")
        return encoding

    @field_validator("time_format")
    @classmethod
    def _check_time_format(cls, format: str | None) -> str | None:
        directives = _DIRECTIVE.findall(format or "")
        unknown = [directive for directive in directives if directive not in _DIRECTIVES]
        check(not unknown, f"{format!r} has the unknown directive {'%' + ''.join(unknown[:1])!r}; {_STRPTIME}")
        check(
            format is None or not {"Y", "y", "G", "c", "x"}.isdisjoint(directives),
            f"{format!r} has no year; {_STRPTIME}",
        )
        return format

    @model_validator(mode="after")
    def _check_consistency(self) -> "PrepareConfig":
        check(
            self.split == "leave_one_out" or self.order == "time",
            "split: temporal needs order: time; leave order out, or use split: leave_one_out",
        )
        check(
            self.time_format is None or self.time_unit == "auto",
            "time_format reads dates, and time_unit is the unit of numbers; leave one of them out",
        )
        check(
            self.items is not None or not (self.items_id_col or self.title_col or self.item_columns),
            "items_id_col, title_col and item_columns are columns of items; give items, or leave them out",
        )
        check(
            self.valid_share + self.test_share < 1,
            f"valid_share and test_share add up to {self.valid_share + self.test_share}; leave something to train on",
        )
        return self


class PrepareSettings(TypedDict, total=False):
    """Settings of `PrepareConfig` as keyword arguments; the log and the table of items are arguments of their own."""

    format: LogFormat
    encoding: str | None
    columns: Sequence[str] | None
    user_col: str | None
    item_col: str | None
    time_col: str | None
    time_unit: Literal["auto", "s", "ms", "us", "ns", "mixed"]
    time_format: str | None
    rating_col: str | None
    quantity_col: str | None
    tie_col: str | None
    id_type: IdType
    null_values: Sequence[str]
    items_id_col: str | None
    title_col: str | None
    item_columns: Sequence[str]
    on_bad_row: OnBadRow
    preset: Literal["paper"] | None
    min_rating: float | None
    min_user_events: int
    min_item_events: int
    core: Literal["fixed_point", "single_pass"]
    order: Literal["time", "file"]
    repeats: Literal["keep", "drop", "merge"]
    max_history: int | None
    split: Literal["leave_one_out", "temporal"]
    valid_share: float
    test_share: float
    engine: str
    engine_password_file: str | None
    memory_limit: str
