"""Removal of the rows of some users from tables, line files and data sets."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.data.histories import BATCH_EVENTS, CUTS, HELD_OUT, TIMES, read_facts
from slmrec.data.ids import id_text
from slmrec.data.prepare import complete_dataset, with_positions, write_table
from slmrec.files import write_atomically, write_json

USER_ID = "user_id"
_DERIVED = (CUTS, TIMES)
"""Arrays of a data set that are written when they are needed."""


def is_user(ids: pa.Array, users: frozenset[str]) -> NDArray[np.bool_]:
    """Return which ids of a column are among some users, given as text."""
    wanted = pa.array(sorted(users), pa.string())
    return np.asarray(pc.is_in(ids.cast(pa.string()), value_set=wanted).to_numpy(zero_copy_only=False), dtype=bool)


def write_without_users(source: Path, output: Path, users: frozenset[str]) -> int:
    """Write a data set without some users, and return the number of events that it lacks.

    Items keep their numbers. The users that are left are numbered anew, since no file but those of a data set refers
    to the numbers.

    Args:
        source: Folder of the data set.
        output: Existing folder of the new one.
        users: Ids as text.
    """
    table = pq.read_table(source / "users.parquet")
    kept = ~is_user(table[USER_ID].combine_chunks(), users)
    numbers = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    rows = table.filter(pa.array(kept))
    rows = rows.set_column(rows.column_names.index("user"), "user", pa.array(np.arange(1, len(rows) + 1)))
    pq.write_table(rows, output / "users.parquet")
    if (source / HELD_OUT).is_file():
        cuts = pq.read_table(source / HELD_OUT).filter(pa.array(kept))
        pq.write_table(cuts.set_column(cuts.column_names.index("user"), "user", rows["user"]), output / HELD_OUT)
    shutil.copyfile(source / "items.parquet", output / "items.parquet")
    with pq.ParquetFile(source / "interactions.parquet", pre_buffer=False) as log:
        num_before: int = log.metadata.num_rows
        write_table(output / "interactions.parquet", with_positions(_kept(log, kept, numbers)))
    facts = read_facts(source)
    rejected = facts.get("rejected", {})
    counts = complete_dataset(output, facts, [])
    write_json(output / "dataset.json", read_facts(output) | {"rejected": rejected})
    for path in source.iterdir():
        if not ((output / path.name).exists() or path.name.startswith(".") or path.name in _DERIVED):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, output / path.name)
    for path in output.glob("*.parquet"):
        if path.name != "users.parquet":  # such as events that wait for more of their user
            filter_parquet(path, users)
    if (source / "metrics.json").is_file():
        metrics = json.loads((source / "metrics.json").read_text(encoding="utf-8"))
        write_json(output / "metrics.json", metrics | {name: counts[name] for name in metrics if name in counts})
    num_after: int = pq.read_metadata(output / "interactions.parquet").num_rows
    return num_before - num_after


def _kept(log: pq.ParquetFile, kept: NDArray[np.bool_], numbers: NDArray[np.int64]) -> Iterator[pa.Table]:
    for batch in log.iter_batches(BATCH_EVENTS):
        part = pa.Table.from_batches([batch]).drop_columns("position")
        users = part["user"].to_numpy()
        part = part.set_column(part.column_names.index("user"), "user", pa.array(numbers[users]))
        yield part.filter(pa.array(kept[users - 1]))


def filter_parquet(path: Path, users: frozenset[str]) -> int:
    """Remove the rows of some users from a Parquet file with a column of user ids; return their number."""
    if USER_ID not in pq.read_schema(path).names:
        return 0
    table = pq.read_table(path)
    found = is_user(table[USER_ID].combine_chunks(), users)
    if found.any():
        with write_atomically(path) as temporary:
            pq.write_table(table.filter(pa.array(~found)), temporary)
    return int(found.sum())


def filter_lines(path: Path, users: frozenset[str]) -> int:
    """Remove the lines of some users from a .csv or .jsonl file with `user_id`; return their number."""
    removed = 0
    place = None
    with (
        path.open(encoding="utf-8", newline="") as lines,
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as output,
    ):
        for number, line in enumerate(lines):
            if path.suffix == ".jsonl":
                row = json.loads(line) if line.strip() else None
                user: Any = row.get(USER_ID) if isinstance(row, dict) else None
            else:
                cells = next(csv.reader([line]), [])
                if number == 0:
                    place = cells.index(USER_ID) if USER_ID in cells else None
                user = cells[place] if number and place is not None and place < len(cells) else None
            if _text(user) in users:
                removed += 1
            else:
                output.write(line)
    return removed


def _text(user: Any) -> str | None:
    return None if user is None else id_text(user, whole_numbers=not isinstance(user, str))
