"""Padded batches: a row of tokens for each user, where they are faster than packed batches."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slmrec.models.packed.attention import AttentionSettings, KeysValues, attend
from slmrec.types import Histories

MAX_EXTRA_FLOP = 5e11
"""Largest number of floating-point operations of a layer's forward pass that padding may add on a GPU.

Measured on an H200 (benchmarks/results/gpu.json): in inference, packing four small layers took 9.8 ms longer than
padding them, because it launches more kernels, which is 2.5 ms a layer. Matrix products ran at 158 to 618 TFLOP/s; at
200, padding may add 0.5 TFLOP to a layer before it takes as long. Training has more kernels and more products alike.
"""


def is_padded_faster(device: str, layer_weights: int, packed_tokens: int, padded_tokens: int) -> bool:
    """Return whether a padded batch is faster than a packed one: never on a CPU, and on a GPU if its layers are small.

    Args:
        device: Type of the device, such as `cuda`.
        layer_weights: Number of weights in the linear maps of one layer.
        packed_tokens: Number of tokens of the packed batch.
        padded_tokens: Number of tokens of the padded batch.

    Example:
        >>> is_padded_faster("cuda", 3_538_944, 3_700, 21_248)  # 4 layers of width 576
        True
        >>> is_padded_faster("cuda", 202_375_168, 3_700, 21_248)  # LLaMA-2-7B
        False
    """
    return device == "cuda" and 2 * layer_weights * (padded_tokens - packed_tokens) <= MAX_EXTRA_FLOP


@dataclass
class PaddedAttention:
    """Causal attention of each row; padding stands at the end, where no token of a user sees it."""

    max_tokens: int

    def attend_rows(self, query: Tensor, own: KeysValues, settings: AttentionSettings) -> Tensor:
        """Return the attention output (B, T, heads, head width) of queries, keys and values of the same form."""
        return attend(query, own, None, settings._replace(use_fused_kernel=settings.softcap is None))


class PaddedBatch(NamedTuple):
    """Layout [prefix; items; response; padding] of each row."""

    source: Tensor | None
    """(B, L + S) index of each token after the prefix in [padded items; response]; None if there is no response."""
    position_ids: Tensor
    """(B, T) position of each token for the positional encoding."""
    supervised: tuple[Tensor, Tensor]
    """Rows and columns (N,) at which the users are read, in the order of the histories."""

    def inputs(self, items: Tensor, prefix: Tensor, response: Tensor) -> Tensor:
        """Return the input vectors (B, T, H) of the decoder for items (B, L, H), prefix (P, H) and response (S, H)."""
        prefix, response = (part.to(items.dtype).expand(len(items), -1, -1) for part in (prefix, response))
        if self.source is not None:
            items = torch.take_along_dim(torch.cat([items, response], dim=1), self.source[:, :, None], dim=1)
        return torch.cat([prefix, items], dim=1)


def pad_rows(
    histories: Histories, every_position: bool, num_prefix: int, num_response: int, pads: Tensor
) -> PaddedBatch:
    """Return the padded layout of a batch; the arguments are those of `pack`."""
    lengths, device = histories.lengths, histories.items.device
    longest = histories.items.shape[1]
    tokens = torch.arange(num_prefix + longest + num_response, device=device)
    columns = tokens[: longest + num_response]
    after_items = columns - lengths[:, None]
    source = torch.where(after_items < 0, columns, longest + after_items.clamp(0, max(0, num_response - 1)))
    position_ids = tokens + (tokens >= num_prefix) * pads[:, None]
    if every_position:
        rows, items = torch.nonzero(columns[:longest] < lengths[:, None], as_tuple=True)
        supervised = rows, num_prefix + items
    else:
        supervised = torch.arange(len(lengths), device=device), num_prefix + lengths + num_response - 1
    return PaddedBatch(source if num_response else None, position_ids, supervised)
