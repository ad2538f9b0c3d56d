"""Catalogue: item ids, titles and counts of a model folder, found by id."""

import re
from collections.abc import Iterable
from decimal import Decimal
from functools import cached_property
from reprlib import repr as shortened
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from slmrec.data.ids import MAX_EXACT_FLOAT, WHOLE_NUMBER, id_text, is_missing
from slmrec.models.folder import Vocabulary

ItemId = str | int


class ItemIdError(ValueError):
    """A value of a list is no item id.

    Args:
        position: Index of the value.
        value: The value.
        reason: What was expected.
    """

    def __init__(self, position: int, value: Any, reason: str) -> None:
        super().__init__(f"item {position + 1} is {shortened(value)}: {reason}")
        self.position, self.value, self.reason = position, value, reason


class Catalogue:
    """Vocabulary of a model, with lookups between the caller's item ids and items, the model's numbers from 1 to V.

    Ids are read by the type of the catalogue: 7, 7.0, "7" and "7.0" are the same id where all ids are whole numbers.
    Text ids are compared as they are written, without spaces around them; numbers are then compared by their text.

    Args:
        vocabulary: Item ids, titles and counts in the order of the items.

    Example:
        >>> import pyarrow as pa
        >>> catalogue = Catalogue(Vocabulary(pa.array(["a", "b"]), None, pa.array([3, 5])))
        >>> catalogue.known(["b", "x", "a"])
        [2, 1]
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.item_ids: list[ItemId] = vocabulary.item_ids.to_pylist()
        self.items = {str(item_id): item for item, item_id in enumerate(self.item_ids, 1)}
        """Items by the text of their ids."""
        self.has_whole_numbers = pa.types.is_integer(vocabulary.item_ids.type) or _are_huge_numbers(self.items)
        """True if all ids are whole numbers."""
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

    @cached_property
    def id_pattern(self) -> str:
        """Pattern of an item id in a history written as text; commas separate ids unless some id contains one."""
        return r"\S+" if any("," in item_id for item_id in self.items) else r"[^\s,]+"

    @cached_property
    def has_text_json_ids(self) -> bool:
        """True if ids are text in JSON: they are text, or some number is beyond 2^53, which browsers would change."""
        return any(isinstance(item_id, str) or abs(item_id) > MAX_EXACT_FLOAT for item_id in self.item_ids)

    def find(self, item_id: Any) -> int | None:
        """Return the item of an id; None if it is unknown.

        Raises:
            ValueError: The value is no id, such as None, a list, or a fraction where all ids are whole numbers.

        Example:
            >>> import pyarrow as pa
            >>> catalogue = Catalogue(Vocabulary(pa.array([70, 80]), None, pa.array([3, 5])))
            >>> [catalogue.find(item_id) for item_id in (80, 80.0, " 80", "80.0", "x")]
            [2, 2, 2, 2, None]
        """
        if isinstance(item_id, np.floating) and abs(item_id) > 2 ** (np.finfo(type(item_id)).nmant + 1):
            raise ValueError("a float that is too large to be exact; give the id as a whole number or as text")
        for convert in ("as_py", "tolist"):  # values of Arrow, NumPy and PyTorch
            if hasattr(item_id, convert):
                item_id = getattr(item_id, convert)()
        if isinstance(item_id, str) and item_id in self.items:
            return self.items[item_id]
        item = self.items.get(id_text(item_id, self.has_whole_numbers))
        if item is None and isinstance(item_id, float | Decimal):  # a column with missing ids is one of floats
            item = self.items.get(id_text(item_id, whole_numbers=True))
        if item is None and is_missing(item_id):
            raise ValueError("expected an id")
        return item

    def split(self, item_ids: Iterable[Any]) -> tuple[list[int], list[Any]]:
        """Return the items of the known ids, and the unknown ids.

        Raises:
            ItemIdError: A value is no id.

        Example:
            >>> import pyarrow as pa
            >>> Catalogue(Vocabulary(pa.array(["a", "b"]), None, pa.array([3, 5]))).split(["b", "x", "a"])
            ([2, 1], ['x'])
        """
        known: list[int] = []
        unknown: list[Any] = []
        items = self.items
        for position, item_id in enumerate(item_ids):
            text = str(item_id) if type(item_id) is int else item_id
            item = items.get(text) if type(text) is str else None  # the usual case is fast
            if item is None:
                try:
                    item = self.find(item_id)
                except ValueError as error:
                    raise ItemIdError(position, item_id, str(error)) from None
            if item is None:
                unknown.append(item_id)
            else:
                known.append(item)
        return known, unknown

    def times_of_known(self, item_ids: Iterable[Any], times: Iterable[int]) -> list[int]:
        """Return the times of the known items of a history that `split` has accepted."""
        return [time for item_id, time in zip(item_ids, times, strict=True) if self.find(item_id) is not None]

    def known(self, item_ids: Iterable[Any]) -> list[int]:
        """Return the items of ids, without unknown ids.

        Raises:
            ItemIdError: A value is no id.
        """
        return self.split(item_ids)[0]

    def described(self, item: int) -> dict[str, ItemId | str | None]:
        """Return id and title of an item, for JSON."""
        item_id = self.item_ids[item - 1]
        return {"item_id": str(item_id) if self.has_text_json_ids else item_id, "title": self.titles[item - 1]}


def _are_huge_numbers(item_ids: Iterable[str]) -> bool:
    """Return whether ids that are text are whole numbers, some of them outside of the 64-bit types."""
    texts = list(item_ids)
    return any(len(text) > 18 for text in texts) and all(re.fullmatch(WHOLE_NUMBER, text) for text in texts)
