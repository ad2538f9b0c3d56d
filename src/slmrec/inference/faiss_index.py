"""Approximate index of item vectors by FAISS, for catalogues where exact search takes too long."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import read_json, write_atomically
from slmrec.topk import top_k
from slmrec.types import ItemBonus

RECALL_AT = 10
_POINTS_PER_LIST = 64
"""Training vectors per list centre; FAISS's default of 256 takes four times as long."""


class IndexFacts(NamedTuple):
    """Properties of an index, stored beside it."""

    recall: float
    """Share of the exact 10 best items that the index finds, measured on queries that it was not tuned on."""
    num_lists: int
    num_probed: int
    fingerprint: str
    """Fingerprint of the model folder whose items the index holds."""


class ItemIndex:
    """Finds the best items of user vectors in a part of the catalogue; the results nearly equal those of `top_k`.

    The catalogue is divided into lists of similar vectors, and only the lists closest to a user are searched. Source:
    the inverted file of Jégou et al. 2011 without compression, FAISS's `IndexIVFFlat` with inner products.

    Example:
        >>> items, users = torch.randn(101, 8), torch.randn(50, 8)
        >>> index = ItemIndex.build(items, torch.arange(101) > 0, users, recall=1.0, fingerprint="shop")
        >>> scores, best = index.top_k(users, items, k=3)
        >>> bool((best == top_k(users, items, 3)[1]).all())
        True
    """

    def __init__(self, index: Any, facts: IndexFacts) -> None:
        self._index, self.facts = index, facts

    @classmethod
    def build(cls, items: Tensor, allowed: Tensor, queries: Tensor, recall: float, fingerprint: str) -> "ItemIndex":
        """Build an index that searches as few lists as the recall allows.

        Args:
            items: (V+1, D) item vectors.
            allowed: (V+1,) bool, items that may be recommended; the index omits all others.
            queries: (Q, D) user vectors. The number of searched lists is chosen on half of them, and the recall is
                measured on the other half.
            recall: Required share of the exact 10 best items, above 0, at most 1.
            fingerprint: Fingerprint of the model folder.

        Raises:
            ConfigError: FAISS is not installed, or the recall is out of range.
        """
        if not 0 < recall <= 1:
            raise ConfigError(f"--recall is {recall}, expected a share above 0, at most 1")
        faiss = _faiss()
        places = allowed.nonzero().flatten()
        vectors = items[places].float().numpy()
        num_lists = max(1, min(round(2 * len(places) ** 0.5), len(places) // 40))
        centres = faiss.IndexFlatIP(vectors.shape[1])
        index = faiss.IndexIVFFlat(centres, vectors.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid, index.cp.min_points_per_centroid, index.cp.seed = _POINTS_PER_LIST, 1, 0
        index.train(vectors)
        index.add_with_ids(vectors, places.numpy())
        built = cls(index, IndexFacts(0.0, num_lists, 1, fingerprint))
        tuning, test = queries[0::2].float(), queries[1::2].float()
        index.nprobe = 1
        while index.nprobe < num_lists and built.recall(tuning, items, allowed) < recall:
            index.nprobe = min(2 * index.nprobe, num_lists)
        built.facts = built.facts._replace(recall=built.recall(test, items, allowed), num_probed=index.nprobe)
        return built

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "ItemIndex":
        """Load an index that `save` wrote for the model folder with this fingerprint.

        Raises:
            CheckpointError: A file is missing or damaged, or the index belongs to other items.
            ConfigError: FAISS is not installed.
        """
        faiss = _faiss()
        try:
            facts = IndexFacts(**read_json(_facts_path(path)))
            index = faiss.read_index(str(path))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: the index cannot be read ({reason}); export it again") from None
        if facts.fingerprint != fingerprint:
            raise CheckpointError(f"{path}: the index holds other items than the model folder; export it again")
        index.nprobe = facts.num_probed
        return cls(index, facts)

    def save(self, path: Path) -> None:
        """Write the index, and its properties as JSON beside it; the JSON comes last and marks a complete index."""
        facts = _facts_path(path)
        with write_atomically(facts) as facts_partial, write_atomically(path) as partial:
            partial.write_bytes(_faiss().serialize_index(self._index))  # FAISS's own writer ignores a full disk
            facts_partial.write_text(json.dumps(self.facts._asdict(), indent=1) + "\n", encoding="utf-8")
            facts.unlink(missing_ok=True)

    def top_k(
        self,
        users: Tensor,
        items: Tensor,
        k: int,
        *,
        excluded: Tensor | None = None,
        allowed: Tensor | None = None,
        bonus: ItemBonus | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return scores and items as `slmrec.topk.top_k` does.

        As many additional items are searched as a user has excluded items and items with a bonus, and the latter always
        compete. Users for whom too few items remain are answered by exact search.
        """
        if bonus is None:
            bonus = ItemBonus(users.new_zeros(len(users), 0, dtype=torch.int64), users.new_zeros(len(users), 0))
        size = min(k, len(items) - 1)
        hidden = torch.zeros(len(users), 0, dtype=torch.int64, device=users.device) if excluded is None else excluded
        num_searched = min(size + hidden.shape[1] + bonus.items.shape[1], self._index.ntotal)
        found = torch.from_numpy(self._index.search(users.float().cpu().numpy(), num_searched)[1]).to(users.device)
        # In ascending order, so that of equal scores the first item wins.
        places = torch.cat([found.clamp(min=0), bonus.items], dim=1).sort(dim=1).values
        may_rank = (places > 0) & ~(places[:, :, None] == hidden[:, None, :]).any(dim=2)
        may_rank[:, 1:] &= places[:, 1:] != places[:, :-1]
        if allowed is not None:
            may_rank &= allowed[places]
        scores = torch.einsum("bd,bfd->bf", users.float(), items[places].float())
        scores += ((places[:, :, None] == bonus.items[:, None, :]) * bonus.scores[:, None, :]).sum(dim=2)
        ordered = scores.masked_fill(~may_rank, -torch.inf).sort(dim=1, descending=True, stable=True)
        best, values = places.gather(1, ordered.indices)[:, :size], ordered.values[:, :size]
        best, values = (F.pad(part, (0, size - part.shape[1])) for part in (best, values))
        too_few = may_rank.sum(dim=1) < size
        if too_few.any():
            own = None if excluded is None else excluded[too_few]
            some = ItemBonus(bonus.items[too_few], bonus.scores[too_few])
            values[too_few], best[too_few] = top_k(users[too_few], items, k, excluded=own, allowed=allowed, bonus=some)
        return values, best

    def recall(self, queries: Tensor, items: Tensor, allowed: Tensor) -> float:
        """Return the share of the exact 10 best items of some user vectors that the index finds."""
        exact = top_k(queries, items, RECALL_AT, allowed=allowed)[1]
        found = torch.from_numpy(self._index.search(queries.numpy(), exact.shape[1])[1])
        return float((exact[:, :, None] == found[:, None, :]).any(dim=2).float().mean())


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError("an index needs faiss, not installed here; run: pip install 'slmrec[faiss]'")
    import faiss

    return faiss


def _facts_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
