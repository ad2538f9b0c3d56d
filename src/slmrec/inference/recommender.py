"""The recommender: a model folder, and histories in the caller's ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slmrec.data.batching import pad_histories
from slmrec.data.dataset import Ints
from slmrec.errors import ConfigError, TrainingError
from slmrec.inference.faiss_index import ItemIndex
from slmrec.inference.histories import (
    ITEM_IDS,
    ITEM_IDS_WITH_COMMAS,
    Sequences,
    check_histories,
    is_table,
    sequences_of,
)
from slmrec.models.card import About
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import (
    Vocabulary,
    find_folder,
    fingerprint_of,
    load_recommender,
    may_recommend,
    publish,
    read_about,
    save_folder,
)
from slmrec.models.loader import Model
from slmrec.topk import by_columns, top_k

ItemId = str | int
Histories = Any
"""A list of histories, each a list of item ids, oldest first; or a table (Arrow, pandas, polars) with the columns
`user_id, history`, or `user_id, item_id, timestamp`."""
BATCH_USERS = 256


@dataclass(frozen=True)
class Recommendations:
    """The answer to `Recommender.recommend`."""

    table: pa.Table
    """`user_id, item_id, score, rank`: best first, rank from 1; fewer than k rows where no more items are left."""
    sizes: tuple[int, ...]
    """Rows of each user, in the order of the request."""
    unknown: tuple[tuple[Any, ...], ...]
    """Items of each user's history that the model does not know; they were left out."""
    fallback_users: tuple[Any, ...]
    """Users without a known item in their history; their list is that of the most popular items."""

    @property
    def num_unknown(self) -> int:
        """How many items were left out in all."""
        return sum(map(len, self.unknown))

    @property
    def first_unknown(self) -> Any:
        """The first of these; None if there is none."""
        return next((item for items in self.unknown for item in items), None)

    def to_lists(self) -> list[list[tuple[ItemId, float]]]:
        """For each user, in the order of the request, item ids and scores, best first."""
        rows = zip(self.table["item_id"].to_pylist(), self.table["score"].to_pylist(), strict=True)
        return [[next(rows) for _ in range(size)] for size in self.sizes]


class Recommender:
    """Recommends next items to histories, oldest item first, in the caller's ids.

    Puts the model into eval mode, takes its item vectors as they are then, and lets its decoders answer by the shorter
    way of `DecoderRecommender.use_lean_layers`, until they train again.
    """

    def __init__(
        self, model: Model, vocabulary: Vocabulary, about: About | None = None, index: ItemIndex | None = None
    ) -> None:
        self.model = model
        self.index = index
        self.vocabulary = vocabulary
        self.about = about or About()
        model.eval()
        for part in model.modules():
            if isinstance(part, DecoderRecommender):
                part.use_lean_layers()
        with torch.no_grad():
            self.item_vectors = by_columns(model.item_vectors().float())
            """(V+1, D) float32; row 0 is padding. A copy, whose columns are contiguous."""
        item_ids = vocabulary.item_ids.to_pylist()
        self.items = {str(item_id): item for item, item_id in enumerate(item_ids, 1)}
        """By the text of their ids, the items as the model numbers them, from 1."""
        self.popularity = torch.tensor([[0.0], *([float(count)] for count in vocabulary.counts.to_pylist())])
        """(V+1, 1) how often each item occurs in the train split, by which users without history are answered."""

    @classmethod
    def from_pretrained(
        cls, source: str | Path, revision: str | None = None, index: str | Path | None = None
    ) -> "Recommender":
        """The recommender of a folder that a training stage or `save_pretrained` wrote, or of one on a hub.

        Args:
            source: the folder, or a hub id (`owner/name`).
            revision: a branch, tag or commit of the hub.
            index: an index of its items by `slmrec export --format faiss`; without one, search is exact.

        Raises:
            CheckpointError: there is no such folder, a file of it is missing or damaged, a backbone that it builds
                on cannot be had, or the index is that of other items.
            ConfigError: FAISS is not installed.
        """
        folder = find_folder(source, revision)
        loaded = None if index is None else ItemIndex.load(Path(index), fingerprint_of(folder))
        return cls(*load_recommender(folder), read_about(folder), loaded)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` opens: weights, architecture, items and a card."""
        save_folder(Path(folder), self.model, self.vocabulary, self.about)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Publishes that folder on the Hugging Face hub; the address of the commit.

        Args:
            repo_id: `owner/name`; made if it is not there.
            private: whether a new one is seen by its owner alone.
            token: by default the one of `hf auth login`.

        Raises:
            CheckpointError: the hub cannot be reached, or refuses.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return publish(Path(folder), repo_id, private, token)

    def recommend(
        self,
        sequences: Histories,
        k: int = 10,
        *,
        filter_seen: bool = True,
        candidates: Sequence[ItemId] | None = None,
        exclude: Sequence[ItemId] | None = None,
        user_ids: Sequence[Any] | None = None,
    ) -> Recommendations:
        """The k best next items of each history.

        Args:
            sequences: a list of histories, each a list of item ids, oldest first; text and number forms of an id are
                the same. Or a table of them, with the columns `user_id, history` or `user_id, item_id, timestamp`.
            k: items wanted, at least 1.
            filter_seen: leave out the items of the history.
            candidates: rank these items alone.
            exclude: items that nobody gets; those that the model does not know are never given anyway.
            user_ids: names for the rows of the answer; by default those of the table, or 0, 1, ...

        Raises:
            ConfigError: k is below 1, a candidate is unknown, a sequence is no list, or there are not as many users.
            DataError: the table has other columns.
            TrainingError: the model scores with NaN.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; ask for at least 1 item")
        users, histories = self._asked(sequences, user_ids)
        known = self._known(histories)
        best = [np.zeros(0, dtype=np.int64)] * len(known)
        scores = [np.zeros(0, dtype=np.float32)] * len(known)
        allowed = self._allowed(candidates, exclude)
        search = top_k if self.index is None or candidates is not None else self.index.top_k
        for rows, vectors, items in self._batches(known):
            seen = _padded([known[row] for row in rows]) if filter_seen else None
            try:
                find = search if items is self.item_vectors else top_k
                found = find(vectors, items, k, excluded=seen, allowed=allowed)
            except ValueError:
                raise _nan_error(vectors @ items.T, [users[row] for row in rows]) from None
            for row, values, places in zip(rows, *(part.numpy() for part in found), strict=True):
                shown = values > -np.inf
                best[row], scores[row] = places[shown], values[shown]
        unknown = tuple(tuple(item for item in history if str(item) not in self.items) for history in histories)
        fallback = tuple(user for user, history in zip(users, known, strict=True) if not history)
        return Recommendations(self._table(users, best, scores), tuple(map(len, best)), unknown, fallback)

    def encode(self, sequences: Histories) -> Tensor:
        """User vectors (B, D) of histories that hold at least one known item each.

        Raises:
            ConfigError: a history has no known item, or is no list.
            DataError: a table has other columns than `recommend` takes.
        """
        known = self._known(self._asked(sequences, None)[1])
        if not all(known):
            raise ConfigError(f"history {known.index([])} has no item that the model knows, so it has no vector")
        vectors = torch.zeros(len(known), self.item_vectors.shape[1])
        for rows, users, _ in self._batches(known):
            vectors[rows] = users
        return vectors

    def score(self, sequences: Histories, items: Sequence[ItemId] | None = None) -> Tensor:
        """Scores (B, K) of these items, or (B, V) of all items in the order of `vocabulary.item_ids`.

        Raises:
            ConfigError: an item is unknown, a history has no known item, or is no list.
            DataError: a table has other columns than `recommend` takes.
        """
        vectors = self.item_vectors[1:] if items is None else self.item_vectors[self._places(items, "item")]
        return self.encode(sequences) @ vectors.T

    def title(self, item_id: ItemId) -> str | None:
        """The title of an item, if it has one."""
        item = self.items.get(str(item_id))
        if item is None or self.vocabulary.titles is None:
            return None
        title: str | None = self.vocabulary.titles[item - 1].as_py()
        return title

    @cached_property
    def id_pattern(self) -> str:
        """What an id looks like in a history written as text; commas part ids too, unless they are in some."""
        return ITEM_IDS_WITH_COMMAS if any("," in item_id for item_id in self.items) else ITEM_IDS

    def _asked(self, sequences: Histories, user_ids: Sequence[Any] | None) -> Sequences:
        if is_table(sequences):
            users, histories = sequences_of(sequences, self.id_pattern)
        else:
            check_histories(sequences)
            users, histories = list(range(len(sequences))), sequences
        if user_ids is not None:
            if len(user_ids) != len(histories):
                raise ConfigError(f"user_ids has {len(user_ids)} names for {len(histories)} histories; give one each")
            users = list(user_ids)
        return Sequences(users, histories)

    def _known(self, histories: Sequence[Sequence[Any]]) -> list[list[int]]:
        """Histories as items, without those that the model does not know."""
        return [[self.items[key] for item in history if (key := str(item)) in self.items] for history in histories]

    def _batches(self, known: list[list[int]]) -> Iterator[tuple[Ints, Tensor, Tensor]]:
        """Rows, their user vectors, and the item vectors to rank by; without history the items' popularity ranks."""
        filled = np.array([row for row, history in enumerate(known) if history], dtype=np.int64)
        longest = self.model.max_history_items
        lengths = [min(len(known[row]), longest) for row in filled]
        filled = filled[np.argsort(lengths, kind="stable")]  # histories of similar length need little padding
        with torch.inference_mode():
            for start in range(0, len(filled), BATCH_USERS):
                rows = filled[start : start + BATCH_USERS]
                histories = pad_histories([known[row] for row in rows], longest)
                yield rows, self.model.encode(histories).users.float(), self.item_vectors
        empty = np.array([row for row, history in enumerate(known) if not history], dtype=np.int64)
        if len(empty):
            yield empty, torch.ones(len(empty), 1), self.popularity

    def _allowed(self, candidates: Sequence[ItemId] | None, exclude: Sequence[ItemId] | None) -> Tensor | None:
        """(V+1,): whether an item may be recommended; None if all may."""
        if candidates is None and exclude is None and self.vocabulary.removed is None:
            return None
        if isinstance(exclude, str):
            raise _no_list("exclude", exclude)
        allowed = torch.full((self.model.num_items + 1,), candidates is None)
        if candidates is not None:
            allowed[self._places(candidates, "candidate")] = True
        allowed[[self.items[str(item)] for item in exclude or () if str(item) in self.items]] = False
        return allowed & may_recommend(self.vocabulary)

    def _places(self, item_ids: Sequence[ItemId], name: str) -> list[int]:
        """The items that these ids stand for."""
        if isinstance(item_ids, str):
            raise _no_list(f"{name}s", item_ids)
        unknown = [item_id for item_id in item_ids if str(item_id) not in self.items]
        if unknown:
            raise ConfigError(f"{name} {unknown[0]!r} is not in the catalogue ({len(unknown)} unknown in all)")
        return [self.items[str(item_id)] for item_id in item_ids]

    def _table(self, users: list[Any], best: list[Ints], scores: list[Any]) -> pa.Table:
        sizes = np.array([len(items) for items in best], dtype=np.int64)
        flat = np.concatenate([*best, np.zeros(0, dtype=np.int64)])
        firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        return pa.table(
            {
                "user_id": pa.array(users).take(pa.array(np.repeat(np.arange(len(best)), sizes))),
                "item_id": self.vocabulary.item_ids.take(pa.array(flat - 1)),
                "score": pa.array(np.concatenate([*scores, np.zeros(0, dtype=np.float32)])),
                "rank": pa.array(np.arange(len(flat)) - firsts + 1),
            }
        )


def _no_list(name: str, item_ids: str) -> ConfigError:
    return ConfigError(f"{name} is {item_ids!r}, expected a list of item ids; give [{item_ids!r}]")


def _nan_error(scores: Tensor, users: list[Any]) -> TrainingError:
    broken = scores.isnan().any(dim=1).tolist()
    return TrainingError(
        f"scores of user {users[broken.index(True)]!r} hold NaN, expected numbers; train the model anew, with a "
        "smaller learning rate if it was trained to the end"
    )


def _padded(histories: list[list[int]]) -> Tensor:
    """(B, longest), padded with 0."""
    return pad_sequence([torch.tensor(history, dtype=torch.int64) for history in histories], batch_first=True)
