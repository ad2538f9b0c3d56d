"""From events to the data-set folder: dense ids, histories in time order, and what was counted."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from slmrec.data.sources import Format, connect, keep, read_events, read_titles
from slmrec.errors import DataError

MIN_EVENTS = 3
"""Leave-one-out needs an item to train on, one to validate and one to test."""
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


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

    Ids are dense from 1 in the order of the caller's ids: numeric if all of a column are integers, else by code
    point. So the order of the input's rows decides nothing but ties of time.

    Raises:
        DataError: the input cannot be read, or a user has too few events and `short_users` is `error`.
    """
    engine = connect()
    events = read_events(engine, input, format, user_col=user_col, item_col=item_col, time_col=time_col)
    events, num_dropped = _without_short_users(engine, events, input, short_users)
    users, user_index = _index(engine, events, "user")
    catalogue, item_index = _index(engine, events, "item")
    if items is not None:
        catalogue = _with_titles(catalogue, read_titles(engine, items, id_col=items_id_col, title_col=title_col))
    try:
        interactions = _interactions(events, user_index, item_index).to_pyarrow()
    except duckdb.Error as error:
        raise DataError(f"{input}: cannot be prepared ({' '.join(str(error).split())[:200]})") from None
    tables = {"interactions": interactions, "items": catalogue, "users": users}
    for name, table in tables.items():
        pq.write_table(table, output / f"{name}.parquet")
    counts = _counts(interactions, users.num_rows, catalogue.num_rows) | {"dropped_users": num_dropped}
    rules = {"order": "timestamp, then input order", "repeats": "kept", "split": "leave_one_out"}
    facts = {
        "fingerprint": _fingerprint(tables),
        "counts": counts,
        "rules": rules | {"short_users": short_users, "min_user_events": MIN_EVENTS},
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
    number = int(short.count().execute())
    if short_users == "error":
        have = "1 user has" if number == 1 else f"{number} users have"
        raise DataError(
            f"{path}: {have} fewer than {MIN_EVENTS} events (for example {examples[0]['user_id']!r} with "
            f"{examples[0]['size']}), but leave-one-out needs {MIN_EVENTS}; set prepare.short_users=drop to leave "
            "such users out"
        )
    kept = keep(engine, events.semi_join(sizes.filter(sizes["size"] >= MIN_EVENTS), "user_id"))
    if not kept.count().execute():
        raise DataError(f"{path}: no user has {MIN_EVENTS} events; nothing is left to learn from")
    return kept, number


def _index(engine: Any, events: Table, name: str) -> tuple[pa.Table, Table]:
    """The distinct ids of users or items, numbered from 1 in their order; as a table to write and one to join."""
    column = f"{name}_id"
    ids = events.select(column).distinct()
    numeric = bool(ids[column].re_search(_INTEGER).all().execute())
    key = ids[column].cast("int64") if numeric else ids[column]
    numbered = keep(engine, ids.mutate(number=ibis.row_number().over(order_by=key) + 1))
    columns = {name: numbered.number, column: numbered[column].cast("int64") if numeric else numbered[column]}
    return numbered.select(**columns).order_by(name).to_pyarrow(), numbered.rename({name: "number"})


def _with_titles(catalogue: pa.Table, titles: Table) -> pa.Table:
    known = titles.to_pyarrow()
    by_id = dict(zip(known["item_id"].to_pylist(), known["title"].to_pylist(), strict=True))
    return catalogue.append_column(
        "title", pa.array([by_id.get(str(i)) for i in catalogue["item_id"].to_pylist()], pa.string())
    )


def _interactions(events: Table, users: Table, items: Table) -> Table:
    joined = events.join(users, "user_id").join(items, "item_id")
    position = ibis.row_number().over(group_by=joined.user, order_by=[joined.timestamp, joined.row])
    return joined.select("user", "item", "timestamp", position=position).order_by(["user", "position"])


def _counts(interactions: pa.Table, num_users: int, num_items: int) -> dict[str, float]:
    sizes = interactions.group_by("user").aggregate([("item", "count")])["item_count"].to_numpy()
    return {
        "num_users": num_users,
        "num_items": num_items,
        "num_events": interactions.num_rows,
        "shortest_history": int(sizes.min()),
        "mean_history": round(float(sizes.mean()), 2),
        "longest_history": int(sizes.max()),
    }


def _fingerprint(tables: dict[str, pa.Table]) -> str:
    """Of the contents alone: the same data, wherever and whenever prepared, has the same one."""
    digest = hashlib.sha256()
    for name, table in tables.items():
        for column in table.column_names:
            values = table[column]
            digest.update(f"{name}.{column}".encode())
            if pa.types.is_integer(values.type) and not values.null_count:
                digest.update(values.cast("int64").to_numpy().tobytes())
            else:
                digest.update(json.dumps(values.to_pylist()).encode())
    return digest.hexdigest()


def _source(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": checksum}
