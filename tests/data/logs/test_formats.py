from pathlib import Path

import pytest

from slmrec.data.logs.formats import (
    DELIMITERS,
    delimiter_of,
    excerpt,
    format_of_lines,
    format_of_name,
    json_error,
    looks_like_events,
    plain_name,
)

COLUMNS = {"user_id", "item_id", "movieId", "asin"}
KINDS_BY_NAME = {
    "log.csv": "csv",
    "log.CSV.GZ": "csv",
    "log.v2.ndjson.zst": "jsonl",
    "Beauty.txt": "sequences",
    "log.inter": "tsv",
    "log.item": "tsv",
    "ratings.dat": "dat",
    "log.gz": None,
    "log": None,
    "u.data": None,
}


@pytest.mark.parametrize(("name", "kind"), KINDS_BY_NAME.items())
def test_names_tell_a_format(name: str, kind: str | None) -> None:
    assert format_of_name(Path(name)) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (["user_id,item_id,timestamp", "u,a,1"], "csv"),
        (['"user_id","item_id"', "u,a"], "csv"),
        (["user_id:token\titem_id:token", "1\t2"], "recbole"),
        (["user_id item_id", "1 2"], "ssv"),
        (["movieId::x", "1::2"], "dat"),
        (["196\t242\t3\t881250949", "196\t302\t3\t891717742"], "tsv"),
        (["1\t2\t3\t881250949", "2\t3\t4\t891717742"], "tsv"),
        (["1::2::5::978300760"], "dat"),
        (["A1,B1,5.0,1391040000", "A2,B2,5.0,1391040000"], "csv"),
        (["1 2", "1 3", "2 1"], "ssv"),
        (["1|Toy Story|x|y", "2|Heat|x|y"], "psv"),
        (["u a b c", "v a", "w d"], "sequences"),
        (["u a 1391040000", "v b 1391040000"], "sequences"),
        (['{"a": 1}', "{'a': 1}"], "jsonl"),
        (["{'a': 1}", '{"a": 1}'], "literal"),
        (["{broken", "{'a': 1}"], "literal"),
        (["{broken", "{broken"], "jsonl"),
        (["no object", '{"a": 1}', '{"a": 2}'], "jsonl"),
        (["user_id,asin", "A,\"['x', 'y']\""], "reference"),
        (["a,b c", "d,e f"], None),
        (["x"], None),
    ],
)
def test_lines_tell_a_format(text: list[str], kind: str | None) -> None:
    assert format_of_lines(text, COLUMNS, None) == kind


def test_a_name_decides_where_lines_may_be_several_things() -> None:
    assert format_of_lines(["a,b", "c,d"], COLUMNS, "csv") == "csv"
    assert format_of_lines(["a\tb", "c\td"], COLUMNS, "csv") == "tsv"
    assert format_of_lines(["1::2::3::978300760"], COLUMNS, "csv") == "dat"
    assert format_of_lines(['{"a": 1}'], COLUMNS, "csv") == "jsonl"


def test_a_new_delimiter_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DELIMITERS, "hive", "\x01")  # and its name in `LogFormat`, so that settings may choose it
    text = ["user_id\x01item_id\x01timestamp", "u\x01i\x011500000000", "u\x01j\x011500000060"]
    assert format_of_lines(text, {"user_id", "item_id"}, None) == "hive"
    assert format_of_lines(text[1:], {"user_id", "item_id"}, None) == "hive"
    assert delimiter_of("hive") == "\x01"  # type: ignore[arg-type]


def test_some_broken_rows_do_not_hide_a_table() -> None:
    assert looks_like_events(["1,2,978300760", "2,3,978300760", "broken"], ",")
    assert not looks_like_events(["1,2,978300760", "broken"], ",")
    assert not looks_like_events(["u a b", "v a b", "u a b", "w a"], " "), "users with items have lines of any length"


def test_typed_headers_have_plain_names() -> None:
    assert [plain_name(name) for name in ("user_id:token", "a:b", "time:float")] == ["user_id", "a:b", "time"]


def test_json_faults_show_the_line() -> None:
    assert json_error('{"a": 1}') is None
    assert json_error(" \n") is None
    assert json_error("[1]\n") == "'[1]' is not a JSON object"
    assert json_error("{'a'}") == "\"{'a'}\" is not JSON (Expecting property name enclosed in double quotes)"
    assert str(json_error("[" * 99_999)).startswith(f"'{'[' * 57}...' is not a row (values are nested too deeply)")


def test_lines_are_excerpt_short() -> None:
    assert excerpt(" a\n") == "'a'"
    assert excerpt("x" * 61) == f"'{'x' * 57}...'"
