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

from slmrec.data.engine import connect
from slmrec.data.items import ItemsReading, read_items
from slmrec.data.logs.read import Reading, read_events
from slmrec.data.logs.row_errors import Reject

Content = "str | bytes | pa.Table | dict[str, Any]"
HEADER = "user_id,item_id,timestamp\n"
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gz": gzip.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
DEFAULTS: dict[str, Any] = {
    "format": "auto",
    "columns": None,
    "user_col": None,
    "item_col": None,
    "time_col": None,
    "rating_col": None,
    "tie_col": None,
    "order": "time",
    "on_bad_row": "error",
    "needs_rating": False,
}


class Log(NamedTuple):
    """What was read."""

    rows: list[dict[str, Any]]
    rejects: list[Reject]
    layout: dict[str, str]
    titles: list[dict[str, Any]] | None

    def events(self) -> list[tuple[Any, Any, Any]]:
        return [(row["user_id"], row["item_id"], row["timestamp"]) for row in self.rows]

    def told(self) -> list[tuple[str, int, str | None, str | None]]:
        return [(reject.file.name, reject.line, reject.column, reject.value) for reject in self.rejects]


def as_bytes(content: Content) -> bytes:
    if isinstance(content, pa.Table):
        buffer = io.BytesIO()
        pq.write_table(content, buffer)
        return buffer.getvalue()
    return content.encode() if isinstance(content, str) else content


def write(path: Path, content: Content) -> Path:
    """A file, or of a dict a folder of parts."""
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
    """One for all: to connect takes longer than to read."""
    return connect("duckdb", spill(), "1GB")


def read(path: Path, **options: Any) -> Log:
    """All events, in the order of the file."""
    events = read_events(engine(), spill(), str(path), Reading(**(DEFAULTS | options)))
    rows = events.table.order_by(list(events.ties)).to_pyarrow().to_pylist()
    titles = None if events.titles is None else events.titles.order_by("row").to_pyarrow().to_pylist()
    return Log(rows, events.rejects, events.layout, titles)


def items_of(path: Path, **options: Any) -> tuple[Table, list[Reject]]:
    """The rows of a table of items."""
    settings = {"item_col": None, "items_id_col": None, "title_col": None, "on_bad_row": "error"} | options
    return read_items(engine(), spill(), ItemsReading(path=path, **settings))
