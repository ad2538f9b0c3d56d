"""What a file is, by its first lines: one user a line, a table and what stands between its fields, or json lines."""

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, cast

from slmrec.data.logs.literals import as_json

Kind = Literal[
    "sequences", "csv", "tsv", "recbole", "scsv", "ssv", "psv", "dat", "parquet", "jsonl", "literal", "reference"
]
Format = Literal["auto", "sequences", "csv", "tsv", "scsv", "ssv", "psv", "dat", "parquet", "jsonl", "reference"]

FORMATS = "one user a line (.txt), .csv, .tsv, .dat, .parquet or .jsonl, each plain, .gz or .zst"
DELIMITERS = {"csv": ",", "tsv": "\t", "scsv": ";", "ssv": " ", "psv": "|", "dat": "::", "recbole": "\t"}
QUOTED = {"csv", "tsv", "scsv", "reference"}
"""Formats in which a field in quotes may hold anything."""
_KINDS: dict[str, Kind] = {
    ".txt": "sequences",
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",
    ".item": "tsv",
    ".dat": "dat",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_PACKED = {".gz", ".zst"}
_FIRST_SECOND = 1e8
"""Numbers from here on are times: the spring of 1973, in seconds."""


def kind_of_name(path: Path) -> Kind | None:
    """The format that a file's name tells, whether or not it is compressed.

    >>> kind_of_name(Path("histories.jsonl.gz"))
    'jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    return _KINDS.get(suffixes[-1]) if suffixes else None


def kind_of_lines(text: Sequence[str], columns: Collection[str], by_name: Kind | None) -> Kind | None:
    """The format of the first lines that are not blank; where that may be several things, the one of the name.

    Args:
        text: the lines, without their ends.
        columns: names that columns may have; a first line that has one of them is a header.
        by_name: of `kind_of_name`.
    """
    objects = [line.lstrip().startswith("{") for line in text]
    if any(objects[:1]) or most(objects):
        return _kind_of_objects(text)
    if by_name in {"jsonl", "parquet"} or not text:
        return by_name
    if most(line.count("::") > 1 for line in text):
        return "dat"
    kind = _kind_of_table(text, columns, by_name)
    if kind == "tsv" and any(plain_name(name) != name for name in text[0].split("\t")):
        return "recbole"  # which quotes nothing
    if kind == "csv" and _has_lists(text, columns):
        return "reference"
    return kind


def _kind_of_objects(text: Sequence[str]) -> Kind:
    for line in text:
        if not object_fault(line):
            return "jsonl"
        if as_json(line) != line:
            return "literal"
    return "jsonl"


def _kind_of_table(text: Sequence[str], columns: Collection[str], by_name: Kind | None) -> Kind | None:
    for kind, delimiter in DELIMITERS.items():
        if _header_names(text[0], delimiter) & set(columns):
            return cast(Kind, kind)
    if DELIMITERS.get(by_name or "", "\0") not in text[0] and most(line.count("|") > 1 for line in text):
        return "psv"
    if by_name in ("csv", "tsv"):
        others: tuple[Kind, ...] = (by_name, "csv", "tsv", "scsv")
        return next((kind for kind in others if DELIMITERS[kind] in text[0]), by_name)
    events = (kind for kind, delimiter in DELIMITERS.items() if looks_like_events(text, delimiter))
    if kind_of_events := cast(Kind | None, next(events, None)):
        return kind_of_events
    return "sequences" if len(text[0].split()) > 1 and "," not in text[0] else by_name


def looks_like_events(text: Sequence[str], delimiter: str) -> bool:
    """Whether lines are rows of a table of two to four columns, and not users with items.

    Then the first column's values come again, or the last column holds times and no spaces are between the columns.
    """
    rows = [line.strip(" ").split(delimiter) for line in text]
    alike = most_alike(rows)
    enough = len(alike) == len(rows) if delimiter == " " else 2 * len(alike) > len(rows)
    if not enough or not 2 <= len(alike[0]) <= 4:
        return False
    if len({row[0] for row in alike}) < len(alike):
        return True
    return delimiter != " " and len(alike[0]) > 2 and most(is_time(row[-1]) for row in alike)


def most_alike(rows: Sequence[list[str]]) -> list[list[str]]:
    """The rows of the commonest number of cells; others are broken."""
    width, _ = Counter(map(len, rows)).most_common(1)[0]
    return [row for row in rows if len(row) == width]


def most(conditions: Iterable[bool]) -> bool:
    """Whether more than half hold, so that some broken rows do no harm."""
    held = list(conditions)
    return 2 * sum(held) > len(held)


def is_time(cell: str) -> bool:
    """Whether it is a number that may be a time, and no rating or small id."""
    time = number(cell)
    return time is not None and abs(time) >= _FIRST_SECOND


def number(text: str) -> float | None:
    """What is written, if it is a number."""
    try:
        return float(text)
    except ValueError:
        return None


def _header_names(line: str, delimiter: str) -> set[str]:
    return {plain_name(name.strip().strip('"')) for name in line.split(delimiter)}


def _has_lists(text: Sequence[str], columns: Collection[str]) -> bool:
    names, *rows = csv.reader(io.StringIO("\n".join(text[:2])))
    cells = dict(zip(names, rows[0], strict=False)) if rows else {}
    return any(cell.startswith("[") for name, cell in cells.items() if plain_name(name) in columns)


def plain_name(column: str) -> str:
    """The name of a column, without the type that some headers write behind it.

    >>> plain_name("user_id:token")
    'user_id'
    """
    name, _, kind = column.partition(":")
    return name if kind in {"token", "float", "token_seq", "float_seq"} else column


def delimiter_of(kind: Kind) -> str:
    """What stands between the fields of a table that is text."""
    return DELIMITERS["csv" if kind == "reference" else kind]


def json_fault(line: str) -> str | None:
    """The line, and what is wrong with it; nothing if it is a JSON object, or blank."""
    fault = object_fault(line)
    return fault and f"{shown(line)} is {fault}"


def object_fault(line: str) -> str | None:
    """Why a line is no JSON object; nothing if it is one, or blank."""
    try:
        value = json.loads(line) if line.strip() else {}
    except (ValueError, RecursionError) as error:
        return f"not JSON ({getattr(error, 'msg', error)})"
    return None if isinstance(value, dict) else "not a JSON object"


def shown(line: str) -> str:
    """A line, short enough for a message."""
    text = line.strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def printable(name: str) -> str:
    """A name of a column, in a message of one line."""
    return name if name.isprintable() else repr(name)
