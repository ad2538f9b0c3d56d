"""Tables of a prepared data set in an engine.

DuckDB reads the Parquet files and spills to disk, so the memory is limited for logs of any length.
"""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from slmrec.data.engine import disable_progress_bar
from slmrec.data.histories import HELD_OUT, read_facts
from slmrec.errors import DataError
from slmrec.files import one_line

MEMORY, THREADS = "2GB", 4
"""Resources of the queries; each thread needs its share of the memory."""
COLUMNS = {"interactions": ("user", "item", "timestamp", "position"), "users": ("user",), "items": ("item",)}


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open an engine with the tables of a data set and of `_tabulate`; yield it, and `dataset.json`.

    Raises:
        DataError: The folder is not a data set.
    """
    folder = data_folder(folder)
    with TemporaryDirectory() as spill, _connect(spill) as engine:
        try:
            facts = read_facts(folder)
            for name, columns in COLUMNS.items():
                _open_table(engine, folder / f"{name}.parquet", columns)
            if facts["rules"]["split"] == "newest":
                _open_table(engine, folder / HELD_OUT, ("user", "valid_at", "test_at"))
            positions = _target_positions(facts["rules"], folder)
        except (duckdb.Error, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise DataError(f"{folder}: damaged data set ({reason}); run prepare again") from None
        _tabulate(engine, positions)
        yield engine, facts


def data_folder(folder: Path) -> Path:
    """Return the folder of the data set, which may be that of a run.

    Raises:
        DataError: The folder is not a data set.
    """
    inner = folder / "prepare"
    folder = inner if inner.is_dir() and not (folder / "dataset.json").exists() else folder
    for name in ("dataset.json", *(f"{table}.parquet" for table in COLUMNS)):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: not a prepared data set ({name} is missing); expected the output folder of "
                "prepare or of a run; run prepare"
            )
    return folder


def _connect(spill: str) -> Any:
    engine = duckdb.connect(config={"memory_limit": MEMORY, "threads": THREADS, "temp_directory": spill})
    engine.execute("SET preserve_insertion_order = true")  # windows over the whole file rely on its order
    disable_progress_bar(engine)
    return engine


def _open_table(engine: Any, path: Path, columns: tuple[str, ...]) -> None:
    table = engine.read_parquet(glob.escape(str(path)))
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}, expected {', '.join(columns)}; run prepare again")
    table.create_view("log" if path.stem == "interactions" else path.stem)


def _target_positions(rules: dict[str, Any], folder: Path) -> str:
    """Return SQL expressions for the positions of the validation and the test target in a history."""
    if rules["split"] == "leave_one_out":
        return "greatest(count(*) - 2, 0) AS valid_at, greatest(count(*) - 1, 0) AS test_at"
    if rules["split"] == "temporal":
        bounds = {f"{name}_at": int(rules[f"{name}_from"]) for name in ("valid", "test")}
        return ", ".join(f'count(*) FILTER ("timestamp" < {bound}) AS {place}' for place, bound in bounds.items())
    if rules["split"] == "newest":
        return ", ".join(
            f'(SELECT {place} FROM held_out WHERE held_out."user" = log."user") AS {place}'
            for place in ("valid_at", "test_at")
        )
    raise DataError(
        f"{folder}: unknown split {rules['split']!r} in dataset.json, expected leave_one_out, temporal or newest; run "
        "prepare"
    )


def _tabulate(engine: Any, positions: str) -> None:
    """Create the tables `histories`, with one row per user, and `catalogue`, with one row per item."""
    engine.execute(
        f'CREATE TEMP TABLE histories AS SELECT "user", count(*) AS num, {positions} FROM log GROUP BY "user"'
    )
    engine.execute("""
        CREATE TEMP TABLE catalogue AS
        SELECT item, coalesce(num, 0) AS num, coalesce(num_trained, 0) AS num_trained, last_trained
        FROM items LEFT JOIN (
            SELECT
                item,
                count(*) AS num,
                count(*) FILTER (position < valid_at) AS num_trained,
                max("timestamp") FILTER (position < valid_at) AS last_trained
            FROM log JOIN histories USING ("user") GROUP BY item
        ) USING (item)
    """)


def row(engine: Any, query: str, *values: Any) -> tuple[Any, ...]:
    """Return the first row of the result of a query."""
    found: tuple[Any, ...] = engine.execute(query, values).fetchone()
    return found
