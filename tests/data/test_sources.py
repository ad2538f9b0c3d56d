import csv
import datetime
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data.sources import DEFAULT_COLUMNS, connect, read_events, read_titles
from slmrec.errors import DataError

HEADER = "user_id,item_id,timestamp\n"


def write(path: Path, content: "str | bytes | pa.Table") -> Path:
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def events(path: Path, **options: Any) -> list[dict[str, Any]]:
    table = read_events(connect(path.parent), path.parent, path, **(DEFAULT_COLUMNS | options))
    return table.order_by(["user_id", "row"]).to_pyarrow().to_pylist()


def titles(path: Path, **options: Any) -> dict[str, tuple[str | None, int]]:
    columns = {"id_col": "item_id", "title_col": "title"}
    rows = read_titles(connect(path.parent), path.parent, path, **(columns | options)).to_pyarrow().to_pylist()
    return {row["item_id"]: (row["title"], row["num_titles"]) for row in rows}


def times(tmp_path: Path, *texts: str) -> list[tuple[int, int]]:
    path = write(tmp_path / "log.csv", HEADER + "".join(f"u,a,{text}\n" for text in texts))
    return [(event["timestamp"], event["nanosecond"]) for event in events(path)]


def typed_times(tmp_path: Path, array: pa.Array) -> list[tuple[int, int]]:
    table = pa.table({"user_id": ["u"] * len(array), "item_id": ["a"] * len(array), "timestamp": array})
    return [(event["timestamp"], event["nanosecond"]) for event in events(write(tmp_path / "log.parquet", table))]


@pytest.mark.parametrize(
    "content",
    [
        "u a b a\nv,w\tü\t007\n",
        "\ufeffu a b a\nv,w ü 007",
        "u  a b \t a \r\n v,w ü 007\r\n\r\n\r\n",
        gzip.compress("u a b a\nv,w ü 007\n\n".encode()),
    ],
)
def test_sequences(tmp_path: Path, content: str | bytes) -> None:
    found = events(write(tmp_path / "log.txt", content))
    assert [(event["user_id"], event["item_id"], event["row"]) for event in found] == [
        ("u", "a", 0),
        ("u", "b", 1),
        ("u", "a", 2),
        ("v,w", "ü", 0),
        ("v,w", "007", 1),
    ]
    assert {event["timestamp"] for event in found} == {None}


def test_a_very_long_line_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "u " + "item-of-a-long-history " * 200_000)
    table = read_events(connect(tmp_path), tmp_path, path, **DEFAULT_COLUMNS)
    assert table.count().execute() == 200_000


ROWS = [("u", "5", 30), ("u", "007", 10), ("v", "5", 20)]


def as_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


CONTENTS = {
    "csv": HEADER + "".join(f"{u},{i},{t}\n" for u, i, t in ROWS),
    "tsv": HEADER.replace(",", "\t") + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in ROWS),
    "jsonl": "".join(json.dumps({"item_id": i, "x": [1], "user_id": u, "timestamp": t}) + "\n" for u, i, t in ROWS),
    "parquet": as_bytes(pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*ROWS, strict=True), strict=True)))),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("packed", [False, True])
def test_tables_of_all_formats_are_the_same(tmp_path: Path, kind: str, packed: bool) -> None:
    content = CONTENTS[kind]
    content = content.encode() if isinstance(content, str) else content
    path = write(tmp_path / (f"log.{kind}" + ".gz" * packed), gzip.compress(content) if packed else content)
    expected = [
        {"user_id": user, "item_id": item, "timestamp": time, "nanosecond": 0, "row": row}
        for row, (user, item, time) in enumerate(ROWS, 1)
    ]
    assert events(path) == expected


@pytest.mark.parametrize("name", ["log[1]", "lo*", "lo?1", "it's", "{log1,log2}"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_names_are_no_wildcards(tmp_path: Path, name: str, kind: str) -> None:
    write(tmp_path / f"log1.{kind}", "another file")
    assert len(events(write(tmp_path / f"{name}.{kind}", CONTENTS[kind]))) == len(ROWS)


def test_numbers_and_texts_of_json_are_ids(tmp_path: Path) -> None:
    lines = '{"user_id": 12345678901234567, "item_id": "\\u00fc \\"q\\"", "timestamp": 1.7e9}\n\n'
    (event,) = events(write(tmp_path / "log.jsonl", lines))
    assert (event["user_id"], event["item_id"], event["timestamp"]) == ("12345678901234567", 'ü "q"', 1_700_000_000)


def test_columns_are_renamed_and_typed_headers_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "log.inter", "timestamp:float\tuser_id:token\tasin:token\n5.0\tu\ta\n")
    (event,) = events(path, item_col="asin")
    assert (event["user_id"], event["item_id"], event["timestamp"]) == ("u", "a", 5)


ids = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=8)


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.tuples(ids, ids), min_size=1, max_size=20))
def test_any_id_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(
        [("user_id", "item_id", "timestamp"), *((*row, 5) for row in rows)]
    )
    lines = "".join(json.dumps({"user_id": u, "item_id": i, "timestamp": 5}) + "\n" for u, i in rows)
    for path in (write(folder / "log.csv", text.getvalue()), write(folder / "log.jsonl", lines)):
        found = sorted(events(path), key=lambda event: event["row"])
        assert [(event["user_id"], event["item_id"]) for event in found] == rows


def test_large_numbers_are_exact(tmp_path: Path) -> None:
    large = [2**53 + 1, 2**53, 2**63 - 1, -(2**63), 1_700_000_000_001]
    expected = [(time, 0) for time in large]
    assert times(tmp_path, *map(str, large)) == expected
    assert typed_times(tmp_path, pa.array(large)) == expected
    lines = "".join(f'{{"user_id": 1, "item_id": 1, "timestamp": {time}}}\n' for time in large)
    found = events(write(tmp_path / "log.jsonl", lines))
    assert [event["timestamp"] for event in found] == large


def test_whole_floats_are_numbers(tmp_path: Path) -> None:
    assert times(tmp_path, "1288.0", "1288.", " 1288 ", "1.7e12", "-3.0", "+3") == [
        (time, 0) for time in (1288, 1288, 1288, 1_700_000_000_000, -3, 3)
    ]
    assert typed_times(tmp_path, pa.array([1_700_000_000_001.0, -2.0])) == [(1_700_000_000_001, 0), (-2, 0)]


UTC = datetime.UTC
TEN = int(datetime.datetime(2014, 7, 23, 10, tzinfo=UTC).timestamp())


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


def test_typed_dates_are_seconds(tmp_path: Path) -> None:
    ten = datetime.datetime(2014, 7, 23, 10, tzinfo=UTC)
    assert typed_times(tmp_path, pa.array([ten], pa.timestamp("us", "Asia/Tokyo"))) == [(TEN, 0)]
    assert typed_times(tmp_path, pa.array([datetime.date(2014, 7, 23)])) == [(TEN - 36_000, 0)]
    assert typed_times(tmp_path, pa.array([3, -1], pa.timestamp("ns"))) == [(0, 3), (-1, 999_999_999)]
    assert typed_times(tmp_path, pa.array([1500], pa.timestamp("ms"))) == [(1, 500_000_000)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.txt", "u a b\nv\nw a\n", r"log\.txt: line 2: 'v' has no items, expected `user item item \.\.\.`; remove"),
        ("log.txt", "u a b\n\nw a\n", r"log\.txt: line 2: '' has no items"),
        ("log.txt", "u\n", r"log\.txt: line 1: 'u' has no items"),
        ("log.txt", "u a\nv a\nu b\n", r"log\.txt: line 3: user 'u' has line 1 already, .*prepare\.format"),
        ("log.txt", "u " + "a " * 2**24, r"log\.txt: cannot be read|log\.txt: line 1: .*Maximum line size"),
        ("log.csv", HEADER, r"log\.csv: has columns but no rows"),
        ("log.csv", "user_id,item\n1,2\n", r"no column 'item_id'; it has user_id, item; set prepare\.item_col to one"),
        ("log.csv", "user_id,item_id,time\n1,2,3\n", r"no column 'timestamp'; .*item_id, time; set prepare\.time_col"),
        ("log.csv", "user,item_id,timestamp\n1,2,3\n", r"no column 'user_id'; it has user, .*set prepare\.user_col"),
        ("log.jsonl", '{"a": 1}\n', r"log\.jsonl: no column 'user_id'; it has a; set prepare\.user_col"),
        ("log.parquet", pa.table({"a": [1]}), r"log\.parquet: no column 'user_id'; it has a; set prepare\.user_col"),
        ("log.csv", "user_id,item_id\n1,2\n", r"no column 'timestamp'; .*; if there is no such column, add one"),
        ("log.csv", "196,242,3,9\n", r"no column 'user_id'; it has 196, 242, 3, 9; .*; does the file lack a header"),
        ("log.csv", "user_id,item_id,item_id,timestamp\n1,2,2,3\n", r"2 columns are named 'item_id', .*rename"),
        ("log.csv", HEADER + "1,2,3\n1,2\n", r"log\.csv: line 3: '1,2': Expected Number of Columns: 3 Found: 2"),
        ("log.csv", HEADER + '1,"2,3\n1,2,3\n', r"log\.csv: line 2: '1,\"2,3': Value with unterminated quote"),
        ("log.csv", HEADER + "1,2,3\r\n1,2,3\n", r"log\.csv: quotes are not closed, or lines end in different ways"),
        ("log.csv", HEADER + "1,2,3\n,2,3\n", r"log\.csv: row 2 after the header: user_id is None, expected an id"),
        ("log.tsv", "user_id\titem_id\ttimestamp\n1\t\t3\n", r"row 1 after the header: item_id is None, .*fill it in"),
        ("log.jsonl", '{"user_id": "", "item_id": 1, "timestamp": 1}\n', r"row 1: user_id is '', expected an id"),
        ("log.jsonl", '{"user_id":1,"item_id":null,"timestamp":1}\n', r"row 1: item_id is None"),
        (
            "log.jsonl",
            '{"user_id":1,"item_id":1,"timestamp":1}\n{"user_id":\n',
            r"log\.jsonl: line 2: '\{\"user_id\":' is not JSON \(Expecting value\); expected jsonl, mend it",
        ),
        ("log.parquet", "PAR1 no more than this", r"log\.parquet: cannot be read \(.*\); expected parquet"),
        (
            "log.parquet",
            pa.table({"user_id": [1.0, None], "item_id": [1, 2], "timestamp": [1, 2]}),
            r"column 'user_id' holds float64, expected ids that are text or whole numbers; convert",
        ),
        (
            "log.parquet",
            pa.table({"user_id": [1, 1], "item_id": [1, None], "timestamp": [1, 2]}),
            r"log\.parquet: row 2: item_id is None, expected an id",
        ),
        ("log.csv", HEADER + "1,2,9\n1,2,2014-07-23\n", r"row 2 .*is '2014-07-23', a date, .* is '9', a number; write"),
        ("log.csv", HEADER + "1,2,2014-07-23\n1,2,9\n", r"row 2 .*is '9', a number, .* is '2014-07-23', a date; write"),
    ],
)
def test_events_that_are_refused(tmp_path: Path, name: str, content: "str | pa.Table", message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        events(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_columns_of_a_file_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.txt: prepare\.item_col is 'asin', but one user a line .*; leave it out"):
        events(write(tmp_path / "log.txt", "u a b\n"), item_col="asin")


@pytest.mark.parametrize(
    "text",
    [
        *("nan", "NaN", "inf", "infinity", "1288.5", "1.5e0", "1e30", "9223372036854775808", ""),
        *("yesterday", "2014-02-30", "07/23/2014", "2014-07-23 25:00", "2014-07-23 10:00 Europe/Berlin"),
    ],
)
def test_times_that_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        times(tmp_path, "5", text)
    value = repr(text) if text else "None"
    assert f"log.csv: row 2 after the header: timestamp is {value}, expected a whole number or a date" in str(
        caught.value
    )
    assert str(caught.value).endswith("; mend it or remove the row")


@pytest.mark.parametrize("array", [[5.0, float("nan")], [5, None], [5.0, 5.5], [5.0, 1e17], [True, True]])
def test_typed_times_that_are_refused(tmp_path: Path, array: list[Any]) -> None:
    with pytest.raises(
        DataError, match=r"log\.parquet: row [12]: timestamp is (None|'nan'|'5\.5'|'1e\+17'|'true'), exp"
    ):
        typed_times(tmp_path, pa.array(array))


@pytest.mark.parametrize("packed", [False, True])
def test_titles(tmp_path: Path, packed: bool) -> None:
    text = b'title,item_id\n"Red, ""deep""",007\n,8\nBlue,9\nGreen,9\nGreen,10\nGreen,10\nLate,8\n'
    found = titles(write(tmp_path / ("items.csv" + ".gz" * packed), gzip.compress(text) if packed else text))
    assert found == {"007": ('Red, "deep"', 1), "8": ("Late", 1), "9": ("Blue", 2), "10": ("Green", 1)}


def test_titles_of_typed_tables_and_json(tmp_path: Path) -> None:
    table = pa.table({"item_id": [3, 4], "title": ["Three", ""]})
    assert titles(write(tmp_path / "items.parquet", table)) == {"3": ("Three", 1), "4": (None, 0)}
    lines = '{"asin": "x", "name": "X"}\n{"asin": "y"}\n'
    found = titles(write(tmp_path / "items.jsonl", lines), id_col="asin", title_col="name")
    assert found == {"x": ("X", 1), "y": (None, 0)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "items.csv",
            "id,title\n1,A\n",
            r"items\.csv: no column 'item_id'; it has id, title; set prepare\.items_id_col",
        ),
        ("items.csv", "item_id,name\n1,A\n", r"items\.csv: no column 'title'; it has .*name; set prepare\.title_col"),
        (
            "items.csv",
            "item_id,title\n1,A\n,B\n",
            r"items\.csv: row 2 after the header: item_id is None, expected an id",
        ),
        ("items.txt", "1 A\n", r"items\.txt: is no table; expected one of items \(\.csv"),
    ],
)
def test_titles_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        titles(write(tmp_path / name, content))
