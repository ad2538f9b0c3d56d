"""Facts of a prepared data set by which settings are chosen."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from slmrec.data.dataset import Dataset

MAX_READ = 200_000
"""Largest number of histories or titles that are looked at; beyond it, evenly spaced ones stand for all."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Facts:
    """Sizes of a log, and what its histories and titles are like."""

    num_users: int
    num_items: int
    num_events: int
    num_samples: int
    """Training events with a predecessor, each of which can be a target."""
    typical_length: int
    """Number of events that 95 % of the users do not exceed."""
    repeat_share: float
    """Share of events whose item the user had before."""
    title_share: float
    """Share of items with a title."""
    distinct_share: float
    """Share of the titles that differ from all others."""
    shared_words: float
    """Mean number of words of a title that occur in another title too."""

    @property
    def has_words(self) -> bool:
        """True if titles tell items apart and share words, which a text model needs."""
        return self.title_share >= 0.5 and self.distinct_share >= 0.2 and self.shared_words >= 1


def facts_of(dataset: Dataset) -> Facts:
    """Return the facts of a data set.

    Example:
        >>> import pyarrow as pa
        >>> from tempfile import TemporaryDirectory
        >>> from slmrec import prepare
        >>> events = pa.table({"user_id": ["u"] * 4, "item_id": ["a", "b", "a", "c"], "timestamp": [1, 2, 3, 4]})
        >>> with TemporaryDirectory() as folder:
        ...     facts = facts_of(Dataset.load(prepare(events, f"{folder}/shop")))
        >>> facts.repeat_share, facts.has_words
        (0.25, False)
    """
    lengths = np.diff(dataset.offsets)
    samples = dataset.train("every_prefix", 1)
    return Facts(
        dataset.num_users,
        dataset.num_items,
        int(dataset.offsets[-1]),
        len(samples),
        int(np.quantile(lengths, 0.95, method="higher")),
        _repeat_share(dataset),
        *_titles(dataset),
    )


def _repeat_share(dataset: Dataset) -> float:
    users = _some(dataset.num_users)
    repeated = events = 0
    for start, end in zip(dataset.offsets[users], dataset.offsets[users + 1], strict=True):
        repeated += int(end - start) - len(np.unique(dataset.flat[start:end]))
        events += int(end - start)
    return repeated / max(1, events)


def _titles(dataset: Dataset) -> tuple[float, float, float]:
    """Return the shares of items with a title and of distinct titles, and the mean number of shared words."""
    if dataset.titles is None:
        return 0.0, 0.0, 0.0
    places = _some(dataset.num_items)
    titles = [str(title).strip().lower() for title in dataset.titles.take(places).to_pylist() if title]
    words = [set(_WORD.findall(title)) for title in titles]
    counts = Counter(word for title in words for word in title)
    shared = sum(counts[word] > 1 for title in words for word in title)
    once = sum(number == 1 for number in Counter(titles).values())
    return len(titles) / len(places), once / max(1, len(titles)), shared / max(1, len(titles))


def _some(number: int) -> np.ndarray:
    return np.unique(np.linspace(0, number - 1, min(number, MAX_READ)).astype(np.int64))
