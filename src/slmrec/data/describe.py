"""What a prepared data set looks like: counts, times, distributions, its split, and what the split lets through.

DuckDB reads the parquet files and spills to disk what does not fit in `MEMORY`, so logs of any length will do.
"""

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np

from slmrec.errors import DataError

Unit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MEMORY, THREADS = "2GB", 4
"""What the queries may take; each thread needs its share of the memory."""
MAX_TIME_BINS = 60
COLUMNS = {
    "interactions": ("user", "item", "timestamp", "position"),
    "users": ("user",),
    "items": ("item",),
}


class Bin(NamedTuple):
    """The number of values between two bounds, both included."""

    low: int
    high: int
    num: int


class Histories(NamedTuple):
    """Events of a user."""

    mean: float
    median: float
    shortest: int
    longest: int
    bins: tuple[Bin, ...]
    """Users by the length of their history, in powers of two."""


class Popularity(NamedTuple):
    """Events of an item."""

    gini: float
    """0: all items are equally popular; towards 1: few items have all events."""
    top_1_percent: float
    """Share of all events that the most popular hundredth of the items has (rounded up, so one item at least)."""
    top_10_percent: float
    bins: tuple[Bin, ...]
    """Items by their number of events, in powers of two."""


class Repeats(NamedTuple):
    """Events that are not new to their user."""

    share: float
    """Share of events whose item the same user had before."""
    share_consecutive: float
    """Share of events whose item is that of the user's event right before."""
    num_duplicates: int | None
    """Events that equal an earlier one in user, item and time; None without times."""


class Times(NamedTuple):
    """When the events happened, in `unit` since 1970-01-01 UTC."""

    unit: Unit
    """Guessed by `time_unit`."""
    first: int
    last: int
    share_tied: float
    """Share of events at the same time as the user's event right before or right after."""
    bins: tuple[Bin, ...]
    """Events by time, in parts of equal width."""


class Description(NamedTuple):
    """A data set in figures."""

    num_users: int
    num_items: int
    num_events: int
    density: float
    """Share of the user x item matrix that has an event."""
    num_titled_items: int | None
    """None if no titles were given."""
    histories: Histories
    repeats: Repeats
    times: Times | None
    popularity: Popularity
    split: str
    split_facts: dict[str, float]


def describe(folder: Path) -> Description:
    """The figures of a data set.

    Args:
        folder: of a data set, or of a run.

    Raises:
        DataError: the folder is no data set.
    """
    with _opened(folder) as (engine, split):
        num_users, num_items = _row(engine, "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM items)")
        num_events, num_pairs = _row(
            engine, 'SELECT (SELECT count(*) FROM log), (SELECT count(*) FROM (SELECT DISTINCT "user", item FROM log))'
        )
        titled = "title" in engine.table("items").columns
        return Description(
            num_users=num_users,
            num_items=num_items,
            num_events=num_events,
            density=num_pairs / (num_users * num_items),
            num_titled_items=_row(engine, "SELECT count(title) FROM items")[0] if titled else None,
            histories=_histories(engine),
            repeats=_repeats(engine, num_events, num_pairs),
            times=_times(engine, num_events),
            popularity=_popularity(engine, num_items, num_events),
            split=split,
            split_facts=_split_facts(engine),
        )


def split_facts(folder: Path) -> dict[str, float]:
    """How large the parts of the split are, what of them is cold, and how many test events training has overtaken.

    An item without a training event is untrained, a target of such an item cold. `num_test_before_last_train` counts
    the test targets that are older than the newest training event of anybody; it is absent when there are no times.

    Args:
        folder: of a data set, or of a run.

    Raises:
        DataError: the folder is no data set.
    """
    with _opened(folder) as (engine, _):
        return _split_facts(engine)


def time_unit(largest: int) -> Unit:
    """The unit in which times are most likely counted, by their magnitude.

    Seconds reach the year 5138 before they are taken for milliseconds; of finer units, times before March 1973 are
    taken for coarser ones.

    Args:
        largest: the largest absolute value, of 64 bits.

    >>> time_unit(1_700_000_000), time_unit(1_700_000_000_000)
    ('s', 'ms')
    """
    return next(unit for unit, per_second in PER_SECOND.items() if largest < 10**11 * per_second)


def date(time: int, unit: Unit, resolution: Literal["D", "s"] = "D") -> str:
    """A time in UTC, down to the day or the second.

    >>> date(1_405_296_000, "s"), date(-1_500, "ms", "s")
    ('2014-07-14', '1969-12-31 23:59:58')
    """
    return str(np.datetime64(time, unit).astype(f"datetime64[{resolution}]")).replace("T", " ")


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[Any, str]]:
    """The engine, with `log`, `users`, `items` and the tables of `_tabulate`; and the split's name."""
    folder = _data_folder(folder)
    with TemporaryDirectory() as spill, _connect(spill) as engine:
        try:
            rules = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["rules"]
            for name, columns in COLUMNS.items():
                _open_table(engine, folder / f"{name}.parquet", columns)
            places = _places(rules, folder)
        except (duckdb.Error, ValueError, KeyError, TypeError) as error:
            found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise DataError(f"{folder}: damaged data set ({found}); run prepare again") from None
        _tabulate(engine, places)
        yield engine, rules["split"]


def _data_folder(folder: Path) -> Path:
    inner = folder / "prepare"
    folder = inner if inner.is_dir() and not (folder / "dataset.json").exists() else folder
    for name in ("dataset.json", *(f"{table}.parquet" for table in COLUMNS)):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: not a prepared data set ({name} is missing); expected the folder that prepare wrote, or "
                "that of a run; run prepare"
            )
    return folder


def _connect(spill: str) -> Any:
    engine = duckdb.connect(config={"memory_limit": MEMORY, "threads": THREADS, "temp_directory": spill})
    engine.execute("SET preserve_insertion_order = true")  # windows over the whole file rely on its order
    engine.execute("SET enable_progress_bar = false")
    return engine


def _open_table(engine: Any, path: Path, columns: tuple[str, ...]) -> None:
    table = engine.read_parquet(glob.escape(str(path)))
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}, expected {', '.join(columns)}; run prepare again")
    table.create_view("log" if path.stem == "interactions" else path.stem)


def _places(rules: dict[str, Any], folder: Path) -> str:
    """Where in a history the valid and the test target stand, in SQL; all before the former is for training."""
    if rules["split"] == "leave_one_out":
        return "greatest(count(*) - 2, 0) AS valid_at, greatest(count(*) - 1, 0) AS test_at"
    if rules["split"] == "temporal":
        bounds = {f"{name}_at": int(rules[f"{name}_from"]) for name in ("valid", "test")}
        return ", ".join(f'count(*) FILTER ("timestamp" < {bound}) AS {place}' for place, bound in bounds.items())
    raise DataError(
        f"{folder}: unknown split {rules['split']!r} in dataset.json, expected leave_one_out or temporal; run prepare"
    )


def _tabulate(engine: Any, places: str) -> None:
    """Makes `histories`, a row a user, and `catalogue`, a row an item."""
    engine.execute(f'CREATE TEMP TABLE histories AS SELECT "user", count(*) AS num, {places} FROM log GROUP BY "user"')
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


def _row(engine: Any, query: str, *values: Any) -> tuple[Any, ...]:
    row: tuple[Any, ...] = engine.execute(query, values).fetchone()
    return row


def _histories(engine: Any) -> Histories:
    mean, median, shortest, longest = _row(engine, "SELECT mean(num), median(num), min(num), max(num) FROM histories")
    return Histories(mean, median, shortest, longest, _power_bins(engine, "histories"))


def _power_bins(engine: Any, table: str) -> tuple[Bin, ...]:
    """0, 1, 2-3, 4-7, ...: from the smallest to the largest `num` of the table, none left out."""
    power = "CASE num WHEN 0 THEN -1 ELSE floor(log2(num))::BIGINT END"
    counts = dict(engine.execute(f"SELECT {power}, count(*) FROM {table} GROUP BY 1").fetchall())
    powers = range(min(counts), max(counts) + 1)
    return tuple(Bin(int(2.0**power), 2 ** (power + 1) - 1, counts.get(power, 0)) for power in powers)


def _repeats(engine: Any, num_events: int, num_pairs: int) -> Repeats:
    # The file is in the order of users and positions: a window over all of it needs no sorting and no memory.
    (consecutive,) = _row(
        engine,
        """
        SELECT count(*) FILTER ("user" = user_before AND item = item_before)
        FROM (SELECT "user", item, lag("user") OVER () AS user_before, lag(item) OVER () AS item_before FROM log)
        """,
    )
    num_timed, num_triples = _row(
        engine,
        """
        SELECT
            (SELECT count("timestamp") FROM log),
            (SELECT count(*) FROM (SELECT DISTINCT "user", item, "timestamp" FROM log))
        """,
    )
    return Repeats(
        share=1 - num_pairs / num_events,
        share_consecutive=consecutive / num_events,
        num_duplicates=num_events - num_triples if num_timed else None,
    )


def _times(engine: Any, num_events: int) -> Times | None:
    first, last = _row(engine, 'SELECT min("timestamp"), max("timestamp") FROM log')
    if first is None:
        return None
    (num_tied,) = _row(
        engine,
        """
        SELECT count(*) FILTER (
            ("user" = user_before AND "timestamp" = time_before) OR ("user" = user_after AND "timestamp" = time_after)
        ) FROM (
            SELECT
                "user", lag("user") OVER () AS user_before, lead("user") OVER () AS user_after,
                "timestamp", lag("timestamp") OVER () AS time_before, lead("timestamp") OVER () AS time_after
            FROM log
        )
        """,
    )
    unit = time_unit(max(abs(first), abs(last)))
    return Times(unit, first, last, num_tied / num_events, _time_bins(engine, first, last))


def _time_bins(engine: Any, first: int, last: int) -> tuple[Bin, ...]:
    width = (last - first) // MAX_TIME_BINS + 1
    # A difference of 64-bit numbers needs 65 bits, but is not negative here; division is slow beyond 64.
    nth = 'SELECT ("timestamp"::HUGEINT - ?)::UBIGINT // ?::UBIGINT, count(*) FROM log GROUP BY 1'
    counts = dict(engine.execute(nth, [first, width]).fetchall())
    lows = (first + number * width for number in range((last - first) // width + 1))
    return tuple(Bin(low, low + width - 1, counts.get(number, 0)) for number, low in enumerate(lows))


def _popularity(engine: Any, num_items: int, num_events: int) -> Popularity:
    """Source: the Gini coefficient of counts in ascending order, with ranks from 1."""
    weighted, top_1, top_10 = _row(
        engine,
        """
        SELECT
            sum(num * rank)::DOUBLE, sum(num) FILTER (rank > $num - ceil($num / 100)),
            sum(num) FILTER (rank > $num - ceil($num / 10))
        FROM (SELECT num, row_number() OVER (ORDER BY num) AS rank FROM catalogue)
        """.replace("$num", str(num_items)),
    )
    return Popularity(
        gini=2 * weighted / (num_items * num_events) - (num_items + 1) / num_items,
        top_1_percent=int(top_1) / num_events,
        top_10_percent=int(top_10) / num_events,
        bins=_power_bins(engine, "catalogue"),
    )


def _split_facts(engine: Any) -> dict[str, float]:
    num_train, num_untrained, last_train, num_idle = _row(
        engine,
        """
        SELECT sum(num_trained)::BIGINT, count(*) FILTER (num_trained = 0), max(last_trained),
            (SELECT count(*) FROM histories WHERE valid_at < 2)
        FROM catalogue
        """,
    )
    valid, test, cold_valid, cold_test, early, num_timed = _row(
        engine,
        """
        SELECT
            count(*) FILTER (is_valid), count(*) FILTER (is_test),
            count(*) FILTER (is_valid AND num_trained = 0), count(*) FILTER (is_test AND num_trained = 0),
            count(*) FILTER (is_test AND "timestamp" < ?), (SELECT count("timestamp") FROM log)
        FROM (
            SELECT item, "timestamp", position = valid_at AND 0 < valid_at AND valid_at < test_at AS is_valid,
                position = test_at AND 0 < test_at AND test_at < num AS is_test
            FROM log JOIN histories USING ("user") WHERE position = valid_at OR position = test_at
        ) JOIN catalogue USING (item)
        """,
        last_train,
    )
    facts = {
        "num_train_events": num_train,
        "num_valid_targets": valid,
        "num_test_targets": test,
        "num_cold_valid_targets": cold_valid,
        "num_cold_test_targets": cold_test,
        "num_untrained_items": num_untrained,
        "num_users_without_training": num_idle,
    }
    return facts | ({"num_test_before_last_train": early} if num_timed else {})
