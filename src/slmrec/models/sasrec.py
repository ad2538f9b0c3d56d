"""SASRec: a small causal transformer over item vectors that are learned from scratch.

Source: Kang and McAuley, Self-Attentive Sequential Recommendation (ICDM 2018). Ours differs in two ways that later
work found to matter: positions are counted back from the newest item, and the loss is cross-entropy over the catalogue.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.types import Batch, Encoded


class SasRecConfig(PretrainedConfig):
    """Architecture of a `SasRec`."""

    model_type = "slmrec_sasrec"

    def __init__(
        self,
        num_items: int = 1,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        dropout: float = 0.5,
        max_history_items: int = 50,
        **kwargs: Any,
    ) -> None:
        self.num_items = num_items
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        self.max_history_items = max_history_items
        super().__init__(**kwargs)


class SasRec(PreTrainedModel):
    """User vectors of width D from histories; a `SequenceEncoder`."""

    config_class = SasRecConfig
    base_model_prefix = "sasrec"
    config: SasRecConfig

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.item_embeddings = nn.Embedding(config.num_items + 1, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_history_items, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @property
    def num_items(self) -> int:
        """V."""
        return self.config.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history the model reads."""
        return self.config.max_history_items

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        return self.item_embeddings.weight

    def encode(self, batch: Batch, num_blocks: int = 0) -> Encoded:
        """User vectors (N, D) at the read-out positions; SASRec has no block states to teach with."""
        if num_blocks:
            raise ValueError("SASRec gives no block states")
        columns = torch.arange(batch.items.shape[1], device=batch.items.device)
        inside = columns < batch.lengths[:, None]
        age = (batch.lengths[:, None] - 1 - columns).clamp(min=0)
        x = self.item_embeddings(batch.items) + self.position_embeddings(age)
        x = self.dropout(self.norm(x))
        for layer in self.layers[:-1]:
            x = layer(x, x, None)
        if batch.every_position:
            return Encoded(self.layers[-1](x, x, None)[inside], ())
        newest = x[torch.arange(len(x), device=x.device), batch.lengths - 1].unsqueeze(1)
        return Encoded(self.layers[-1](newest, x, inside[:, None, None, :]).squeeze(1), ())

    def forward(self, batch: Batch) -> Encoded:
        """The same as `encode`, for wrappers that call a model."""
        return self.encode(batch)


class Block(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual and norm."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.output_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, x: Tensor, visible: Tensor | None) -> Tensor:
        """States (B, Q, D) of the queries, which attend to `x` (B, L, D): causally, or to what is `visible`."""
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(queries)),
            self._heads(self.key(x)),
            self._heads(self.value(x)),
            attn_mask=visible,
            is_causal=visible is None,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = self.out(attended.transpose(1, 2).flatten(2))
        queries = self.attention_norm(queries + self.dropout(attended))
        output: Tensor = self.output_norm(queries + self.dropout(self.feed_forward(queries)))
        return output

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


AutoConfig.register(SasRecConfig.model_type, SasRecConfig)
AutoModel.register(SasRecConfig, SasRec)
