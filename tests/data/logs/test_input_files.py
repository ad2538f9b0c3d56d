import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from log_files import PACKINGS, write

from slmrec.data.logs.files import InputFiles, inspect, json_keys, lines, literals_as_json, unpacked
from slmrec.data.logs.formats import Format
from slmrec.errors import DataError

COLUMNS = ("user_id", "item_id", "timestamp")
TABLE = "user_id,item_id,timestamp\nu,a,1\n"
ZST = PACKINGS["zst"]


def inspected(path: Path) -> InputFiles:
    return inspect(path, "auto", COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("log.csv", TABLE, "csv"),
        ("log.CSV.GZ", gzip.compress(TABLE.encode()), "csv"),
        ("log.tsv", TABLE, "csv"),
        ("log.txt", TABLE, "csv"),
        ("log.json", "{}", "jsonl"),
        ("log.v2.ndjson.gz", gzip.compress(b"{}"), "jsonl"),
        ("log", TABLE, "csv"),
        ("log", gzip.compress(TABLE.encode()), "csv"),
        ("log.inter", "user_id:token\titem_id:token\n1\t2\n", "recbole"),
        ("log.data", "\ufeff" + '"user_id","item_id"\n', "csv"),
        ("log", '\n{"user_id": 1}', "jsonl"),
        ("log", "u a b c\n", "sequences"),
        ("log.gz", b"PAR1 and so on", "parquet"),
        ("log", "user_id,item_id\ru,a\r", "csv"),
        ("log", TABLE.encode("utf-16"), "csv"),
    ],
)
def test_auto_goes_by_the_content_then_by_the_name(
    tmp_path: Path, name: str, content: str | bytes, kind: Format
) -> None:
    assert inspected(write(tmp_path / name, content)).format == kind


def test_a_format_that_was_set_wins(tmp_path: Path) -> None:
    assert inspect(write(tmp_path / "log.csv", TABLE), "sequences", COLUMNS).format == "sequences"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("packing", "compression"), [("none", "none"), ("gz", "gzip"), ("zst", "zstd")])
def test_compression_is_known_by_the_content(tmp_path: Path, packing: str, compression: str, suffix: str) -> None:
    path = write(tmp_path / f"log.csv{suffix}", PACKINGS[packing](TABLE.encode()))
    source = inspected(path)
    assert source.compression == compression
    assert list(lines(path)) == TABLE.splitlines(keepends=True)
    (copy,) = unpacked(source, tmp_path).files
    assert copy.read_bytes() == TABLE.encode()
    assert (copy == path) is (packing == "none")


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_compressed_pieces_one_after_the_other_are_one_file(tmp_path: Path, packing: str) -> None:
    pack = PACKINGS[packing]
    path = write(tmp_path / "log", pack(b"u a b c\n") + pack(b"v a b\n"))
    assert inspected(path).format == "sequences"
    assert list(lines(path)) == ["u a b c\n", "v a b\n"]


def test_a_character_cut_by_the_edge_of_a_block_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "u" * (2**20 - 1) + "ü a\r\n" + "v" * (2**20 - 6) + " a b c\r\n")
    assert inspected(path).format == "sequences"


def test_a_line_cut_by_the_edge_of_the_first_block_does_not_count(tmp_path: Path) -> None:
    long = "".join(f"{'u' * 20_000}{user} a {'b ' * (user % 3)}\n" for user in range(80))
    assert inspected(write(tmp_path / "log", long)).format == "sequences"


@pytest.mark.parametrize("kind", ["movies.dat", "u.item"])
def test_latin_1_of_movielens_is_known(tmp_path: Path, kind: str) -> None:
    delimiter = "::" if kind == "movies.dat" else "|"
    rows = "".join(delimiter.join(("1", "Misérables", "a", "b")) + "\n" for _ in range(2))
    assert inspected(write(tmp_path / "log", rows.encode("latin-1"))).encoding == "latin-1"
    assert inspected(write(tmp_path / "log", rows)).encoding == "utf-8"


def test_parts_of_several_encodings_are_refused(tmp_path: Path) -> None:
    row = "1::Misérables::a\n"
    path = write(tmp_path / "log", {"a": row.encode("latin-1"), "b": "1::M::a\n"})
    assert inspected(path).encoding == "latin-1"
    with pytest.raises(DataError, match=r"log: its parts differ: a is latin-1, c is utf-8; save all of them as UTF-8"):
        inspected(write(path, {"c": row}))


def test_latin_1_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    rows = b"1::Mis\xe9rables::a\n" + bytes(range(32, 127)) * 99_999
    path = write(tmp_path / "movies.dat.gz", gzip.compress(rows)[:-20])
    with pytest.raises(DataError, match="truncated"):
        inspected(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", "", r"log\.csv: the file is empty; expected .*\.csv"),
        ("log.txt", "\n \n", r"log\.txt: the file is empty"),
        ("log", "", r"log: the file is empty"),
        ("log.csv", "\ufeff\n", r"log\.csv: the file is empty"),
        ("log.jsonl.gz", gzip.compress(b""), r"log\.jsonl\.gz: the file is empty"),
        ("log.jsonl.zst", ZST(b""), r"log\.jsonl\.zst: the file is empty"),
        ("log.parquet", "", r"log\.parquet: the file is empty"),
        ("log.txt", b"u a b\nv \xff\n", r"log\.txt: line 2: byte b'\\xff' is not UTF-8; set"),
        ("log.csv", b"u,a\n\nv,\xc3", r"log\.csv: line 3: byte b'\\xc3' is not UTF-8"),
        ("log.csv.gz", gzip.compress(b"\xe9"), r"log\.csv\.gz: line 1: byte b'\\xe9' is not UTF-8"),
        (
            "log.csv",
            TABLE.encode("utf-16-le"),
            r"line 1: byte b'\\x00' is not UTF-8; set prepare\.encoding=utf-16-le \(",
        ),
        ("log.txt", b"u a\nv b\0c\n", r"log\.txt: line 2: byte b'\\x00' is not text"),
        ("log.csv", TABLE + "u,\0,1\n", r"log\.csv: line 3: byte b'\\x00' is not text"),
        ("log.txt", "u a b\nv b\r\n", r"log\.txt: lines end in '\\n' and '\\r\\n'; .* dos2unix"),
        ("log.txt.gz", gzip.compress(b"u a\n" * 999)[:-20], r"log\.txt\.gz: the compressed file is truncated .*copy"),
        ("log.txt.zst", ZST(b"u a\n" * 999)[:-3], r"log\.txt\.zst: the compressed file is truncated .*copy"),
        ("log.txt.gz", gzip.compress(b"u a\n" * 999) + b"rest", r"the compressed file is truncated or damaged"),
        ("log.txt.zst", ZST(b"u a\n" * 999) + b"rest", r"the compressed file is truncated or damaged"),
        ("log", b"\x1f\x8b", r"log: the compressed file is truncated or damaged"),
        ("log", b"\x28\xb5\x2f\xfd", r"log: the compressed file is truncated or damaged"),
        ("log", "a,b c\n" + "x" * 99, r"log: the format cannot be detected .*'a,b c'; set prepare\.format .*\.parquet"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        inspected(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/log\.csv: no such file; set prepare\.input"):
        inspected(tmp_path / "none" / "log.csv")
    with pytest.raises(DataError, match=r"the folder is empty; give a file, or a folder of parts"):
        inspected(tmp_path)
    write(tmp_path / "_SUCCESS", "")
    with pytest.raises(DataError, match=r"the folder is empty"):
        inspected(tmp_path)


def test_parts_are_in_the_order_of_their_names_without_hidden_ones(tmp_path: Path) -> None:
    names = ["part-2", "part-10", "b/part-1", "_SUCCESS", ".part-3.crc", "_temporary/part-4", ".git/x"]
    source = inspected(write(tmp_path / "log", dict.fromkeys(names, TABLE)))
    assert [str(file.relative_to(tmp_path / "log")) for file in source.files] == ["b/part-1", "part-10", "part-2"]
    assert source.names == source.files


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ('{"user_id": 1}\n', r"log: its files differ: a is csv, b is jsonl; give the file of the log alone"),
        (gzip.compress(TABLE.encode()), r"its files differ: a is csv, b is csv \(gzip\)"),
        (pa.table({"user_id": [1]}), r"its files differ: a is csv, b is parquet"),
        ("", r"log/b: the file is empty"),
        ("user_id,item_id\nü,\0\n", r"log/b: line 2: byte b'\\x00'"),
    ],
)
def test_parts_of_several_kinds_are_refused(tmp_path: Path, other: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        inspected(write(tmp_path / "log", {"a": TABLE, "b": other}))


def test_keys_are_those_of_all_first_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", '{"a": 1}\n\nbroken\n["c"]\n"d"\n{"b": 2, "a": 3}\n')
    assert json_keys(inspected(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}]", r"line 1: '\[\{\}\]' is not a JSON object; write one JSON object per line"),
        ('"abc"\n', r"line 1: '\"abc\"' is not a JSON object"),
        ("\n\n{'a': b}", r'line 3: "\{\'a\': b\}" is not JSON \(Expecting property name'),
        ("[" * 99_999, r"line 1: '\[\[.*\.\.\.' is not a row \(values are nested too deeply\)"),
        ("{}\n", r"line 1: the objects have no keys"),
    ],
)
def test_files_without_json_objects_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        json_keys(inspected(write(tmp_path / "log.json", content)))


def test_python_literals_become_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "log", {"a": "{'user_id': 'ü'}\n\nbad\n", "b": "{'user_id': \"it's\"}"})
    source = literals_as_json(inspected(path), tmp_path)
    assert source.format == "jsonl"
    assert [list(lines(file)) for file in source.files] == [
        ['{"user_id": "\\u00fc"}\n', "\n", "bad\n"],
        ['{"user_id": "it\'s"}\n'],
    ]
    assert [name.name for name in source.names] == ["a", "b"]


def test_other_formats_are_not_rewritten(tmp_path: Path) -> None:
    source = inspected(write(tmp_path / "log", TABLE))
    assert literals_as_json(source, tmp_path) is source


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_line_without_end_is_refused(tmp_path: Path, pack: Any) -> None:
    (tmp_path / "log.csv").write_bytes(pack(TABLE.encode() + b"u,b,2\nu," + b"x" * (2**24 + 2**20)))
    with pytest.raises(DataError, match=r"log\.csv: line 4 is longer than 16,777,216 characters; write one row a line"):
        inspected(tmp_path / "log.csv")


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"log\.csv: is a named pipe, which is read several times; save it to a file"):
        inspected(tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"/dev/zero: is a device"):
        inspected(Path("/dev/zero"))
    with pytest.raises(DataError, match=r"log\.csv: is a named pipe, expected files only; move it out of the folder"):
        inspected(tmp_path)
