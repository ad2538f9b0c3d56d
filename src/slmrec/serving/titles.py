"""Title search over a catalogue, fast enough for search-as-you-type."""

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np

from slmrec.inference.catalogue import Catalogue

_MIN_FORGIVEN_CHARS = 4
_MAX_CORRECTIONS = 32


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
        return [self._items[index] for index in self._find(query.casefold().split(), limit)]

    def find_similar(self, query: str, limit: int) -> list[int]:
        """Return the items that match a query after one typing error in one of its words is corrected.

        A typing error is a letter that is missing, wrong or too many, or two letters in the wrong order. It is forgiven
        in words of at least four characters without digits, since ids differ by single digits.

        Returns:
            Items, most popular first.
        """
        words, matches = query.casefold().split(), set[int]()
        for place, word in enumerate(words):
            for correction in self._corrections(word):
                matches.update(self._find([*words[:place], correction, *words[place + 1 :]], limit))
        return [self._items[index] for index in sorted(matches)[:limit]]

    @cached_property
    def _vocabulary(self) -> list[str]:
        """All words of titles and ids, sorted."""
        return sorted(set(re.findall(r"\w+", self._text)))

    def _corrections(self, word: str) -> list[str]:
        """Return what the word may have been meant to be, as beginnings of words in the catalogue."""
        if len(word) < _MIN_FORGIVEN_CHARS or any(letter.isdigit() for letter in word):
            return []
        edits: set[str] = set()
        for place in range(len(word) + 1):
            start, rest = word[:place], word[place:]
            edits.add(start + rest[1:])
            edits.add(start + rest[1:2] + rest[:1] + rest[2:])
            for letter in self._next_letters(start):
                edits |= {start + letter + rest, start + letter + rest[1:]}
        return [edit for edit in sorted(edits - {word}) if next(self._next_words(edit), None)][:_MAX_CORRECTIONS]

    def _next_words(self, start: str) -> Iterator[str]:
        """Yield the words that begin with some letters, one for each next letter."""
        place = bisect_left(self._vocabulary, start)
        while place < len(self._vocabulary) and self._vocabulary[place].startswith(start):
            word = self._vocabulary[place]
            yield word
            place = (
                bisect_right(self._vocabulary, word[: len(start) + 1] + chr(sys.maxunicode))
                if word > start
                else place + 1
            )

    def _next_letters(self, start: str) -> list[str]:
        return [word[len(start)] for word in self._next_words(start) if len(word) > len(start)]

    def _find(self, words: Sequence[str], limit: int) -> list[int]:
        """Return the places in `_items` of the items whose lines contain all words."""
        words = sorted(words, key=len, reverse=True)
        if not words:
            return list(range(min(limit, len(self._items))))
        matches: list[int] = []
        position = self._text.find(words[0])
        while position >= 0 and len(matches) < limit:
            index = bisect_right(self._starts, position) - 1
            start, end = self._starts[index], self._starts[index + 1]
            if all(self._text.find(word, start, end) >= 0 for word in words[1:]):
                matches.append(index)
            position = self._text.find(words[0], end)
        return matches


def _line(item_id: str | int, title: str | None) -> str:
    """Return title and id in lower case, without line breaks, which separate the items."""
    return " ".join(f"{title or ''} {item_id}".casefold().split())
