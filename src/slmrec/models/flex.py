"""The packed row on a GPU: one FlexAttention call a layer, its mask built once a row."""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from slmrec.models.attention import KeysValues, ScoreRule

PREFIX = -1
"""The segment that everybody sees."""


def segment_mask(query_segments: Tensor, query_places: Tensor, key_segments: Tensor) -> BlockMask:
    """Which keys a query sees: those of its own segment and of the prefix, up to its own place.

    Args:
        query_segments: (Q,) segment of each query.
        query_places: (Q,) the query's own place among the keys.
        key_segments: (K,) segment of each key.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        segment = key_segments[key]
        return ((segment == PREFIX) | (segment == query_segments[query])) & (key <= query_places[query])

    sizes = (None, None, len(query_segments), len(key_segments))
    return create_block_mask(visible, *sizes, device=str(key_segments.device))


def attend(query: Tensor, answers: "KeysValues", mask: BlockMask, rule: "ScoreRule") -> Tensor:
    """(Q, heads, head width) of queries (Q, heads, head width) over keys and values (K, key heads, head width)."""
    softcap = rule.softcap

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap) if softcap is not None else score

    parts = (part.transpose(0, 1)[None] for part in (query, *answers))
    kernel = _compiled() if query.is_cuda else flex_attention
    attended: Tensor = kernel(*parts, score_mod=capped, block_mask=mask, scale=rule.scaling, enable_gqa=True)
    return attended[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
