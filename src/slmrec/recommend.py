"""The recommender: a model folder, and histories in the caller's ids."""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slmrec.catalogue import top_k
from slmrec.checkpoint import Vocabulary, fingerprint_of, load_recommender, may_recommend
from slmrec.data.batching import by_length
from slmrec.data.dataset import Ints, Samples
from slmrec.errors import ConfigError, TrainingError
from slmrec.evaluation import eval_mode
from slmrec.index import ItemIndex
from slmrec.types import SequenceEncoder

ItemId = str | int
BATCH_USERS = 256


@dataclass(frozen=True)
class Recommendations:
    """The answer to `Recommender.recommend`."""

    table: pa.Table
    """`user_id, item_id, score, rank`: best first, rank from 1; fewer than k rows where no more items are left."""
    num_unknown: int
    """Items of the histories that the model does not know; they were left out."""
    first_unknown: Any
    """The first of these; None if there is none."""
    fallback_users: tuple[Any, ...]
    """Users without a known item in their history; their list is that of the most popular items."""


class Recommender:
    """Recommends next items to histories, oldest item first, in the caller's ids."""

    def __init__(self, model: SequenceEncoder, vocabulary: Vocabulary, index: ItemIndex | None = None) -> None:
        self.model = model
        self.index = index
        self.vocabulary = vocabulary
        with torch.inference_mode():
            self._item_vectors = model.item_vectors().float()
        self._item_ids = vocabulary.item_ids.to_pylist()
        self._items = {str(item_id): item for item, item_id in enumerate(self._item_ids, 1)}
        self._popularity = torch.tensor([[0.0], *([float(count)] for count in vocabulary.counts.to_pylist())])

    @classmethod
    def from_pretrained(cls, folder: str | Path, index: str | Path | None = None) -> "Recommender":
        """The recommender of a folder that a training stage wrote.

        Args:
            folder: the model folder.
            index: an index of its items by `slmrec export --format faiss`; without one, search is exact.

        Raises:
            CheckpointError: the folder is incomplete, or a backbone that it builds on cannot be had, or the index is
                that of other items.
            ConfigError: FAISS is not installed.
        """
        model, vocabulary = load_recommender(Path(folder))
        loaded = None if index is None else ItemIndex.load(Path(index), fingerprint_of(Path(folder)))
        return cls(model, vocabulary, loaded)

    def recommend(
        self,
        sequences: Sequence[Sequence[ItemId]],
        k: int = 10,
        *,
        filter_seen: bool = True,
        candidates: Sequence[ItemId] | None = None,
        user_ids: Sequence[Any] | None = None,
    ) -> Recommendations:
        """The k best next items of each history.

        Args:
            sequences: item ids, oldest first; text and number forms of an id are the same.
            k: items wanted, at least 1.
            filter_seen: leave out the items of the history.
            candidates: rank these items alone.
            user_ids: names for the rows of the answer; by default 0, 1, ...

        Raises:
            ConfigError: k is below 1, a candidate is unknown, or a sequence is no list.
            TrainingError: the model scores with NaN.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; ask for at least 1 item")
        users = list(user_ids) if user_ids is not None else list(range(len(sequences)))
        known = self._known(sequences)
        best = [np.zeros(0, dtype=np.int64)] * len(known)
        scores = [np.zeros(0, dtype=np.float32)] * len(known)
        allowed = self._allowed(candidates)
        search = top_k if self.index is None or candidates is not None else self.index.top_k
        for rows, vectors, items in self._batches(known):
            seen = _padded([known[row] for row in rows]) if filter_seen else None
            try:
                find = search if items is self._item_vectors else top_k
                found = find(vectors, items, k, excluded=seen, allowed=allowed)
            except ValueError:
                raise _nan_error(vectors @ items.T, [users[row] for row in rows]) from None
            for row, values, places in zip(rows, *found, strict=True):
                shown = values > -torch.inf
                best[row], scores[row] = places[shown].numpy(), values[shown].numpy()
        unknown = [item for sequence in sequences for item in sequence if str(item) not in self._items]
        fallback = tuple(user for user, history in zip(users, known, strict=True) if not history)
        table = self._table(users, best, scores)
        return Recommendations(table, len(unknown), next(iter(unknown), None), fallback)

    def encode(self, sequences: Sequence[Sequence[ItemId]]) -> Tensor:
        """User vectors (B, D) of histories that hold at least one known item each.

        Raises:
            ConfigError: a history has no known item, or is no list.
        """
        known = self._known(sequences)
        if not all(known):
            raise ConfigError(f"history {known.index([])} has no item that the model knows, so it has no vector")
        vectors = torch.zeros(len(known), self.model.item_vectors().shape[1])
        for rows, batch in by_length(_samples(known), BATCH_USERS, self.model.max_history_items):
            with torch.inference_mode():
                vectors[rows] = self.model.encode(batch).users
        return vectors

    def title(self, item_id: ItemId) -> str | None:
        """The title of an item, if it has one."""
        item = self._items.get(str(item_id))
        if item is None or self.vocabulary.titles is None:
            return None
        title: str | None = self.vocabulary.titles[item - 1].as_py()
        return title

    def _known(self, sequences: Sequence[Sequence[ItemId]]) -> list[list[int]]:
        """Histories as items, without those that the model does not know."""
        for number, sequence in enumerate(sequences):
            if isinstance(sequence, str):  # would be taken for a sequence of letters
                raise ConfigError(f"history {number} is {sequence!r}, expected a list of item ids; give [{sequence!r}]")
            if not isinstance(sequence, Sized):
                given = shortened(sequences)
                raise ConfigError(f"histories is {given}, expected a list of histories; give [{given}]")
        return [[self._items[str(i)] for i in sequence if str(i) in self._items] for sequence in sequences]

    def _batches(self, known: list[list[int]]) -> Iterator[tuple[Ints, Tensor, Tensor]]:
        """Rows, their user vectors, and the item vectors to rank by; without history the items' popularity ranks."""
        filled = np.array([row for row, history in enumerate(known) if history], dtype=np.int64)
        samples = _samples([known[row] for row in filled])
        with eval_mode(self.model), torch.inference_mode():
            for rows, batch in by_length(samples, BATCH_USERS, self.model.max_history_items):
                yield filled[rows], self.model.encode(batch).users.float(), self._item_vectors
        empty = np.array([row for row, history in enumerate(known) if not history], dtype=np.int64)
        if len(empty):
            yield empty, torch.ones(len(empty), 1), self._popularity

    def _allowed(self, candidates: Sequence[ItemId] | None) -> Tensor | None:
        """(V+1,): whether an item may be recommended; None if all may."""
        if candidates is None:
            return None if self.vocabulary.removed is None else may_recommend(self.vocabulary)
        unknown = [candidate for candidate in candidates if str(candidate) not in self._items]
        if unknown:
            raise ConfigError(f"candidate {unknown[0]!r} is not in the catalogue ({len(unknown)} unknown in all)")
        allowed = torch.zeros(self.model.num_items + 1, dtype=torch.bool)
        allowed[[self._items[str(candidate)] for candidate in candidates]] = True
        return allowed & may_recommend(self.vocabulary)

    def _table(self, users: list[Any], best: list[Ints], scores: list[Any]) -> pa.Table:
        sizes = [len(items) for items in best]
        flat = np.concatenate([*best, np.zeros(0, dtype=np.int64)])
        return pa.table(
            {
                "user_id": pa.array([user for user, size in zip(users, sizes, strict=True) for _ in range(size)]),
                "item_id": self.vocabulary.item_ids.take(pa.array(flat - 1)),
                "score": pa.array(np.concatenate([*scores, np.zeros(0, dtype=np.float32)])),
                "rank": pa.array([rank for size in sizes for rank in range(1, size + 1)], pa.int64()),
            }
        )


def _nan_error(scores: Tensor, users: list[Any]) -> TrainingError:
    broken = scores.isnan().any(dim=1).tolist()
    return TrainingError(
        f"scores of user {users[broken.index(True)]!r} hold NaN, expected numbers; train the model anew, with a "
        "smaller learning rate if it was trained to the end"
    )


def _padded(histories: list[list[int]]) -> Tensor:
    """(B, longest), padded with 0."""
    return pad_sequence([torch.tensor(history, dtype=torch.int64) for history in histories], batch_first=True)


def _samples(histories: list[list[int]]) -> Samples:
    ends = np.cumsum([len(history) for history in histories], dtype=np.int64)
    starts = ends - np.array([len(history) for history in histories], dtype=np.int64)
    flat = np.array([item for history in histories for item in history] + [0], dtype=np.int64)  # a target for the last
    return Samples.of(flat, starts, ends, np.arange(len(histories)))
