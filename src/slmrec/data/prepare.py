"""Preparing a data set: a log becomes dense ids, ordered histories, and statistics."""

import hashlib
import html
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.common.exceptions import OperationNotDefinedError
from ibis.expr.types import Table

from slmrec.config.prepare import PrepareConfig
from slmrec.data.dataset import Dataset
from slmrec.data.engine import as_view, batches, connected, engines_of, explain, first_row, keep, unsupported, value
from slmrec.data.filters import apply_rules, cut_times, remove_returns
from slmrec.data.histories import write_histories
from slmrec.data.ids import as_ids_of
from slmrec.data.items import ItemRows, column_name, one_row_per_item, read_items, titles_of_log
from slmrec.data.logs import row_errors
from slmrec.data.logs.files import parts
from slmrec.data.logs.read import Events, large_shares, read_events
from slmrec.data.logs.row_errors import RowError
from slmrec.data.logs.times import in_unit, stored_unit
from slmrec.data.statistics.describe import split_facts
from slmrec.errors import DataError
from slmrec.files import one_line, printable, sha256, write_atomically, write_json

ROWS_PER_PART = 2**20
"""Rows that are read at a time, and rows of a row group of the written files."""
_FINGERPRINTED = {"interactions": ("user", "item", "timestamp"), "items": ("item_id", "title"), "users": ("user_id",)}
_RULES = (
    *("min_rating", "min_user_events", "min_item_events", "core", "order", "repeats", "max_history"),
    *("split", "valid_share", "test_share"),
)
"""The settings that decide which events are kept and how they are split; `dataset.json` records them."""
_LOG = logging.getLogger(__name__)


def prepare_dataset(settings: PrepareConfig, output: Path, log: str) -> dict[str, float]:
    """Write `interactions`, `items` and `users` (Parquet), the histories and `dataset.json` into a folder.

    Ids are dense from 1, in the order of the original ids. Ids that are whole numbers are stored as numbers and ordered
    by value; otherwise they are text and ordered by code point (`slmrec.data.ids` has the rules). The order of the
    input's rows therefore affects only events of the same time.

    Args:
        settings: how the log is read, and which events are kept; `settings.input` is not used.
        output: an existing folder.
        log: a file, a folder of parts, or, for engines other than DuckDB, Parquet or the name of a table.

    Returns:
        The counts of `dataset.json`.

    Raises:
        ConfigError: the engine does not exist, or does not support the settings.
        DataError: the input cannot be read, or no event is left.
    """
    if output.resolve().is_relative_to(Path(log).resolve()):
        raise DataError(f"{log}: contains the output folder, whose files would be read too; choose another --output")
    items = Path(settings.items) if settings.items else None
    with (
        TemporaryDirectory(dir=output.absolute(), prefix=".spill-") as folder,
        engines_of(settings, Path(folder)) as (source, embedded),
    ):
        spill = Path(folder)
        _LOG.info("prepare: reading %s", printable(log))
        try:
            known = read_items(embedded, spill, items, settings) if items else None  # small: errors appear early
            if known:
                _LOG.info("prepare: %s", known.message())
            events = read_events(source, spill, log, settings, embedded)
            facts = _write_events(events.table.get_backend(), log, output, events, settings)
            if known is None and events.titles is not None:
                known = _titles_of_log(events)
            if known is not None:
                facts["counts"] |= _write_items(embedded, output / "items.parquet", known, items, settings)
        except OperationNotDefinedError as error:
            raise unsupported(settings.engine, one_line(error)) from None
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise explain(error, log) from None
    facts["sources"] = [describe_source(path) for path in (Path(log), items) if path]
    errors = [*events.errors, *(known.errors if known else [])]
    return complete_dataset(output, facts, list(dict.fromkeys(errors)))  # the table of items may be the log


def _titles_of_log(events: Events) -> ItemRows | None:
    """Return the titles that a log has itself; `columns` keeps the name of their column only if they are read."""
    assert events.titles is not None
    if events.columns["format"] == "reference":  # titles beside the items, by definition
        return ItemRows(events.titles.rename(text="item_id"), [])
    known, column = titles_of_log(events.titles), printable(events.columns["title_col"])
    if known is None:
        del events.columns["title_col"]
        _LOG.info("prepare: the log's column %s does not hold titles of its items, so it is not read", column)
    else:
        _LOG.info("prepare: titles of items read from the log's column %s (--items FILE gives others)", column)
    return known


def complete_dataset(output: Path, facts: dict[str, Any], errors: list[RowError]) -> dict[str, float]:
    """Write the files that are derived from the tables, and return the counts."""
    if errors:
        pq.write_table(row_errors.table(errors), output / "rejected.parquet")
    facts |= {"rejected": row_errors.counts(errors), "fingerprint": _fingerprint(output)}
    write_json(output / "dataset.json", facts)  # the histories are cut by its rules
    write_histories(output)
    facts["counts"] |= _counts(Dataset.load(output)) | split_facts(output)
    write_json(output / "dataset.json", facts)
    return dict(facts["counts"])


def _write_events(engine: Any, log: str, output: Path, read: Events, settings: PrepareConfig) -> dict[str, Any]:
    """Write `interactions`, `users`, and `items` with ids only; return facts for `dataset.json`."""
    events = log_events = as_view(engine, read.table)
    num_read = value(events.count())
    _LOG.info("prepare: %s events read, %s invalid rows", f"{num_read:,}", f"{len(read.errors):,}")
    for warning in large_shares(events):
        _LOG.warning("prepare: %s", warning)
    order = [*(["timestamp", "nanosecond"] if settings.order == "time" else []), *read.ties]
    num_removed, returns = {}, {}
    if settings.quantity_col:
        found = remove_returns(engine, log, events, order)
        _LOG.info("prepare: %s", found.message(settings.quantity_col))
        events, num_removed = found.events, {"quantity_col": found.num_removed}
        returns = {
            "num_returned_events": found.num_returned,
            "num_unmatched_returns": found.num_unmatched,
            "num_zero_quantities": found.num_zero,
        }
    events, removed_by_rules = apply_rules(engine, log, events, order, settings)
    num_removed |= removed_by_rules
    unit = stored_unit(events)
    if unit is not None:
        events = in_unit(log, events, unit)
    periods = cut_times(engine, log, events, settings) if settings.split == "temporal" else {}
    users, items = _index(engine, events, "user"), _index(engine, events, "item")
    _LOG.info("prepare: %s events remain; writing them in order", f"{value(events.count()):,}")
    write_table(output / "users.parquet", _ids(engine, users, "user"))
    write_table(output / "items.parquet", _ids(engine, items, "item"))
    ordered = _ordered(events, users, items, order)
    write_table(output / "interactions.parquet", with_positions(batches(engine, ordered, ROWS_PER_PART)))
    dropped = {
        f"num_dropped_{name}s": value(log_events[f"{name}_id"].nunique()) - value(index.count())
        for name, index in (("user", users), ("item", items))
    }
    counts = {"num_read_events": num_read, "num_rejected_rows": len(read.errors)} | returns | dropped
    rules = {name: getattr(settings, name) for name in _RULES}
    return {
        "counts": counts | {f"num_removed_by_{rule}": number for rule, number in num_removed.items()},
        "rules": rules | periods | {"ties": [column for column in read.ties if column != "tie_as_is"]},
        "columns": read.columns,
        "timestamp_unit": unit,
    }


def _index(engine: Any, events: Table, name: str) -> Table:
    """Number the distinct ids of users or items from 1, in the order of the ids (`key`)."""
    ids = events.select(key=events[f"{name}_id"]).distinct()
    return keep(engine, ids.mutate(**{name: ibis.row_number().over(order_by=ids.key) + 1}))


def _ids(engine: Any, index: Table, name: str) -> Iterator[pa.Table]:
    ids = index.select(**{name: index[name].cast("int64"), f"{name}_id": index.key}).order_by(name)
    return map(_with_unsigned_ids, batches(engine, ids, ROWS_PER_PART))


def _with_unsigned_ids(part: pa.Table) -> pa.Table:
    """Store whole numbers above the range of int64 as uint64."""
    types = [pa.uint64() if pa.types.is_decimal(field.type) else field.type for field in part.schema]
    return part.cast(pa.schema(list(zip(part.column_names, types, strict=True))))


def _ordered(events: Table, users: Table, items: Table, order: list[str]) -> Table:
    joined = events.join(users.select("user", user_id="key"), "user_id")
    joined = joined.join(items.select("item", item_id="key"), "item_id")
    numbers = {name: joined[name].cast("int64") for name in ("user", "item")}  # some engines number rows in 32 bits
    return joined.order_by(["user", *order]).select(**numbers, timestamp=joined.timestamp)


def with_positions(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Add the position of each event in its user's history to events sorted by user."""
    last_user, next_position = 0, 0
    for part in parts:
        users = part["user"].to_numpy()
        firsts = np.flatnonzero(np.diff(users, prepend=0))  # users are numbered from 1
        lengths = np.diff(firsts, append=len(users))
        positions = np.arange(len(users)) - np.repeat(firsts, lengths)
        if len(users) and users[0] == last_user:
            positions[: lengths[0]] += next_position
        if len(users):
            last_user, next_position = users[-1], positions[-1] + 1
        yield part.append_column("position", pa.array(positions))


def _write_items(
    engine: Any, path: Path, found: ItemRows, table: Path | None, settings: PrepareConfig
) -> dict[str, float]:
    """Add titles and other columns to the written table of items, and return counts."""
    items = engine.read_parquet(str(path))
    rows = found.rows.mutate(text=as_ids_of(found.rows.text, whole_numbers=not items.item_id.type().is_string()))
    items = keep(engine, items.mutate(text=items.item_id.cast("string")))
    known = keep(engine, one_row_per_item(rows, items))
    if not value(known.count()):
        raise DataError(
            f"{table or path}: none of its items is in the log; ids of the log look like {first_row(items)['text']!r}, "
            f"ids of the table like {first_row(rows).get('text')!r}; set prepare.items_id_col to the column of the "
            "log's ids"
        )
    joined = items.left_join(known, "text").order_by("item").drop("text", "text_right", "num_titles")
    joined = joined.rename({name: column_name(number) for number, name in enumerate(settings.item_columns)})
    joined = joined.relocate(*(name for name in ("item", "item_id", "title") if name in joined.columns))
    with write_atomically(path) as temporary:
        write_table(temporary, map(_with_unescaped_titles, batches(engine, joined, ROWS_PER_PART)))
    counts = {"num_known_items": value(known.count())}
    if "title" in known.columns:
        counts["num_titled_items"] = value(known.title.count())
        counts["num_retitled_items"] = value((known.num_titles > 1).sum().fill_null(0))
    return counts


def read_item_table(settings: PrepareConfig, path: Path, whole_numbers: bool) -> pa.Table:
    """Return a table of items: `item_id` as text, `title`, and the columns of `settings.item_columns`, one row an item.

    Args:
        settings: the columns, and how to treat invalid rows.
        path: the table.
        whole_numbers: whether the ids of the catalogue are whole numbers.

    Raises:
        DataError: the file cannot be read or lacks a column.
    """
    with (
        TemporaryDirectory(prefix="slmrec-") as spill,
        connected("duckdb", Path(spill), settings.memory_limit) as engine,
    ):
        found = read_items(engine, Path(spill), path, settings)
        _LOG.info("items: %s", found.message())
        if found.errors:
            _LOG.warning("items: %s invalid rows skipped", f"{len(found.errors):,}")
        rows = found.rows.mutate(text=as_ids_of(found.rows.text, whole_numbers))
        table = one_row_per_item(rows, rows.select("text").distinct()).order_by("text").drop("num_titles")
        table = table.rename({name: column_name(number) for number, name in enumerate(settings.item_columns)})
        return _with_unescaped_titles(pa.concat_tables(batches(engine, table.rename(item_id="text"), ROWS_PER_PART)))


def _with_unescaped_titles(part: pa.Table) -> pa.Table:
    """Replace HTML entities in titles (`&amp;`) by their characters."""
    if "title" not in part.column_names:
        return part
    titles = part["title"]
    if pc.any(pc.match_substring(titles, "&")).as_py():
        titles = pa.array([title and html.unescape(title) for title in titles.to_pylist()], pa.string())
    return part.set_column(part.column_names.index("title"), "title", titles)


def write_table(path: Path, parts: Iterator[pa.Table]) -> None:
    """Write the parts of a table into one Parquet file."""
    first = next(parts)
    with pq.ParquetWriter(path, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part, row_group_size=ROWS_PER_PART)


def _counts(dataset: Dataset) -> dict[str, float]:
    lengths = np.diff(dataset.offsets)
    return {
        "num_users": dataset.num_users,
        "num_items": dataset.num_items,
        "num_events": len(dataset.flat),
        "shortest_history": int(lengths.min()),
        "mean_history": round(float(lengths.mean()), 2),
        "longest_history": int(lengths.max()),
    }


def _fingerprint(folder: Path) -> str:
    """Return a digest of the contents; it does not depend on where and when the data were prepared."""
    digests = [f"{name}.{digest}" for name in _FINGERPRINTED for digest in _column_digests(folder, name)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _column_digests(folder: Path, name: str) -> list[str]:
    parts: dict[str, Any] = defaultdict(hashlib.sha256)
    with pq.ParquetFile(
        folder / f"{name}.parquet", pre_buffer=False
    ) as file:  # pre-buffering keeps the whole file in memory
        columns = [column for column in _FINGERPRINTED[name] if column in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            for column_name, column in zip(batch.schema.names, batch.columns, strict=True):
                for part, content in _contents(column).items():
                    parts[f"{column_name}.{part}"].update(content)
    return [f"{column}={digest.hexdigest()}" for column, digest in sorted(parts.items())]


def _contents(column: pa.Array) -> dict[str, bytes]:
    """Return bytes whose concatenation over batches identifies the values, independent of the sizes of batches."""
    known = column.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_integer(column.type):
        numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        return {"known": known, "number": numbers.astype("<i8").tobytes()}
    texts = pc.fill_null(column, "").cast(pa.large_binary())
    lengths = pc.binary_length(texts).to_numpy().astype("<i8").tobytes()
    return {"known": known, "length": lengths, "text": b"".join(texts.to_pylist())}


def describe_source(path: Path) -> dict[str, Any]:
    """Describe an input: name, size and checksum of each file, or the name of an engine's table."""
    if path.is_dir():
        return {"folder": path.name, "files": [describe_source(file) for file in parts(path)]}
    if not path.is_file():
        return {"table": str(path)}
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
