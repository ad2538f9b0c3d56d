import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import PACKINGS, write

from slmrec.data.logs.files import InputFiles
from slmrec.data.logs.formats import Format
from slmrec.data.logs.rows import Row, read_rows


def found(path: Path, kind: Format, encoding: str = "utf-8") -> list[Row]:
    return list(read_rows(InputFiles(path, kind, (path,), (path,), "none", encoding), path))


def lines_and_cells(path: Path, kind: Format) -> list[tuple[int, list[str]]]:
    return [(record.line, record.cells) for record in found(path, kind)]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_have_the_numbers_of_their_first_lines(tmp_path: Path, packing: str, end: str) -> None:
    text = f'\ufeffa,b{end}"x{end}{end}y",ü{end}{end}"q""q",{end}z,1'
    path = write(tmp_path / "log", PACKINGS[packing](text.encode()))
    assert lines_and_cells(path, "csv") == [
        (1, ["a", "b"]),
        (2, [f"x{end}{end}y", "ü"]),
        (5, []),
        (6, ['q"q', ""]),
        (7, ["z", "1"]),
    ]


@pytest.mark.parametrize(
    ("kind", "line", "cells"),
    [
        ("dat", '1::"2::x y', ["1", '"2', "x y"]),
        ("psv", "1|2||", ["1", "2", "", ""]),
        ("ssv", "1 2", ["1", "2"]),
        ("tsv", '1\t"a\tb"', ["1", "a\tb"]),
        ("reference", "1,\"['a', 'b']\"", ["1", "['a', 'b']"]),
    ],
)
def test_fields_stand_between_delimiters(tmp_path: Path, kind: Format, line: str, cells: list[str]) -> None:
    assert lines_and_cells(write(tmp_path / "log", f"{line}\n\n{line}"), kind) == [(1, cells), (2, []), (3, cells)]


def test_latin_1_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "1::Amélie\n".encode("latin-1"))
    assert found(path, "dat", "latin-1")[0].cells == ["1", "Amélie"]


@pytest.mark.parametrize(
    "bad",
    ['1,"2', '1,"2"x', '1,"2"x,"y', '1,"' + "x" * 2_000_001],
)
@pytest.mark.parametrize("rest", ["3,4\n5,6", '3,"4"\n5,6'])
def test_only_the_first_line_of_a_bad_row_is_lost(tmp_path: Path, bad: str, rest: str) -> None:
    rows = found(write(tmp_path / "log", f"a,b\n{bad}\n{rest}"), "csv")
    assert [(row.line, row.cells) for row in rows if not row.error] == [
        (1, ["a", "b"]),
        (3, ["3", "4"]),
        (4, ["5", "6"]),
    ]
    (fault,) = [row for row in rows if row.error]
    assert (fault.line, fault.text, fault.cells) == (2, bad, [])
    assert str(fault.error).startswith("quotes are not closed, or text follows a closing one (")


cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    path = write(tmp_path_factory.mktemp("rows") / "log", text.getvalue())
    lines = text.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    read = found(path, "csv")
    assert [tuple(record.cells) for record in read] == rows
    assert all(lines[record.line - 1].startswith('"') for record in read)
