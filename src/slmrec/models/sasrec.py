"""SASRec: a small causal transformer over item vectors that are learned from scratch.

Source: Kang and McAuley, Self-Attentive Sequential Recommendation (ICDM 2018). Ours differs in two ways that later
work found to matter: positions are counted back from the newest item, and the loss is cross-entropy over the catalogue.

Optionally each block mixes its attention with a low-pass filter of the sequence. Source: Shin et al., An Attentive
Inductive Bias for Sequential Recommendation beyond the Self-Attention (AAAI 2024; BSARec).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.config import SasRecSettings
from slmrec.types import Encoded, Histories, ModelParts


class SasRecConfig(PretrainedConfig):
    """Architecture of a `SasRec`; `low_pass` is None or holds the `weight` and the `frequencies` of the filter."""

    model_type = "slmrec_sasrec"

    def __init__(
        self,
        num_items: int = 1,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        dropout: float = 0.5,
        max_history_items: int = 50,
        low_pass: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_items = num_items
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        self.max_history_items = max_history_items
        self.low_pass = low_pass
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
        if isinstance(module, LowPass):
            nn.init.normal_(module.beta)

    @property
    def num_items(self) -> int:
        """V."""
        return self.config.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history the model reads."""
        return self.config.max_history_items

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks."""
        return self.config.num_hidden_layers

    @property
    def decoder_part(self) -> None:
        """Decoder whose layers a student may start from; SASRec has none."""
        return None

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        return self.item_embeddings.weight

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """User vectors (N, D) at the read-out positions; SASRec has no block states to teach with.

        Raises:
            ValueError: block states are asked for, or every position of a model whose filter looks ahead.
        """
        if num_blocks:
            raise ValueError("SASRec gives no block states")
        if every_position and self.config.low_pass:
            raise ValueError("a low-pass filter sees later items, so only the newest position can be read out")
        columns = torch.arange(histories.items.shape[1], device=histories.items.device)
        inside = columns < histories.lengths[:, None]
        age = (histories.lengths[:, None] - 1 - columns).clamp(min=0)
        x = self.item_embeddings(histories.items) + self.position_embeddings(age)
        x = self.dropout(self.norm(x))
        for layer in self.layers[:-1]:
            x = layer(x, x, None, columns[None], inside)
        if every_position:
            return Encoded(self.layers[-1](x, x, None, columns[None], inside)[inside])
        last = histories.lengths - 1
        newest = x[torch.arange(x.shape[0], device=x.device), last].unsqueeze(1)
        return Encoded(self.layers[-1](newest, x, inside[:, None, None, :], last[:, None], inside).squeeze(1))

    def forward(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Call `encode`, for wrappers that call the model as a function."""
        return self.encode(histories, every_position=every_position, num_blocks=num_blocks)


def build_sasrec(settings: SasRecSettings, parts: ModelParts) -> SasRec:
    """Return a SASRec model with random weights."""
    architecture = settings.model_dump(include=set(SasRecSettings.model_fields) - {"kind"})
    return SasRec(SasRecConfig(num_items=parts.num_items, **architecture))


class LowPass(nn.Module):
    """A smoothed sequence: its low frequencies, and of the others a share that is learned for each channel.

    Source: BSARec: LayerNorm(x + Dropout(low + beta^2 * (x - low))). The frequencies are those of a window of
    `max_history_items` positions that ends with the newest item and holds zeros before the oldest. Ours differs in
    these zeros: there, pads are filtered along with the items. Here, what is no item counts for nothing.
    Each beta starts at a draw from N(0, 1): its square is 1 on average, and channels differ from the start.
    """

    def __init__(self, config: SasRecConfig, frequencies: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.empty(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self._matrix = low_pass_matrix(config.max_history_items, frequencies)

    def forward(self, queries: Tensor, x: Tensor, columns: Tensor, inside: Tensor) -> Tensor:
        """The filtered states (B, Q, D) of the queries, which stand at `columns` (B or 1, Q) of `x` (B, L, D).

        The filter knows distances alone, so the window may begin with the oldest item as well as end with the newest.
        """
        matrix = torch.from_numpy(self._matrix).to(x)
        low = (matrix[columns, : x.shape[1]] * inside[:, None, :]) @ x
        output: Tensor = self.norm(queries + self.dropout(low + self.beta.square() * (queries - low)))
        return output


def low_pass_matrix(window: int, frequencies: int) -> NDArray[np.float32]:
    """(window, window) P, such that P x has the frequencies 0, 1, ... of x, as many as asked for, and no others.

    P is symmetric and circulant: an entry depends on the distance of its positions alone.

    Example:
        >>> low_pass_matrix(4, 1)[0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    spectrum = np.fft.rfft(np.eye(window), axis=0)
    spectrum[frequencies:] = 0
    return np.fft.irfft(spectrum, window, axis=0).astype(np.float32)


class Block(nn.Module):
    """Attention, perhaps mixed with a filter, and feed-forward, each followed by dropout, residual and norm."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.output_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.filter_weight = config.low_pass["weight"] if config.low_pass else 0.0
        self.low_pass = LowPass(config, config.low_pass["frequencies"]) if config.low_pass else None

    def forward(self, queries: Tensor, x: Tensor, visible: Tensor | None, columns: Tensor, inside: Tensor) -> Tensor:
        """States (B, Q, D) of the queries.

        Args:
            queries: (B, Q, D) some positions of `x`.
            x: (B, L, D) what they attend to.
            visible: what of it, (B, 1, 1, L); None: causally.
            columns: (B or 1, Q) where the queries stand in `x`.
            inside: (B, L) which positions hold items.
        """
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(queries)),
            self._heads(self.key(x)),
            self._heads(self.value(x)),
            attn_mask=visible,
            is_causal=visible is None,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = self.out(attended.transpose(1, 2).flatten(2))
        mixed = self.attention_norm(queries + self.dropout(attended))
        if self.low_pass is not None:
            share = self.filter_weight
            mixed = share * self.low_pass(queries, x, columns, inside) + (1 - share) * mixed
        output: Tensor = self.output_norm(mixed + self.dropout(self.feed_forward(mixed)))
        return output

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


AutoConfig.register(SasRecConfig.model_type, SasRecConfig)
AutoModel.register(SasRecConfig, SasRec)
