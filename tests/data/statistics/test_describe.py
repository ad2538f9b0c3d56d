"""Every figure of a data set against plain Python on random logs, and against values worked out by hand."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import mean, median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec import prepare
from slmrec.data.logs.times import date, time_unit
from slmrec.data.statistics.describe import Bin, describe, split_facts
from slmrec.errors import DataError

Event = tuple[int, int | None]
"""Item and time."""
LEAVE_ONE_OUT = {"split": "leave_one_out"}


def write_dataset(
    folder: Path,
    histories: Sequence[Sequence[Event]],
    rules: dict[str, Any] = LEAVE_ONE_OUT,
    num_items: int | None = None,
    titles: list[str | None] | None = None,
) -> Path:
    """A folder as prepare writes it; user u is the u-th history."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"user": user, "item": item, "timestamp": time, "position": position}
        for user, history in enumerate(histories, 1)
        for position, (item, time) in enumerate(history)
    ]
    schema = pa.schema([(name, pa.int64()) for name in ("user", "item", "timestamp", "position")])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "interactions.parquet")
    users = list(range(1, len(histories) + 1))
    items = list(range(1, (num_items or max(row["item"] or 0 for row in rows)) + 1))
    pq.write_table(pa.table({"user": users, "user_id": users}), folder / "users.parquet")
    columns = {"item": items, "item_id": items} | ({"title": pa.array(titles, pa.string())} if titles else {})
    pq.write_table(pa.table(columns), folder / "items.parquet")
    facts = {"fingerprint": "f", "counts": {}, "rules": rules, "sources": []}
    (folder / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def naive_bins(values: Sequence[int]) -> list[tuple[int, int, int]]:
    powers = [value.bit_length() - 1 for value in values]
    found = Counter(powers)
    return [
        (2**power if power >= 0 else 0, 2 ** (power + 1) - 1, found[power])
        for power in range(min(powers), max(powers) + 1)
    ]


def naive_gini(values: Sequence[int]) -> float:
    return sum(abs(one - other) for one in values for other in values) / (2 * len(values) * sum(values))


def naive_time_bins(times: Sequence[int]) -> list[tuple[int, int, int]]:
    first, last = min(times), max(times)
    width = ceil((last - first + 1) / 60)
    lows = range(first, last + 1, width)
    return [(low, low + width - 1, sum(low <= time < low + width for time in times)) for low in lows]


def naive_split(histories: Sequence[Sequence[Event]], rules: dict[str, Any], num_items: int) -> dict[str, float]:
    train: list[Event] = []
    targets: dict[str, list[Event]] = {"valid": [], "test": []}
    num_idle = 0
    for history in histories:
        num = len(history)
        if rules["split"] == "temporal":
            valid_at, test_at = (
                sum(time < rules[bound] for _, time in history if time is not None)
                for bound in ("valid_from", "test_from")
            )
        else:
            valid_at, test_at = max(num - 2, 0), num - 1
        train += history[:valid_at]
        num_idle += valid_at < 2
        targets["valid"] += [history[valid_at]] if 0 < valid_at < test_at else []
        targets["test"] += [history[test_at]] if 0 < test_at < num else []
    trained = {item for item, _ in train}
    facts: dict[str, float] = {
        "num_train_events": len(train),
        "num_valid_targets": len(targets["valid"]),
        "num_test_targets": len(targets["test"]),
        "num_cold_valid_targets": sum(item not in trained for item, _ in targets["valid"]),
        "num_cold_test_targets": sum(item not in trained for item, _ in targets["test"]),
        "num_untrained_items": num_items - len(trained),
        "num_users_without_training": num_idle,
    }
    if histories[0][0][1] is not None:
        newest = max((time for _, time in train if time is not None), default=None)
        early = [time for _, time in targets["test"] if newest is not None and time is not None and time < newest]
        facts["num_test_before_last_train"] = len(early)
    return facts


def is_tied(history: Sequence[Event], place: int) -> bool:
    neighbours = [other for other in (place - 1, place + 1) if 0 <= other < len(history)]
    return any(history[other][1] == history[place][1] for other in neighbours)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[list[Event]], dict[str, Any]]:
    start = draw(st.sampled_from([0, -5, 1_700_000_000, 1_700_000_000_000, -(10**18)]))
    step = draw(st.sampled_from([1, 1000, 86_400]))
    events = st.tuples(st.integers(1, 6), st.integers(0, 12).map(lambda tick: start + step * tick))
    histories = draw(st.lists(st.lists(events, min_size=1, max_size=9), min_size=1, max_size=6))
    histories = [sorted(history, key=lambda event: event[1]) for history in histories]
    kind = draw(st.sampled_from(["leave_one_out", "temporal", "without times"]))
    if kind == "without times":
        return [[(item, None) for item, _ in history] for history in histories], LEAVE_ONE_OUT
    if kind == "leave_one_out":
        return [list(history) for history in histories], LEAVE_ONE_OUT
    ticks = sorted(draw(st.tuples(st.integers(-1, 13), st.integers(-1, 13))))
    valid_from, test_from = (start + step * tick for tick in ticks)
    rules = {"split": "temporal", "valid_from": valid_from, "test_from": test_from}
    return [list(history) for history in histories], rules


@settings(max_examples=60, deadline=None)
@given(log=logs(), num_more_items=st.integers(0, 2))
def test_every_figure_is_that_of_plain_python(
    tmp_path_factory: pytest.TempPathFactory, log: tuple[list[list[Event]], dict[str, Any]], num_more_items: int
) -> None:
    histories, rules = log
    events = [(user, item, time) for user, history in enumerate(histories) for item, time in history]
    num_items = max(item for _, item, _ in events) + num_more_items
    folder = write_dataset(tmp_path_factory.mktemp("log"), histories, rules, num_items)
    found = describe(folder)
    lengths = [len(history) for history in histories]
    occurrences = Counter(item for _, item, _ in events)
    popularity = sorted((occurrences[item] for item in range(1, num_items + 1)), reverse=True)
    num_pairs = len({(user, item) for user, item, _ in events})

    assert (found.num_users, found.num_items, found.num_events) == (len(histories), num_items, len(events))
    assert found.num_titled_items is None
    assert found.density == pytest.approx(num_pairs / (len(histories) * num_items))
    assert found.histories[:2] == pytest.approx((mean(lengths), median(lengths)))
    assert found.histories[2:] == (min(lengths), max(lengths), tuple(naive_bins(lengths)))

    again = sum(
        item in [other for other, _ in history[:at]] for history in histories for at, (item, _) in enumerate(history)
    )
    consecutive = sum(history[at][0] == history[at - 1][0] for history in histories for at in range(1, len(history)))
    assert found.repeats[:2] == pytest.approx((again / len(events), consecutive / len(events)))

    assert found.popularity.gini == pytest.approx(naive_gini(popularity))
    for share, percent in ((found.popularity.top_1_percent, 1), (found.popularity.top_10_percent, 10)):
        assert share == pytest.approx(sum(popularity[: ceil(percent * num_items / 100)]) / len(events))
    assert list(found.popularity.bins) == naive_bins(popularity)

    assert found.split == rules["split"]
    assert found.split_facts == split_facts(folder) == naive_split(histories, rules, num_items)
    if rules["split"] == "temporal":
        assert found.split_facts["num_test_before_last_train"] == 0

    times = [time for _, _, time in events if time is not None]
    if not times:
        assert (found.times, found.repeats.num_duplicates) == (None, None)
        return
    assert found.repeats.num_duplicates == len(events) - len(set(events))
    assert found.times is not None
    assert (found.times.first, found.times.last) == (min(times), max(times))
    tied = sum(is_tied(history, at) for history in histories for at in range(len(history)))
    assert found.times.share_tied == pytest.approx(tied / len(events))
    assert list(found.times.bins) == naive_time_bins(times)


HAND_MADE = [
    [(1, 10), (2, 20), (2, 20), (3, 30)],
    [(1, 40), (1, 50), (1, 60), (4, 70), (5, 90)],
    [(2, 5), (3, 80), (1, 100)],
]


def test_figures_worked_out_by_hand(tmp_path: Path) -> None:
    found = describe(write_dataset(tmp_path, HAND_MADE, titles=["one", None, "three", "four", None]))
    assert (found.num_users, found.num_items, found.num_events, found.num_titled_items) == (3, 5, 12, 3)
    assert found.density == pytest.approx(9 / 15)
    assert found.histories == (4.0, 4.0, 3, 5, (Bin(2, 3, 1), Bin(4, 7, 2)))
    assert found.repeats == pytest.approx((3 / 12, 3 / 12, 1))
    assert found.times is not None
    assert found.times[:3] == ("s", 5, 100)
    assert found.times.share_tied == pytest.approx(2 / 12)
    # Counts 5, 3, 2, 1, 1: the pairs differ by 20 in all, of 5 * 12.
    assert found.popularity.gini == pytest.approx(20 / 60)
    assert found.popularity.top_1_percent == found.popularity.top_10_percent == pytest.approx(5 / 12)
    assert found.split_facts == {
        "num_train_events": 6,  # 1 2 | 1 1 1 | 2
        "num_valid_targets": 3,  # 2, 4, 3
        "num_test_targets": 3,  # 3 at 30, 5 at 90, 1 at 100
        "num_cold_valid_targets": 2,
        "num_cold_test_targets": 2,
        "num_untrained_items": 3,
        "num_users_without_training": 1,
        "num_test_before_last_train": 1,  # the newest training event is at 60
    }


def test_a_temporal_split_by_hand(tmp_path: Path) -> None:
    rules = {"split": "temporal", "valid_from": 50, "test_from": 80}
    assert split_facts(write_dataset(tmp_path, HAND_MADE, rules)) == {
        "num_train_events": 6,  # 1 2 2 3 | 1 | 2
        "num_valid_targets": 1,  # the second user's 1 at 50
        "num_test_targets": 2,  # the second user's 5 at 90, the third one's 3 at 80
        "num_cold_valid_targets": 0,
        "num_cold_test_targets": 1,
        "num_untrained_items": 2,
        "num_users_without_training": 2,
        "num_test_before_last_train": 0,
    }


def test_one_user_one_event(tmp_path: Path) -> None:
    found = describe(write_dataset(tmp_path, [[(1, -1)]]))
    assert (found.density, found.popularity.gini, found.histories[:4]) == (1.0, 0.0, (1.0, 1.0, 1, 1))
    assert found.times is not None
    assert found.times.bins == (Bin(-1, -1, 1),)
    assert found.split_facts["num_train_events"] == found.split_facts["num_test_targets"] == 0


def test_times_as_far_apart_as_can_be(tmp_path: Path) -> None:
    found = describe(write_dataset(tmp_path, [[(1, -(2**63)), (1, 0), (1, 2**63 - 1)]]))
    assert found.times is not None
    assert (found.times.unit, [part.num for part in found.times.bins if part.num]) == ("ns", [1, 1, 1])


def test_order_of_a_file_in_many_parts(tmp_path: Path) -> None:
    histories = [[(1 + (user + step // 2) % 900, step // 4) for step in range(40)] for user in range(5000)]
    folder = write_dataset(tmp_path, histories)
    table = pq.read_table(folder / "interactions.parquet")
    pq.write_table(table, folder / "interactions.parquet", row_group_size=3000)
    found = describe(folder)
    assert (found.repeats.share_consecutive, found.repeats.num_duplicates) == (0.5, 100_000)
    assert found.times is not None
    assert found.times.share_tied == 1


@pytest.mark.parametrize(
    ("largest", "unit", "day"),
    [
        (0, "s", "1970-01-01"),
        (1_405_296_000, "s", "2014-07-14"),
        (99_999_999_999, "s", "5138-11-16"),
        (100_000_000_000, "ms", "1973-03-03"),
        (1_405_296_000_000, "ms", "2014-07-14"),
        (1_405_296_000_000_000, "us", "2014-07-14"),
        (1_405_296_000_000_000_000, "ns", "2014-07-14"),
        (2**63, "ns", None),
    ],
)
def test_the_unit_of_times(largest: int, unit: Any, day: str | None) -> None:
    assert time_unit(largest) == unit
    assert day is None or date(largest, unit) == day


def test_dates_before_1970() -> None:
    assert date(-1, "ns", "s") == "1969-12-31 23:59:59"
    assert date(-86_400, "s") == "1969-12-31"


def test_a_prepared_shop_and_its_run(shop_file: Path, tmp_path: Path) -> None:
    folder = prepare(shop_file, tmp_path / "prepare")
    counts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["counts"]
    found = describe(tmp_path / "prepare")
    assert describe(tmp_path) == found
    assert found.histories.shortest == counts["shortest_history"]
    assert (found.num_users, found.num_items, found.num_events) == (80, 40, counts["num_events"])
    assert found.split_facts["num_train_events"] == counts["num_events"] - 160


def test_wildcards_in_a_name_are_none(tmp_path: Path) -> None:
    assert describe(write_dataset(tmp_path / "[a]*'b", [[(1, 1)] * 3])).num_events == 3


@pytest.mark.parametrize("name", ["dataset.json", "interactions.parquet", "items.parquet", "users.parquet"])
def test_a_folder_that_is_no_data_set(tmp_path: Path, name: str) -> None:
    folder = write_dataset(tmp_path / "data", HAND_MADE)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"data: not a prepared data set \({name} is missing\); expected.*run prepare"):
        describe(folder)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"data: not a prepared data set \(dataset\.json is missing\)"):
        split_facts(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "dataset.json",
            '{"rules"',
            r"dataset\.json: cannot be read \(Expecting ':' delimiter: .*\); run prepare again",
        ),
        ("dataset.json", "{}", r"data: damaged data set \(KeyError: 'rules'\); run prepare again"),
        (
            "dataset.json",
            '{"rules": {"split": "half"}}',
            r"data: unknown split 'half' .*expected leave_one_out, temporal or new",
        ),
        ("dataset.json", '{"rules": {"split": "temporal"}}', r"data: damaged data set \(KeyError: 'valid_from'\)"),
        ("items.parquet", "item,item_id\n1,1\n", r"data: damaged data set \(InvalidInputException: .*items\.parquet"),
    ],
)
def test_a_damaged_data_set(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = write_dataset(tmp_path / "data", HAND_MADE)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        describe(folder)
    assert "\n" not in str(raised.value)


def test_a_column_is_missing(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, HAND_MADE)
    pq.write_table(pa.table({"user": [1], "item": [1], "timestamp": [1]}), folder / "interactions.parquet")
    with pytest.raises(DataError, match=r"interactions\.parquet: no column 'position', expected user, item, timestamp"):
        describe(folder)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Beauty.txt.gz", (22_363, 12_101, 198_502, None)),
        ("beauty_timestamps.csv.gz", (22_332, 12_086, 198_215, ("2002-06-12", "2014-07-23"))),
    ],
)
def test_beauty(shared: Path, tmp_path: Path, file: str, expected: tuple[Any, ...]) -> None:
    prepare(shared / "data" / file, tmp_path)
    found = describe(tmp_path)
    days = found.times and (date(found.times.first, found.times.unit), date(found.times.last, found.times.unit))
    assert (found.num_users, found.num_items, found.num_events, days) == expected
    assert found.split_facts["num_train_events"] == found.num_events - 2 * found.num_users
    assert sum(part.num for part in found.histories.bins) == found.num_users
    assert sum(part.num for part in found.popularity.bins) == found.num_items
