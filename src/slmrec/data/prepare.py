"""From events to the data-set folder: dense ids, histories in time order, and what was counted."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.expr.types import Table

from slmrec.data.files import Format
from slmrec.data.sources import connect, keep, read_events, read_titles, value
from slmrec.errors import DataError

MIN_EVENTS = 3
"""Leave-one-out needs an item to train on, one to validate and one to test."""
RULES = {
    "order": "timestamp (dates as seconds since 1970-01-01 UTC), then input order",
    "repeats": "kept",
    "split": "leave_one_out",
    "min_user_events": MIN_EVENTS,
}
TABLES = ("interactions", "items", "users")


def prepare_dataset(
    input: Path,
    output: Path,
    *,
    format: Format = "auto",
    user_col: str = "user_id",
    item_col: str = "item_id",
    time_col: str = "timestamp",
    items: Path | None = None,
    items_id_col: str = "item_id",
    title_col: str = "title",
    short_users: Literal["error", "drop"] = "error",
) -> dict[str, float]:
    """Writes `interactions`, `items` and `users` (parquet) and `dataset.json` into a folder; the counts.

    Ids are dense from 1 in the order of the caller's ids: if all of a column are whole numbers, written as such (no
    leading zeros), they are stored as numbers and ordered by value, else as text, by code point. So the order of the
    input's rows decides nothing but ties of time.

    Args:
        input: the file of events: one user a line, or a table.
        output: an existing folder.
        format: `auto` goes by the file's name, or by its first line.
        user_col: the table's column of users.
        item_col: the table's column of items.
        time_col: the table's column of times.
        items: a table of items with titles.
        items_id_col: its column of ids.
        title_col: its column of titles; of several titles of an id, the first one counts.
        short_users: `drop` leaves out users of fewer than three events.

    Raises:
        DataError: the input cannot be read, or a user has too few events and `short_users` is `error`.
    """
    with TemporaryDirectory(dir=output, prefix=".spill-") as folder:
        engine, spill = connect(Path(folder)), Path(folder)
        events = read_events(engine, spill, input, format, user_col=user_col, item_col=item_col, time_col=time_col)
        events, num_dropped = _without_short_users(engine, events, input, short_users)
        users, catalogue = _index(engine, events, "user"), _index(engine, events, "item")
        _interactions(events, users, catalogue).to_parquet(output / "interactions.parquet")
        users.select("user", user_id=users.caller_id).order_by("user").to_parquet(output / "users.parquet")
        titles = read_titles(engine, spill, items, id_col=items_id_col, title_col=title_col) if items else None
        _items(catalogue, titles).to_parquet(output / "items.parquet")
        counts = _counts(events) | {"dropped_users": num_dropped}
        if titles is not None:
            counts |= _title_counts(catalogue, titles)
        engine.disconnect()
    facts = {
        "fingerprint": _fingerprint(output),
        "counts": counts,
        "rules": RULES | {"short_users": short_users},
        "sources": [_source(path) for path in (input, items) if path],
    }
    (output / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return counts


def _without_short_users(engine: Any, events: Table, path: Path, short_users: str) -> tuple[Table, int]:
    sizes = events.group_by("user_id").aggregate(size=events.count())
    short = sizes.filter(sizes["size"] < MIN_EVENTS)
    examples = short.order_by("user_id").limit(1).to_pyarrow().to_pylist()
    if not examples:
        return events, 0
    number = value(short.count())
    if short_users == "error":
        have = "1 user has" if number == 1 else f"{number} users have"
        raise DataError(
            f"{path}: {have} fewer than {MIN_EVENTS} events (for example {examples[0]['user_id']!r} with "
            f"{examples[0]['size']}), but leave-one-out needs {MIN_EVENTS}; set prepare.short_users=drop to leave "
            "such users out"
        )
    kept = keep(engine, events.semi_join(sizes.filter(sizes["size"] >= MIN_EVENTS), "user_id"))
    if not value(kept.count()):
        raise DataError(f"{path}: no user has {MIN_EVENTS} events, expected one at least; give more data")
    return kept, number


def _index(engine: Any, events: Table, name: str) -> Table:
    """The distinct ids of users or items, as text and as the caller's, numbered from 1 in their order."""
    ids = events.select(text=events[f"{name}_id"]).distinct()
    number = ids.text.try_cast("int64")
    numeric = value((number.cast("string") == ids.text).fill_null(False).all())
    ids = ids.mutate(caller_id=number if numeric else ids.text)
    return keep(engine, ids.mutate(**{name: ibis.row_number().over(order_by=ids.caller_id) + 1}))


def _interactions(events: Table, users: Table, items: Table) -> Table:
    joined = events.join(users.select("user", user_id="text"), "user_id")
    joined = joined.join(items.select("item", item_id="text"), "item_id")
    order = [joined.timestamp, joined.nanosecond, joined.row]
    position = ibis.row_number().over(group_by=joined.user, order_by=order)
    return joined.select("user", "item", "timestamp", position=position).order_by(["user", "position"])


def _items(catalogue: Table, titles: Table | None) -> Table:
    columns = {"item": catalogue["item"], "item_id": catalogue.caller_id}
    if titles is None:
        return catalogue.select(**columns).order_by("item")
    return (
        catalogue.left_join(titles, catalogue.text == titles.item_id).select(**columns, title="title").order_by("item")
    )


def _counts(events: Table) -> dict[str, float]:
    sizes = events.group_by("user_id").aggregate(size=events.count())["size"]
    lengths = sizes.as_table().aggregate(num=sizes.count(), least=sizes.min(), mean=sizes.mean(), most=sizes.max())
    found = lengths.to_pyarrow().to_pylist()[0]
    return {
        "num_users": found["num"],
        "num_items": value(events.item_id.nunique()),
        "num_events": value(events.count()),
        "shortest_history": found["least"],
        "mean_history": round(found["mean"], 2),
        "longest_history": found["most"],
    }


def _title_counts(catalogue: Table, titles: Table) -> dict[str, float]:
    known = titles.semi_join(catalogue, titles.item_id == catalogue.text)
    return {
        "num_titled_items": value(known.title.count()),
        "num_retitled_items": value((titles.num_titles > 1).sum().fill_null(0)),
    }


def _fingerprint(folder: Path) -> str:
    """Of the contents alone: the same data, wherever and whenever prepared, has the same one."""
    digests = [f"{name}.{digest}" for name in TABLES for digest in _column_digests(folder / f"{name}.parquet")]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _column_digests(path: Path) -> list[str]:
    parts: dict[str, Any] = defaultdict(hashlib.sha256)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                for part, content in _contents(column).items():
                    parts[f"{name}.{part}"].update(content)
    return [f"{name}={digest.hexdigest()}" for name, digest in sorted(parts.items())]


def _contents(column: pa.Array) -> dict[str, bytes]:
    """Bytes that, one batch after the other, tell all values of a column; batches may be cut anywhere."""
    known = column.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_integer(column.type):
        numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        return {"known": known, "number": numbers.astype("<i8").tobytes()}
    texts = [text.encode() for text in pc.fill_null(column, "").to_pylist()]
    return {"known": known, "length": np.array([len(text) for text in texts], "<i8").tobytes(), "text": b"".join(texts)}


def _source(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": checksum}
