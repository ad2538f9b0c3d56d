"""The packed row behind a prompt, on a GPU: one FlexAttention call a layer, its mask built once a row."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from slmrec.models.packed.attention import KeysValues, ScoreRule

PREFIX = -1
"""The segment that everybody sees."""
NARROWEST = 16
"""Width of a head: FlexAttention's kernels take no narrower ones."""
VARIANTS = 64
"""Of one kernel in a process; beyond them torch would hold all scores at once."""


def serves(query: Tensor, rule: ScoreRule) -> bool:
    """Whether it attends for these queries: on a GPU, heads wide enough, no weights of attention dropped out."""
    return query.is_cuda and not rule.dropout and query.shape[-1] >= NARROWEST


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


def attend(query: Tensor, answers: KeysValues, mask: BlockMask, rule: ScoreRule) -> Tensor:
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
    # Precision, gradients or none, all queries or the newest, one user or many: each is compiled anew, up to a limit.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    return torch.compile(flex_attention, dynamic=True)
