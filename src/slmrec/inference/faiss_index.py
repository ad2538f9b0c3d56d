"""An approximate index of item vectors by FAISS, for catalogues where exact search takes too long."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slmrec.errors import CheckpointError, ConfigError
from slmrec.topk import top_k

RECALL_AT = 10
_POINTS_PER_LIST = 64
"""Vectors that the lists' centres are computed from, for each; FAISS's own 256 take four times as long."""


class Built(NamedTuple):
    """What is stored beside an index."""

    recall: float
    """Share of the exact 10 best items that it finds, on queries that it was not tuned on."""
    num_lists: int
    num_probed: int
    fingerprint: str
    """Of the model folder whose items it holds."""


class ItemIndex:
    """Finds the best items of user vectors among a part of the catalogue; its answers are those of `top_k`, nearly.

    The catalogue is parted into lists of near vectors, and only the lists nearest to a user are searched. Source:
    the inverted file of Jégou et al. 2011 without compression, FAISS's `IndexIVFFlat` with inner products.
    """

    def __init__(self, index: Any, built: Built) -> None:
        self._index, self.built = index, built

    @classmethod
    def build(cls, items: Tensor, allowed: Tensor, queries: Tensor, recall: float, fingerprint: str) -> "ItemIndex":
        """An index that searches as few lists as the recall asks for.

        Args:
            items: (V+1, D) item vectors.
            allowed: (V+1,) bool, the items that may be recommended; the others are left out.
            queries: (Q, D) user vectors: on the first half the number of lists is chosen, on the other half the
                recall is measured.
            recall: wanted share of the exact 10 best items, above 0, at most 1.
            fingerprint: of the model folder.

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
        own = cls(index, Built(0.0, num_lists, 1, fingerprint))
        tuned, tested = queries[0::2].float(), queries[1::2].float()
        index.nprobe = 1
        while index.nprobe < num_lists and own.recall(tuned, items, allowed) < recall:
            index.nprobe = min(2 * index.nprobe, num_lists)
        own.built = own.built._replace(recall=own.recall(tested, items, allowed), num_probed=index.nprobe)
        return own

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "ItemIndex":
        """An index that `save` wrote, of the model folder with this fingerprint.

        Raises:
            CheckpointError: a file is missing or damaged, or it is an index of other items.
            ConfigError: FAISS is not installed.
        """
        faiss = _faiss()
        try:
            built = Built(**json.loads(_facts(path).read_text(encoding="utf-8")))
            index = faiss.read_index(str(path))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: no index that can be read ({reason}); export it anew") from None
        if built.fingerprint != fingerprint:
            raise CheckpointError(f"{path}: an index of other items than those of the model folder; export it anew")
        index.nprobe = built.num_probed
        return cls(index, built)

    def save(self, path: Path) -> None:
        """Writes the index, and what is known of it as JSON beside it; the latter last, so that both are there."""
        partial = path.with_name(f".{path.name}.partial")
        _faiss().write_index(self._index, str(partial))
        _facts(path).unlink(missing_ok=True)
        partial.replace(path)
        partial.write_text(json.dumps(self.built._asdict(), indent=1) + "\n", encoding="utf-8")
        partial.replace(_facts(path))

    def top_k(
        self, users: Tensor, items: Tensor, k: int, *, excluded: Tensor | None = None, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `slmrec.training.full_softmax.top_k`, with as many more looked up as a user may not get.

        Users for whom too few are found that way are answered by exact search.
        """
        num_wanted = min(k, len(items) - 1)
        out = torch.zeros(len(users), 0, dtype=torch.int64) if excluded is None else excluded
        num_found = min(num_wanted + out.shape[1], self._index.ntotal)
        found = self._index.search(users.float().numpy(), num_found)[1]
        places = torch.from_numpy(found).clamp(min=0).sort(dim=1).values  # so that of equal scores the first item wins
        may_rank = (places > 0) & ~(places[:, :, None] == out[:, None, :]).any(dim=2)
        if allowed is not None:
            may_rank &= allowed[places]
        scores = torch.einsum("bd,bfd->bf", users.float(), items[places].float())
        ordered = scores.masked_fill(~may_rank, -torch.inf).sort(dim=1, descending=True, stable=True)
        best, values = places.gather(1, ordered.indices)[:, :num_wanted], ordered.values[:, :num_wanted]
        short = may_rank.sum(dim=1) < num_wanted
        best, values = (torch.nn.functional.pad(part, (0, num_wanted - part.shape[1])) for part in (best, values))
        if short.any():
            values[short], best[short] = top_k(
                users[short], items, k, excluded=None if excluded is None else excluded[short], allowed=allowed
            )
        return values, best

    def recall(self, queries: Tensor, items: Tensor, allowed: Tensor) -> float:
        """Share of the exact 10 best items of some user vectors that are found."""
        exact = top_k(queries, items, RECALL_AT, allowed=allowed)[1]
        found = torch.from_numpy(self._index.search(queries.numpy(), exact.shape[1])[1])
        return float((exact[:, :, None] == found[:, None, :]).any(dim=2).float().mean())


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError("an index needs faiss, not installed here; run: pip install 'slmrec[faiss]'")
    import faiss

    return faiss


def _facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
