"""Ranking: the best items of many users at once, each with its own number of items, exclusions and candidates.

`Recommender`, the command line and the server answer through `Ranker`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from slmrec.data.batching import pad_histories, pad_items
from slmrec.errors import ConfigError
from slmrec.inference.catalogue import Catalogue
from slmrec.inference.faiss_index import ItemIndex
from slmrec.inference.frozen_model import FrozenModel
from slmrec.inference.rules.effect import RuleEffect
from slmrec.inference.rules.selection import rank_selected
from slmrec.topk import top_k
from slmrec.types import Encoded, ItemBonus


@dataclass
class RankRequest:
    """Request for the best items of one user, in items of the model."""

    k: int
    """Largest number of items, at least 1."""
    excluded: Sequence[int] = ()
    """Items that the user must not get, such as those of the history."""
    candidates: Sequence[int] | None = None
    """Rank these items only; None: all items. Requests with the same list object are ranked together."""
    rules: RuleEffect | None = None
    """Effect of rules; None: no rules. Requests with the same effect are ranked together."""
    diversity: float = 0.0
    """Weight of diversity against the score, from 0 to 1."""


@dataclass(frozen=True)
class Ranked:
    """Ranked items of one user, best first; iteration yields (item, score)."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.items.tolist(), self.scores.tolist(), strict=True)


NO_ITEMS = Ranked(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


class Ranker:
    """Ranks items for users: by the model's scores, or by popularity for users without history.

    Items that the catalogue marks as removed are never ranked. Requests with boosts, caps or diversity are answered by
    exact search.

    Args:
        model: Frozen model.
        catalogue: Counts of the items, and the removed ones.
        index: Approximate index to search in where a request has no candidates; None: exact search.

    Example:
        >>> from slmrec import Recommender
        >>> ranker = Recommender.from_pretrained(folder).ranker
        >>> (ranked,) = ranker.rank([RankRequest(k=2, excluded=[3, 7])], ranker.encode([[3, 7]]))
        >>> len(ranked), bool({3, 7} & set(ranked.items.tolist()))
        (2, False)
    """

    def __init__(self, model: FrozenModel, catalogue: Catalogue, index: ItemIndex | None = None) -> None:
        self.model = model
        self._index = index
        self._item_vectors = model.item_vectors()
        counts = torch.from_numpy(np.concatenate([np.zeros(1, dtype=np.float32), catalogue.counts]))
        self._popularity = counts[:, None].to(model.device)
        self._removed = catalogue.removed
        self._allowed = self._all_except(self._removed) if self._removed else None

    def encode(self, histories: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None) -> Encoded:
        """Encode histories of at least one item each, with user vectors in float32."""
        encoded = self.model.encode(pad_histories(histories, self.model.max_history_items, times))
        return encoded._replace(users=encoded.users.float())

    def append(
        self, states: Sequence[Any], items: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None
    ) -> Encoded:
        """Append items to the histories of some users, as `FrozenModel.append`, with user vectors in float32."""
        encoded = self.model.append(states, items, times)
        return encoded._replace(users=encoded.users.float())

    def rank(
        self, requests: Sequence[RankRequest], encoded: Encoded | None, *, excluded: Sequence[int] = ()
    ) -> list[Ranked]:
        """Return the best items of each user.

        Args:
            requests: One request for each user.
            encoded: Encoded histories of the users, in the order of the requests; None: users without history.
            excluded: Items that no user gets.

        Returns:
            For each request at most k items; fewer if no more items are left.

        Raises:
            ValueError: A score is NaN.
        """
        ranked: list[Ranked] = [NO_ITEMS] * len(requests)
        with torch.inference_mode():
            for rows in _group_alike(requests):
                part = encoded if encoded is None or len(rows) == len(requests) else encoded.select(rows)
                alike = [requests[row] for row in rows]
                for row, one in zip(rows, self._rank_alike(alike, part, excluded), strict=True):
                    ranked[row] = one
        return ranked

    def rank_users(self, requests: Sequence[RankRequest], users: Sequence[Encoded | None]) -> list[Ranked]:
        """Return the best items of users who are encoded one by one, some of them without history.

        Args:
            requests: One request for each user.
            users: Encoded history (N = 1) of each user; None: a user without history.
        """
        ranked: list[Ranked] = [NO_ITEMS] * len(requests)
        with_history = [row for row, user in enumerate(users) if user is not None]
        without = [row for row, user in enumerate(users) if user is None]
        for rows in filter(None, (with_history, without)):
            parts = [user for row in rows if (user := users[row]) is not None]
            encoded = stack_encoded(parts) if parts else None
            for row, one in zip(rows, self.rank([requests[row] for row in rows], encoded), strict=True):
                ranked[row] = one
        return ranked

    def score(self, encoded: Encoded, items: Sequence[int] | None = None) -> Tensor:
        """Return the scores (N, K) of some items, or (N, V) of all items, on the CPU.

        Args:
            encoded: Encoded histories.
            items: K items; None: all items, from 1 to V.
        """
        wanted = range(1, len(self._item_vectors)) if items is None else items
        rows: list[int] | slice = slice(1, None) if items is None else list(items)
        with torch.inference_mode():
            scores = encoded.users @ self._item_vectors[rows].T
            if encoded.bonus is not None:
                columns = torch.tensor(sorted({0, *wanted}), device=scores.device)
                sums = scores.new_zeros(len(scores), len(columns))
                places = _columns_of(encoded.bonus.items, columns)
                sums.scatter_add_(1, places, encoded.bonus.scores.to(scores.dtype))
                chosen = torch.tensor(wanted, dtype=torch.int64, device=scores.device)
                scores += sums[:, torch.searchsorted(columns, chosen)]
            return scores.cpu()

    def _rank_alike(
        self, requests: list[RankRequest], encoded: Encoded | None, excluded_for_all: Sequence[int]
    ) -> list[Ranked]:
        """Rank requests with the same candidates, rules and diversity."""
        device, k = self.model.device, max(request.k for request in requests)
        users, items, bonus = torch.ones(len(requests), 1, device=device), self._popularity, None
        if encoded is not None:
            users, items, bonus = encoded.users, self._item_vectors, encoded.bonus
        hidden = pad_items([request.excluded for request in requests]).to(device)
        excluded = hidden if hidden.shape[1] else None
        candidates, rules, diversity = requests[0].candidates, requests[0].rules, requests[0].diversity
        allowed = self._all_except({*excluded_for_all, *self._removed}) if excluded_for_all else self._allowed
        if rules is not None and rules.allowed is not None:
            allowed = rules.allowed if allowed is None else rules.allowed & allowed
        if diversity or not (rules is None or rules.only_filters):
            own = (rules or RuleEffect()).boost, (rules or RuleEffect()).caps
            allowed = allowed if candidates is None else self._only(candidates, allowed)
            scores, best = rank_selected(
                *(users, items, k),
                excluded=excluded,
                allowed=allowed,
                bonus=bonus,
                boost=own[0],
                caps=own[1],
                diversity=diversity,
                vectors=self._item_vectors,
            )
        elif candidates is None:
            search = top_k if self._index is None or encoded is None else self._index.top_k
            scores, best = search(users, items, k, excluded=excluded, allowed=allowed, bonus=bonus)
        else:
            chosen = sorted({*candidates} - {0})
            if allowed is not None:
                chosen = [item for item, keep in zip(chosen, allowed[chosen].tolist(), strict=True) if keep]
            if not chosen:
                return [NO_ITEMS] * len(requests)
            columns = torch.tensor([0, *chosen], device=device)
            excluded = None if excluded is None else _columns_of(excluded, columns)
            bonus = None if bonus is None else bonus._replace(items=_columns_of(bonus.items, columns))
            scores, best = top_k(users, items[columns], k, excluded=excluded, bonus=bonus)
            best = columns[best]
        sizes = scores.isneginf().logical_not_().sum(dim=1).tolist()  # the score is -inf where no more items are left
        rows = zip(best.cpu().numpy(), scores.float().cpu().numpy(), sizes, requests, strict=True)
        cut = ((row, values, min(size, request.k)) for row, values, size, request in rows)
        return [Ranked(row[:size], values[:size]) for row, values, size in cut]

    def check_diversity(self, diversity: float) -> None:
        """Refuse diversity for a model without item vectors.

        Raises:
            ConfigError: It is no number from 0 to 1, or the items of the model have no vectors to compare.
        """
        if isinstance(diversity, bool) or not isinstance(diversity, int | float) or not 0 <= diversity <= 1:
            raise ConfigError(f"diversity is {diversity!r}, expected a number from 0 to 1")
        if diversity and self._item_vectors.shape[1] < 2:
            raise ConfigError(
                f"diversity is {diversity}, but the model has no item vectors that could be compared (popularity and "
                "co-occurrence have none); set it to 0, or use a rule with cap"
            )

    def _only(self, items: Sequence[int], allowed: Tensor | None) -> Tensor:
        """Return (V+1,) bool: some items, without those that are not allowed."""
        only = torch.zeros(self.model.num_items + 1, dtype=torch.bool)
        only[list(items)] = True
        only[0] = False
        return only.to(self.model.device) if allowed is None else only.to(self.model.device) & allowed

    def _all_except(self, items: set[int]) -> Tensor:
        """Return (V+1,) bool: all items except some, and except padding."""
        allowed = torch.ones(self.model.num_items + 1, dtype=torch.bool)
        allowed[[0, *items]] = False
        return allowed.to(self.model.device)


def stack_encoded(parts: Sequence[Encoded]) -> Encoded:
    """Return one batch of users who were encoded one by one.

    Args:
        parts: Encoded histories of the same model; either all of them have a bonus or none.
    """
    users = torch.cat([part.users for part in parts])
    bonuses = [part.bonus for part in parts if part.bonus is not None]
    if not bonuses:
        return Encoded(users)
    width = max(bonus.items.shape[1] for bonus in bonuses)
    items = torch.cat([F.pad(bonus.items, (0, width - bonus.items.shape[1])) for bonus in bonuses])
    scores = torch.cat([F.pad(bonus.scores, (0, width - bonus.scores.shape[1])) for bonus in bonuses])
    return Encoded(users, bonus=ItemBonus(items, scores))


def _group_alike(requests: Sequence[RankRequest]) -> list[list[int]]:
    """Return the rows of the requests that share a list of candidates, rules and, if diverse, the number of items."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, request in enumerate(requests):
        shared = (request.candidates, request.rules)
        key = (*(None if each is None else id(each) for each in shared), request.diversity)
        key += (request.k,) if request.diversity else ()
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _columns_of(items: Tensor, columns: Tensor) -> Tensor:
    """Return the places of items in the sorted `columns`, which begin with 0; 0 for items that are not there."""
    places = torch.searchsorted(columns, items.contiguous()).clamp(max=len(columns) - 1)
    return places.masked_fill(columns[places] != items, 0)
