import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import HEADER, read, write

from slmrec.data.logs.times import in_unit, stored_unit
from slmrec.errors import DataError
from slmrec.types import PER_SECOND, Unit

UTC = datetime.UTC
TEN = int(datetime.datetime(2014, 7, 23, 10, tzinfo=UTC).timestamp())


def times(tmp_path: Path, *texts: str, **options: Any) -> list[tuple[int, int]]:
    path = write(tmp_path / "log.csv", HEADER + "".join(f"u,a,{text}\n" for text in texts))
    return [(event["timestamp"], event["nanosecond"]) for event in read(path, **options).rows]


def typed_times(tmp_path: Path, array: pa.Array, **options: Any) -> list[tuple[int, int]]:
    table = pa.table({"user_id": ["u"] * len(array), "item_id": ["a"] * len(array), "timestamp": array})
    path = write(tmp_path / "log.parquet", table)
    return [(event["timestamp"], event["nanosecond"]) for event in read(path, **options).rows]


def split(moment: int, unit: Unit) -> tuple[int, int]:
    return moment // PER_SECOND[unit], moment % PER_SECOND[unit] * (10**9 // PER_SECOND[unit])


@pytest.mark.parametrize(
    ("unit", "large"),
    [
        ("s", [2**53 + 1, 2**63 - 1, -(2**63), 1_700_000_000_001]),
        ("ms", [1_700_000_000_001, -1_700_000_000_001, 5]),
        ("us", [1_700_000_000_000_001, -1_700_000_000_000_001, -5]),
        ("ns", [2**63 - 1, -(2**63) + 1, 1_700_000_000_000_000_001, -1]),
    ],
)
def test_large_numbers_are_exact(tmp_path: Path, unit: Unit, large: list[int]) -> None:
    expected = [split(time, unit) for time in large]
    assert times(tmp_path, *map(str, large), time_unit=unit) == expected
    assert typed_times(tmp_path, pa.array(large), time_unit=unit) == expected
    lines = "".join(f'{{"user_id": 1, "item_id": 1, "timestamp": {time}}}\n' for time in large)
    log = read(write(tmp_path / "log.jsonl", lines), time_unit=unit)
    assert [(event["timestamp"], event["nanosecond"]) for event in log.rows] == expected


@pytest.mark.parametrize("unit", PER_SECOND)
def test_the_unit_is_recognised(tmp_path: Path, unit: Unit) -> None:
    moments = [PER_SECOND[unit] * 1_400_000_000 + 1, 1_400_000_001 * PER_SECOND[unit], -5]
    expected = [split(moment, unit) for moment in moments]
    assert times(tmp_path, *map(str, moments)) == expected
    assert typed_times(tmp_path, pa.array(moments)) == expected


def test_whole_floats_are_numbers(tmp_path: Path) -> None:
    assert times(tmp_path, "1288.0", "1288.", " 1288 ", "1.7e9", "-3.0", "+3") == [
        (time, 0) for time in (1288, 1288, 1288, 1_700_000_000, -3, 3)
    ]
    assert times(tmp_path, "9007199254740993.0", time_unit="s") == [(9_007_199_254_740_993, 0)]
    assert typed_times(tmp_path, pa.array([1_700_000_001.0, -2.0])) == [(1_700_000_001, 0), (-2, 0)]


FRACTIONS = ["1700000000.123456", "1700000000.5", "0.25", "-0.25", "-1.75", "1700000000.1", "0.000000001"]


def test_fractions_are_exact(tmp_path: Path) -> None:
    expected = [
        (1_700_000_000, 123_456_000),
        (1_700_000_000, 500_000_000),
        (0, 250_000_000),
        (-1, 750_000_000),
        (-2, 250_000_000),
        (1_700_000_000, 100_000_000),
        (0, 1),
    ]
    assert times(tmp_path, *FRACTIONS) == expected
    assert typed_times(tmp_path, pa.array([float(text) for text in FRACTIONS])) == expected
    assert typed_times(tmp_path, pa.array([Decimal(text) for text in FRACTIONS])) == expected
    lines = "".join(f'{{"user_id": 1, "item_id": 1, "timestamp": {text}}}\n' for text in FRACTIONS)
    log = read(write(tmp_path / "log.jsonl", lines))
    assert [(event["timestamp"], event["nanosecond"]) for event in log.rows] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1700000000123.25", (1_700_000_000, 123_250_000)),
        ("1700000000123456.5", (1_700_000_000, 123_456_500)),
        ("-1700000000000.5", (-1_700_000_001, 999_500_000)),
        ("1.5e0", (1, 500_000_000)),
        ("1.70000000025e9", (1_700_000_000, 250_000_000)),
    ],
)
def test_fractions_of_finer_units_and_scientific_notation(tmp_path: Path, text: str, expected: tuple[int, int]) -> None:
    assert times(tmp_path, text) == [expected]


def test_decimal_commas(tmp_path: Path) -> None:
    text = "user_id;item_id;timestamp\nu;a;1700000000,25\nu;b;2014-07-23 10:00:00,5\nu;c;1,700,000,000\n"
    log = read(write(tmp_path / "log.csv", text), on_bad_row="skip")
    assert [(event["timestamp"], event["nanosecond"]) for event in log.rows] == [(1_700_000_000, 250_000_000)]
    assert [error.line for error in log.errors] == [3, 4]
    log = read(write(tmp_path / "log.csv", text.replace("1700000000,25", "2014-07-23")), on_bad_row="skip")
    assert log.rows[1]["nanosecond"] == 500_000_000


@settings(max_examples=8, deadline=None, derandomize=True)
@given(moments=st.lists(st.floats(min_value=1e8, max_value=1e10), min_size=2, max_size=20))
def test_floats_keep_their_order_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, moments: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("floats")
    parsed = times(folder, *map(repr, moments))
    assert typed_times(folder, pa.array(moments)) == parsed
    assert sorted(range(len(moments)), key=moments.__getitem__) == sorted(range(len(parsed)), key=parsed.__getitem__)


MIXED = ["1700000000", "1700003600000", "1700007200", "1700010800000000", "7", "1700014400000000000", "1700014401"]


@pytest.mark.parametrize("typed", [False, True])
def test_mixed_units_are_refused_or_converted(tmp_path: Path, typed: bool) -> None:
    def moments(**options: Any) -> list[tuple[int, int]]:
        if typed:
            return typed_times(tmp_path, pa.array(list(map(int, MIXED))), **options)
        return times(tmp_path, *MIXED, **options)

    message = (
        "timestamp is '1700003600000': looks like milliseconds, but times of the log such as 1700000000 are seconds; "
        "set prepare.time_unit=mixed"
    )
    with pytest.raises(DataError, match=message):
        moments()
    assert moments(on_bad_row="skip") == [(time, 0) for time in (1_700_000_000, 1_700_007_200, 7, 1_700_014_401)]
    hours = [(1_700_000_000 + 3600 * hour, 0) for hour in range(5)]
    assert moments(time_unit="mixed") == [*hours[:4], (7, 0), hours[4], (1_700_014_401, 0)]
    assert moments(time_unit="s") == [(int(text), 0) for text in MIXED]


def test_the_unit_is_that_of_most_times(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="line 2: timestamp is '1700000000': looks like seconds, but times of the log such"
    ):
        times(tmp_path, "1700000000", "1700000000000", "1700000001000")


def test_units_differ_between_parts(tmp_path: Path) -> None:
    parts = {"1.csv": f"{HEADER}u,a,1700000000\nu,b,1700000001\n", "2.csv": f"{HEADER}u,a,1700000000000\n"}
    with pytest.raises(DataError, match=r"2\.csv: line 2: timestamp is '1700000000000': looks like milliseconds"):
        read(write(tmp_path / "log", parts))


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


DATES = {
    "%d.%m.%Y %H:%M": ("23.07.2014 10:00", "24.7.2014 9:00"),
    "%m/%d/%Y %I:%M %p": ("07/23/2014 10:00 AM", "7/24/2014 09:00 AM"),
    "%Y/%m/%d %H:%M:%S": ("2014/07/23 10:00:00", "2014/07/24 09:00:00"),
    "%d/%b/%Y:%H:%M:%S %z": ("23/Jul/2014:12:00:00 +0200", "24/Jul/2014:11:00:00 +0200"),
}


@pytest.mark.parametrize("format", DATES)
def test_dates_in_another_notation(tmp_path: Path, format: str) -> None:
    texts = DATES[format]
    with pytest.raises(DataError) as caught:
        times(tmp_path, *texts)
    assert f"a number or a date such as 2014-07-23T10:00:00Z; set prepare.time_format={format!r}" in str(caught.value)
    assert times(tmp_path, *texts, time_format=format) == [(TEN, 0), (TEN + 23 * 3600, 0)]


def test_the_order_of_day_and_month_is_said_to_be_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        times(tmp_path, "07/08/2014", "08/09/2014")
    hint = (
        "set prepare.time_format='%d/%m/%Y' if the day comes first, or prepare.time_format='%m/%d/%Y' if the month does"
    )
    assert hint in str(caught.value)


def test_times_that_are_not_of_the_format(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        times(tmp_path, "23.07.2014", "23.07.2014 10:00", time_format="%d.%m.%Y")
    assert "line 3: timestamp is '23.07.2014 10:00': expected a date, as prepare.time_format='%d.%m.%Y' says; c" in str(
        caught.value
    )
    with pytest.raises(
        DataError, match=r"is '1\.7\.2014': expected a date, as .* says; set prepare\.time_format='%d\.%m\.%Y'; c"
    ):
        times(tmp_path, "1.7.2014", "2.7.2014", time_format="%Y-%m")
    days = pa.array([20_140_723, 20_140_724])
    assert typed_times(tmp_path, days, time_format="%Y%m%d") == [(TEN - 36_000, 0), (TEN + 50_400, 0)]


COMPACT = {
    "%Y%m%d": ("20140723", "20140724"),
    "%d%m%Y": ("23072014", "24072014"),
    "%m%d%Y": ("07232014", "07242014"),
    "%Y%m%d%H": ("2014072310", "2014072409"),
    "%Y%m%d%H%M": ("201407231000", "201407240900"),
    "%Y%m%d%H%M%S": ("20140723100000", "20140724090000"),
    "%Y%m%d%H%M%S%g": ("20140723100000000", "20140724090000000"),
}


@pytest.mark.parametrize("format", COMPACT)
def test_dates_written_as_numbers_are_refused_with_their_notation(tmp_path: Path, format: str) -> None:
    texts = COMPACT[format]
    columns = [pa.array(texts), pa.array(map(int, texts)), pa.array(map(float, texts))]
    num_exact = 1 if texts[0].startswith("0") else 3 if float(texts[0]) < 2**53 else 2
    for number, column in enumerate(columns[:num_exact]):
        with pytest.raises(DataError) as caught:
            typed_times(tmp_path, column)
        message = f"such as {texts[0]}{'.0' * (number == 2)}, expected numbers of seconds or dates such as 2014-07-23; "
        assert f"{message}set prepare.time_format={format!r}, or prepare.time_unit=s" in str(caught.value)
        clock = "%H" in format
        expected = [(TEN - 36_000 * (not clock), 0), (TEN + 23 * 3600 if clock else TEN + 50_400, 0)]
        assert typed_times(tmp_path, column, time_format=format) == expected
    assert times(tmp_path, *texts, time_unit="ns") != expected  # numbers, if the user says so


def test_numbers_that_are_no_dates_stay_numbers(tmp_path: Path) -> None:
    for texts in (["20141323", "20140732"], ["1700000000", "1709999999"], ["18000101", "25000101"], ["2014", "201407"]):
        assert times(tmp_path, *texts) == [(int(text), 0) for text in texts]


def test_settings_without_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"time_unit is 'ms', but the times of the column 'timestamp' are dates, s"):
        times(tmp_path, "2014-07-23", time_unit="ms")
    with pytest.raises(DataError, match=r"time_format is '%Y', but the times .* have the type date, not text"):
        typed_times(tmp_path, pa.array([datetime.date(2014, 7, 23)]), time_format="%Y")


def test_typed_dates_are_seconds(tmp_path: Path) -> None:
    ten = datetime.datetime(2014, 7, 23, 10, tzinfo=UTC)
    assert typed_times(tmp_path, pa.array([ten], pa.timestamp("us", "Asia/Tokyo"))) == [(TEN, 0)]
    assert typed_times(tmp_path, pa.array([datetime.date(2014, 7, 23)])) == [(TEN - 36_000, 0)]
    assert typed_times(tmp_path, pa.array([3, -1], pa.timestamp("ns"))) == [(0, 3), (-1, 999_999_999)]
    assert typed_times(tmp_path, pa.array([1500], pa.timestamp("ms"))) == [(1, 500_000_000)]
    assert typed_times(tmp_path, pa.array([2], pa.timestamp("ns", "Asia/Tokyo"))) == [(0, 2)]


@pytest.mark.parametrize(
    "text",
    [
        *("nan", "NaN", "inf", "infinity", "1e30", "1.5.0", "9223372036854775808", "", "9" * 400, "1e999"),
        *("yesterday", "2014-02-30", "07/23/2014", "2014-07-23 25:00", "2014-07-23 10:00 Europe/Berlin", "true"),
    ],
)
def test_times_that_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        times(tmp_path, "5", text)
    value = repr(text) if text else "None"
    assert f"log.csv: line 3: timestamp is {value}: " in str(caught.value)
    assert str(caught.value).endswith("; correct or remove the row, or set prepare.on_bad_row=skip")


@pytest.mark.parametrize("array", [[5.0, float("nan")], [5, None], [5.0, 1e17], [True, True]])
def test_typed_times_that_are_refused(tmp_path: Path, array: list[Any]) -> None:
    with pytest.raises(DataError, match=r"log\.parquet: row [12]: timestamp is (None|'nan'|'1e\+17'|'true'): exp"):
        typed_times(tmp_path, pa.array(array))


def test_unsigned_times_that_are_too_large_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.parquet: row 2: timestamp is '9223372036854775808': expected a num"):
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


def test_32_bit_floats_that_are_not_exact_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: timestamp is"):
        typed_times(tmp_path, pa.array([5.0, 1_700_000_000.0], pa.float32()))


def test_stored_unit() -> None:
    def unit(*moments: tuple[int | None, float]) -> Unit | None:
        table = ibis.memtable(
            pa.table(
                {"timestamp": pa.array([m[0] for m in moments], pa.int64()), "nanosecond": [m[1] for m in moments]}
            )
        )
        return stored_unit(table)

    assert [unit((5, nanosecond)) for nanosecond in (0.0, 5e6, 5e3, 5.0, 0.5)] == ["s", "ms", "us", "ns", "s"]
    assert unit((5, 0.0), (6, 123_000.0), (7, 5e8)) == "us"
    assert unit((None, 0.0)) is None


def test_times_that_exceed_64_bits_in_their_unit() -> None:
    table = ibis.memtable({"timestamp": [10**10, -(10**10)], "nanosecond": [0.0, 1.0]})
    with pytest.raises(DataError, match=r"log\.csv: the times need nanoseconds, in which 2286-11-20 17:46:40 ex"):
        in_unit("log.csv", table, "ns")
    assert in_unit("log.csv", table, "us").timestamp.to_pyarrow().to_pylist() == [10**16, -(10**16)]
