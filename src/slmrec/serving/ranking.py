"""Lists for many users at once, each with its own length, filters and candidates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slmrec.data.batching import pad_histories
from slmrec.inference.recommender import ItemId, Recommender
from slmrec.models.folder import may_recommend
from slmrec.topk import top_k


class Catalogue:
    """A vocabulary, looked up by id and by title."""

    def __init__(self, recommender: Recommender) -> None:
        vocabulary = recommender.vocabulary
        self.item_ids: list[ItemId] = vocabulary.item_ids.to_pylist()
        self.titles: list[str | None]
        self.titles = [None] * len(self.item_ids) if vocabulary.titles is None else vocabulary.titles.to_pylist()
        self.items = recommender.items
        self.counts = recommender.popularity[1:, 0].numpy()
        removed = vocabulary.removed
        self.removed = set() if removed is None else {item for item, gone in enumerate(removed.to_pylist(), 1) if gone}
        """Items that must never be recommended; in histories they are read."""

    def known(self, item_ids: Iterable[ItemId]) -> list[int]:
        """The items of ids, without those that are unknown."""
        found = (self.items.get(str(item_id)) for item_id in item_ids)
        return [item for item in found if item is not None]

    def unknown(self, item_ids: Iterable[ItemId]) -> list[ItemId]:
        """The ids that are unknown."""
        return [item_id for item_id in item_ids if str(item_id) not in self.items]

    def described(self, item: int) -> dict[str, ItemId | str | None]:
        """Id and title of an item."""
        return {"item_id": self.item_ids[item - 1], "title": self.titles[item - 1]}


@dataclass
class Wish:
    """What one user is to get, as items."""

    k: int
    excluded: list[int]
    """Seen and unwanted items."""
    candidates: list[int] | None
    """Rank these alone; None: all items."""


Ranked = list[tuple[int, float]]
"""Items and scores, best first."""


class Ranker:
    """Ranks the items of a model, or their popularity for users without history."""

    def __init__(self, recommender: Recommender, catalogue: Catalogue) -> None:
        self.model = recommender.model
        self._item_vectors, self._popularity = recommender.item_vectors, recommender.popularity
        self._removed = catalogue.removed
        self._allowed = may_recommend(recommender.vocabulary)

    def encode(self, histories: list[list[int]]) -> Tensor:
        """User vectors (B, D) of histories of at least one item each."""
        with torch.inference_mode():
            return self.model.encode(pad_histories(histories, self.model.max_history_items)).users.float()

    def rank(self, wishes: Sequence[Wish], vectors: Sequence[Tensor | None]) -> list[Ranked]:
        """The best items of each user; `vectors` are (D,) each, None without history."""
        answers: list[Ranked] = [[] for _ in wishes]
        free = [row for row, wish in enumerate(wishes) if wish.candidates is None]
        for items, is_empty in ((self._item_vectors, False), (self._popularity, True)):
            rows = [row for row in free if (vectors[row] is None) == is_empty]
            lists = self._among_all([_user(vectors[row]) for row in rows], items, [wishes[row] for row in rows])
            for row, ranked in zip(rows, lists, strict=True):
                answers[row] = ranked
        for row, wish in enumerate(wishes):
            if wish.candidates is not None:
                items = self._popularity if vectors[row] is None else self._item_vectors
                places = sorted(set(wish.candidates) - set(wish.excluded) - self._removed)
                answers[row] = _among(places, _user(vectors[row]), items, wish.k)
        return answers

    def _among_all(self, users: list[Tensor], items: Tensor, wishes: list[Wish]) -> list[Ranked]:
        if not users:
            return []
        excluded = pad_sequence([torch.tensor(wish.excluded, dtype=torch.int64) for wish in wishes], batch_first=True)
        allowed = self._allowed if self._removed else None
        most = max(wish.k for wish in wishes)
        with torch.inference_mode():
            scores, best = top_k(torch.stack(users), items, most, excluded=excluded, allowed=allowed)
        rows = zip(scores.tolist(), best.tolist(), wishes, strict=True)
        return [_shown(row, places, wish.k) for row, places, wish in rows]


def _user(vector: Tensor | None) -> Tensor:
    """Of popularity, the items' only coordinate, a user without history gets all."""
    return torch.ones(1) if vector is None else vector


def _among(places: list[int], user: Tensor, items: Tensor, k: int) -> Ranked:
    if not places:
        return []
    scores, best = (part[0].tolist() for part in top_k(user[None], items[[0, *places]], k))
    return _shown(scores, [places[place - 1] for place in best], k)


def _shown(scores: list[float], items: list[int], k: int) -> Ranked:
    """The first k; where no more items are left, the item is 0."""
    return [(item, score) for item, score in zip(items[:k], scores[:k], strict=True) if item]
