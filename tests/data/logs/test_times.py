import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import HEADER, read, write

from slmrec.data.logs.times import ParsedTimes, invalid_time_reason
from slmrec.errors import DataError

UTC = datetime.UTC
TEN = int(datetime.datetime(2014, 7, 23, 10, tzinfo=UTC).timestamp())


def times(tmp_path: Path, *texts: str) -> list[tuple[int, int]]:
    path = write(tmp_path / "log.csv", HEADER + "".join(f"u,a,{text}\n" for text in texts))
    return [(event["timestamp"], event["nanosecond"]) for event in read(path).rows]


def typed_times(tmp_path: Path, array: pa.Array) -> list[tuple[int, int]]:
    table = pa.table({"user_id": ["u"] * len(array), "item_id": ["a"] * len(array), "timestamp": array})
    path = write(tmp_path / "log.parquet", table)
    return [(event["timestamp"], event["nanosecond"]) for event in read(path).rows]


def test_large_numbers_are_exact(tmp_path: Path) -> None:
    large = [2**53 + 1, 2**53, 2**63 - 1, -(2**63), 1_700_000_000_001]
    expected = [(time, 0) for time in large]
    assert times(tmp_path, *map(str, large)) == expected
    assert typed_times(tmp_path, pa.array(large)) == expected
    lines = "".join(f'{{"user_id": 1, "item_id": 1, "timestamp": {time}}}\n' for time in large)
    assert [time for *_, time in read(write(tmp_path / "log.jsonl", lines)).events()] == large


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_seconds_and_their_parts_are_numbers_as_they_are(tmp_path: Path, unit: int) -> None:
    moments = [1_400_000_000 * unit + 1, 1_400_000_001 * unit, -5 * unit]
    assert times(tmp_path, *map(str, moments)) == [(moment, 0) for moment in moments]


def test_whole_floats_are_numbers(tmp_path: Path) -> None:
    assert times(tmp_path, "1288.0", "1288.", " 1288 ", "1.7e12", "-3.0", "+3", "9007199254740993.0") == [
        (time, 0) for time in (1288, 1288, 1288, 1_700_000_000_000, -3, 3, 9_007_199_254_740_993)
    ]
    assert typed_times(tmp_path, pa.array([1_700_000_000_001.0, -2.0])) == [(1_700_000_000_001, 0), (-2, 0)]


@pytest.mark.parametrize(
    ("text", "seconds", "nanosecond"),
    [
        ("2014-07-23", TEN - 36_000, 0),
        ("2014-07-23 10:00", TEN, 0),
        ("2014-07-23T10:00:00Z", TEN, 0),
        ("2014-07-23T10:00:00.25", TEN, 250_000_000),
        ("2014-07-23 10:00:00 UTC", TEN, 0),
        ("2014-07-23T10:00:00+02:00", TEN - 7200, 0),
        ("2014-07-23 10:00:00.000000001-0330", TEN + 12_600, 1),
        ("2014-07-23T10:00:00-00:30", TEN + 1800, 0),
        ("2014-07-23T10:00:00+02", TEN - 7200, 0),
        ("1969-12-31T23:59:59.5", -1, 500_000_000),
    ],
)
def test_dates_are_seconds(tmp_path: Path, text: str, seconds: int, nanosecond: int) -> None:
    assert times(tmp_path, text) == [(seconds, nanosecond)]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(moments=st.lists(st.datetimes(min_value=datetime.datetime(1, 1, 2)), min_size=1, max_size=20))
def test_any_date_is_exact(tmp_path_factory: pytest.TempPathFactory, moments: list[datetime.datetime]) -> None:
    start = datetime.datetime(1970, 1, 1)
    expected = [((m - start) // datetime.timedelta(seconds=1), m.microsecond * 1000) for m in moments]
    texts = [m.isoformat() for m in moments]
    assert times(tmp_path_factory.mktemp("dates"), *texts) == expected


def test_typed_dates_are_seconds(tmp_path: Path) -> None:
    ten = datetime.datetime(2014, 7, 23, 10, tzinfo=UTC)
    assert typed_times(tmp_path, pa.array([ten], pa.timestamp("us", "Asia/Tokyo"))) == [(TEN, 0)]
    assert typed_times(tmp_path, pa.array([datetime.date(2014, 7, 23)])) == [(TEN - 36_000, 0)]
    assert typed_times(tmp_path, pa.array([3, -1], pa.timestamp("ns"))) == [(0, 3), (-1, 999_999_999)]
    assert typed_times(tmp_path, pa.array([1500], pa.timestamp("ms"))) == [(1, 500_000_000)]


@pytest.mark.parametrize(
    "text",
    [
        *("nan", "NaN", "inf", "infinity", "1288.5", "1.5e0", "1e30", "9223372036854775808", "", "9" * 400, "1e999"),
        *("yesterday", "2014-02-30", "07/23/2014", "2014-07-23 25:00", "2014-07-23 10:00 Europe/Berlin", "true"),
    ],
)
def test_times_that_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        times(tmp_path, "5", text)
    value = repr(text) if text else "None"
    assert f"log.csv: line 3: timestamp is {value}: " in str(caught.value)
    assert str(caught.value).endswith("; correct or remove the row, or set prepare.on_bad_row=skip")


@pytest.mark.parametrize("array", [[5.0, float("nan")], [5, None], [5.0, 5.5], [5.0, 1e17], [True, True]])
def test_typed_times_that_are_refused(tmp_path: Path, array: list[Any]) -> None:
    with pytest.raises(
        DataError, match=r"log\.parquet: row [12]: timestamp is (None|'nan'|'5\.5'|'1e\+17'|'true'): exp"
    ):
        typed_times(tmp_path, pa.array(array))


def test_unsigned_times_that_are_too_large_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.parquet: row 2: timestamp is '9223372036854775808': expected a whole"):
        typed_times(tmp_path, pa.array([5, 2**63], pa.uint64()))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("9", "2014-07-23", "is '2014-07-23': a date, but the first time of the log is a number; write all times in"),
        ("2014-07-23", "9", "is '9': a number, but the first time of the log is a date; write all"),
    ],
)
def test_dates_mixed_with_numbers_are_refused(tmp_path: Path, first: str, second: str, message: str) -> None:
    with pytest.raises(DataError, match=f"line 4: timestamp {message}"):
        times(tmp_path, first, first, second)
    log = read(tmp_path / "log.csv", on_bad_row="skip")
    assert (len(log.rows), log.places()) == (2, [("log.csv", 4, "timestamp", second)])


def test_a_bad_first_time_does_not_decide_the_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", f"{HEADER}u,a,soon\nu,b,2014-07-23\nu,c,5\n")
    log = read(path, on_bad_row="skip")
    assert [(row["item_id"], row["timestamp"]) for row in log.rows] == [("b", TEN - 36_000)]


def test_invalid_time_reason() -> None:
    numbers, dates = (ParsedTimes(None, None, kind, first) for kind, first in (("number", "5"), ("date", "2014-07-23")))
    assert invalid_time_reason("2014-07-23", numbers).startswith("a date, but")
    assert invalid_time_reason(" 5 ", dates).startswith("a number, but")
    assert (
        invalid_time_reason(None, numbers)
        == invalid_time_reason("x", dates)
        == ("expected a whole number or a date such as 2014-07-23T10:00:00Z")
    )
