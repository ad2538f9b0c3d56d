"""Catalogue: item ids, titles and counts of a model folder, found by id."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from slmrec.models.folder import Vocabulary

ItemId = str | int


class Catalogue:
    """Vocabulary of a model, with lookups between the caller's item ids and items, the model's numbers from 1 to V.

    Ids are compared as text, so 7 and "7" are the same id.

    Args:
        vocabulary: Item ids, titles and counts in the order of the items.

    Example:
        >>> import pyarrow as pa
        >>> catalogue = Catalogue(Vocabulary(pa.array(["a", "b"]), None, pa.array([3, 5])))
        >>> catalogue.known(["b", "x", "a"]), catalogue.unknown(["b", "x", "a"])
        ([2, 1], ['x'])
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.item_ids: list[ItemId] = vocabulary.item_ids.to_pylist()
        self.items = {str(item_id): item for item, item_id in enumerate(self.item_ids, 1)}
        """Items by the text of their ids."""
        self.counts: NDArray[np.float32] = vocabulary.counts.to_numpy(zero_copy_only=False).astype(np.float32)
        """(V,) number of events of each item in the train split."""
        removed = vocabulary.removed
        self.removed = set() if removed is None else {item for item, gone in enumerate(removed.to_pylist(), 1) if gone}
        """Items that are never recommended; they still count in histories."""

    @cached_property
    def titles(self) -> list[str | None]:
        """Title of each item; None where an item has no title."""
        titles = self._vocabulary.titles
        return [None] * len(self.item_ids) if titles is None else titles.to_pylist()

    def known(self, item_ids: Iterable[ItemId]) -> list[int]:
        """Return the items of ids, without unknown ids."""
        items = self.items
        return [items[key] for item_id in item_ids if (key := str(item_id)) in items]

    def unknown(self, item_ids: Iterable[ItemId]) -> list[ItemId]:
        """Return the unknown ids."""
        return [item_id for item_id in item_ids if str(item_id) not in self.items]

    def described(self, item: int) -> dict[str, ItemId | str | None]:
        """Return id and title of an item."""
        return {"item_id": self.item_ids[item - 1], "title": self.titles[item - 1]}
