from pathlib import Path
from typing import Any

import pytest
from log_files import PACKINGS, items_of, read, write

from slmrec.config import PrepareConfig
from slmrec.data.logs.encodings import has_escaped_quote, separator_of
from slmrec.errors import DataError

ROWS = [("Jürgen", "Café 5 €", 3), ("Jürgen", "Ærø", 2), ("Ana", "Ærø", 1)]
TABLE = "user_id,item_id,timestamp\n" + "".join(f"{user},{item},{time}\n" for user, item, time in ROWS)
LINES = "".join(f'{{"user_id": "{user}", "item_id": "{item}", "timestamp": {time}}}\n' for user, item, time in ROWS)
SEQUENCES = "Jürgen Ærø Café\nAna Ærø\n"


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_recognised(tmp_path: Path, encoding: str, packing: str) -> None:
    assert read(write(tmp_path / "log.csv", PACKINGS[packing](TABLE.encode(encoding)))).events() == ROWS
    assert read(write(tmp_path / "log.jsonl", PACKINGS[packing](LINES.encode(encoding)))).events() == ROWS
    users = [event[0] for event in read(write(tmp_path / "log.txt", SEQUENCES.encode(encoding))).events()]
    assert sorted(users) == ["Ana", "Jürgen", "Jürgen"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be", "iso8859-15"])
def test_other_encodings_are_settings(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "log.csv", TABLE.encode(encoding))
    with pytest.raises(DataError, match=r"log\.csv: line [12]: byte .* is not UTF-8; set prepare\.encoding="):
        read(path)
    assert read(path, encoding=encoding).events() == ROWS
    assert read(write(tmp_path / "log.jsonl", LINES.encode(encoding)), encoding=encoding).events() == ROWS
    assert read(write(tmp_path / "utf8.csv", TABLE), encoding=encoding).events() == ROWS  # for other files only


@pytest.mark.parametrize(
    ("text", "encoding", "hint"),
    [("Café", "latin-1", "latin-1"), ("5 €", "cp1252", "cp1252"), ("Café", "utf-16-be", "utf-16-be")],
)
def test_the_message_names_the_likely_encoding(tmp_path: Path, text: str, encoding: str, hint: str) -> None:
    with pytest.raises(
        DataError, match=rf"is not UTF-8; set prepare\.encoding={hint} \(or another encoding\), or save"
    ):
        read(write(tmp_path / "log.csv", f"user_id,item_id,timestamp\nu,{text},1\n".encode(encoding)))


@pytest.mark.parametrize("encoding", ["utf-16", "ascii"])
def test_a_wrong_encoding_is_told(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "log.csv", TABLE.encode("latin-1", errors="replace"))
    with pytest.raises(
        DataError, match=rf"log\.csv: line [12]: byte .* is not {encoding}; set prepare\.encoding to the"
    ):
        read(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["nix", "base64", "utf-7", "cp037", ""])
def test_encodings_that_are_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match="is unknown, or not usual for files; expected the encoding of a text file"):
        PrepareConfig(encoding=encoding)


@pytest.mark.parametrize("mark", ["sep=;", '"sep=;"', "SEP=;", "\ufeffsep=;"])
def test_lines_that_name_the_delimiter_are_skipped(tmp_path: Path, mark: str) -> None:
    text = mark + "\r\nuser_id;item_id;timestamp\r\nu;a,b;1\r\nu;c;soon\r\n"
    log = read(write(tmp_path / "log.csv", text), on_bad_row="skip")
    assert (log.events(), log.places()) == ([("u", "a,b", 1)], [("log.csv", 4, "timestamp", "soon")])
    broken = read(write(tmp_path / "log.csv", text + 'u;"d;1\r\nu;e;2\r\n'), on_bad_row="skip")
    assert [error.line for error in broken.errors] == [4, 5]


def test_some_parts_may_name_the_delimiter(tmp_path: Path) -> None:
    parts = {"1.csv": "sep=;\nuser_id;item_id;timestamp\nu;a;1\n", "2.csv": "user_id;item_id;timestamp\nu;b;x\n"}
    log = read(write(tmp_path / "log", parts), on_bad_row="skip")
    assert (log.events(), log.places()) == ([("u", "a", 1)], [("2.csv", 2, "timestamp", "x")])


def test_separator_of() -> None:
    assert [separator_of(line) for line in ("sep=\\t", "sep=,", "sep=ab", "x sep=;", "")] == [
        "\t",
        ",",
        None,
        None,
        None,
    ]


ESCAPED = r""""user_id";"item_id";"timestamp"
"u";"5\" disk; \"new\"";1
"u";"c:\\x";2
"u";"7\"";3
"u";"plain";4
"""


def test_quotes_escaped_by_backslashes_are_read(tmp_path: Path) -> None:
    items = ['5" disk; "new"', r"c:\x", '7"', "plain"]
    assert read(write(tmp_path / "log.csv", ESCAPED)).events() == [("u", item, n) for n, item in enumerate(items, 1)]
    bad = read(write(tmp_path / "log.csv", ESCAPED + '"u";"z";"no"\n'), on_bad_row="skip")
    assert bad.places() == [("log.csv", 6, "timestamp", "no")]


def test_backslashes_of_csv_are_kept(tmp_path: Path) -> None:
    text = 'user_id,item_id,timestamp\nu,"c:\\",1\nu,"a: ""\\""b\\""""",2\n"d\\","e\\f",3\nu,5\\",4\n'
    events = read(write(tmp_path / "log.csv", text)).events()
    assert events == [("u", "c:\\", 1), ("u", 'a: "\\"b\\""', 2), ("d\\", "e\\f", 3), ("u", '5\\"', 4)]


def test_has_escaped_quote() -> None:
    quoted = ['"a\\"b"', '1;"\\"x\\""', '"x\\"";2', '"x\\""\n']
    assert all(has_escaped_quote(text, ";") for text in quoted)
    assert not any(has_escaped_quote(text, ";") for text in ['"c:\\";1', '"c:\\"\n', '"c:\\"""', 'a\\"b', "'\\\"'"])


def test_tables_of_items(tmp_path: Path) -> None:
    text = '"ISBN";"Book-Title"\n"01";"Café \\"Müller\\"; 1"\n"02";"Zwei"\n'
    options: dict[str, Any] = {"items_id_col": "ISBN", "title_col": "Book-Title"}
    path = write(tmp_path / "books.csv", text.encode("latin-1"))
    with pytest.raises(DataError, match=r"books\.csv: line 2: .* set prepare\.encoding=latin-1 \("):
        items_of(path, **options)
    rows, _ = items_of(path, encoding="latin-1", **options)
    titles = [row["title"] for row in rows.order_by("row").to_pyarrow().to_pylist()]
    assert titles == ['Café "Müller"; 1', "Zwei"]
