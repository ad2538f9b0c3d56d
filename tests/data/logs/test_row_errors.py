from pathlib import Path

import pytest
from log_files import write

from slmrec.data.logs.files import InputFiles
from slmrec.data.logs.row_errors import RowError, check_skippable, counts, line_numbers, table
from slmrec.errors import DataError

BAD_TIME = RowError(Path("log.csv"), 3, "timestamp", "x", "expected a number")
BAD_LINE = RowError(Path("log.csv"), 9, None, "1,2\n" + "x" * 99, "2 columns, expected 3")
ROW = RowError(Path("log.parquet"), 2, "item_id", None, "expected an id", "row")


def test_errors_tell_place_value_and_reason() -> None:
    with pytest.raises(DataError) as raised:
        check_skippable([BAD_TIME], "error")
    assert str(raised.value) == (
        "log.csv: line 3: timestamp is 'x': expected a number; correct or remove the row, or set "
        "prepare.on_bad_row=skip"
    )
    assert BAD_LINE.message() == f"log.csv: line 9: '1,2\\n{'x' * 53}...': 2 columns, expected 3"
    assert ROW.message() == "log.parquet: row 2: item_id is None: expected an id"


def test_rejects_are_skipped_or_the_first_is_an_error() -> None:
    assert check_skippable([], "error") == []
    assert check_skippable([BAD_TIME, ROW], "skip") == [BAD_TIME, ROW]
    with pytest.raises(DataError, match=r"log\.csv: line 3: timestamp is 'x'"):
        check_skippable([BAD_TIME, ROW], "error")


def test_rejects_are_counted_by_reason() -> None:
    assert counts([BAD_TIME, BAD_LINE, BAD_TIME]) == {
        "timestamp: expected a number": 2,
        "2 columns, expected 3": 1,
    }


def test_rejects_are_a_table() -> None:
    found = table([BAD_TIME, ROW])
    assert found.to_pylist() == [
        {"file": "log.csv", "line": 3, "column": "timestamp", "value": "x", "reason": "expected a number"},
        {"file": "log.parquet", "line": 2, "column": "item_id", "value": None, "reason": "expected an id"},
    ]
    assert table([]).schema == found.schema


def test_line_numbers_count_every_line(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", 'a,b\n1,"x\n\ny"\n\n2\n3,z\n4,z\n')
    source = InputFiles(path, "csv", (path,), (path,), "none")
    assert line_numbers(source, path, [0, 1, 2], True, [6]) == {0: 2, 1: 7, 2: 8}
    assert line_numbers(source, path, [0], False, []) == {0: 1}
