"""What the columns of known logs are called, and what they are where a file has no header."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from slmrec.data.logs.files import Source, keys
from slmrec.data.logs.formats import (
    delimiter_of,
    is_time,
    looks_like_events,
    most,
    most_alike,
    number,
    plain_name,
    printable,
    shown,
)
from slmrec.data.logs.rows import records
from slmrec.errors import DataError

NAMES = {
    "user_col": ("user_id", "reviewerID", "userId"),
    "item_col": ("item_id", "parent_asin", "asin", "movieId"),
    "time_col": ("timestamp", "unixReviewTime"),
    "rating_col": ("rating", "overall"),
    "items_id_col": ("item_id", "parent_asin", "asin", "movieId"),
    "title_col": ("title", "movie_title", "item_name", "name"),
}
"""By setting of `prepare`: the names that are looked for, the first one that is there counts.

Amazon 2014 and 2018 say reviewerID, asin, unixReviewTime and overall; Amazon 2023 user_id, parent_asin, timestamp and
rating (its `asin` tells variants of a product apart); MovieLens userId, movieId, timestamp and rating.
"""
KNOWN = frozenset(name for names in NAMES.values() for name in names)
_GENRES = (
    *("unknown", "action", "adventure", "animation", "children", "comedy", "crime", "documentary", "drama", "fantasy"),
    *("film_noir", "horror", "musical", "mystery", "romance", "sci_fi", "thriller", "war", "western"),
)
_MOVIELENS_100K = ["item_id", "title", "release_date", "video_release_date", "imdb_url", *_GENRES]
_ASIN = re.compile(r"(B0[0-9A-Z]{8}|[0-9]{9}[0-9X])")
_REVIEWER = re.compile(r"A[0-9A-Z]{8,}")
_HIGHEST_RATING = 100
_ROWS_TO_LOOK_AT = 200


class Header(NamedTuple):
    """The names of a table's columns."""

    names: list[str]
    in_file: bool
    """Whether the file's first line is a header."""


def header(source: Source, columns: Sequence[str] | None) -> Header:
    """The names of the columns of a table that is text, or of the keys of json lines.

    Args:
        source: of any kind but parquet and one user a line.
        columns: names for a file without header.

    Raises:
        DataError: there is no header and the columns cannot be told, or are more or fewer than the names given.
    """
    if source.kind == "jsonl":
        return Header(keys(source), in_file=False)
    parts = [_first_rows(source, file) for file in source.names]
    rows = parts[0]
    if columns is not None:
        return Header(_checked(source, columns, len(rows[0])), in_file=False)
    if _is_header(rows[0]):
        _check_headers(source, parts)
        return Header(rows[0], in_file=True)
    names, *others = (_names(source, rows) for rows in parts)
    for file, other in zip(source.names[1:], others, strict=True):
        if other != names:
            raise DataError(
                f"{file}: its columns are not those of {source.names[0].name}; give the file of the log alone, or "
                "name the columns of all parts: prepare.columns"
            )
    if names is None:
        raise DataError(
            f"{source.path}: line 1 is {_line(source, rows[0])}: no header, and what the columns "
            "are cannot be told; set prepare.columns, for example to [user_id, item_id, rating, timestamp]"
        )
    return Header(names, in_file=False)


def _checked(source: Source, columns: Sequence[str], width: int) -> list[str]:
    if len(columns) != width:
        raise DataError(
            f"{source.names[0]}: line 1 has {width} columns, but prepare.columns names {len(columns)}; name all of "
            "them, in order"
        )
    return list(columns)


def _first_rows(source: Source, file: Path) -> list[list[str]]:
    rows = [record.cells for record in islice(records(source, file), _ROWS_TO_LOOK_AT) if not record.fault]
    if not any(rows):
        raise DataError(
            f"{file}: its first lines are no rows of a table ({source.kind}); mend it, or set prepare.format"
        )
    return list(filter(None, rows))


def _check_headers(source: Source, parts: Sequence[Sequence[Sequence[str]]]) -> None:
    for file, rows in zip(source.names, parts, strict=True):
        if rows[0] != parts[0][0]:
            raise DataError(
                f"{file}: line 1 is {_line(source, rows[0])}, but that of {source.names[0].name} is "
                f"{_line(source, parts[0][0])}; give all parts the same header"
            )
        first = next(records(source, file))
        if first.cells != rows[0]:
            raise DataError(f"{file}: line 1 is {shown(first.text)}, expected the names of the columns; remove it")


def _is_header(row: Sequence[str]) -> bool:
    return any(plain_name(cell) in KNOWN for cell in row) or all(number(cell) is None for cell in row)


def _line(source: Source, row: Sequence[str]) -> str:
    return shown(delimiter_of(source.kind).join(row))


def _names(source: Source, rows: Sequence[list[str]]) -> list[str] | None:
    alike = most_alike(rows)
    width = len(alike[0])
    if source.kind == "psv" and width == len(_MOVIELENS_100K):
        return _MOVIELENS_100K
    if source.kind == "dat" and width == 3:
        return ["item_id", "title", "genres"]
    delimiter = delimiter_of(source.kind)
    if not looks_like_events([delimiter.join(row) for row in rows], delimiter):
        return None
    return _event_names(alike)


def _event_names(rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Of MovieLens' u.data and ratings.dat, check-ins, Amazon's files of ratings alone, and pairs of user and item."""
    pair = _pair(rows)
    if pair is None or len(rows[0]) == 2:
        return pair
    if not most(is_time(row[-1]) for row in rows):
        return None
    if len(rows[0]) == 3:
        return [*pair, "timestamp"]
    return [*pair, "rating", "timestamp"] if most(_is_rating(row[2]) for row in rows) else None


def _is_rating(cell: str) -> bool:
    rating = number(cell)
    return rating is not None and abs(rating) <= _HIGHEST_RATING


def _pair(rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Which of the first two columns is the user's; Amazon has it both ways."""
    for names, user, item in ((["user_id", "item_id"], 0, 1), (["item_id", "user_id"], 1, 0)):
        if most(bool(_REVIEWER.fullmatch(row[user]) and _ASIN.fullmatch(row[item])) for row in rows):
            return names
    return ["user_id", "item_id"] if most(number(row[0]) is not None for row in rows) else None


def place(path: Path | str, names: Sequence[str], setting: str, column: str | None) -> int | None:
    """Where the column of a setting is among the names: that of this name, or the first one of `NAMES`.

    Raises:
        DataError: there is no column of the name, or more than one.
    """
    for wanted in (column,) if column else NAMES[setting]:
        exact = [place for place, name in enumerate(names) if name.strip() == wanted]
        places = exact or [place for place, name in enumerate(names) if plain_name(name.strip()) == wanted]
        if len(places) > 1:
            raise DataError(f"{path}: {len(places)} columns are named {wanted!r}, expected one; rename the others")
        if places:
            return places[0]
    if column:
        raise DataError(f"{path}: no column {column!r}; {_it_has(names)}; set prepare.{setting} to one of them")
    return None


def missing(path: Path | str, names: Sequence[str], settings: Sequence[str]) -> DataError:
    """The error of columns that are needed and not there, by the settings that name them."""
    wanted = "; ".join(f"no column {' or '.join(map(repr, NAMES[setting]))}" for setting in settings)
    remedy = f"set {', '.join(f'prepare.{setting}' for setting in settings)} to one of them"
    if "user_col" in settings:
        remedy += ", or, if these are values of a file without header, prepare.columns to the names"
    if "time_col" in settings:
        remedy += "; without times, set prepare.order=file to take the order of the file"
    return DataError(f"{path}: {wanted}; {_it_has(names)}; {remedy}")


def _it_has(names: Sequence[str]) -> str:
    return f"it has {', '.join(map(printable, names)) or 'none'}"
