"""Names of the columns of known logs, and the columns of files without a header."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from slmrec.data.logs.files import InputFiles, json_keys
from slmrec.data.logs.formats import (
    delimiter_of,
    excerpt,
    is_time,
    looks_like_events,
    majority,
    normal_name,
    number,
    plain_name,
    regular_rows,
)
from slmrec.data.logs.rows import read_rows
from slmrec.errors import DataError
from slmrec.files import printable

USUAL_NAMES = {
    "user_col": ("user_id", "reviewerID", "userId"),
    "item_col": ("item_id", "parent_asin", "asin", "movieId"),
    "time_col": ("timestamp", "unixReviewTime"),
    "rating_col": ("rating", "overall"),
    "items_id_col": ("item_id", "parent_asin", "asin", "movieId"),
    "title_col": ("title", "movie_title", "item_name", "name"),
}
"""Usual column names by setting of `prepare`; the first name that a table has is used.

Amazon 2014 and 2018 use reviewerID, asin, unixReviewTime and overall; Amazon 2023 uses user_id, parent_asin, timestamp
and rating (its `asin` distinguishes variants of a product); MovieLens uses userId, movieId, timestamp and rating.
"""
_ITEMS = (
    "product_id",
    "article_id",
    "stock_code",
    "sku",
    "book_id",
    "isbn",
    "track_id",
    "song_id",
    "video_id",
    "game_id",
    "game",
)
OTHER_NAMES = {
    "user_col": (
        "customer_id",
        "client_id",
        "visitor_id",
        "member_id",
        "account_id",
        "player_id",
        "player",
        "customer",
        "client",
        "user",
        "uid",
    ),
    "item_col": (*_ITEMS, "item", "product"),
    "time_col": (
        *("time", "datetime", "event_time", "created_at", "invoice_date", "order_date", "purchase_date", "date", "ts"),
        *("played_at", "viewed_at", "purchased_at", "ordered_at", "bought_at", "sold_at", "rated_at", "watched_at"),
        *(
            "listened_at",
            "clicked_at",
            "visited_at",
            "occurred_at",
            "event_date",
            "event_timestamp",
            "transaction_date",
        ),
        *("transaction_time", "sale_date", "review_date", "unix_time", "when"),
    ),
    "rating_col": ("score", "stars"),
    "items_id_col": (*_ITEMS, "item", "product"),
    "title_col": (
        *("item_title", "product_name", "product_title", "book_title", "track_name", "game_name", "description"),
    ),
}
"""Further names by setting, used where a table has no usual name; a message says so."""
QUANTITIES = frozenset(("quantity", "qty"))
"""Names of columns whose negative numbers may be returns, without regard to capitals, spaces and underscores."""
ALL_USUAL_NAMES = frozenset(name for names in (*USUAL_NAMES.values(), *OTHER_NAMES.values()) for name in names)
_NORMAL_NAMES = frozenset(map(normal_name, ALL_USUAL_NAMES))
_GENRES = (
    *("unknown", "action", "adventure", "animation", "children", "comedy", "crime", "documentary", "drama", "fantasy"),
    *("film_noir", "horror", "musical", "mystery", "romance", "sci_fi", "thriller", "war", "western"),
)
_MOVIELENS_100K = ["item_id", "title", "release_date", "video_release_date", "imdb_url", *_GENRES]
_ASIN = re.compile(r"(B0[0-9A-Z]{8}|[0-9]{9}[0-9X])")
_REVIEWER = re.compile(r"A[0-9A-Z]{8,}")
_MAX_RATING = 100
_NUM_SAMPLE_ROWS = 200


class Header(NamedTuple):
    """The column names of a table."""

    names: list[str]
    in_file: bool
    """True if the first line of the file is a header."""


def header(files: InputFiles, columns: Sequence[str] | None) -> Header:
    """Determine the column names of a text table, or the keys of JSON lines.

    Args:
        files: files of any format except `parquet` and `sequences`.
        columns: names for a file without a header.

    Raises:
        DataError: there is no header and the columns cannot be detected, or their number differs from that of
            `columns`.
    """
    if files.format == "jsonl":
        return Header(json_keys(files), in_file=False)
    parts = [_first_rows(files, file) for file in files.names]
    rows = parts[0]
    if columns is not None:
        return Header(_checked(files, columns, len(rows[0])), in_file=False)
    if _is_header(rows[0]):
        _check_headers(files, parts)
        return Header(rows[0], in_file=True)
    names, *names_of_parts = (_detect_names(files, rows) for rows in parts)
    for file, names_of_part in zip(files.names[1:], names_of_parts, strict=True):
        if names_of_part != names:
            raise DataError(
                f"{file}: its columns differ from those of {files.names[0].name}; give the file of the log alone, or "
                "name the columns of all parts: prepare.columns"
            )
    if names is None:
        raise DataError(
            f"{files.path}: line 1 is {_line(files, rows[0])}: no header, and the columns cannot be detected; set "
            "prepare.columns, for example to [user_id, item_id, rating, timestamp]"
        )
    return Header(names, in_file=False)


def _checked(files: InputFiles, columns: Sequence[str], width: int) -> list[str]:
    if len(columns) != width:
        raise DataError(
            f"{files.names[0]}: line 1 has {width} columns, but prepare.columns names {len(columns)}; name all of "
            "them, in order"
        )
    return list(columns)


def _first_rows(files: InputFiles, file: Path) -> list[list[str]]:
    rows = [row.cells for row in islice(read_rows(files, file), _NUM_SAMPLE_ROWS) if not row.error]
    if not any(rows):
        raise DataError(
            f"{file}: its first lines are not rows of a table ({files.format}); correct it, or set prepare.format"
        )
    return list(filter(None, rows))


def _check_headers(files: InputFiles, parts: Sequence[Sequence[Sequence[str]]]) -> None:
    for file, rows in zip(files.names, parts, strict=True):
        if rows[0] != parts[0][0]:
            raise DataError(
                f"{file}: line 1 is {_line(files, rows[0])}, but that of {files.names[0].name} is "
                f"{_line(files, parts[0][0])}; give all parts the same header"
            )
        first = next(read_rows(files, file))
        if first.cells != rows[0]:
            raise DataError(f"{file}: line 1 is {excerpt(first.text)}, expected the column names; remove it")


def _is_header(row: Sequence[str]) -> bool:
    return any(normal_name(cell) in _NORMAL_NAMES for cell in row) or all(number(cell) is None for cell in row)


def _line(files: InputFiles, row: Sequence[str]) -> str:
    return excerpt(delimiter_of(files.format).join(row))


def _detect_names(files: InputFiles, rows: Sequence[list[str]]) -> list[str] | None:
    regular = regular_rows(rows)
    width = len(regular[0])
    if files.format == "psv" and width == len(_MOVIELENS_100K):
        return _MOVIELENS_100K
    if files.format == "dat" and width == 3:
        return ["item_id", "title", "genres"]
    delimiter = delimiter_of(files.format)
    if not looks_like_events([delimiter.join(row) for row in rows], delimiter):
        return None
    return _event_names(regular)


def _event_names(rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Detect the columns of MovieLens' ratings, check-ins, Amazon's files of ratings alone, and user-item pairs."""
    pair = _pair(rows)
    if pair is None or len(rows[0]) == 2:
        return pair
    if not majority(is_time(row[-1]) for row in rows):
        return None
    if len(rows[0]) == 3:
        return [*pair, "timestamp"]
    return [*pair, "rating", "timestamp"] if majority(_is_rating(row[2]) for row in rows) else None


def _is_rating(cell: str) -> bool:
    rating = number(cell)
    return rating is not None and abs(rating) <= _MAX_RATING


def _pair(rows: Sequence[Sequence[str]]) -> list[str] | None:
    """Detect which of the first two columns holds the users; Amazon has files with either order."""
    for names, user, item in ((["user_id", "item_id"], 0, 1), (["item_id", "user_id"], 1, 0)):
        if majority(bool(_REVIEWER.fullmatch(row[user]) and _ASIN.fullmatch(row[item])) for row in rows):
            return names
    return ["user_id", "item_id"] if majority(number(row[0]) is not None for row in rows) else None


def find_column(
    path: Path | str, names: Sequence[str], setting: str, column: str | None, other_names: bool = True
) -> int | None:
    """Return the index of the column of a setting, or None if no usual name is present.

    A name matches as it is, or else without regard to capitals, spaces and underscores (`Customer ID`).

    Args:
        path: the table, for messages.
        names: the column names of the table.
        setting: the setting of `prepare`, a key of `USUAL_NAMES`.
        column: the name that the user set, or None for the usual names.
        other_names: whether names of `OTHER_NAMES` match too.

    Raises:
        DataError: the table does not have the column that the user set, or has several columns of that name.
    """
    usual = (column,) if column else USUAL_NAMES[setting]
    for rule in (str.strip, _plain, normal_name):
        others = OTHER_NAMES[setting] if other_names and not column and rule is normal_name else ()
        for name in (*usual, *others):
            matches = [index for index, candidate in enumerate(names) if rule(candidate) == rule(name)]
            if len(matches) > 1:
                raise _ambiguous(path, setting, name, [names[index] for index in matches])
            if matches:
                return matches[0]
    if column:
        raise DataError(f"{path}: no column {column!r}; {_available(names)}; set prepare.{setting} to one of them")
    return None


def title_column(names: Sequence[str]) -> str | None:
    """Return the name of the only column of a log that may hold titles of items, or None.

    Amazon's reviews of 2023, which have `parent_asin`, have titles of reviews.
    """
    usual = set(map(normal_name, (*USUAL_NAMES["title_col"], *OTHER_NAMES["title_col"])))
    matches = [name for name in names if normal_name(name) in usual]
    return matches[0] if len(matches) == 1 and "parent_asin" not in names else None


def _plain(name: str) -> str:
    return plain_name(name.strip())


def _ambiguous(path: Path | str, setting: str, name: str, matches: Sequence[str]) -> DataError:
    if len(set(map(_plain, matches))) == 1:
        return DataError(f"{path}: {len(matches)} columns are named {name!r}, expected one; rename the others")
    return DataError(
        f"{path}: {' and '.join(map(printable, matches))} may each be the column {name!r}; set prepare.{setting} to "
        "one of them"
    )


def recognised(columns: Mapping[str, str], given: Mapping[str, str | None]) -> str:
    """Return which columns are read under another than a usual name, as the end of a message, or an empty text.

    Args:
        columns: the column name of each setting.
        given: the column names that the user set.
    """
    other = {
        setting: name
        for setting, name in columns.items()
        if _plain(name) not in USUAL_NAMES.get(setting, ()) and _plain(name) != given.get(setting)
    }
    taken = ", ".join(f"{setting.removesuffix('_col')}: {printable(name.strip())}" for setting, name in other.items())
    return taken and f"columns recognised: {taken} (to read others, set {', '.join(f'prepare.{key}' for key in other)})"


def missing_columns(path: Path | str, names: Sequence[str], settings: Sequence[str]) -> DataError:
    """Return the error for required columns that a table lacks, given the settings that name them."""
    missing = "; ".join(f"no column {' or '.join(map(repr, USUAL_NAMES[setting]))}" for setting in settings)
    remedy = f"set {', '.join(f'prepare.{setting}' for setting in settings)} to one of them"
    if "user_col" in settings:
        remedy += ", or, if these are values of a file without header, prepare.columns to the names"
    if "time_col" in settings:
        remedy += "; without times, set prepare.order=file to take the order of the file"
    return DataError(f"{path}: {missing}; {_available(names)}; {remedy}")


def _available(names: Sequence[str]) -> str:
    return f"it has {', '.join(map(printable, names)) or 'none'}"
