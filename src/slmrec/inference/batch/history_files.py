"""Files of histories, read some users at a time; and files of item ids."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from slmrec.data.logs.files import InputFiles, inspect, lines, unpacked
from slmrec.data.logs.formats import DELIMITERS, format_of_name, json_error
from slmrec.errors import ConfigError, DataError
from slmrec.inference.histories import COLUMNS, Sequences, sequences_of

_READ = ".parquet, .csv, .tsv, .jsonl or .txt (one user a line), each plain or .gz"
_ROW_A_USER = ("user_id", "history")
_BLOCK_BYTES = 2**23
"""Size of the blocks in which a CSV file is read; a row must be shorter."""


class _Json(NamedTuple):
    columns: list[str]
    num_rows: int


@dataclass(frozen=True)
class HistoryFile:
    """A file of histories: one user a line, or a table of one row a user or of one row an event."""

    source: InputFiles

    @classmethod
    def open(cls, path: Path) -> "HistoryFile":
        """The file, looked at.

        Raises:
            ConfigError: its name tells no format that is read.
            DataError: there is no such file, or it is empty, cut off or no text.
        """
        return cls(_source(path, f"histories are read from {_READ}"))

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.path

    @cached_property
    def num_users(self) -> int | None:
        """Users in the file, if that is known before all is read."""
        if self.source.format == "sequences":
            return sum(1 for line in lines(self.path) if line.strip())
        if self.source.format == "jsonl" and set(_ROW_A_USER) <= set(self._json.columns):
            return self._json.num_rows
        if self.source.format == "parquet" and self.source.compression == "none":
            with _told(self.path):
                file = pq.ParquetFile(self.path)
                return int(file.metadata.num_rows) if set(_ROW_A_USER) <= set(file.schema_arrow.names) else None
        return None

    def chunks(self, size: int, id_pattern: str) -> Iterator[Sequences]:
        """All users in order, `size` at a time or fewer; the same ones in every call.

        Tables of one row an event are read whole, since a user's events may stand anywhere; all others are streamed.

        Args:
            size: users at a time.
            id_pattern: what an item id looks like in a history that is text.

        Raises:
            DataError: the file has other columns, or something in it cannot be read.
        """
        with _told(self.path):
            if self.source.format == "sequences":
                yield from _of_lines(lines(self.path), size)
                return
            for table in self._tables(size):
                yield from _cut(sequences_of(table, id_pattern, str(self.path)), size)

    def _tables(self, size: int) -> Iterator[pa.Table]:
        if self.source.format == "jsonl":
            yield from self._json_tables(size)
            return
        with TemporaryDirectory() as folder:
            (file,) = unpacked(self.source, Path(folder)).files
            if self.source.format == "parquet":
                yield from _parquet_tables(file, size)
            else:
                yield from _csv_tables(file, DELIMITERS[self.source.format])

    @cached_property
    def _json(self) -> _Json:
        """Columns and rows, after every line was looked at."""
        names: dict[str, None] = {}
        num_rows = 0
        for number, line in enumerate(lines(self.path), 1):
            fault = json_error(line)
            if fault:
                raise DataError(f"{self.path}: line {number}: {fault}; write one JSON object a line")
            if line.strip():
                num_rows += 1
                names |= dict.fromkeys(name for name in json.loads(line) if name in COLUMNS)
        return _Json(list(names), num_rows)

    def _json_tables(self, size: int) -> Iterator[pa.Table]:
        """Values as they are written; Arrow's reader takes ids that look like dates for dates."""
        columns, num_rows = self._json
        at_once = size if set(_ROW_A_USER) <= set(columns) else max(1, num_rows)
        rows = (json.loads(line) for line in lines(self.path) if line.strip())
        for some in _batched(rows, at_once):
            yield pa.table({name: [row.get(name) for row in some] for name in columns})


def read_item_ids(path: Path) -> list[Any]:
    """The item ids of a file: one a line (.txt), or a table with the column `item_id`.

    Raises:
        ConfigError: its name tells no format that is read.
        DataError: it cannot be read, or has no such column.
    """
    file = HistoryFile(_source(path, "item ids are read from .txt (one a line), .parquet, .csv, .tsv or .jsonl"))
    if file.source.format == "sequences":
        return [line.strip() for line in lines(path) if line.strip()]
    with _told(path):
        tables = list(file._tables(2**20))
    if "item_id" not in tables[0].column_names:
        names = ", ".join(tables[0].column_names)
        raise DataError(f"{path}: columns {names}; expected item_id; rename the column")
    return [item_id for table in tables for item_id in table["item_id"].to_pylist()]


def _source(path: Path, expected: str) -> InputFiles:
    kind = format_of_name(path)
    if kind is None:
        raise ConfigError(f"{path}: {expected}; name the file so, or convert it")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return inspect(path, kind, ())


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def _of_lines(text: Iterable[str], size: int) -> Iterator[Sequences]:
    users = (re.findall(r"[^ \t\n]+", line) for line in text if line.strip())
    for some in _batched(users, size):
        yield Sequences([user for user, *_ in some], [items for _, *items in some])


def _parquet_tables(path: Path, size: int) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    if not set(_ROW_A_USER) <= set(names) or not file.metadata.num_rows:
        yield file.read([name for name in names if name in COLUMNS] or None)
        return
    for batch in file.iter_batches(size, columns=list(_ROW_A_USER)):
        yield pa.Table.from_batches([batch])


def _csv_tables(path: Path, delimiter: str) -> Iterator[pa.Table]:
    parsing = pa_csv.ParseOptions(delimiter=delimiter)
    text = pa_csv.ConvertOptions(column_types={name: pa.string() for name in ("user_id", "item_id", "history")})
    with path.open("rb") as file:
        names = pa_csv.read_csv(pa.BufferReader(file.readline()), parse_options=parsing).column_names
    if not set(_ROW_A_USER) <= set(names):
        yield pa_csv.read_csv(path, parse_options=parsing, convert_options=text)
        return
    text.include_columns = list(_ROW_A_USER)
    reading = pa_csv.ReadOptions(block_size=_BLOCK_BYTES)
    with pa_csv.open_csv(path, reading, parsing, text) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _cut(sequences: Sequences, size: int) -> Iterator[Sequences]:
    for at in range(0, len(sequences.users), size):
        yield Sequences(sequences.users[at : at + size], sequences.histories[at : at + size])


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    waiting = iter(rows)
    while some := list(islice(waiting, size)):
        yield some
