"""Drift from an old to a new data set: new items and users, shift of popularity and of history lengths."""

import glob
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt

from slmrec.data.statistics.describe import Bin, Description, describe
from slmrec.data.statistics.tables import data_folder, opened, row
from slmrec.errors import DataError
from slmrec.files import one_line


class Entries(NamedTuple):
    """Items or users of the new data set that the old one does not have, and the reverse; only those with events."""

    num_new: int
    share_new: float
    """Share of the items (users) of the new data set that are new."""
    share_events: float
    """Share of the events of the new data set on new items (of new users)."""
    num_gone: int
    """Number of items (users) of the old data set that the new one does not have."""
    share_gone: float


class Drift(NamedTuple):
    """Differences between two data sets.

    A Jensen-Shannon distance is the square root of the divergence in base 2: 0 for equal distributions, 1 for those
    without a common value.
    """

    old: Description
    new: Description
    items: Entries
    users: Entries
    share_users_new_item: float
    """Share of the users of the new data set whose history has a new item."""
    share_users_newest_item_new: float
    """Share of the users of the new data set whose newest item is new."""
    popularity_distance: float
    """Jensen-Shannon distance of the shares of events on each item."""
    common_popularity_distance: float | None
    """The same among the items that both data sets have; None if there are none."""
    length_distance: float
    """Jensen-Shannon distance of history lengths, in bins of powers of two."""


def drift(old: Path, new: Path) -> Drift:
    """Compare two data sets by the ids of their items and users.

    Args:
        old: Folder of a data set or of a run.
        new: Folder of a later data set, with the events of the old one or without.

    Raises:
        DataError: A folder is not a data set, or the ids of one are numbers and those of the other are text.
    """
    described = describe(old), describe(new)
    with opened(new) as (engine, _):
        try:
            for folder, name in ((old, "old"), (new, "new")):
                _count(engine, data_folder(folder), name)
            _check_types(engine, old, new)
            old_counts, new_counts = _counts(engine, "item")
            items, users = _entries(old_counts, new_counts), _entries(*_counts(engine, "user"))
            any_new, newest_new = row(
                engine,
                """
                SELECT mean(any_new::INT), mean(newest_new::INT) FROM (
                    SELECT bool_or(is_new) AS any_new, arg_max(is_new, position) AS newest_new
                    FROM log JOIN (
                        SELECT item, item_id NOT IN (SELECT id FROM old_item) AS is_new FROM items
                    ) USING (item) GROUP BY "user"
                )
                """,
            )
        except duckdb.Error as error:
            raise DataError(f"{old}, {new}: damaged data set ({one_line(error)}); run prepare again") from None
    common = (old_counts > 0) & (new_counts > 0)
    return Drift(
        *described,
        items=items,
        users=users,
        share_users_new_item=any_new,
        share_users_newest_item_new=newest_new,
        popularity_distance=jensen_shannon(old_counts, new_counts),
        common_popularity_distance=jensen_shannon(old_counts[common], new_counts[common]) if common.any() else None,
        length_distance=jensen_shannon(*_aligned(*(data.histories.bins for data in described))),
    )


def jensen_shannon(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the Jensen-Shannon distance in base 2 of two distributions, given by counts of the same values.

    Example:
        >>> jensen_shannon([3, 1], [6, 2]), jensen_shannon([1, 0], [0, 1])
        (0.0, 1.0)
    """
    shares = [np.asarray(counts, np.float64) / np.sum(counts) for counts in (first, second)]
    middle = (shares[0] + shares[1]) / 2
    entropies = [float(np.sum(share[share > 0] * np.log2((share / middle)[share > 0]))) for share in shares]
    return float(np.sqrt(min(max(sum(entropies) / 2, 0.0), 1.0)))


def _count(engine: Any, folder: Path, name: str) -> None:
    """Create the tables `NAME_item` and `NAME_user` with the ids and their numbers of events."""
    log = engine.read_parquet(glob.escape(str(folder / "interactions.parquet")))
    for entry in ("item", "user"):
        ids = engine.read_parquet(glob.escape(str(folder / f"{entry}s.parquet")))
        counts = log.aggregate(f'"{entry}", count(*) AS num').join(ids, entry)
        counts.project(f"{entry}_id AS id, num").create(f"{name}_{entry}")


def _check_types(engine: Any, old: Path, new: Path) -> None:
    for entry in ("item", "user"):
        types = [engine.table(f"{name}_{entry}").types[0] for name in ("old", "new")]
        is_text = [type == "VARCHAR" for type in types]
        if is_text[0] != is_text[1]:
            kinds = ["text" if text else "numbers" for text in is_text]
            raise DataError(
                f"{entry} ids are {kinds[0]} in {old} and {kinds[1]} in {new}, so they cannot be compared; prepare "
                "both with prepare.id_type=text"
            )


def _counts(engine: Any, entry: str) -> list[npt.NDArray[np.int64]]:
    """Return the events of each id in the old and in the new data set; 0 where it has none."""
    counts = engine.execute(
        f"SELECT coalesce(a.num, 0) AS old, coalesce(b.num, 0) AS new FROM old_{entry} a FULL JOIN new_{entry} b "
        "USING (id)"
    ).fetchnumpy()
    return [np.asarray(counts[name], np.int64) for name in ("old", "new")]


def _entries(old: npt.NDArray[np.int64], new: npt.NDArray[np.int64]) -> Entries:
    num_new, num_gone = int(np.sum(old == 0)), int(np.sum(new == 0))
    return Entries(
        num_new=num_new,
        share_new=num_new / int(np.sum(new > 0)),
        share_events=int(new[old == 0].sum()) / int(new.sum()),
        num_gone=num_gone,
        share_gone=num_gone / int(np.sum(old > 0)),
    )


def _aligned(old: tuple[Bin, ...], new: tuple[Bin, ...]) -> tuple[list[int], list[int]]:
    lows = sorted({bin.low for bin in (*old, *new)})
    first, second = ({bin.low: bin.num for bin in bins} for bins in (old, new))
    return [first.get(low, 0) for low in lows], [second.get(low, 0) for low in lows]
