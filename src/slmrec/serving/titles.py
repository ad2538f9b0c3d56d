"""Search over the titles of a catalogue, fast enough to answer while someone types."""

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from slmrec.inference.catalogue import Catalogue


class TitleIndex:
    """All titles as one text, the most popular item first, so that a search can end with the first matches."""

    def __init__(self, catalogue: Catalogue) -> None:
        by_popularity = (np.argsort(-catalogue.counts, kind="stable") + 1).tolist()
        self._items = [item for item in by_popularity if item not in catalogue.removed]
        lines = [_line(catalogue.item_ids[item - 1], catalogue.titles[item - 1]) for item in self._items]
        self._text = "\n".join(["", *lines, ""])
        self._starts = list(accumulate((len(line) + 1 for line in lines), initial=1))

    def find(self, words: str, limit: int) -> list[int]:
        """Items whose title or id holds all words, in any order and case; the most popular first."""
        wanted = sorted(words.casefold().split(), key=len, reverse=True)
        if not wanted:
            return self._items[:limit]
        found: list[int] = []
        at = self._text.find(wanted[0])
        while at >= 0 and len(found) < limit:
            row = bisect_right(self._starts, at) - 1
            start, end = self._starts[row], self._starts[row + 1]
            if all(self._text.find(word, start, end) >= 0 for word in wanted[1:]):
                found.append(self._items[row])
            at = self._text.find(wanted[0], end)
        return found


def _line(item_id: str | int, title: str | None) -> str:
    """Without line breaks, which part the items."""
    return " ".join(f"{title or ''} {item_id}".casefold().split())
