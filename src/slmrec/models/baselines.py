"""Baselines without training: popularity, and co-occurrence with the newest item. Both count the train split only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from slmrec.data.dataset import Dataset, Ints
from slmrec.models.model import ItemTable, Model, register
from slmrec.types import Encoded, Histories, ItemBonus

MAX_NEIGHBOURS = 4096
"""Co-occurring items that are kept for an item; more are rare, and bound memory and the time of an answer."""


class PopularityConfig(PretrainedConfig):
    """Architecture of a `Popularity` model."""

    model_type = "slmrec_popularity"
    max_history_items = 1

    def __init__(self, num_items: int = 1, **kwargs: Any) -> None:
        self.num_items = num_items
        super().__init__(**kwargs)


class Popularity(Model):
    """Score of an item: the number of its events in the train split. The history does not matter.

    Example:
        >>> Popularity.of(dataset).num_items == dataset.num_items
        True
    """

    config_class = PopularityConfig
    base_model_prefix = "popularity"
    config: PopularityConfig

    counts: Tensor
    """(V+1, 1) float32."""

    def __init__(self, config: PopularityConfig) -> None:
        super().__init__(config)
        self.register_buffer("counts", torch.zeros(config.num_items + 1, 1))

    @classmethod
    def of(cls, dataset: Dataset) -> "Popularity":
        """Return the model of a data set."""
        model = cls(PopularityConfig(dataset.num_items))
        model.counts.copy_(torch.from_numpy(dataset.train_counts().astype(np.float32))[:, None])
        return model

    def item_vectors(self) -> Tensor:
        """(V+1, 1)."""
        return self.counts

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return ones (N, 1)."""
        num = int(histories.lengths.sum()) if every_position else len(histories.lengths)
        return Encoded(self.counts.new_ones(num, 1))

    def item_tables(self) -> list[ItemTable]:
        """Return the counts."""
        return [ItemTable(self.counts, lambda values: setattr(self, "counts", values))]


class CooccurrenceConfig(PretrainedConfig):
    """Architecture of a `Cooccurrence` model; `num_pairs` is the number of stored pairs of items."""

    model_type = "slmrec_cooccurrence"
    max_history_items = 1

    def __init__(self, num_items: int = 1, num_pairs: int = 0, **kwargs: Any) -> None:
        self.num_items, self.num_pairs = num_items, num_pairs
        super().__init__(**kwargs)


class Cooccurrence(Model):
    """Score of an item: the number of users whose train history holds both it and the newest item of the history.

    The newest item itself has the count 0. Ties are broken by popularity, which adds at most 1/2 to a score. For each
    item the `MAX_NEIGHBOURS` items with the highest counts are kept, the more popular ones where counts are equal; all
    other items count as never seen together with it.

    Example:
        >>> Cooccurrence.of(dataset).num_items == dataset.num_items
        True
    """

    config_class = CooccurrenceConfig
    base_model_prefix = "cooccurrence"
    config: CooccurrenceConfig

    popularity: Tensor
    """(V+1, 1) float32, at most 1/2, so that float32 cannot round a count with it up to the next count."""
    offsets: Tensor
    """(V+2,) int64: the pairs of item i are those from offsets[i] to offsets[i + 1]."""
    neighbours: Tensor
    """(num_pairs,) int32, the second item of each pair."""
    counts: Tensor
    """(num_pairs,) float32, the number of users who have both items."""

    def __init__(self, config: CooccurrenceConfig) -> None:
        super().__init__(config)
        self.register_buffer("popularity", torch.zeros(config.num_items + 1, 1))
        self.register_buffer("offsets", torch.zeros(config.num_items + 2, dtype=torch.int64))
        self.register_buffer("neighbours", torch.zeros(config.num_pairs, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(config.num_pairs))

    @classmethod
    def of(cls, dataset: Dataset, max_neighbours: int = MAX_NEIGHBOURS) -> "Cooccurrence":
        """Return the model of a data set.

        Args:
            dataset: The data set.
            max_neighbours: Number of co-occurring items that are kept for each item.
        """
        offsets, neighbours, counts = _pairs(dataset, max_neighbours)
        model = cls(CooccurrenceConfig(dataset.num_items, len(neighbours)))
        events = dataset.train_counts()
        popularity = (events / (2 * max(1, events.max()))).astype(np.float32)
        model.popularity.copy_(torch.from_numpy(popularity)[:, None])
        for buffer, values in ((model.offsets, offsets), (model.neighbours, neighbours), (model.counts, counts)):
            buffer.copy_(torch.from_numpy(values))
        return model

    def check_values(self) -> None:
        """Check that the offsets point into the pairs, and the pairs at items."""
        steps = self.offsets.diff()
        if self.offsets[0] != 0 or (steps < 0).any() or self.offsets[-1] != len(self.neighbours):
            raise ValueError("offsets are not those of the pairs of items")
        if ((self.neighbours < 1) | (self.neighbours > self.num_items)).any():
            raise ValueError(f"neighbours has an item outside 1 to {self.num_items}")

    def item_vectors(self) -> Tensor:
        """(V+1, 1)."""
        return self.popularity

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return ones (N, 1), and as bonus the counts of the items that co-occur with the newest one."""
        if every_position:
            positions = torch.arange(histories.items.shape[1], device=histories.items.device)
            newest = histories.items[positions < histories.lengths[:, None]]
        else:
            newest = histories.items.gather(1, histories.lengths[:, None] - 1)[:, 0]
        users = self.popularity.new_ones(len(newest), 1)
        starts, ends = self.offsets[newest], self.offsets[newest + 1]
        columns = torch.arange(int((ends - starts).max()), device=newest.device)
        if not len(columns):
            return Encoded(users)
        places = starts[:, None] + columns
        is_pair = places < ends[:, None]
        places = places.where(is_pair, 0)
        items = self.neighbours[places].long().where(is_pair, 0)
        return Encoded(users, bonus=ItemBonus(items, self.counts[places].where(is_pair, 0.0)))

    def item_tables(self) -> list[ItemTable]:
        """Return the popularity; new items co-occur with no item."""

        def replace(values: Tensor) -> None:
            num_new = len(values) - len(self.popularity)
            self.popularity = values
            self.offsets = torch.cat([self.offsets, self.offsets[-1:].expand(num_new)])

        return [ItemTable(self.popularity, replace)]


BASELINES: dict[str, Callable[[Dataset], Model]] = {"popularity": Popularity.of, "cooccurrence": Cooccurrence.of}


def build_baseline(name: str, dataset: Dataset) -> Model:
    """Return the baseline of a name, counted on the train split of a data set."""
    return BASELINES[name](dataset)


def _pairs(dataset: Dataset, max_neighbours: int) -> tuple[Ints, NDArray[np.int32], NDArray[np.float32]]:
    """Return the pairs of items that a user has both of, sorted by item and neighbour: offsets, neighbours, counts."""
    users, items = _distinct_events(dataset)
    user_offsets = _offsets(users, dataset.num_users)
    by_item = users[np.argsort(items, kind="stable")]
    item_offsets = _offsets(items, dataset.num_items + 1)
    popularity = dataset.train_counts()
    neighbours, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    sizes = np.zeros(dataset.num_items + 1, dtype=np.int64)
    for item in range(1, dataset.num_items + 1):
        owners = by_item[item_offsets[item] : item_offsets[item + 1]]
        seen, number = np.unique(items[_spans(user_offsets[owners], user_offsets[owners + 1])], return_counts=True)
        kept = np.flatnonzero(seen != item)
        if len(kept) > max_neighbours:
            best = np.lexsort((seen[kept], -popularity[seen[kept]], -number[kept]))[:max_neighbours]
            kept = np.sort(kept[best])
        neighbours.append(seen[kept].astype(np.int32))
        counts.append(number[kept].astype(np.float32))
        sizes[item] = len(kept)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return offsets, np.concatenate(neighbours), np.concatenate(counts)


def _distinct_events(dataset: Dataset) -> tuple[Ints, Ints]:
    """Return users and items of the distinct train events, sorted by user."""
    base = dataset.num_items + 1
    pairs = [np.unique(users * base + items) for users, items in dataset.train_events()]  # chunks hold different users
    users, items = np.divmod(np.concatenate(pairs), base)
    return users, items


def _offsets(groups: Ints, num_groups: int) -> Ints:
    """Return (num_groups+1,) the start of each group among entries sorted by group."""
    offsets = np.zeros(num_groups + 1, dtype=np.int64)
    np.cumsum(np.bincount(groups, minlength=num_groups), out=offsets[1:])
    return offsets


def _spans(starts: Ints, ends: Ints) -> Ints:
    """Return the positions starts[0]..ends[0]-1, starts[1]..ends[1]-1, and so on, concatenated."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    positions: Ints = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return positions


register(Popularity)
register(Cooccurrence)
