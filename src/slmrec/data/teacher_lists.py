"""Lists of a teacher outside: the items that it would recommend to some users, best first, without scores."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slmrec.config.prepare import PrepareConfig
from slmrec.data.dataset import Dataset, Ints
from slmrec.data.engine import connected
from slmrec.data.ids import as_ids_of
from slmrec.data.logs.checks import Check, id_checks
from slmrec.data.logs.columns import ALL_USUAL_NAMES, find_column
from slmrec.data.logs.files import inspect
from slmrec.data.logs.tables import OpenTable, valid_rows, with_table
from slmrec.errors import DataError
from slmrec.files import printable

_SETTINGS = PrepareConfig()
_RANK, _CONFIDENCE = "rank", "confidence"


class TeacherLists(NamedTuple):
    """Lists of items by user, best first; user u (from 0) owns the entries `offsets[u]:offsets[u+1]`."""

    offsets: Ints
    """(U+1,)"""
    items: Ints
    """Items 1..V."""
    places: Ints
    """Places of the items in their lists, from 1; items that the data lack have a place too."""
    confidences: NDArray[np.float32] | None
    """Confidence of the teacher in each item, at least 0; None: not given."""

    @property
    def num_users(self) -> int:
        """Number of users who have a list."""
        return int((np.diff(self.offsets) > 0).sum())


def read_lists(path: Path, dataset: Dataset) -> tuple[TeacherLists, str]:
    """Read a table of lists with one row for each item of a list.

    Args:
        path: A file in any format that `prepare` reads, with the columns `user_id`, `item_id`, `rank` (a whole number,
            the smallest is best) and optionally `confidence` (a number from 0).
        dataset: Data set whose users and items are listed; rows of others are left out.

    Returns:
        The lists, and a sentence that says how many there are and what was left out.

    Raises:
        DataError: The file is missing or damaged, a column is missing, a value is invalid, a user has an item or a rank
            twice, or no row belongs to the data set.
    """
    if not path.exists():
        raise DataError(f"distill.lists: {path}: no such file; give a table with user_id, item_id and rank")
    with (
        TemporaryDirectory(prefix="slmrec-") as folder,
        connected("duckdb", Path(folder), _SETTINGS.memory_limit) as engine,
    ):
        files = inspect(path, "auto", ALL_USUAL_NAMES | {_RANK, _CONFIDENCE}, None)
        if files.format in {"sequences", "reference"}:
            raise DataError(f"{path}: is not a table of lists; expected .csv, .tsv, .parquet or .jsonl with a header")
        rows = with_table(engine, Path(folder), files, None, "error", lambda opened: _rows(opened, path, dataset))
    return _by_user(path, rows, dataset)


def _rows(opened: OpenTable, path: Path, dataset: Dataset) -> pa.Table:
    """Return the columns `user`, `item`, `rank` and optionally `confidence`, with ids as text."""
    names = opened.names()
    indices = {name: _index(path, names, name) for name in ("user_id", "item_id", _RANK, _CONFIDENCE)}
    if missing := [name for name, index in indices.items() if index is None and name != _CONFIDENCE]:
        shown = ", ".join(map(printable, names)) or "none"
        raise DataError(
            f"{path}: no column {missing[0]!r} (columns: {shown}); expected user_id, item_id, rank and optionally "
            "confidence"
        )
    found = {name: names[index] for name, index in indices.items() if index is not None}
    users, user_checks = id_checks(path, found["user_id"], opened.column(found["user_id"]), _SETTINGS.null_values)
    items, item_checks = id_checks(path, found["item_id"], opened.column(found["item_id"]), _SETTINGS.null_values)
    columns: dict[str, Any] = {"user": users, "item": items}
    checks = [*user_checks, *item_checks]
    for name in (_RANK, _CONFIDENCE):
        if name in found:
            raw = opened.column(found[name])
            columns[name] = _number(path, found[name], raw)
            checks.append(_number_check(found[name], raw, columns[name], whole=name == _RANK))
    ids = {"user": found["user_id"], "item": found["item_id"]}
    is_text = users.type().is_string() or items.type().is_string()
    rows, _ = valid_rows(opened, columns, checks, ids, "text" if is_text else _SETTINGS.id_type)
    as_text = {
        name: as_ids_of(rows[name].cast("string"), whole_numbers=pa.types.is_integer(known.type))
        for name, known in (("user", dataset.user_ids), ("item", dataset.item_ids))
    }
    table: pa.Table = rows.mutate(**as_text).order_by("row").drop("row").to_pyarrow()
    return table


def _index(path: Path, names: list[str], name: str) -> int | None:
    settings = {"user_id": "user_col", "item_id": "item_col"}
    if name in settings:
        return find_column(path, names, settings[name], None)
    same = [index for index, other in enumerate(names) if other.strip().casefold() == name]
    if len(same) > 1:
        raise DataError(f"{path}: {len(same)} columns are named {name!r}, expected one; rename the others")
    return same[0] if same else None


def _number(path: Path, name: str, column: Any) -> Any:
    dtype = column.type()
    if dtype.is_string():
        return column.try_cast("float64")
    if dtype.is_boolean() or not dtype.is_numeric():
        raise DataError(
            f"{path}: column {printable(name)!r} has the type {dtype}, expected numbers; convert the column"
        )
    return column.cast("float64")


def _number_check(name: str, raw: Any, number: Any, whole: bool) -> Check:
    wrong = number.isnull() | number.isnan() | number.isinf() | (number < 0)
    if whole:
        wrong = wrong | (number != number.floor())
    expected = "expected a whole number from 0" if whole else "expected a number from 0"
    return Check(wrong.fill_null(True), name, raw, lambda _: expected)


def _by_user(path: Path, rows: pa.Table, dataset: Dataset) -> tuple[TeacherLists, str]:
    users, items = (
        pc.index_in(rows[name], pc.cast(known, pa.string())).to_numpy().astype(float)
        for name, known in (("user", dataset.user_ids), ("item", dataset.item_ids))
    )
    ranks = rows[_RANK].to_numpy()
    order = np.lexsort([ranks, np.nan_to_num(users, nan=dataset.num_users)])
    users, items, ranks = users[order], items[order], ranks[order]
    _check_unique(path, dataset, users, ranks, "rank")
    _check_unique(path, dataset, users, items, "item")
    starts = np.searchsorted(users, users)  # users without a number (NaN) come last
    places = np.arange(len(users)) - starts + 1
    known = ~np.isnan(users) & ~np.isnan(items)
    if not known.any():
        raise DataError(
            f"{path}: none of its {len(rows)} rows names a user and an item of the data set, such as "
            f"{dataset.user_ids[0].as_py()!r} and {dataset.item_ids[0].as_py()!r}; write the ids of the log"
        )
    counts = np.bincount(users[known].astype(np.int64), minlength=dataset.num_users)
    confidences = (
        rows[_CONFIDENCE].to_numpy()[order][known].astype(np.float32) if _CONFIDENCE in rows.column_names else None
    )
    lists = TeacherLists(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        items[known].astype(np.int64) + 1,
        places[known],
        confidences,
    )
    return lists, _message(path, lists, dataset, len(rows), int(np.isnan(users).sum()), int(np.isnan(items).sum()))


def _check_unique(path: Path, dataset: Dataset, users: Any, values: Any, name: str) -> None:
    known = np.flatnonzero(~np.isnan(users) & ~np.isnan(values))
    order = known[np.lexsort([values[known], users[known]])]
    repeated = (np.diff(users[order]) == 0) & (np.diff(values[order]) == 0)
    if repeated.any():
        first = order[np.flatnonzero(repeated)[0]]
        value = int(values[first])
        shown = dataset.item_ids[value].as_py() if name == "item" else value
        raise DataError(
            f"{path}: user {dataset.user_ids[int(users[first])].as_py()!r} has the {name} {shown!r} more than once; "
            "give each item of a list one row, with a rank of its own"
        )


def _message(
    path: Path, lists: TeacherLists, dataset: Dataset, num_rows: int, unknown_users: int, unknown_items: int
) -> str:
    left_out = [f"{unknown_users:,} rows of unknown users"] if unknown_users else []
    left_out += [f"{unknown_items:,} rows of unknown items"] if unknown_items else []
    end = f"; left out: {', '.join(left_out)} of {num_rows:,}" if left_out else ""
    return f"lists of {lists.num_users:,} of {dataset.num_users:,} users from {path}{end}"
