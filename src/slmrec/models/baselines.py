"""Baselines without training: popularity, and co-occurrence with the newest item. Both count the train split only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.data.dataset import Dataset, Ints
from slmrec.types import Encoded, Histories, ItemBonus


class PopularityConfig(PretrainedConfig):
    """Architecture of a `Popularity` model."""

    model_type = "slmrec_popularity"

    def __init__(self, num_items: int = 1, **kwargs: Any) -> None:
        self.num_items = num_items
        super().__init__(**kwargs)


class Popularity(PreTrainedModel):
    """Score of an item: the number of its events in the train split. The history does not matter."""

    config_class = PopularityConfig
    base_model_prefix = "popularity"
    config: PopularityConfig
    max_history_items = 1

    counts: Tensor
    """(V+1, 1) float32."""

    def __init__(self, config: PopularityConfig) -> None:
        super().__init__(config)
        self.register_buffer("counts", torch.zeros(config.num_items + 1, 1))
        self.all_tied_weights_keys: dict[str, str] = {}

    @classmethod
    def of(cls, dataset: Dataset) -> "Popularity":
        """Return the model of a data set."""
        model = cls(PopularityConfig(dataset.num_items))
        model.counts.copy_(torch.from_numpy(dataset.train_counts().astype(np.float32))[:, None])
        return model

    @property
    def num_items(self) -> int:
        """V."""
        return self.config.num_items

    def item_vectors(self) -> Tensor:
        """(V+1, 1)."""
        return self.counts

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return ones (N, 1)."""
        return Encoded(self.counts.new_ones(_num_positions(histories, every_position), 1))


class CooccurrenceConfig(PretrainedConfig):
    """Architecture of a `Cooccurrence` model; `num_pairs` is the number of stored pairs of items."""

    model_type = "slmrec_cooccurrence"

    def __init__(self, num_items: int = 1, num_pairs: int = 0, **kwargs: Any) -> None:
        self.num_items, self.num_pairs = num_items, num_pairs
        super().__init__(**kwargs)


class Cooccurrence(PreTrainedModel):
    """Score of an item: the number of users whose train history holds both it and the newest item of the history.

    The newest item itself counts 0. Ties are broken by popularity, which adds at most 1/2 to a score.
    """

    config_class = CooccurrenceConfig
    base_model_prefix = "cooccurrence"
    config: CooccurrenceConfig
    max_history_items = 1

    popularity: Tensor
    """(V+1, 1) float32, at most 1/2, so that float32 cannot round a count with it up to the next count."""
    offsets: Tensor
    """(V+2,) int64: the pairs of item i are those from offsets[i] to offsets[i + 1]."""
    neighbours: Tensor
    """(num_pairs,) int32, the other item of each pair."""
    counts: Tensor
    """(num_pairs,) float32, the number of users who have both."""

    def __init__(self, config: CooccurrenceConfig) -> None:
        super().__init__(config)
        self.register_buffer("popularity", torch.zeros(config.num_items + 1, 1))
        self.register_buffer("offsets", torch.zeros(config.num_items + 2, dtype=torch.int64))
        self.register_buffer("neighbours", torch.zeros(config.num_pairs, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(config.num_pairs))
        self.all_tied_weights_keys: dict[str, str] = {}

    @classmethod
    def of(cls, dataset: Dataset) -> "Cooccurrence":
        """Return the model of a data set."""
        items, neighbours, counts = _pairs(dataset)
        model = cls(CooccurrenceConfig(dataset.num_items, len(neighbours)))
        events = dataset.train_counts()
        popularity = (events / (2 * max(1, events.max()))).astype(np.float32)
        model.popularity.copy_(torch.from_numpy(popularity)[:, None])
        model.offsets.copy_(torch.from_numpy(_offsets(items, dataset.num_items + 1)))
        model.neighbours.copy_(torch.from_numpy(neighbours.astype(np.int32)))
        model.counts.copy_(torch.from_numpy(counts.astype(np.float32)))
        return model

    @property
    def num_items(self) -> int:
        """V."""
        return self.config.num_items

    def item_vectors(self) -> Tensor:
        """(V+1, 1)."""
        return self.popularity

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return ones (N, 1), and as bonus the counts of the items that co-occur with the newest one."""
        positions = torch.arange(histories.items.shape[1], device=histories.items.device)
        if every_position:
            newest = histories.items[positions < histories.lengths[:, None]]
        else:
            newest = histories.items.gather(1, histories.lengths[:, None] - 1)[:, 0]
        starts, ends = self.offsets[newest], self.offsets[newest + 1]
        columns = torch.arange(int((ends - starts).max()), device=newest.device)
        places = starts[:, None] + columns
        inside = places < ends[:, None]
        places = places.where(inside, 0)
        items = self.neighbours[places].long().where(inside, 0) if len(self.neighbours) else places
        scores = self.counts[places].where(inside, 0.0) if len(self.counts) else places.float()
        return Encoded(self.popularity.new_ones(len(newest), 1), bonus=ItemBonus(items, scores))


BASELINES: dict[str, Callable[[Dataset], PreTrainedModel]] = {
    "popularity": Popularity.of,
    "cooccurrence": Cooccurrence.of,
}


def build_baseline(name: str, dataset: Dataset) -> PreTrainedModel:
    """Return the baseline of a name, counted on the train split of a data set."""
    return BASELINES[name](dataset)


def _num_positions(histories: Histories, every_position: bool) -> int:
    return int(histories.lengths.sum()) if every_position else len(histories.lengths)


def _pairs(dataset: Dataset) -> tuple[Ints, Ints, Ints]:
    """Return items, their neighbours, and the number of users who have both, sorted by item and neighbour."""
    users, items = _distinct_events(dataset)
    user_offsets = _offsets(users, dataset.num_users)
    by_item = users[np.argsort(items, kind="stable")]
    item_offsets = _offsets(items, dataset.num_items + 1)
    parts: list[tuple[Ints, Ints, Ints]] = []
    for item in range(1, dataset.num_items + 1):
        owners = by_item[item_offsets[item] : item_offsets[item + 1]]
        neighbours, counts = np.unique(
            items[_spans(user_offsets[owners], user_offsets[owners + 1])], return_counts=True
        )
        is_other = neighbours != item
        parts.append((np.full(int(is_other.sum()), item), neighbours[is_other], counts[is_other]))
    first, second, third = zip(*parts, strict=True)
    return np.concatenate(first), np.concatenate(second), np.concatenate(third)


def _distinct_events(dataset: Dataset) -> tuple[Ints, Ints]:
    """Return users and items of the distinct train events, sorted by user."""
    base = dataset.num_items + 1
    pairs = [np.unique(users * base + items) for users, items in dataset.train_events()]  # chunks hold different users
    users, items = np.divmod(np.concatenate(pairs), base)
    return users, items


def _offsets(owners: Ints, num_owners: int) -> Ints:
    """Return (num_owners+1,) the places where each owner's entries start once they are sorted by owner."""
    offsets = np.zeros(num_owners + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=num_owners), out=offsets[1:])
    return offsets


def _spans(starts: Ints, ends: Ints) -> Ints:
    """Return the positions starts[0]..ends[0]-1, starts[1]..ends[1]-1, and so on, concatenated."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    positions: Ints = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return positions


for config, model in ((PopularityConfig, Popularity), (CooccurrenceConfig, Cooccurrence)):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
