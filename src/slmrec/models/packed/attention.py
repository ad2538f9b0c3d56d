"""Attention of segments: users of like length, padded to the longest, in plain products or in one kernel."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CPU = torch.device("cpu")
PADDED_SHARE = 1.25
"""Segments are attended together, padded to the longest, while that costs at most this much more."""


class KeysValues(NamedTuple):
    """What an attention layer reads, after rotation."""

    keys: Tensor
    """(tokens, key heads, head width)."""
    values: Tensor
    """(tokens, key heads, head width)."""


class ScoreRule(NamedTuple):
    """How a layer turns products of queries and keys into weights."""

    scaling: float
    softcap: float | None
    dropout: float
    is_fused: bool = False
    """By PyTorch's fused attention where no keys are shared: faster, and rounded otherwise."""


@dataclass(frozen=True)
class Group:
    """Users of like length, next to each other in the row."""

    start: int
    """First token, counted from the first user's."""
    lengths: tuple[int, ...]
    """Tokens of each user."""
    device: torch.device = CPU

    @cached_property
    def places(self) -> Tensor:
        """(tokens,) where the tokens stand when each user is padded to the longest one."""
        lengths = torch.tensor(self.lengths)
        inside = torch.arange(self.lengths[-1]) < lengths[:, None]
        return torch.nonzero(inside.flatten()).squeeze(1).to(self.device)


def groups_of(lengths: list[int], device: torch.device = CPU) -> list[Group]:
    """Groups of users in ascending order of length, such that padding each to its longest costs little.

    On a GPU all are one: there a small product costs as much as a large one.

    >>> [group.lengths for group in groups_of([2, 2, 5, 6])]
    [(2, 2), (5, 6)]
    """
    if device.type == "cuda":
        return [Group(0, tuple(lengths), device)]
    groups: list[Group] = []
    first = start = tokens = 0
    for index, length in enumerate(lengths):
        if index > first and length * (index + 1 - first) > PADDED_SHARE * (tokens + length):
            groups.append(Group(start, tuple(lengths[first:index]), device))
            start, first, tokens = start + tokens, index, 0
        tokens += length
    groups.append(Group(start, tuple(lengths[first:]), device))
    return groups


def attend_group(
    query: Tensor, own: KeysValues, before: KeysValues | None, rule: ScoreRule, visible: Tensor | None = None
) -> Tensor:
    """Attention of segments to their own tokens and to tokens that all of them share.

    The shared keys meet the queries of all segments in one product: they are not copied for each.

    Args:
        query: (B, Q, heads, head width).
        own: (B, K, key heads, head width); Q <= K, the queries are the newest tokens.
        before: (shared, key heads, head width), all visible.
        visible: bool (B or 1, Q, 1, K), or None: causally.

    Returns:
        (B, Q, heads, head width).
    """
    size, num_queries, _, width = query.shape
    num_keys, key_heads = own.keys.shape[1:3]
    is_one_kernel = query.is_cuda and visible is None and num_queries == num_keys and rule.softcap is None
    if before is None and (rule.is_fused or is_one_kernel):
        return _fused(query, own, rule, visible)
    if visible is None and num_queries > 1:
        visible = causal(num_queries, num_keys, query.device)
    # By key head, then segment, then query: (key heads, B, Q * heads per key head, head width).
    asked = query.reshape(size, num_queries, key_heads, -1, width).permute(2, 0, 1, 3, 4).flatten(2, 3) * rule.scaling
    keys, values = (part.permute(2, 0, 1, 3) for part in own)
    scores = _capped(asked @ keys.transpose(2, 3), rule)
    if visible is not None:
        shape = scores.shape
        scores = scores.view(key_heads, size, num_queries, -1, num_keys).masked_fill(~visible, -torch.inf).view(shape)
    if before is None:
        weights = _weights(scores, rule, query.dtype)
        attended = weights @ values
    else:
        shared_keys, shared_values = (part.to(query.dtype).transpose(0, 1) for part in before)
        shared = _capped(asked.flatten(1, 2) @ shared_keys.transpose(1, 2), rule)
        weights = _weights(torch.cat([shared.view(*scores.shape[:3], -1), scores], dim=-1), rule, query.dtype)
        num_shared = shared.shape[-1]
        attended = weights[..., num_shared:] @ values
        attended = attended + (weights[..., :num_shared].flatten(1, 2) @ shared_values).view_as(attended)
    return attended.view(key_heads, size, num_queries, -1, width).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _fused(query: Tensor, own: KeysValues, rule: ScoreRule, visible: Tensor | None) -> Tensor:
    """As `attend_group` in one kernel, without shared tokens or softcap."""
    num_queries, num_keys = query.shape[1], own.keys.shape[1]
    is_causal = visible is None and 1 < num_queries == num_keys
    if visible is None and 1 < num_queries < num_keys:
        visible = causal(num_queries, num_keys, query.device)
    times = query.shape[2] // own.keys.shape[2]
    if query.is_cuda and times > 1:  # not all kernels there let heads share keys
        own = KeysValues(*(part.repeat_interleave(times, dim=2) for part in own))
    attended: Tensor = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        own.keys.transpose(1, 2),
        own.values.transpose(1, 2),
        attn_mask=None if visible is None else visible.transpose(1, 2),
        dropout_p=rule.dropout,
        is_causal=is_causal,
        scale=rule.scaling,
        enable_gqa=times > 1 and not query.is_cuda,
    )
    return attended.transpose(1, 2)


def _capped(scores: Tensor, rule: ScoreRule) -> Tensor:
    return scores if rule.softcap is None else rule.softcap * torch.tanh(scores / rule.softcap)


def _weights(scores: Tensor, rule: ScoreRule, dtype: torch.dtype) -> Tensor:
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    return F.dropout(weights, rule.dropout) if rule.dropout else weights


def causal(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """(1, Q, 1, K): each query, of which the newest are last, sees the keys up to its own."""
    asked = torch.arange(num_keys - num_queries, num_keys, device=device)
    return (torch.arange(num_keys, device=device) <= asked[:, None])[None, :, None, :]


def not_pads(group: Group, device: torch.device) -> Tensor | None:
    """(B, 1, 1, K): the keys that are tokens of their user; None if all are."""
    if group.lengths[0] == group.lengths[-1]:
        return None
    lengths = torch.tensor(group.lengths, device=device)
    return (torch.arange(group.lengths[-1], device=device) < lengths[:, None])[:, None, None, :]


def one_segment(own: KeysValues) -> KeysValues:
    """As a batch of one."""
    return KeysValues(own.keys[None], own.values[None])


def padded_keys(users: KeysValues, group: Group) -> KeysValues:
    """Those of a group's users, each (B, longest, key heads, head width)."""
    return KeysValues(padded(users.keys, group), padded(users.values, group))


def padded(tokens: Tensor, group: Group) -> Tensor:
    """(B, longest, heads, head width): a view if all are equally long."""
    total, longest = sum(group.lengths), group.lengths[-1]
    part = tokens if len(tokens) == total else tokens[group.start : group.start + total]
    if group.lengths[0] == longest:
        return part.view(len(group.lengths), longest, *part.shape[1:])
    spaced = part.new_zeros(len(group.lengths) * longest, *part.shape[1:])
    return spaced.index_copy(0, group.places, part).view(len(group.lengths), longest, *part.shape[1:])


def unpadded(attended: Tensor, group: Group) -> Tensor:
    """(1, tokens, heads, head width)."""
    flat = attended.flatten(0, 1)
    if group.lengths[0] != group.lengths[-1]:
        flat = flat[group.places]
    return flat[None]


def joined(parts: list[Tensor]) -> Tensor:
    """One after the other; a single part as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
