"""What the columns of known logs are called, and what they are where a file has no header."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from slmrec.data.files import DELIMITERS, Source, keys, looks_like_events, plain_name, records
from slmrec.errors import DataError

NAMES = {
    "user_col": ("user_id", "reviewerID", "userId"),
    "item_col": ("item_id", "parent_asin", "asin", "movieId"),
    "time_col": ("timestamp", "unixReviewTime"),
    "rating_col": ("rating", "overall"),
    "items_id_col": ("item_id", "parent_asin", "asin", "movieId"),
    "title_col": ("title", "movie_title", "name"),
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
_FIRST_SECOND = 1e8
"""Numbers from here on are times: the spring of 1973, in seconds."""
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
    rows = [row for _, row in islice(records(source, source.files[0]), _ROWS_TO_LOOK_AT) if row]
    if columns is not None:
        if len(columns) != len(rows[0]):
            raise DataError(
                f"{source.path}: line 1 has {len(rows[0])} columns, but prepare.columns names {len(columns)}; name all "
                "of them, in order"
            )
        return Header(list(columns), in_file=False)
    if not any(_number(cell) is not None for cell in rows[0]):
        return Header(rows[0], in_file=True)
    names = _names(source, rows)
    if names is None:
        raise DataError(
            f"{source.path}: line 1 is {DELIMITERS[source.kind].join(rows[0])[:60]!r}: no header, and what the columns "
            "are cannot be told; set prepare.columns, for example to [user_id, item_id, rating, timestamp]"
        )
    return Header(names, in_file=False)


def _names(source: Source, rows: Sequence[Sequence[str]]) -> list[str] | None:
    width = len(rows[0])
    if source.kind == "psv" and width == len(_MOVIELENS_100K):
        return _MOVIELENS_100K
    if source.kind == "dat" and width == 3:
        return ["item_id", "title", "genres"]
    delimiter = DELIMITERS[source.kind]
    if not looks_like_events([delimiter.join(row) for row in rows], delimiter):
        return None
    return _event_names(rows)


def _event_names(rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Of MovieLens' u.data and ratings.dat, check-ins, Amazon's files of ratings alone, and pairs of user and item."""
    pair = _pair(rows)
    last = [_number(row[-1]) for row in rows]
    if pair is None or len(rows[0]) == 2:
        return pair
    if not all(number is not None and abs(number) >= _FIRST_SECOND for number in last):
        return None
    if len(rows[0]) == 3:
        return [*pair, "timestamp"]
    ratings = [_number(row[2]) for row in rows]
    are_ratings = all(number is not None and abs(number) <= _HIGHEST_RATING for number in ratings)
    return [*pair, "rating", "timestamp"] if are_ratings else None


def _pair(rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Which of the first two columns is the user's; Amazon has it both ways."""
    if all(_number(row[0]) is not None for row in rows):
        return ["user_id", "item_id"]
    for names, user, item in ((["user_id", "item_id"], 0, 1), (["item_id", "user_id"], 1, 0)):
        if all(_REVIEWER.fullmatch(row[user]) and _ASIN.fullmatch(row[item]) for row in rows):
            return names
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def place(path: Path | str, names: Sequence[str], setting: str, column: str | None) -> int | None:
    """Where the column of a setting is among the names: that of this name, or the first one of `NAMES`.

    Raises:
        DataError: there is no column of the name, or more than one.
    """
    for wanted in (column,) if column else NAMES[setting]:
        exact = [place for place, name in enumerate(names) if name == wanted]
        places = exact or [place for place, name in enumerate(names) if plain_name(name) == wanted]
        if len(places) > 1:
            raise DataError(f"{path}: {len(places)} columns are named {wanted!r}, expected one; rename the others")
        if places:
            return places[0]
    if column:
        raise missing(path, names, setting, column)
    return None


def missing(path: Path | str, names: Sequence[str], setting: str, column: str | None) -> DataError:
    """The error of a column that is needed and not there."""
    wanted = repr(column) if column else " or ".join(map(repr, NAMES[setting]))
    hint = "; without times, set prepare.order=file to take the order of the file" if setting == "time_col" else ""
    return DataError(
        f"{path}: no column {wanted}; it has {', '.join(names)}; set prepare.{setting} to one of them{hint}"
    )
