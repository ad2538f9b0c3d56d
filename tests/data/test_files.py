import gzip
from pathlib import Path

import pytest

from slmrec.data.files import Format, header, inspect, lines
from slmrec.errors import DataError

COLUMNS = ("user_id", "item_id", "timestamp")
TABLE = "user_id,item_id,timestamp\nu,a,1\n"


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("log.csv", TABLE, "csv"),
        ("log.CSV.GZ", gzip.compress(TABLE.encode()), "csv"),
        ("log.tsv", TABLE, "tsv"),
        ("log.txt", TABLE, "sequences"),
        ("log.json", "{}", "jsonl"),
        ("log.v2.ndjson.gz", gzip.compress(b"{}"), "jsonl"),
        ("log", TABLE, "csv"),
        ("log", gzip.compress(TABLE.encode()), "csv"),
        ("log.inter", "user_id:token\titem_id:token\n1\t2\n", "tsv"),
        ("log.data", "\ufeff" + '"user_id","item_id"\n', "csv"),
        ("log", '\n{"user_id": 1}', "jsonl"),
        ("log", "u a b c\n", "sequences"),
        ("log.gz", b"PAR1 and so on", "parquet"),
    ],
)
def test_auto_goes_by_the_name_then_by_the_first_line(
    tmp_path: Path, name: str, content: str | bytes, kind: Format
) -> None:
    source = inspect(written(tmp_path / name, content), "auto", COLUMNS)
    assert source.kind == kind


def test_a_format_that_was_set_wins(tmp_path: Path) -> None:
    assert inspect(written(tmp_path / "log.txt", TABLE), "csv", COLUMNS).kind == "csv"


@pytest.mark.parametrize(("packed", "name"), [(True, "log.csv"), (False, "log.csv.gz")])
def test_gzip_is_known_by_its_content(tmp_path: Path, packed: bool, name: str) -> None:
    path = written(tmp_path / name, gzip.compress(TABLE.encode()) if packed else TABLE)
    source = inspect(path, "auto", COLUMNS)
    assert source.gzipped is packed
    assert list(lines(source)) == TABLE.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("log.csv", '\ufeff"a ""b""","c,\nd"\r\n1,2\r\n', ['a "b"', "c,\nd"]),
        ("log.tsv", "a\tb c\n", ["a", "b c"]),
        ("log.jsonl", '{"a": 1}\n\n{"b": 2, "a": 3}\n', ["a", "b"]),
    ],
)
def test_header(tmp_path: Path, name: str, content: str, names: list[str]) -> None:
    assert header(inspect(written(tmp_path / name, content), "auto", COLUMNS)) == names


def test_a_character_cut_by_the_edge_of_a_block_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "log.txt", "u" * (2**20 - 1) + "ü a\r\n" + "v" * (2**20 - 6) + " a\r\n")
    assert inspect(path, "auto", COLUMNS).kind == "sequences"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", "", r"log\.csv: the file is empty; expected .*\.csv"),
        ("log.txt", "\n \n", r"log\.txt: the file is empty"),
        ("log.jsonl.gz", gzip.compress(b""), r"log\.jsonl\.gz: the file is empty"),
        ("log.parquet", "", r"log\.parquet: the file is empty"),
        ("log.txt", b"u a\nv \xff\n", r"log\.txt: line 2: byte b'\\xff' is not UTF-8; save"),
        ("log.csv", b"u,a\n\nv,\xc3", r"log\.csv: line 3: byte b'\\xc3' is not UTF-8"),
        ("log.csv.gz", gzip.compress(b"\xe9"), r"log\.csv\.gz: line 1: byte b'\\xe9' is not UTF-8"),
        ("log.txt", b"u a\nv b\0c\n", r"log\.txt: line 2: byte b'\\x00' is not text"),
        ("log.txt", "u a\nv b\r\n", r"log\.txt: lines end in '\\n' and '\\r\\n'; .* dos2unix"),
        ("log.txt.gz", gzip.compress(b"u a\n" * 999)[:-20], r"log\.txt\.gz: the gzip file is cut off .*copy"),
        ("log.txt.gz", gzip.compress(b"u a\n" * 999) + b"rest", r"log\.txt\.gz: the gzip file is cut off or damaged"),
        ("log.dat", "1::2::3\n", r"log\.dat: .*'1::2::3', tells the format; set prepare\.format .*\.parquet"),
        ("log", "a,b c\n" + "x" * 99, r"log: .*'a,b c'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        inspect(written(tmp_path / name, content), "auto", COLUMNS)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: no such file; set prepare\.input"):
        inspect(tmp_path / "none.csv", "auto", COLUMNS)
    with pytest.raises(DataError, match=r"is a folder; give one file: .*\.parquet"):
        inspect(tmp_path, "auto", COLUMNS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}]", r"line 1: '\[\{\}\]' is not a JSON object; write one JSON object a line"),
        ("\n{'a': 1}", r'line 2: "\{\'a\': 1\}" is not JSON \(Expecting property name'),
        ("[" * 9999, r"line 1: '\[\[.*\.\.\.' is not JSON"),
    ],
)
def test_lines_that_are_no_json_objects_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        header(inspect(written(tmp_path / "log.json", content), "auto", COLUMNS))


def test_a_header_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: no names of columns .*begin with a header"):
        header(inspect(written(tmp_path / "log.csv", '"' + "x" * 200_000), "auto", COLUMNS))
