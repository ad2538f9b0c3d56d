"""Detection of a file's format from its first lines: one user per line, a delimited table, or JSON lines."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, cast

from slmrec.data.logs.literals import as_json
from slmrec.files import parse_json

Format = Literal[
    "sequences", "csv", "tsv", "recbole", "scsv", "ssv", "psv", "dat", "parquet", "jsonl", "literal", "reference"
]

FORMATS = "one user a line (.txt), .csv, .tsv, .dat, .parquet or .jsonl, each plain, .gz, .zst or .zip"
DELIMITERS = {"csv": ",", "tsv": "\t", "scsv": ";", "ssv": " ", "psv": "|", "dat": "::", "recbole": "\t"}
QUOTED = {"csv", "tsv", "scsv", "reference"}
"""Formats in which a quoted field may contain delimiters and line breaks."""
_SUFFIXES: dict[str, Format] = {
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
_COMPRESSION_SUFFIXES = {".gz", ".zst", ".zip"}
_EARLIEST_SECOND = 1e8
"""Numbers from here on are taken for times; in seconds, this is the spring of 1973."""


def format_of_name(path: Path) -> Format | None:
    """Return the format that a file's name implies, whether or not the file is compressed.

    Example:
        >>> format_of_name(Path("histories.jsonl.gz"))
        'jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSION_SUFFIXES]
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def format_of_lines(text: Sequence[str], columns: Collection[str], by_name: Format | None) -> Format | None:
    """Detect the format from the first lines that are not blank; ambiguous content has the format of the name.

    Args:
        text: the lines, without line ends.
        columns: usual names of columns; a first line that contains one of them is a header.
        by_name: the result of `format_of_name`.
    """
    objects = [line.lstrip().startswith("{") for line in text]
    if any(objects[:1]) or majority(objects):
        return _format_of_objects(text)
    if by_name in {"jsonl", "parquet"} or not text:
        return by_name
    if majority(line.count("::") > 1 for line in text):
        return "dat"
    format = _format_of_table(text, columns, by_name)
    if format == "tsv" and any(plain_name(name) != name for name in text[0].split("\t")):
        return "recbole"  # RecBole's files have no quoting
    if format == "csv" and _has_lists(text, columns):
        return "reference"
    return format


def _format_of_objects(text: Sequence[str]) -> Format:
    for line in text:
        if not json_object_error(line):
            return "jsonl"
        if as_json(line) != line:
            return "literal"
    return "jsonl"


def _format_of_table(text: Sequence[str], columns: Collection[str], by_name: Format | None) -> Format | None:
    for format, delimiter in DELIMITERS.items():
        if _is_header(text[0], delimiter, columns):
            return cast(Format, format)
    if DELIMITERS.get(by_name or "", "\0") not in text[0] and majority(line.count("|") > 1 for line in text):
        return "psv"
    if by_name in ("csv", "tsv"):
        candidates: tuple[Format, ...] = (by_name, "csv", "tsv", "scsv")
        return next((format for format in candidates if DELIMITERS[format] in text[0]), by_name)
    events = (format for format, delimiter in DELIMITERS.items() if looks_like_events(text, delimiter))
    if format_of_events := cast(Format | None, next(events, None)):
        return format_of_events
    return "sequences" if len(text[0].split()) > 1 and "," not in text[0] else by_name


def looks_like_events(text: Sequence[str], delimiter: str) -> bool:
    """Return whether lines look like a table of events with two to four columns, not like one user per line.

    In a table of events, values of the first column repeat, or the last column holds times and the delimiter is not a
    space.
    """
    rows = [line.strip(" ").split(delimiter) for line in text]
    regular = regular_rows(rows)
    enough = len(regular) == len(rows) if delimiter == " " else 2 * len(regular) > len(rows)
    if not enough or not 2 <= len(regular[0]) <= 4:
        return False
    if len({row[0] for row in regular}) < len(regular):
        return True
    return delimiter != " " and len(regular[0]) > 2 and majority(is_time(row[-1]) for row in regular)


def regular_rows(rows: Sequence[list[str]]) -> list[list[str]]:
    """Return the rows with the most common number of cells; the other rows are malformed."""
    width, _ = Counter(map(len, rows)).most_common(1)[0]
    return [row for row in rows if len(row) == width]


def majority(conditions: Iterable[bool]) -> bool:
    """Return whether more than half of the conditions hold, so that a few malformed rows do not matter."""
    values = list(conditions)
    return 2 * sum(values) > len(values)


def is_time(cell: str) -> bool:
    """Return whether a cell is a number large enough to be a time; ratings and small ids are not."""
    time = number(cell)
    return time is not None and abs(time) >= _EARLIEST_SECOND


def number(text: str) -> float | None:
    """Return the number that a text represents, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def _is_header(line: str, delimiter: str, columns: Collection[str]) -> bool:
    """Return whether a line contains a usual name, or two if they are words between spaces."""
    names = {normal_name(name.strip().strip('"')) for name in line.split(delimiter)}
    return len(names.intersection(map(normal_name, columns))) >= (2 if delimiter == " " else 1)


def _has_lists(text: Sequence[str], columns: Collection[str]) -> bool:
    names, *rows = csv.reader(io.StringIO("\n".join(text[:2])))
    cells = dict(zip(names, rows[0], strict=False)) if rows else {}
    usual = set(map(normal_name, columns))
    return any(cell.startswith("[") for name, cell in cells.items() if normal_name(name) in usual)


def plain_name(column: str) -> str:
    """Return the name of a column without the type suffix of RecBole's headers.

    Example:
        >>> plain_name("user_id:token")
        'user_id'
    """
    name, _, suffix = column.partition(":")
    return name if suffix in {"token", "float", "token_seq", "float_seq"} else column


def normal_name(column: str) -> str:
    """Return the name of a column without capitals, spaces, underscores and type suffix.

    Example:
        >>> normal_name(" Customer ID "), normal_name("customer_id"), normal_name("CustomerId:token")
        ('customerid', 'customerid', 'customerid')
    """
    return re.sub(r"[\W_]+", "", plain_name(column.strip()).casefold())


def delimiter_of(format: Format) -> str:
    """Return the delimiter of a text table."""
    return DELIMITERS["csv" if format == "reference" else format]


def json_error(line: str) -> str | None:
    """Return an excerpt of a line and why it is not a JSON object; None if it is one, or blank."""
    error = json_object_error(line)
    return error and f"{excerpt(line)} is {error}"


def json_object_error(line: str) -> str | None:
    """Return why a line is not a JSON object with distinct keys; None if it is one, or blank."""
    try:
        value = parse_json(line) if line.strip() else {}
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg})"
    except ValueError as error:
        return f"not a row ({error})"
    return None if isinstance(value, dict) else "not a JSON object"


def excerpt(line: str) -> str:
    """Return the quoted beginning of a line, short enough for a message; control characters are escaped."""
    text = line.strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
