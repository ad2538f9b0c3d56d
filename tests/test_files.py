"""Checksums, atomic writes, and text that is safe to print."""

import hashlib
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.files import (
    MAX_METADATA_BYTES,
    one_line,
    parse_json,
    printable,
    read_json,
    sha256,
    special_file,
    write_atomically,
)

TEXTS = st.text(st.characters(codec=None))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Frère Jacques, 1000 € – 中文 🎬", "Frère Jacques, 1000 € – 中文 🎬"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b2J", "\\x9b2J"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(TEXTS)
def test_no_control_character_is_left(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in shown)
    assert printable(shown) == shown
    shown.encode()


def test_a_message_is_one_short_line() -> None:
    assert one_line(OSError("no such\n\n  file\t\x1b]0;title\x07")) == "no such file \\x1b]0;title\\x07"
    assert one_line("x" * 500) == "x" * 300
    assert one_line("x" * 500, limit=10) == "x" * 10


def test_the_checksum_is_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_a_finished_file_replaces_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with write_atomically(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".csv"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
        ("[" * 65 + "]" * 65, "values are nested more than 64 levels deep"),
        ("[" * 200_000, "values are nested too deeply"),
        ('{"a": ' * 65 + "1" + "}" * 65, "values are nested more than 64 levels deep"),
        ("{", "Expecting property name"),
        ("9" * 5000, "Exceeds the limit"),
        (" " * MAX_METADATA_BYTES + "1", "it is larger than 16,777,216 bytes"),
    ],
)
def test_json_is_refused_in_bounds(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_json(path)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda values: st.lists(values) | st.dictionaries(st.text(), values),
        max_leaves=20,
    )
)
def test_other_json_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


def test_nan_is_refused_where_it_is_no_number() -> None:
    assert parse_json("[NaN]") != [0]
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}'):
        with pytest.raises(ValueError, match=r"(NaN|Infinity) is not a number in JSON"):
            parse_json(text, allow_nan=False)


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is a named pipe, expected a file; save the content to a file first"):
        read_json(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is a device"):
        read_json(Path("/dev/zero"))
    assert special_file(tmp_path) is None and special_file(tmp_path / "none") is None
