"""SASRec: a small causal transformer over item vectors that are learned from scratch.

Source: Kang and McAuley, Self-Attentive Sequential Recommendation (ICDM 2018). This implementation differs in two ways
that later work found to matter: positions are counted back from the newest item, or are relative, and the loss is
cross-entropy over all items.

Optionally, each block mixes its attention with a low-pass filter of the sequence. Source: Shin et al., An Attentive
Inductive Bias for Sequential Recommendation beyond the Self-Attention (AAAI 2024; BSARec).
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.config import LowPassSettings, SasRecSettings
from slmrec.models.model import Model, ModelConfig, ModelParts, register
from slmrec.types import Encoded, Histories

MAX_PREFIXES = 1024
"""Number of prefixes that are encoded at once where every position of a history needs a pass of its own."""


class SasRecConfig(ModelConfig):
    """Architecture of a `SasRec`: the settings of `SasRecSettings`."""

    model_type = "slmrec_sasrec"
    section = SasRecSettings


class SasRec(Model):
    """SASRec: user vectors of width D from histories.

    Args:
        config: Architecture; the weights are random.

    Example:
        >>> model = SasRec(SasRecConfig(num_items=100, hidden_size=16)).eval()
        >>> model.encode(Histories(torch.tensor([[3, 7, 0]]), torch.tensor([2]))).users.shape
        torch.Size([1, 16])
    """

    config_class = SasRecConfig
    base_model_prefix = "sasrec"
    config: SasRecConfig

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        settings: SasRecSettings = config.settings
        width = settings.hidden_size
        self.item_embeddings = nn.Embedding(config.num_items + 1, width, padding_idx=0)
        self.position_embeddings = None
        if settings.positions == "from_newest":
            self.position_embeddings = nn.Embedding(settings.num_positions, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(Block(settings) for _ in range(settings.num_hidden_layers))
        self.post_init()

    @property
    def max_history_items(self) -> int:
        """Number of newest items of a history that the model reads."""
        return int(self.config.settings.num_positions)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, LowPass):
            nn.init.normal_(module.beta)

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        return self.item_embeddings.weight

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return user vectors (N, D) at the supervised positions; hidden states are not available.

        The vector of a position is that of the prefix that ends there. With relative positions and without a low-pass
        filter, one pass gives all of them; otherwise each prefix is encoded by itself.

        Raises:
            ValueError: Hidden states are requested.
        """
        if num_blocks:
            raise ValueError("SASRec returns no hidden states; set num_blocks to 0")
        if every_position and (self.position_embeddings is not None or self.config.low_pass):
            return Encoded(torch.cat([self.encode(prefixes).users for prefixes in _prefixes(histories)]))
        columns = torch.arange(histories.items.shape[1], device=histories.items.device)
        is_item = columns < histories.lengths[:, None]
        x = self.item_embeddings(histories.items)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings((histories.lengths[:, None] - 1 - columns).clamp(min=0))
        x = self.dropout(self.norm(x))
        for layer in self.layers[:-1]:
            x = layer(x, x, None, columns[None], is_item)
        if every_position:
            return Encoded(self.layers[-1](x, x, None, columns[None], is_item)[is_item])
        last = histories.lengths - 1
        newest = x[torch.arange(x.shape[0], device=x.device), last].unsqueeze(1)
        return Encoded(self.layers[-1](newest, x, is_item[:, None, None, :], last[:, None], is_item).squeeze(1))


def _prefixes(histories: Histories) -> Iterator[Histories]:
    """Yield every prefix of the histories as a history of its own, some at a time."""
    rows = torch.repeat_interleave(histories.lengths)
    firsts = histories.lengths.cumsum(0) - histories.lengths
    lengths = torch.arange(1, len(rows) + 1, device=rows.device) - firsts[rows]
    for start in range(0, len(rows), MAX_PREFIXES):
        some = slice(start, start + MAX_PREFIXES)
        yield Histories(histories.items[rows[some]], lengths[some])


def build_sasrec(settings: SasRecSettings, parts: ModelParts) -> SasRec:
    """Return a SASRec model with random weights."""
    return SasRec(SasRecConfig.of(settings, parts.num_items))


class LowPass(nn.Module):
    """Low-pass filter of a sequence, to which a learned share of the high frequencies is added in each channel.

    Source: BSARec: LayerNorm(x + Dropout(low + beta^2 * (x - low))). The frequencies are those of a window of
    `max_history_items` positions that ends with the newest item and holds zeros before the oldest item. BSARec filters
    the padding along with the items; here, positions without an item contribute nothing.
    Each beta is initialised from N(0, 1): its square is 1 on average, and channels start with different values.

    Args:
        settings: Architecture of the model.
        frequencies: Number of frequencies that pass.
    """

    def __init__(self, settings: SasRecSettings, frequencies: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.empty(settings.hidden_size))
        self.norm = nn.LayerNorm(settings.hidden_size)
        self.dropout = nn.Dropout(settings.dropout)
        self._matrix = low_pass_matrix(settings.num_positions, frequencies)

    def forward(self, queries: Tensor, x: Tensor, columns: Tensor, is_item: Tensor) -> Tensor:
        """Return the filtered states (B, Q, D) of the queries, which are at `columns` (B or 1, Q) of `x` (B, L, D).

        The filter depends only on the distance between positions, so the result is the same wherever the history lies
        in the window.
        """
        matrix = torch.from_numpy(self._matrix).to(x)
        low = (matrix[columns, : x.shape[1]] * is_item[:, None, :]) @ x
        output: Tensor = self.norm(queries + self.dropout(low + self.beta.square() * (queries - low)))
        return output


def low_pass_matrix(window: int, frequencies: int) -> NDArray[np.float32]:
    """Return the matrix P (window, window) for which P x keeps the lowest frequencies of x and removes all higher ones.

    P is symmetric and circulant: an entry depends only on the distance of its positions.

    Args:
        window: Number of positions.
        frequencies: Number of frequencies that are kept: 0, 1, ...

    Example:
        >>> low_pass_matrix(4, 1)[0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    spectrum = np.fft.rfft(np.eye(window), axis=0)
    spectrum[frequencies:] = 0
    return np.fft.irfft(spectrum, window, axis=0).astype(np.float32)


class Block(nn.Module):
    """Transformer block: attention, optionally mixed with a low-pass filter, and a feed-forward network.

    Each of the two is followed by dropout, a residual connection and a layer norm.

    Args:
        settings: Architecture of the model.
    """

    def __init__(self, settings: SasRecSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.num_heads = settings.num_attention_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.output_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.distance_bias = None
        if settings.positions == "relative":
            self.distance_bias = nn.Embedding(settings.num_positions, settings.num_attention_heads)
        low_pass: LowPassSettings | None = settings.low_pass
        self.filter_weight = low_pass.weight if low_pass else 0.0
        self.low_pass = LowPass(settings, low_pass.frequencies) if low_pass else None

    def forward(self, queries: Tensor, x: Tensor, visible: Tensor | None, columns: Tensor, is_item: Tensor) -> Tensor:
        """Return the states (B, Q, D) of the queries.

        Args:
            queries: (B, Q, D) some positions of `x`.
            x: (B, L, D) keys and values.
            visible: (B, 1, 1, L) bool, the positions that are attended to; None: causal attention.
            columns: (B or 1, Q) positions of the queries in `x`.
            is_item: (B, L) bool, the positions that hold items.
        """
        mask = visible if self.distance_bias is None else self._biases(columns, x.shape[1])
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(queries)),
            self._heads(self.key(x)),
            self._heads(self.value(x)),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = self.out(attended.transpose(1, 2).flatten(2))
        mixed = self.attention_norm(queries + self.dropout(attended))
        if self.low_pass is not None:
            weight = self.filter_weight
            mixed = weight * self.low_pass(queries, x, columns, is_item) + (1 - weight) * mixed
        output: Tensor = self.output_norm(mixed + self.dropout(self.feed_forward(mixed)))
        return output

    def _biases(self, columns: Tensor, num_keys: int) -> Tensor:
        """Return attention biases (B or 1, heads, Q, L) by the distance of a key before its query; -inf after it."""
        assert self.distance_bias is not None
        distances = columns[:, :, None] - torch.arange(num_keys, device=columns.device)
        biases: Tensor = self.distance_bias(distances.clamp(min=0)).permute(0, 3, 1, 2)
        return biases.masked_fill((distances < 0)[:, None], -torch.inf)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


register(SasRec)
