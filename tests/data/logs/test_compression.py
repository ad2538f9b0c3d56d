import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from log_files import HEADER, as_bytes, items_of, read, write

from slmrec.data.logs import compression
from slmrec.errors import DataError

LOG = f"{HEADER}u,a,1\nu,b,2\n"
EVENTS = [("u", "a", 1), ("u", "b", 2)]


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_an_archive_with_one_log_is_read(tmp_path: Path) -> None:
    others = {"data/": b"", "__MACOSX/data/._log.csv": b"x", "data/.DS_Store": b"x"}
    assert read(write(tmp_path / "log.zip", zipped(others | {"data/log.csv": LOG.encode()}))).events() == EVENTS
    table = pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    assert read(write(tmp_path / "log.zip", zipped({"log.parquet": as_bytes(table)}))).events() == EVENTS
    lines = '{"user_id": "u", "item_id": "a", "timestamp": 1}\n'
    assert read(write(tmp_path / "log.zip", zipped({"log": lines.encode()}))).events() == EVENTS[:1]
    assert len(read(write(tmp_path / "log.zip", zipped({"log.txt": b"u a b\n"}))).events()) == 2
    rows, _ = items_of(write(tmp_path / "items.zip", zipped({"items.csv": b"item_id,title\na,A\n"})))
    assert rows.title.to_pyarrow().to_pylist() == ["A"]


def test_invalid_rows_of_an_archive_have_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.zip: line 4: timestamp is 'soon'"):
        read(write(tmp_path / "log.zip", zipped({"log.csv": f"{LOG}u,c,soon\n".encode()})))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a.csv": b"x", "b.csv": b"x"}, r"the archive holds 2 files \(a\.csv, b\.csv\), expected one log; unpack it"),
        (dict.fromkeys("abcd", b"x"), r"the archive holds 4 files \(a, b, c, \.\.\.\), expected one log"),
        ({"__MACOSX/a": b"x"}, "the archive holds no file, expected one log"),
        ({}, "the archive holds no file, expected one log"),
        ({"log.csv.gz": b"x"}, r"log\.csv\.gz in the archive is packed itself; unpack the archive"),
        ({"xl/workbook.xml": b"x", "xl/a.xml": b"x"}, "is an Excel workbook, expected a text table; save the sheet"),
        ({"log.csv": b""}, "the file is empty"),
    ],
)
def test_other_archives_are_refused(tmp_path: Path, contents: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=rf"log\.zip: {message}"):
        read(write(tmp_path / "log.zip", zipped(contents)))


def test_damaged_and_encrypted_archives_are_refused(tmp_path: Path) -> None:
    whole = zipped({"log.csv": LOG.encode() * 100})
    with pytest.raises(DataError, match=r"log\.zip: the archive is truncated or damaged .*; copy or download it again"):
        read(write(tmp_path / "log.zip", whole[:-30]))
    start = whole.index(b"log.csv") + 7
    damaged = whole[:start] + bytes(byte ^ 0xFF for byte in whole[start : start + 20]) + whole[start + 20 :]
    with pytest.raises(DataError, match=r"log\.zip: the compressed file is truncated or damaged"):
        read(write(tmp_path / "log.zip", damaged))
    directory = whole.rindex(b"PK\x01\x02")
    encrypted = whole[: directory + 8] + b"\x01" + whole[directory + 9 :]
    with pytest.raises(
        DataError, match=r"log\.zip: log\.csv in the archive is encrypted; unpack it, and give the file"
    ):
        read(write(tmp_path / "log.zip", encrypted))


@pytest.mark.parametrize("name", ["log.zip", "log.csv.gz", "log.csv.zst"])
def test_files_that_unpack_to_far_more_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(compression, "_MIN_BOMB_BYTES", 2**21)
    monkeypatch.setattr(compression, "_MAX_RATIO", 100)
    content = LOG.encode() + b"\n" * 2**23
    packed = {
        "log.zip": lambda: zipped({"log.csv": content}),
        "log.csv.gz": lambda: gzip.compress(content),
        "log.csv.zst": lambda: pa.compress(content, "zstd", asbytes=True),
    }
    with pytest.raises(DataError, match=rf"{name}: unpacks to more than 100 times its size, as no log does; unpack it"):
        read(write(tmp_path / name, packed[name]()))
