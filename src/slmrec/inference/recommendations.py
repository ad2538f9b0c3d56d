"""Recommendations: lists of items for users, and what was unknown in their histories."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from slmrec.errors import UnknownItemsWarning
from slmrec.html_tables import html_table
from slmrec.inference.catalogue import ItemId
from slmrec.inference.ranking import Ranked

_SHOWN_ROWS = 50
"""Largest number of rows that a notebook shows."""


@dataclass(frozen=True)
class Recommendations:
    """Answer of `Recommender.recommend`.

    Example:
        >>> from slmrec import Recommender
        >>> answer = Recommender.from_pretrained(folder).recommend([["i01", "i02"], ["i07", "unknown"]], k=3)
        >>> answer.table.column_names, answer.sizes, answer.unknown
        (['user_id', 'item_id', 'score', 'rank'], (3, 3), ((), ('unknown',)))
    """

    table: pa.Table
    """`user_id, item_id, score, rank`: best first, rank from 1; fewer than k rows if no more items are left."""
    sizes: tuple[int, ...]
    """Number of rows of each user, in the order of the request."""
    unknown: tuple[tuple[Any, ...], ...]
    """Items of each user's history that the model does not know; they were ignored."""
    fallback_users: tuple[Any, ...]
    """Users without a known item in their history; they get the most popular items."""

    lost_users: tuple[Any, ...] = ()
    """Users of `fallback_users` whose history is not empty."""
    title: Callable[[ItemId], str | None] | None = field(default=None, repr=False, compare=False)
    """Function that returns the title of an item, for notebooks."""

    def _repr_html_(self) -> str:
        """Return the first rows as a table, with titles where the model has them."""
        columns = ["user_id", "rank", "item_id", "score"]
        rows = [list(row.values()) for row in self.table.select(columns).slice(0, _SHOWN_ROWS).to_pylist()]
        titles = [self.title(item_id) if self.title else None for _, _, item_id, _ in rows]
        if any(titles):
            columns, rows = [*columns, "title"], [[*row, title] for row, title in zip(rows, titles, strict=True)]
        return html_table(columns, rows, f"{len(rows):,} of {len(self.table):,} rows")

    def warn_of_lost_users(self, num_known: int) -> None:
        """Warn of users whose history contains only unknown items; `num_known` is the number of known items."""
        if self.lost_users:
            num_items = num_known + self.num_unknown
            warnings.warn(
                f"{len(self.lost_users)} of {len(self.sizes)} users, the first one {self.lost_users[0]!r}, have only "
                f"unknown items in their history and get the most popular items; {self.num_unknown} of {num_items} "
                f"item ids ({self.num_unknown / num_items:.0%}) are unknown, the first one {self.first_unknown!r}",
                UnknownItemsWarning,
                stacklevel=3,
            )

    @property
    def num_unknown(self) -> int:
        """Number of ignored items of all users."""
        return sum(map(len, self.unknown))

    @property
    def first_unknown(self) -> Any:
        """First ignored item; None if there is none."""
        return next((item for items in self.unknown for item in items), None)

    def to_lists(self) -> list[list[tuple[ItemId, float]]]:
        """Return for each user, in the order of the request, item ids and scores, best first."""
        rows = zip(self.table["item_id"].to_pylist(), self.table["score"].to_pylist(), strict=True)
        return [[next(rows) for _ in range(size)] for size in self.sizes]


def table_of(users: list[Any], ranked: list[Ranked], item_ids: pa.Array) -> pa.Table:
    """Return `user_id, item_id, score, rank` for the ranked items of some users, given the ids of all items."""
    sizes = np.array([len(one) for one in ranked], dtype=np.int64)
    items = np.concatenate([*(one.items for one in ranked), np.zeros(0, dtype=np.int64)])
    firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return pa.table(
        {
            "user_id": _id_array(users).take(pa.array(np.repeat(np.arange(len(ranked)), sizes))),
            "item_id": item_ids.take(pa.array(items - 1)),
            "score": pa.array(np.concatenate([*(one.scores for one in ranked), np.zeros(0, dtype=np.float32)])),
            "rank": pa.array(np.arange(len(items)) - firsts + 1),
        }
    )


def _id_array(ids: list[Any]) -> pa.Array:
    """Return ids as an array; unsigned numbers stay numbers, and ids of several types become text."""
    for id_type in (None, pa.uint64()):
        try:
            return pa.array(ids, id_type)
        except (OverflowError, TypeError, pa.ArrowException):
            continue
    return pa.array(list(map(str, ids)))
