"""From a log to the data-set folder: dense ids, histories in order, and what was counted."""

import hashlib
import html
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
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

from slmrec.data.dataset import Dataset
from slmrec.data.describe import split_facts
from slmrec.data.engine import batches, cannot, connected, explain, first_row, keep, one_line, value
from slmrec.data.filters import Rules, apply_rules, cut_times
from slmrec.data.histories import write_histories
from slmrec.data.items import ItemsReading, KnownItems, one_row_an_item, read_items
from slmrec.data.logs import row_errors as rejects
from slmrec.data.logs.files import parts
from slmrec.data.logs.read import Events, Reading, read_events
from slmrec.data.logs.row_errors import Reject
from slmrec.errors import DataError

ROWS_AT_ONCE = 2**20
"""Of a part of a table, and of a row group of the files."""
_DIGESTED = {"interactions": ("user", "item", "timestamp"), "items": ("item_id", "title"), "users": ("user_id",)}

Say = Callable[[str], None]


def prepare_dataset(
    input: str,
    output: Path,
    *,
    reading: Reading,
    rules: Rules,
    items: ItemsReading | None,
    engine: str,
    memory_limit: str,
    say: Say = lambda text: None,
) -> dict[str, float]:
    """Writes `interactions`, `items` and `users` (parquet) and `dataset.json` into a folder; the counts.

    Ids are dense from 1 in the order of the caller's ids: if all of a column are whole numbers, written as such (no
    leading zeros), they are stored as numbers and ordered by value, else as text, by code point. So the order of the
    input's rows decides nothing but ties of time.

    Args:
        input: the log: a file, a folder of parts, or, for another engine than DuckDB, Parquet or the name of a table.
        output: an existing folder.
        reading: how the log is read.
        rules: which events stay.
        items: the table of items.
        engine: of `engine.connect`.
        memory_limit: of `engine.connect`.
        say: is told how it goes.

    Raises:
        ConfigError: the engine is not there, or cannot do what the settings ask for.
        DataError: the input cannot be read, or no event is left.
    """
    if output.resolve().is_relative_to(Path(input).resolve()):
        raise DataError(f"{input}: holds the output folder, whose files would be read too; choose another --output")
    with TemporaryDirectory(dir=output.absolute(), prefix=".spill-") as folder, ExitStack() as engines:
        spill = Path(folder)
        embedded = engines.enter_context(connected("duckdb", spill, memory_limit))
        other = None if engine == "duckdb" else engines.enter_context(connected(engine, spill, memory_limit))
        say(f"reading {input}")
        try:
            known = read_items(embedded, spill, items) if items else None  # first: it is small, and may be faulty
            log = read_events(other or embedded, spill, input, reading)
            facts = _write_events(other or embedded, input, output, log, rules, say)
            if known is None and log.titles is not None:
                known = KnownItems(log.titles.rename(text="item_id"), [])
            if known is not None:
                facts["counts"] |= _write_items(embedded, output / "items.parquet", known.rows, items)
        except OperationNotDefinedError as error:
            raise cannot(engine, one_line(error)) from None
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise explain(error, input) from None
    facts["sources"] = [_source(Path(path)) for path in (input, items and items.path) if path]
    return _complete(output, facts, [*log.rejects, *(known.rejects if known else [])])


def _complete(output: Path, facts: dict[str, Any], rejected: list[Reject]) -> dict[str, float]:
    """Writes what is made of the tables; the counts."""
    if rejected:
        pq.write_table(rejects.table(rejected), output / "rejected.parquet")
    facts |= {"rejected": rejects.counts(rejected), "fingerprint": _fingerprint(output)}
    _write_json(output / "dataset.json", facts)  # the histories are cut by its rules
    write_histories(output)
    facts["counts"] |= _counts(Dataset.load(output)) | split_facts(output)
    _write_json(output / "dataset.json", facts)
    return dict(facts["counts"])


def _write_events(engine: Any, input: str, output: Path, log: Events, rules: Rules, say: Say) -> dict[str, Any]:
    """Writes `interactions`, `users`, and `items` without what is known of them; facts of dataset.json."""
    num_read = value(log.table.count())
    say(f"{num_read:,} events read, {len(log.rejects):,} rows rejected")
    order = [*(["timestamp", "nanosecond"] if rules.order == "time" else []), *log.ties]
    events, removed = apply_rules(engine, input, log.table, order, rules)
    periods = cut_times(engine, input, events, rules) if rules.split == "temporal" else {}
    users, items = _index(engine, events, "user"), _index(engine, events, "item")
    say(f"{value(events.count()):,} events stay; writing them in order")
    _write_table(output / "users.parquet", batches(engine, _ids(users, "user"), ROWS_AT_ONCE))
    _write_table(output / "items.parquet", batches(engine, _ids(items, "item"), ROWS_AT_ONCE))
    ordered = _ordered(events, users, items, order)
    _write_table(output / "interactions.parquet", _with_positions(batches(engine, ordered, ROWS_AT_ONCE)))
    dropped = {
        f"num_dropped_{name}s": value(log.table[f"{name}_id"].nunique()) - value(index.count())
        for name, index in (("user", users), ("item", items))
    }
    counts = {"num_read_events": num_read, "num_rejected_rows": len(log.rejects)} | dropped
    return {
        "counts": counts | {f"num_removed_by_{rule}": number for rule, number in removed.items()},
        "rules": asdict(rules) | periods | {"ties": [column for column in log.ties if column != "tie_as_is"]},
        "layout": log.layout,
    }


def _index(engine: Any, events: Table, name: str) -> Table:
    """The distinct ids of users or items, as they came (`key`) and as the caller's, numbered from 1 in their order."""
    ids = events.select(key=events[f"{name}_id"]).distinct()
    caller_id = ids.key
    if ids.key.type().is_string():
        number = ids.key.try_cast("int64")
        if value((number.cast("string") == ids.key).fill_null(False).all()):
            caller_id = number
    ids = ids.mutate(caller_id=caller_id)
    return keep(engine, ids.mutate(**{name: ibis.row_number().over(order_by=ids.caller_id) + 1}))


def _ids(index: Table, name: str) -> Table:
    return index.select(**{name: index[name].cast("int64"), f"{name}_id": index.caller_id}).order_by(name)


def _ordered(events: Table, users: Table, items: Table, order: list[str]) -> Table:
    joined = events.join(users.select("user", user_id="key"), "user_id")
    joined = joined.join(items.select("item", item_id="key"), "item_id")
    numbers = {name: joined[name].cast("int64") for name in ("user", "item")}  # an engine may number in 32 bits
    return joined.order_by(["user", *order]).select(**numbers, timestamp=joined.timestamp)


def _with_positions(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Events, sorted by user, with their place in the user's history."""
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


def _write_items(engine: Any, path: Path, rows: Table, reading: ItemsReading | None) -> dict[str, float]:
    """Adds what is known of the items to their table; counts."""
    items = engine.read_parquet(str(path))
    items = keep(engine, items.mutate(text=items.item_id.cast("string")))
    known = keep(engine, one_row_an_item(rows, items))
    if not value(known.count()):
        raise DataError(
            f"{reading.path if reading else path}: none of its items is in the log, whose ids look like "
            f"{first_row(items)['text']!r} and its own like {first_row(rows).get('text')!r}; set prepare.items_id_col "
            "to the column of the log's ids"
        )
    joined = items.left_join(known, "text").order_by("item").drop("text", "text_right", "num_titles")
    joined = joined.relocate(*(name for name in ("item", "item_id", "title") if name in joined.columns))
    partial = path.with_suffix(".partial")
    _write_table(partial, map(_with_readable_titles, batches(engine, joined, ROWS_AT_ONCE)))
    partial.replace(path)
    counts = {"num_known_items": value(known.count())}
    if "title" in known.columns:
        counts["num_titled_items"] = value(known.title.count())
        counts["num_retitled_items"] = value((known.num_titles > 1).sum().fill_null(0))
    return counts


def _with_readable_titles(part: pa.Table) -> pa.Table:
    """HTML's entities (`&amp;`) as the characters they stand for."""
    if "title" not in part.column_names:
        return part
    titles = part["title"]
    if pc.any(pc.match_substring(titles, "&")).as_py():
        titles = pa.array([title and html.unescape(title) for title in titles.to_pylist()], pa.string())
    return part.set_column(part.column_names.index("title"), "title", titles)


def _write_table(path: Path, parts: Iterator[pa.Table]) -> None:
    first = next(parts)
    with pq.ParquetWriter(path, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part, row_group_size=ROWS_AT_ONCE)


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
    """Of the contents alone: the same data, wherever and whenever prepared, has the same one."""
    digests = [f"{name}.{digest}" for name in _DIGESTED for digest in _column_digests(folder, name)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _column_digests(folder: Path, name: str) -> list[str]:
    parts: dict[str, Any] = defaultdict(hashlib.sha256)
    with pq.ParquetFile(folder / f"{name}.parquet", pre_buffer=False) as file:  # buffered ahead, all of it would stay
        columns = [column for column in _DIGESTED[name] if column in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            for column_name, column in zip(batch.schema.names, batch.columns, strict=True):
                for part, content in _contents(column).items():
                    parts[f"{column_name}.{part}"].update(content)
    return [f"{column}={digest.hexdigest()}" for column, digest in sorted(parts.items())]


def _contents(column: pa.Array) -> dict[str, bytes]:
    """Bytes that, one batch after the other, tell all values of a column; batches may be cut anywhere."""
    known = column.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_integer(column.type):
        numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        return {"known": known, "number": numbers.astype("<i8").tobytes()}
    texts = pc.fill_null(column, "").cast(pa.large_binary())
    lengths = pc.binary_length(texts).to_numpy().astype("<i8").tobytes()
    return {"known": known, "length": lengths, "text": b"".join(texts.to_pylist())}


def _source(path: Path) -> dict[str, Any]:
    """What was read; of a folder, its parts; of a table of an engine, its name alone."""
    if path.is_dir():
        return {"folder": path.name, "files": [_source(file) for file in parts(path)]}
    if not path.is_file():
        return {"table": str(path)}
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": checksum}


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
