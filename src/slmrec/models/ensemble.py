"""Two recommenders as one: the scores of a decoder and of SASRec, mixed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.models.decoder import DecoderRecommender, DecoderRecommenderConfig
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.types import Batch, Encoded

PREFIXES = 1024
"""Histories that SASRec reads at once, where every position of a batch is one."""


class EnsembleConfig(PretrainedConfig):
    """Architecture of an `Ensemble`."""

    model_type = "slmrec_ensemble"

    def __init__(
        self,
        llm: dict[str, Any] | None = None,
        sasrec: dict[str, Any] | None = None,
        sasrec_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.llm, self.sasrec = llm or {}, sasrec or {}
        self.sasrec_weight = sasrec_weight
        super().__init__(**kwargs)


class Ensemble(PreTrainedModel):
    """(1 - w) times the scores of a decoder plus w times those of SASRec; a `SequenceEncoder`.

    A weighted sum of dot products is one dot product of the vectors side by side, so whatever works with user and item
    vectors works with it. In probabilities it is the geometric mean of both models' distributions.
    """

    config_class = EnsembleConfig
    base_model_prefix = "ensemble"
    config: EnsembleConfig

    def __init__(
        self, config: EnsembleConfig, llm: DecoderRecommender | None = None, sasrec: SasRec | None = None
    ) -> None:
        super().__init__(config)
        self.llm = llm or DecoderRecommender(DecoderRecommenderConfig(**config.llm))
        self.sasrec = sasrec or SasRec(SasRecConfig(**config.sasrec))
        self.all_tied_weights_keys: dict[str, str] = {}

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Its members bring their weights."""

    @classmethod
    def of(cls, llm: DecoderRecommender, sasrec: SasRec, sasrec_weight: float) -> "Ensemble":
        """The ensemble of two models of the same items."""
        config = EnsembleConfig(llm.config.to_dict(), sasrec.config.to_dict(), sasrec_weight)
        return cls(config, llm, sasrec)

    @property
    def num_items(self) -> int:
        """V."""
        return self.llm.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history that both read."""
        return min(self.llm.max_history_items, self.sasrec.max_history_items)

    @property
    def hidden_size(self) -> int:
        """H of the decoder."""
        return self.llm.hidden_size

    @property
    def num_layers(self) -> int:
        """The decoder's depth."""
        return self.llm.num_layers

    def item_vectors(self) -> Tensor:
        """(V+1, D + D'); row 0 is padding."""
        return torch.cat([self.llm.item_vectors(), self.sasrec.item_vectors()], dim=1)

    def encode(self, batch: Batch, num_blocks: int = 0) -> Encoded:
        """User vectors (N, D + D') and, if asked for, the decoder's states at the end of each block."""
        encoded = self.llm.encode(batch, num_blocks)
        weight = self.config.sasrec_weight
        sasrecs = torch.cat([self.sasrec.encode(piece).users for piece in _prefixes(batch)])
        return Encoded(torch.cat([(1 - weight) * encoded.users, weight * sasrecs], dim=1), encoded.blocks)

    def forward(self, batch: Batch, num_blocks: int = 0) -> Encoded:
        """The same as `encode`, for wrappers that call a model."""
        return self.encode(batch, num_blocks)


def _prefixes(batch: Batch) -> Iterator[Batch]:
    """Each read-out position as the newest of a history of its own: SASRec counts positions back from there."""
    if not batch.every_position:
        yield batch
        return
    rows = torch.repeat_interleave(batch.lengths)
    firsts = batch.lengths.cumsum(0) - batch.lengths
    lengths = torch.arange(1, len(rows) + 1, device=rows.device) - firsts[rows]
    for start in range(0, len(rows), PREFIXES):
        some = slice(start, start + PREFIXES)
        yield Batch(batch.items[rows[some]], lengths[some], batch.targets[some], every_position=False)


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
AutoModel.register(EnsembleConfig, Ensemble)
