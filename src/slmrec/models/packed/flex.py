"""Packed batches behind a prompt on a GPU: one FlexAttention call per layer, its mask built once per batch."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from slmrec.models.packed.attention import AttentionSettings, KeysValues

PREFIX_SEGMENT = -1
"""Segment of the prompt prefix, which every query sees."""
MIN_HEAD_WIDTH = 16
"""Smallest head width that FlexAttention's kernels support."""
MAX_VARIANTS = 64
"""Compiled variants of the kernel per process; beyond them torch would hold the whole matrix of scores."""


def is_supported(query: Tensor, settings: AttentionSettings) -> bool:
    """Return whether FlexAttention is used: on a GPU, with wide enough heads and without attention dropout."""
    return query.is_cuda and not settings.dropout and query.shape[-1] >= MIN_HEAD_WIDTH


def segment_mask(query_segments: Tensor, query_positions: Tensor, key_segments: Tensor) -> BlockMask:
    """Return the mask in which a query sees the prefix and the keys of its own segment up to its own position.

    Args:
        query_segments: (Q,) segment of each query.
        query_positions: (Q,) position of each query among the keys.
        key_segments: (K,) segment of each key.
    """

    def is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        segment = key_segments[key]
        in_segment = (segment == PREFIX_SEGMENT) | (segment == query_segments[query])
        return in_segment & (key <= query_positions[query])

    sizes = (None, None, len(query_segments), len(key_segments))
    return create_block_mask(is_visible, *sizes, device=str(key_segments.device))


def attend(query: Tensor, keys_values: KeysValues, mask: BlockMask, settings: AttentionSettings) -> Tensor:
    """Return the attention output (Q, heads, head width).

    Args:
        query: (Q, heads, head width).
        keys_values: (K, key heads, head width).
        mask: Mask of `segment_mask`.
        settings: Settings of the layer.
    """
    softcap = settings.softcap

    def apply_softcap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap) if softcap is not None else score

    parts = (part.transpose(0, 1)[None] for part in (query, *keys_values))
    kernel = _compiled_kernel() if query.is_cuda else flex_attention
    output: Tensor = kernel(*parts, score_mod=apply_softcap, block_mask=mask, scale=settings.scaling, enable_gqa=True)
    return output[0].transpose(0, 1)


@cache
def _compiled_kernel() -> Any:
    # Each precision, gradient mode, choice of queries and number of users is compiled separately, up to a limit.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    return torch.compile(flex_attention, dynamic=True)
