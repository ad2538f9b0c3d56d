import gzip
from pathlib import Path
from typing import Any

import pytest
from log_files import read, write

from slmrec.errors import DataError


@pytest.mark.parametrize(
    "content",
    [
        "u a b a\nv,w\tü\t007\n",
        "\ufeffu a b a\nv,w ü 007",
        "u  a b \t a \r\n v,w ü 007\r\n\r\n\r\n",
        gzip.compress("u a b a\nv,w ü 007\n\n".encode()),
    ],
)
def test_users_with_items(tmp_path: Path, content: str | bytes) -> None:
    log = read(write(tmp_path / "log.txt", content))
    assert sorted((event["user_id"], event["row"], event["item_id"]) for event in log.rows) == [
        ("u", 0, "a"),
        ("u", 1, "b"),
        ("u", 2, "a"),
        ("v,w", 0, "ü"),
        ("v,w", 1, "007"),
    ]
    assert {event["timestamp"] for event in log.rows} == {None}
    assert (log.columns, log.titles) == ({"format": "sequences"}, None)


def test_a_very_long_line_is_read(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "log.txt", "u " + "item-of-a-long-history " * 200_000)).rows) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("u a b\nv\nw a\n", r"log\.txt: line 2: user is 'v': no items, expected `user item item \.\.\.` \(set prepare"),
        ("u a b\n\nw a\n", r"log\.txt: line 2: user is '': no items"),
        ("u a b\nNULL a\n", r"log\.txt: line 2: user is 'NULL': expected an id \(the word is one of prepare\.null"),
        ("u a b\nv a nan\n", r"log\.txt: line 2: item is 'nan': expected an id"),
        ("u 1 2.5\nv 3\n", r"log\.txt: item '2\.5' is a fraction, expected ids that .*prepare\.id_type=text"),
        ("u a b\nv a\nu b c d\n", r"log\.txt: line 3: user is 'u': the user already has line 1, .*prepare\.format"),
        ("u " + "a " * 2**24, r"log\.txt: line 1 is longer than 16,777,216 characters; write one row a line"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / "log.txt", content))
    assert "\n" not in str(caught.value)


def test_a_user_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.txt: line 1: user is 'u': no items"):
        read(write(tmp_path / "log.txt", "u\n"))
    with pytest.raises(DataError, match=r"log\.txt: none of its 1 rows is an event; .*line 1: user is 'u'"):
        read(tmp_path / "log.txt", on_bad_row="skip")


def test_parts_are_told_by_file_and_line(tmp_path: Path) -> None:
    parts = {"a.txt": "u a b c\nv a b\n\n\n", "b.txt": "w a b\r\nu c\r\nx\r\n\r\ny z\r\n", "c.txt": "w b\n"}
    path = write(tmp_path / "log", parts)
    with pytest.raises(DataError, match=r"log/b\.txt: line 2: user is 'u': the user already has line 1 of a\.txt"):
        read(path)
    log = read(path, on_bad_row="skip")
    assert log.places() == [
        ("b.txt", 2, "user", "u"),
        ("b.txt", 3, "user", "x"),
        ("b.txt", 4, "user", ""),
        ("c.txt", 1, "user", "w"),
    ]
    assert {row["user_id"] for row in log.rows} == {"u", "v", "w", "y"}


@pytest.mark.parametrize("setting", ["user_col", "item_col", "time_col", "rating_col", "quantity_col", "tie_col"])
def test_columns_of_a_file_without_any_are_refused(tmp_path: Path, setting: str) -> None:
    message = rf"log\.txt: prepare\.{setting} is 'asin', but a log with one user a line .*; leave it out"
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "log.txt", "u a b\n"), **{setting: "asin"})


LISTS = 'reviewerID,asin,title\nA,"[\'x\', \'y\', 5]","[\'t, t\', ""it\'s""]"\n\n"B,\n",[\'x\'],[None]\n'


@pytest.mark.parametrize("packed", [False, True])
def test_lists_of_the_reference(tmp_path: Path, packed: bool) -> None:
    log = read(write(tmp_path / "log", gzip.compress(LISTS.encode()) if packed else LISTS))
    assert [(user, item) for user, item, _ in log.events()] == [("A", "x"), ("A", "y"), ("A", "5"), ("B,", "x")]
    assert log.columns == {"format": "reference", "user_col": "reviewerID", "item_col": "asin", "title_col": "title"}
    assert log.titles is not None
    assert [(row["item_id"], row["title"]) for row in log.titles] == [
        ("x", "t, t"),
        ("y", "it's"),
        ("5", None),
        ("x", None),
    ]


def test_lists_of_parts_and_without_titles(tmp_path: Path) -> None:
    rows = {name: f"user_id,item_id\n{name},\"['i', 'j']\"\n" for name in ("b", "a")}
    log = read(write(tmp_path / "log", rows))
    assert ([(user, item) for user, item, _ in log.events()], log.titles) == (
        [("a", "i"), ("a", "j"), ("b", "i"), ("b", "j")],
        None,
    )


@pytest.mark.parametrize(
    ("row", "line", "column", "value", "reason"),
    [
        ("N/A,['a'],[]", 6, "reviewerID", "N/A", "expected an id (the word is one of prepare.null_values)"),
        ("B,\"['a', None]\",[]", 6, "asin", "['a', None]", "an item of the list is missing, expected an id"),
        ("B,\"['a', ['b']]\",[]", 6, "asin", "['a', ['b']]", "a list or an object, expected one id; write one row"),
        ("B,no list,[]", 6, "asin", "no list", "expected a list of items"),
        ("B,\"('a',)\",[]", 6, "asin", "('a',)", "expected a list of items"),
        ("B,\"[__import__('os').getcwd()]\",[]", 6, "asin", "[__import__('os').getcwd()]", "expected a list of items"),
        (f"B,{'[' * 60}{']' * 60},[]", 6, "asin", "[" * 60 + "]" * 60, "expected a list of items"),
        (",['a'],[]", 6, "reviewerID", "", "expected an id"),
        ("B", 6, "asin", None, "expected a list of items"),
        ("\"B\"x,['a'],[]", 6, None, "\"B\"x,['a'],[]", "quotes are not closed"),
    ],
)
def test_rows_of_lists_that_are_refused(
    tmp_path: Path, row: str, line: int, column: str | None, value: Any, reason: str
) -> None:
    path = write(tmp_path / "log.csv", f"{LISTS}{row}\nC,['z'],[]\n")
    with pytest.raises(DataError, match=rf"log\.csv: line {line}: "):
        read(path)
    log = read(path, on_bad_row="skip")
    assert log.places() == [("log.csv", line, column, value)]
    assert log.errors[0].reason.startswith(reason)
    assert log.events()[-1] == ("C", "z", None)


def test_lists_without_needed_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'user_id' or .*; it has asin, title; set prepare\.user_col"):
        read(write(tmp_path / "log.csv", "asin,title\n['x'],['t']\n"))


def test_a_long_list_is_read(tmp_path: Path) -> None:
    items = [f"item{number}" for number in range(20_000)]
    log = read(write(tmp_path / "log.csv", f'user_id,item_id\nu,"{items}"\n'))
    assert [item for _, item, _ in log.events()] == items
