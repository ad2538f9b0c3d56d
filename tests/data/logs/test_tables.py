from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from log_files import HEADER, PACKINGS, read, write

from slmrec.errors import DataError

BAD_ROWS = [
    # the rows after the header, the line, the column, the value, the reason
    ("1,2,3\n,2,3\n", 3, "user_id", None, "expected an id"),
    ('1,2,3\n"",2,3\n', 3, "user_id", None, "expected an id"),
    ('1,"a\n\nb",3\n\n\n1,,3\n', 7, "item_id", None, "expected an id"),
    ("1,2,3\n\n\n1,2,soon\n", 5, "timestamp", "soon", "expected a number or a date"),
    ("1,2,3\n1,2\n", 3, None, "1,2", "2 columns, expected 3"),
    ("1,2,3\n\n1,2,3,4\n", 4, None, "1,2,3,4", "4 columns, expected 3"),
    ('1,"\n2",3\n\nx\n', 5, None, "x", "1 columns, expected 3"),
    ('1,2,3\n1,"2,3\n', 3, None, '1,"2,3', "quotes are not closed"),
    ('1,2,3\n1,"2"x,3\n', 3, None, '1,"2"x,3', "quotes are not closed, or text follows a closing one"),
    ('1,"a\n",3\n1,"2"x,3\n', 4, None, '1,"2"x,3', "quotes are not closed"),
]


@pytest.mark.parametrize(("packing", "end"), [("none", "\n"), ("gz", "\r\n"), ("zst", "\n")])
@pytest.mark.parametrize(("rows", "line", "column", "value", "reason"), BAD_ROWS)
def test_bad_rows_are_told_by_line_column_and_value(
    tmp_path: Path, packing: str, end: str, rows: str, line: int, column: str | None, value: str | None, reason: str
) -> None:
    text = (HEADER + rows + "9,9,9\n").replace("\n", end)
    path = write(tmp_path / f"log.csv.{packing}", PACKINGS[packing](text.encode()))
    with pytest.raises(DataError) as caught:
        read(path)
    what = f"{column} is {value!r}" if column else repr(value)
    assert str(caught.value).startswith(f"{path}: line {line}: {what}: {reason}")
    assert str(caught.value).endswith("; correct or remove the row, or set prepare.on_bad_row=skip")
    log = read(path, on_bad_row="skip")
    assert [(user, item.strip(), time) for user, item, time in log.events()][1:] == [("9", "9", 9)]
    assert log.places() == [(path.name, line, column, value)]
    assert log.errors[0].reason.startswith(reason)


def test_empty_fields_behind_the_last_column_do_no_harm(tmp_path: Path) -> None:
    rows = HEADER + '1,2,3,\n4,5,6,,""\n'
    assert read(write(tmp_path / "log.csv", rows)).events() == [("1", "2", 3), ("4", "5", 6)]
    log = read(write(tmp_path / "log.csv", rows + "7\n"), on_bad_row="skip")
    assert (log.events(), log.places()) == ([("1", "2", 3), ("4", "5", 6)], [("log.csv", 4, None, "7")])


def test_all_bad_rows_of_parts_are_told_in_order(tmp_path: Path) -> None:
    first = HEADER + "1,2,3\n1,2\n1,2,x\n"
    second = HEADER + '\n1,"2\n",3\n1,"2\n1,2,3,4\n,2,3\n5,6,7'
    path = write(tmp_path / "log", {"a.csv": first, "b.csv": second})
    with pytest.raises(DataError, match=r"log/a\.csv: line 3: '1,2': 2 columns, expected 3"):
        read(path)
    log = read(path, on_bad_row="skip")
    assert log.events() == [("1", "2", 3), ("1", "2", 3), ("5", "6", 7)]
    assert log.places() == [
        ("a.csv", 3, None, "1,2"),
        ("a.csv", 4, "timestamp", "x"),
        ("b.csv", 5, None, '1,"2'),
        ("b.csv", 6, None, "1,2,3,4"),
        ("b.csv", 7, "user_id", None),
    ]


def test_lines_that_end_in_different_ways_are_read(tmp_path: Path) -> None:
    assert read(write(tmp_path / "log.csv", HEADER + '1,2,3\r\n1,"a\rb",4\n5,6,7\r8,9,10')).events() == [
        ("1", "2", 3),
        ("1", "a\rb", 4),
        ("5", "6", 7),
        ("8", "9", 10),
    ]
    parts = {"a.csv": HEADER + "1,2,3\n", "b.csv": (HEADER + "4,5,6\n").replace("\n", "\r\n")}
    assert read(write(tmp_path / "log", parts)).events() == [("1", "2", 3), ("4", "5", 6)]


@pytest.mark.parametrize(
    ("line", "column", "value", "reason"),
    [
        ('{"user_id": 1,', None, '{"user_id": 1,', "not JSON (Expecting property name enclosed in double quotes)"),
        ("{'user_id': 1}", None, "{'user_id': 1}", "not JSON (Expecting property name enclosed in double quotes)"),
        ("[1, 2]", None, "[1, 2]", "not a JSON object"),
        ('"text"', None, '"text"', "not a JSON object"),
        ("5", None, "5", "not a JSON object"),
        ('{"user_id": 1, "item_id": "\\ud800"}', None, '{"user_id": 1, "item_id": "\\ud800"}', "not JSON (it contains"),
        ('{"user_id": 1, "timestamp": 3}', "item_id", None, "expected an id"),
        ('{"user_id": "", "item_id": 1, "timestamp": 3}', "user_id", "", "expected an id"),
        ('{"user_id": null, "item_id": 1, "timestamp": 3}', "user_id", None, "expected an id"),
        ('{"user_id": 1, "item_id": 1, "timestamp": [3]}', "timestamp", "[3]", "expected a number"),
    ],
)
def test_bad_json_lines_are_told(tmp_path: Path, line: str, column: str | None, value: str | None, reason: str) -> None:
    good = '{"user_id": 1, "item_id": 2, "timestamp": 3}\n'
    path = write(tmp_path / "log", {"a": good, "b": f"\n{good}\n{line}\n{good}"})
    what = f"{column} is {value!r}" if column else repr(value)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path / 'b'}: line 4: {what}: {reason}")
    log = read(path, on_bad_row="skip")
    assert (log.events(), log.places()) == ([("1", "2", 3)] * 3, [("b", 4, column, value)])


def parquet(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_parts_of_parquet_are_matched_by_names_and_their_types_widened(tmp_path: Path) -> None:
    first = parquet(user_id=[1], item_id=[2], timestamp=[3])
    second = parquet(timestamp=[4.0, 4.5], item_id=["x", "y"], user_id=[5, 6])
    path = write(tmp_path / "log", {"a.parquet": first, "b.parquet": second})
    assert read(path).events() == [("1", "2", 3), ("5", "x", 4), ("6", "y", 4)]


def test_bad_rows_of_parquet_are_told_by_their_place(tmp_path: Path) -> None:
    table = parquet(user_id=[1, 1, 2], item_id=[1, None, 3], timestamp=[1, 2, 3])
    path = write(tmp_path / "log.parquet", table)
    with pytest.raises(DataError, match=r"log\.parquet: row 2: item_id is None: expected an id"):
        read(path)
    log = read(path, on_bad_row="skip")
    assert (log.events(), log.places()) == ([("1", "1", 1), ("2", "3", 3)], [("log.parquet", 2, "item_id", None)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.parquet", "PAR1 no more than this", r"log\.parquet: cannot be read \(.*\)"),
        (
            "log.parquet",
            parquet(user_id=[1.0, None], item_id=[1, 2], timestamp=[1, 2]),
            r"log\.parquet: row 2: user_id is None: expected an id",
        ),
        (
            "log.parquet",
            parquet(user_id=[1.0, 1.5], item_id=[1, 2], timestamp=[1, 2]),
            r"log\.parquet: row 2: user_id is '1\.5': a fraction, .*set prepare\.id_type=text",
        ),
        (
            "log.csv",
            HEADER + "1,2,3\n1.5,2,3\n",
            r"log\.csv: line 3: user_id is '1\.5': a fraction, .*prepare\.id_type",
        ),
        (
            "log.parquet",
            parquet(user_id=[[1, 2]], item_id=[1], timestamp=[1]),
            r"column 'user_id' has the type array<int64>, a list or an object, .*write one row per item",
        ),
        (
            "log.parquet",
            parquet(user_id=[b"a"], item_id=[1], timestamp=[1]),
            r"column 'user_id' has the type binary, expec",
        ),
        (
            "log.jsonl",
            '{"user_id": 1, "item_id": 2, "timestamp": 3, "t": "' + "x" * 2**25 + '"}',
            r"log\.jsonl: line 1 is longer than 16,777,216 characters; write one row a line",
        ),
        ("log.csv", HEADER + "1,2,3\n" + "x," * 1_500_000 + "\n", r"line 3: 'x,x,.*': 1500001 columns, expected 3"),
        ("log.csv", f'{HEADER}1,"{"x" * 2_000_001}",3\n', r"line 2: '1,\"xxx.*' ?: quotes are not closed"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_log_without_any_good_row_tells_the_first_bad_one(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", HEADER + "1,2\n1,2,x\n")
    with pytest.raises(DataError, match=r"log\.csv: none of its 2 rows is an event; .*line 2: '1,2': 2 columns, exp"):
        read(path, on_bad_row="skip")


@pytest.mark.parametrize("name", ["log[1]", "lo*", "lo?1", "it's", "{log1,log2}"])
@pytest.mark.parametrize("content", [HEADER + "1,2,3\n", '{"user_id": 1, "item_id": 2, "timestamp": 3}'])
def test_names_are_no_wildcards(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path / "log1", "another file")
    assert read(write(tmp_path / name, content)).events() == [("1", "2", 3)]
    parts = {"a": content, "log1": content}
    assert read(write(tmp_path / "parts" / name, parts)).events() == [("1", "2", 3)] * 2
