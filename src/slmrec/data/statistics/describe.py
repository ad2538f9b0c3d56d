"""Statistics of a prepared data set: counts, times, distributions, the split and its leakage."""

from pathlib import Path
from typing import Any, NamedTuple

from slmrec.data.logs.times import time_unit
from slmrec.data.statistics.tables import opened, row
from slmrec.types import Unit

MAX_TIME_BINS = 60


class Bin(NamedTuple):
    """The number of values between two inclusive bounds."""

    low: int
    high: int
    num: int


class Histories(NamedTuple):
    """Statistics of the number of events per user."""

    mean: float
    median: float
    shortest: int
    longest: int
    bins: tuple[Bin, ...]
    """Numbers of users by history length, in powers of two."""


class Popularity(NamedTuple):
    """Statistics of the number of events per item."""

    gini: float
    """0 if all items are equally popular; close to 1 if few items have most events."""
    top_1_percent: float
    """Share of all events on the most popular 1 % of the items (rounded up, so at least one item)."""
    top_10_percent: float
    bins: tuple[Bin, ...]
    """Numbers of items by their number of events, in powers of two."""


class Repeats(NamedTuple):
    """Statistics of repeated items."""

    share: float
    """Share of events whose item occurs earlier in the same history."""
    share_consecutive: float
    """Share of events whose item equals that of the user's preceding event."""
    num_duplicates: int | None
    """Events with the user, item and time of an earlier event; None without times."""


class Times(NamedTuple):
    """Times of the events, in `unit` since 1970-01-01 UTC."""

    unit: Unit
    """The unit of `dataset.json`; where it has none, a guess."""
    first: int
    last: int
    share_tied: float
    """Share of events at the same time as the user's preceding or following event."""
    bins: tuple[Bin, ...]
    """Numbers of events in periods of equal length."""


class Description(NamedTuple):
    """Statistics of a data set."""

    num_users: int
    num_items: int
    num_events: int
    density: float
    """Share of user-item pairs with an event."""
    num_titled_items: int | None
    """None if the data set has no titles."""
    histories: Histories
    repeats: Repeats
    times: Times | None
    popularity: Popularity
    split: str
    split_facts: dict[str, float]


def describe(folder: Path) -> Description:
    """Compute the statistics of a data set.

    Args:
        folder: the folder of a data set or of a run.

    Raises:
        DataError: the folder is not a data set.

    Example:
        >>> describe(data)[:3]  # users, items, events
        (80, 40, 716)
    """
    with opened(folder) as (engine, facts):
        num_users, num_items = row(engine, "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM items)")
        num_events, num_pairs = row(
            engine, 'SELECT (SELECT count(*) FROM log), (SELECT count(*) FROM (SELECT DISTINCT "user", item FROM log))'
        )
        titled = "title" in engine.table("items").columns
        return Description(
            num_users=num_users,
            num_items=num_items,
            num_events=num_events,
            density=num_pairs / (num_users * num_items),
            num_titled_items=row(engine, "SELECT count(title) FROM items")[0] if titled else None,
            histories=_histories(engine),
            repeats=_repeats(engine, num_events, num_pairs),
            times=_times(engine, num_events, facts.get("timestamp_unit")),
            popularity=_popularity(engine, num_items, num_events),
            split=facts["rules"]["split"],
            split_facts=_split_facts(engine),
        )


def split_facts(folder: Path) -> dict[str, float]:
    """Compute the sizes of the parts of the split, the numbers of cold targets, and the leakage.

    An item without a training event is untrained; a target is cold if its item is untrained.
    `num_test_before_last_train` counts the test targets that are older than the newest training event of any user; it
    is absent if there are no times.

    Args:
        folder: the folder of a data set or of a run.

    Raises:
        DataError: the folder is not a data set.
    """
    with opened(folder) as (engine, _):
        return _split_facts(engine)


def _histories(engine: Any) -> Histories:
    mean, median, shortest, longest = row(engine, "SELECT mean(num), median(num), min(num), max(num) FROM histories")
    return Histories(mean, median, shortest, longest, _power_bins(engine, "histories"))


def _power_bins(engine: Any, table: str) -> tuple[Bin, ...]:
    """Count the values of `num` in the bins 0, 1, 2-3, 4-7, ..., from the smallest to the largest value."""
    power = "CASE num WHEN 0 THEN -1 ELSE floor(log2(num))::BIGINT END"
    counts = dict(engine.execute(f"SELECT {power}, count(*) FROM {table} GROUP BY 1").fetchall())
    powers = range(min(counts), max(counts) + 1)
    return tuple(Bin(int(2.0**power), 2 ** (power + 1) - 1, counts.get(power, 0)) for power in powers)


def _repeats(engine: Any, num_events: int, num_pairs: int) -> Repeats:
    # The file is sorted by user and position, so a window over all of it needs no sorting and no memory.
    (consecutive,) = row(
        engine,
        """
        SELECT count(*) FILTER ("user" = user_before AND item = item_before)
        FROM (SELECT "user", item, lag("user") OVER () AS user_before, lag(item) OVER () AS item_before FROM log)
        """,
    )
    num_timed, num_triples = row(
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


def _times(engine: Any, num_events: int, unit: Unit | None) -> Times | None:
    first, last = row(engine, 'SELECT min("timestamp"), max("timestamp") FROM log')
    if first is None:
        return None
    (num_tied,) = row(
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
    unit = unit or time_unit(max(abs(first), abs(last)))
    return Times(unit, first, last, num_tied / num_events, _time_bins(engine, first, last))


def _time_bins(engine: Any, first: int, last: int) -> tuple[Bin, ...]:
    width = (last - first) // MAX_TIME_BINS + 1
    # The difference of 64-bit numbers needs 65 bits; it is not negative, and division is slow beyond 64 bits.
    nth = 'SELECT ("timestamp"::HUGEINT - ?)::UBIGINT // ?::UBIGINT, count(*) FROM log GROUP BY 1'
    counts = dict(engine.execute(nth, [first, width]).fetchall())
    lows = (first + number * width for number in range((last - first) // width + 1))
    return tuple(Bin(low, low + width - 1, counts.get(number, 0)) for number, low in enumerate(lows))


def _popularity(engine: Any, num_items: int, num_events: int) -> Popularity:
    """Source: the Gini coefficient of counts in ascending order, with ranks from 1."""
    weighted, top_1, top_10 = row(
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
    num_train, num_untrained, last_train, num_idle = row(
        engine,
        """
        SELECT sum(num_trained)::BIGINT, count(*) FILTER (num_trained = 0), max(last_trained),
            (SELECT count(*) FROM histories WHERE valid_at < 2)
        FROM catalogue
        """,
    )
    valid, test, cold_valid, cold_test, early, num_timed = row(
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
    return {
        "num_train_events": num_train,
        "num_valid_targets": valid,
        "num_test_targets": test,
        "num_cold_valid_targets": cold_valid,
        "num_cold_test_targets": cold_test,
        "num_untrained_items": num_untrained,
        "num_users_without_training": num_idle,
    } | ({"num_test_before_last_train": early} if num_timed else {})
