from pathlib import Path

import pytest
from log_files import write

from slmrec.data.logs.columns import ALL_USUAL_NAMES, Header, find_column, header, missing_columns
from slmrec.data.logs.files import inspect
from slmrec.errors import DataError


def head(path: Path, *columns: str) -> Header:
    return header(inspect(path, "auto", ALL_USUAL_NAMES | set(columns)), columns or None)


EVENTS = ["user_id", "item_id", "rating", "timestamp"]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("log.csv", '\ufeff"a ""b""","c,\nd"\r\n1,2\r\n', ['a "b"', "c,\nd"]),
        ("log.tsv", "a\tb c\n", ["a", "b c"]),
        ("log.jsonl", '{"a": 1}\n\n{"b": 2, "a": 3}\n', ["a", "b"]),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,4\n", ["userId", "movieId", "rating", "timestamp"]),
        ("log", "user_id,2014,timestamp\nu,a,5\n", ["user_id", "2014", "timestamp"]),
    ],
)
def test_headers(tmp_path: Path, name: str, content: str, names: list[str]) -> None:
    assert head(write(tmp_path / name, content)).names == names


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n", EVENTS),
        ("1::1193::5::978300760\n1::661::3::978302109\n", EVENTS),
        ("A1YJEY40YUW4SE,7806397051,1.0,1391040000\nA3JM6GV9MNOF9X,B00020MHIK,5.0,1391040000\n", EVENTS),
        (
            "0123456789,A3AF8FFZAZYNE5,5.0,1092355200\n0123456789,AH2L9G3DQHHAJ5,4.0,1092355200\n",
            ["item_id", "user_id", "rating", "timestamp"],
        ),
        ("0\t2049\t1287503727.0\n0\t0\t1287411463.0\n", ["user_id", "item_id", "timestamp"]),
        ("1 2\n1 3\n2 2\n", ["user_id", "item_id"]),
        ("1::Toy Story (1995)::Comedy\n2::Heat (1995)::Crime\n", ["item_id", "title", "genres"]),
        ("196\t242\t3\t881250949\nbroken\n196\t302\tx\t891717742\n22\t377\t1\t878887116\n", EVENTS),
    ],
)
def test_columns_of_files_without_header(tmp_path: Path, content: str, names: list[str]) -> None:
    assert head(write(tmp_path / "log", content)) == Header(names, in_file=False)


def test_items_of_movielens_100k(tmp_path: Path) -> None:
    row = "1|Toy Story (1995)|01-Jan-1995||http://imdb" + "|0" * 19
    names = head(write(tmp_path / "u.item", f"{row}\n{row}\n")).names
    assert (len(names), names[:2], names[-1]) == (24, ["item_id", "title"], "western")


@pytest.mark.parametrize(
    "content", ["1,2,3,9\n1,3,4,5\n", "1,2,3\n1,3,4\n", "a1,b,5\na1,c,5\n", "1,2,500,978300760\n1,2,900,978300760\n"]
)
def test_columns_that_cannot_be_told(tmp_path: Path, content: str) -> None:
    line = content.splitlines()[0]
    with pytest.raises(DataError, match=rf"log\.csv: line 1 is '{line}': no header, .* set prepare\.columns"):
        head(write(tmp_path / "log.csv", content))
    names = tuple("abcd"[: line.count(",") + 1])
    assert head(tmp_path / "log.csv", *names) == Header(list(names), in_file=False)


def test_columns_that_are_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv: line 1 has 3 columns, but prepare\.columns names 2; name all"):
        head(write(tmp_path / "log.csv", "1,2,3\n"), "a", "b")


HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            "item_id,user_id,timestamp\n1,2,3\n",
            r"log/b: line 1 is 'item_id,user_id,timestamp', but that of a is 'user_",
        ),
        ("user_id,item_id\n1,2\n", r"log/b: line 1 is 'user_id,item_id', but that of a is .*same header"),
        ("1,2,900000000\n1,3,900000000\n", r"log/b: line 1 is '1,2,900000000', but that of a is"),
    ],
)
def test_parts_of_other_headers_are_refused(tmp_path: Path, other: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        head(write(tmp_path / "log", {"a": HEADER + "1,2,3\n", "b": other}))


def test_parts_may_all_have_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "log", {"a": HEADER + "1,2,3\n", "b": HEADER, "c": '"user_id",item_id,timestamp\n'})
    assert head(path) == Header(["user_id", "item_id", "timestamp"], in_file=True)


def test_an_empty_line_above_the_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv: line 1 is '', expected the column names; remove it"):
        head(write(tmp_path / "log.csv", f"\n{HEADER}1,2,3\n"))


def test_a_file_without_rows_of_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv: its first lines are not rows of a table \(csv\)"):
        head(write(tmp_path / "log.csv", '"' + "x" * 200_000))


def test_places_of_columns() -> None:
    names = ["asin", "parent_asin", "time:float", "b", "asin:token"]
    assert find_column("log", names, "item_col", None) == 1, "a product counts before its variants"
    assert find_column("log", names, "item_col", "asin") == 0, "the exact name counts"
    assert find_column("log", names, "time_col", "time") == 2
    assert find_column("log", names, "rating_col", None) is None
    with pytest.raises(DataError, match=r"log: 2 columns are named 'b', expected one; rename the others"):
        find_column("log", [*names, "b"], "time_col", "b")
    with pytest.raises(DataError, match=r"log: no column 'c'; it has asin, .*; set prepare\.user_col to one of them$"):
        find_column("log", names, "user_col", "c")


def test_all_missing_columns_are_told_together() -> None:
    told = str(missing_columns("log", ["who", "what"], ["user_col", "item_col"]))
    assert "no column 'user_id' or" in told and "no column 'item_id' or" in told
    assert "set prepare.user_col, prepare.item_col to one of them" in told


def test_missing_columns_come_with_a_remedy() -> None:
    assert str(missing_columns("log", ["a"], ["time_col"])) == (
        "log: no column 'timestamp' or 'unixReviewTime'; it has a; set prepare.time_col to one of them; without times, "
        "set prepare.order=file to take the order of the file"
    )
    assert str(missing_columns("log", ["a", "b"], ["user_col"])) == (
        "log: no column 'user_id' or 'reviewerID' or 'userId'; it has a, b; set prepare.user_col to one of them, or, "
        "if these are values of a file without header, prepare.columns to the names"
    )
