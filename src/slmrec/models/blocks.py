"""Blocks of SASRec: attention, optionally mixed with a low-pass filter, and a feed-forward network."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.config import LowPassSettings, SasRecSettings, TimeGapSettings
from slmrec.types import PER_SECOND, Unit


class LowPass(nn.Module):
    """Low-pass filter of a sequence, to which a learned share of the high frequencies is added in each channel.

    Source: BSARec: LayerNorm(x + Dropout(low + beta^2 * (x - low))). The frequencies are those of a window of
    `max_history_items` positions that ends with the position that is read and holds zeros before the oldest item.
    BSARec filters the padding along with the items. A causal filter leaves out later items, so that one pass encodes
    all prefixes of a history.
    Each beta is initialised from N(0, 1): its square is 1 on average, and channels start with different values.

    Args:
        settings: Architecture of the model.
        low_pass: Settings of the filter.
    """

    def __init__(self, settings: SasRecSettings, low_pass: LowPassSettings) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.empty(settings.hidden_size))
        self.norm = nn.Identity() if settings.norm_first else nn.LayerNorm(settings.hidden_size)
        self.dropout = nn.Dropout(settings.dropout)
        matrix = low_pass_matrix(settings.num_positions, low_pass.frequencies)
        self.causal, self._matrix = low_pass.causal, np.tril(matrix) if low_pass.causal else matrix

    def forward(self, queries: Tensor, x: Tensor, columns: Tensor, is_item: Tensor) -> Tensor:
        """Return the filtered states (B, Q, D) of the queries, which are at `columns` (B or 1, Q) of `x` (B, L, D).

        The filter depends only on the distance between positions, so the result is the same wherever the history lies
        in the window. `is_item` (B, L) tells items from padding.
        """
        output: Tensor = self.norm(queries + self.filtered(queries, x, columns, is_item))
        return output

    def filtered(self, queries: Tensor, x: Tensor, columns: Tensor, is_item: Tensor) -> Tensor:
        """Return the output (B, Q, D) without residual connection and norm."""
        matrix = torch.from_numpy(self._matrix).to(x)
        if not self.causal:
            x = x * is_item[..., None]
        low = matrix[columns, : x.shape[1]] @ x
        output: Tensor = self.dropout(low + self.beta.square() * (queries - low))
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


class GapBuckets:
    """Buckets of the time between two events, whose bounds are a geometric series.

    Source: the relative attention bias of HSTU (Zhai et al. 2024). There, the time of a query is that of the event
    after it; here, it is that of the query's own event, which is known before the next event happens.

    Args:
        settings: Number of buckets, and the ratio of their bounds.
        unit: Unit of the times.

    Example:
        >>> buckets = GapBuckets(TimeGapSettings(num_buckets=4, bucket_ratio=60.0), "s")
        >>> buckets.of(torch.tensor([[0, 59, 3_600]])).tolist()
        [[[0, 0, 0], [0, 0, 0], [2, 1, 0]]]
    """

    def __init__(self, settings: TimeGapSettings, unit: Unit) -> None:
        self.unit = unit
        largest = math.floor(43 / math.log(settings.bucket_ratio))  # exp(43) seconds are more than any gap
        powers = (settings.bucket_ratio ** min(number, largest) for number in range(1, settings.num_buckets))
        self._bounds = np.array([min(math.ceil(PER_SECOND[unit] * power), 2**63 - 1) for power in powers])

    def of(self, times: Tensor) -> Tensor:
        """Return the buckets (B, L, L) of queries and keys at some times (B, L); events after a query have no gap."""
        gaps, bounds = times[:, :, None] - times[:, None, :], torch.from_numpy(self._bounds).to(times.device)
        if torch.compiler.is_exporting():
            return _bucketize(gaps, bounds)
        return torch.bucketize(gaps, bounds, right=True)


def _bucketize(values: Tensor, bounds: Tensor) -> Tensor:
    """Return the number of bounds up to each value by a binary search, since ONNX has no `torch.bucketize`."""
    found = torch.zeros_like(values)
    for step in (2**power for power in reversed(range(len(bounds).bit_length()))):
        further = found + step
        is_bound = bounds[further.clamp(max=len(bounds)) - 1] <= values
        found = torch.where(is_bound & (further <= len(bounds)), further, found)
    return found


class Block(nn.Module):
    """Transformer block: attention, optionally mixed with a low-pass filter, and a feed-forward network.

    Each of the two has dropout, a residual connection, and a layer norm of its input or of its output.

    Args:
        settings: Architecture of the model.
    """

    def __init__(self, settings: SasRecSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.num_heads, self.norm_first = settings.num_attention_heads, settings.norm_first
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.output_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.distance_bias, self.gap_bias = None, None
        if settings.time_gaps is not None:
            self.gap_bias = nn.Embedding(settings.time_gaps.num_buckets, settings.num_attention_heads)
        if settings.positions == "relative" or settings.time_gaps is not None:
            self.distance_bias = nn.Embedding(settings.num_positions, settings.num_attention_heads)
        low_pass: LowPassSettings | None = settings.low_pass
        self.filter_weight = low_pass.weight if low_pass else 0.0
        self.low_pass = LowPass(settings, low_pass) if low_pass else None

    def forward(
        self,
        queries: Tensor,
        x: Tensor,
        visible: Tensor | None,
        columns: Tensor,
        is_item: Tensor,
        gaps: Tensor | None = None,
    ) -> Tensor:
        """Return the states (B, Q, H) of the queries.

        Args:
            queries: (B, Q, H) some positions of `x`.
            x: (B, L, H) keys and values.
            visible: (B, 1, 1, L) bool, the positions that are attended to; None: causal attention.
            columns: (B or 1, Q) positions of the queries in `x`.
            is_item: (B, L) bool, false for padding.
            gaps: (B, Q, L) buckets of the time between key and query, for blocks with a bias by time.
        """
        if self.norm_first:
            own, keys = self.attention_norm(queries), self.attention_norm(x)
            update = self.dropout(self._attended(own, keys, visible, columns, gaps))
            if self.low_pass is not None:
                weight = self.filter_weight
                update = weight * self.low_pass.filtered(own, keys, columns, is_item) + (1 - weight) * update
            mixed = queries + update
            return mixed + self.dropout(self.feed_forward(self.output_norm(mixed)))  # type: ignore[no-any-return]
        mixed = self.attention_norm(queries + self.dropout(self._attended(queries, x, visible, columns, gaps)))
        if self.low_pass is not None:
            mixed = self.filter_weight * self.low_pass(queries, x, columns, is_item) + (1 - self.filter_weight) * mixed
        return self.output_norm(mixed + self.dropout(self.feed_forward(mixed)))  # type: ignore[no-any-return]

    def _attended(
        self, queries: Tensor, x: Tensor, visible: Tensor | None, columns: Tensor, gaps: Tensor | None
    ) -> Tensor:
        mask = visible if self.distance_bias is None else self._biases(columns, x.shape[1], gaps)
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(queries)),
            self._heads(self.key(x)),
            self._heads(self.value(x)),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        by_position = attended.transpose(1, 2)
        if torch.compiler.is_exporting():  # the layout of the output depends on the form of the attention in the graph
            by_position = by_position.clone(memory_format=torch.contiguous_format)
        output: Tensor = self.out(by_position.flatten(2))
        return output

    def _biases(self, columns: Tensor, num_keys: int, gaps: Tensor | None) -> Tensor:
        """Return attention biases (B or 1, heads, Q, L) by distance, and by time, of a key before its query."""
        assert self.distance_bias is not None
        distances = columns[:, :, None] - torch.arange(num_keys, device=columns.device)
        biases: Tensor = self.distance_bias(distances.clamp(min=0)).permute(0, 3, 1, 2)
        if self.gap_bias is not None:
            biases = biases + self.gap_bias(gaps).permute(0, 3, 1, 2)
        return biases.masked_fill((distances < 0)[:, None], -torch.inf)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
