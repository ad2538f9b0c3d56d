"""Title search over a catalogue, fast enough for search-as-you-type."""

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from slmrec.inference.catalogue import Catalogue


class TitleIndex:
    """Substring index: one string with all titles, most popular item first, so that a search can stop early."""

    def __init__(self, catalogue: Catalogue) -> None:
        by_popularity = (np.argsort(-catalogue.counts, kind="stable") + 1).tolist()
        self._items = [item for item in by_popularity if item not in catalogue.removed]
        lines = [_line(catalogue.item_ids[item - 1], catalogue.titles[item - 1]) for item in self._items]
        self._text = "\n".join(["", *lines, ""])
        self._starts = list(accumulate((len(line) + 1 for line in lines), initial=1))

    def find(self, query: str, limit: int) -> list[int]:
        """Return the items whose title or id contains all words of the query.

        Args:
            query: Words in any order and case; an empty query matches every item.
            limit: Maximum number of items.

        Returns:
            Items, most popular first.
        """
        words = sorted(query.casefold().split(), key=len, reverse=True)
        if not words:
            return self._items[:limit]
        matches: list[int] = []
        position = self._text.find(words[0])
        while position >= 0 and len(matches) < limit:
            index = bisect_right(self._starts, position) - 1
            start, end = self._starts[index], self._starts[index + 1]
            if all(self._text.find(word, start, end) >= 0 for word in words[1:]):
                matches.append(self._items[index])
            position = self._text.find(words[0], end)
        return matches


def _line(item_id: str | int, title: str | None) -> str:
    """Return title and id in lower case, without line breaks, which separate the items."""
    return " ".join(f"{title or ''} {item_id}".casefold().split())
