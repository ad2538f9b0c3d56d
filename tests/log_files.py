"""Raw files for tests, and reading them."""

import atexit
import functools
import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from slmrec.config import PrepareConfig
from slmrec.data.engine import connect
from slmrec.data.items import read_items
from slmrec.data.logs.read import read_events
from slmrec.data.logs.row_errors import RowError

Content = "str | bytes | pa.Table | dict[str, Any]"
HEADER = "user_id,item_id,timestamp\n"
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gz": gzip.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


class Log(NamedTuple):
    """The events of a log, and the errors of its invalid rows."""

    rows: list[dict[str, Any]]
    errors: list[RowError]
    columns: dict[str, str]
    titles: list[dict[str, Any]] | None

    def events(self) -> list[tuple[Any, Any, Any]]:
        """Users and items by the text of their ids, and times."""
        return [(str(row["user_id"]), str(row["item_id"]), row["timestamp"]) for row in self.rows]

    def places(self) -> list[tuple[str, int, str | None, str | None]]:
        return [(error.file.name, error.line, error.column, error.value) for error in self.errors]


def as_bytes(content: Content) -> bytes:
    if isinstance(content, pa.Table):
        buffer = io.BytesIO()
        pq.write_table(content, buffer)
        return buffer.getvalue()
    return content.encode() if isinstance(content, str) else content


def write(path: Path, content: Content) -> Path:
    """Write a file, or, for a dict, a folder of parts."""
    if isinstance(content, dict):
        for name, part in content.items():
            write(path / name, part)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_bytes(content))
    return path


@functools.cache
def spill() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="slmrec-tests-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@functools.cache
def engine() -> Any:
    """Return one engine for all tests, since connecting takes longer than reading."""
    return connect("duckdb", spill(), "1GB")


def read(path: Path, **options: Any) -> Log:
    """Read all events in the order of the file."""
    events = read_events(engine(), spill(), str(path), PrepareConfig(**options))
    rows = events.table.order_by(list(events.ties)).to_pyarrow().to_pylist()
    titles = None if events.titles is None else events.titles.order_by("row").to_pyarrow().to_pylist()
    return Log(rows, events.errors, events.columns, titles)


def items_of(path: Path, **options: Any) -> tuple[Table, list[RowError]]:
    """Read a table of items."""
    found = read_items(engine(), spill(), path, PrepareConfig(items=str(path), **options))
    return found.rows, found.errors
