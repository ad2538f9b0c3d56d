"""Attention over users of similar length, padded to the longest one, in plain products or in one fused kernel."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CPU = torch.device("cpu")
MAX_PADDING_RATIO = 1.25
"""Largest ratio of tokens with padding to tokens without, in one length bucket."""


class KeysValues(NamedTuple):
    """Keys and values of an attention layer, after the rotary embedding."""

    keys: Tensor
    """(tokens, key heads, head width)."""
    values: Tensor
    """(tokens, key heads, head width)."""


class AttentionSettings(NamedTuple):
    """Settings of a layer that turn products of queries and keys into attention weights."""

    scaling: float
    softcap: float | None
    dropout: float
    use_fused_kernel: bool = False
    """Use PyTorch's fused attention where no keys are shared: faster, with different rounding."""


@dataclass(frozen=True)
class LengthBucket:
    """Users of similar length, adjacent in the packed batch and sorted by length."""

    start: int
    """First token, counted from the first token of the first user."""
    lengths: tuple[int, ...]
    """Number of tokens of each user."""
    device: torch.device = CPU

    @cached_property
    def padded_index(self) -> Tensor:
        """(tokens,) index of each token in the flattened batch that is padded to the longest user."""
        lengths = torch.tensor(self.lengths)
        is_token = torch.arange(self.lengths[-1]) < lengths[:, None]
        return torch.nonzero(is_token.flatten()).squeeze(1).to(self.device)


def length_buckets(lengths: list[int], device: torch.device = CPU) -> list[LengthBucket]:
    """Divide users into buckets such that padding each bucket to its longest user costs little.

    On a GPU all users form one bucket, because a small product takes as long as a large one there.

    Args:
        lengths: Number of tokens of each user, in ascending order.
        device: Device of the batch.

    Example:
        >>> [bucket.lengths for bucket in length_buckets([2, 2, 5, 6])]
        [(2, 2), (5, 6)]
    """
    if device.type == "cuda":
        return [LengthBucket(0, tuple(lengths), device)]
    buckets: list[LengthBucket] = []
    first = start = tokens = 0
    for index, length in enumerate(lengths):
        if index > first and length * (index + 1 - first) > MAX_PADDING_RATIO * (tokens + length):
            buckets.append(LengthBucket(start, tuple(lengths[first:index]), device))
            start, first, tokens = start + tokens, index, 0
        tokens += length
    buckets.append(LengthBucket(start, tuple(lengths[first:]), device))
    return buckets


def attend(
    query: Tensor,
    own: KeysValues,
    shared: KeysValues | None,
    settings: AttentionSettings,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the attention output of a batch of users over their own tokens and over shared tokens.

    The shared keys are multiplied with the queries of all users in one product and are not copied for each user.

    Args:
        query: (B, Q, heads, head width).
        own: (B, K, key heads, head width); Q <= K, and the queries belong to the newest tokens.
        shared: (shared tokens, key heads, head width), visible to every query; None: no shared tokens.
        settings: Settings of the layer.
        mask: Boolean (B or 1, Q, 1, K), True where a query sees a key; None: causal.

    Returns:
        (B, Q, heads, head width).
    """
    batch_size, num_queries, _, width = query.shape
    num_keys, key_heads = own.keys.shape[1:3]
    is_one_kernel = query.is_cuda and mask is None and num_queries == num_keys and settings.softcap is None
    if shared is None and (settings.use_fused_kernel or is_one_kernel):
        return _fused_attend(query, own, settings, mask)
    if mask is None and num_queries > 1:
        mask = causal_mask(num_queries, num_keys, query.device)
    # By key head, then user, then query: (key heads, B, Q * heads per key head, head width).
    scaled = query.reshape(batch_size, num_queries, key_heads, -1, width).permute(2, 0, 1, 3, 4).flatten(2, 3)
    scaled = scaled * settings.scaling
    keys, values = (part.permute(2, 0, 1, 3) for part in own)
    scores = _softcap(scaled @ keys.transpose(2, 3), settings)
    if mask is not None:
        shape = scores.shape
        scores = scores.view(key_heads, batch_size, num_queries, -1, num_keys).masked_fill(~mask, -torch.inf)
        scores = scores.view(shape)
    if shared is None:
        output = _weights(scores, settings, query.dtype) @ values
    else:
        shared_keys, shared_values = (part.to(query.dtype).transpose(0, 1) for part in shared)
        shared_scores = _softcap(scaled.flatten(1, 2) @ shared_keys.transpose(1, 2), settings)
        all_scores = torch.cat([shared_scores.view(*scores.shape[:3], -1), scores], dim=-1)
        weights = _weights(all_scores, settings, query.dtype)
        num_shared = shared_scores.shape[-1]
        output = weights[..., num_shared:] @ values
        output = output + (weights[..., :num_shared].flatten(1, 2) @ shared_values).view_as(output)
    return output.view(key_heads, batch_size, num_queries, -1, width).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _fused_attend(query: Tensor, own: KeysValues, settings: AttentionSettings, mask: Tensor | None) -> Tensor:
    """Compute `attend` in one kernel, without shared tokens or softcap."""
    num_queries, num_keys = query.shape[1], own.keys.shape[1]
    is_causal = mask is None and 1 < num_queries == num_keys
    if mask is None and 1 < num_queries < num_keys:
        mask = causal_mask(num_queries, num_keys, query.device)
    heads_per_key = query.shape[2] // own.keys.shape[2]
    if query.is_cuda and heads_per_key > 1:  # some CUDA kernels do not support grouped-query attention
        own = KeysValues(*(part.repeat_interleave(heads_per_key, dim=2) for part in own))
    output: Tensor = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        own.keys.transpose(1, 2),
        own.values.transpose(1, 2),
        attn_mask=None if mask is None else mask.transpose(1, 2),
        dropout_p=settings.dropout,
        is_causal=is_causal,
        scale=settings.scaling,
        enable_gqa=heads_per_key > 1 and not query.is_cuda,
    )
    return output.transpose(1, 2)


def _softcap(scores: Tensor, settings: AttentionSettings) -> Tensor:
    return scores if settings.softcap is None else settings.softcap * torch.tanh(scores / settings.softcap)


def _weights(scores: Tensor, settings: AttentionSettings, dtype: torch.dtype) -> Tensor:
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    return F.dropout(weights, settings.dropout) if settings.dropout else weights


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Return the mask (1, Q, 1, K) of queries that belong to the newest tokens and see the keys up to their own."""
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)
    return (torch.arange(num_keys, device=device) <= queries[:, None])[None, :, None, :]


def padding_mask(bucket: LengthBucket, device: torch.device) -> Tensor | None:
    """Return the mask (B, 1, 1, K) of the keys that are no padding; None if there is no padding."""
    if bucket.lengths[0] == bucket.lengths[-1]:
        return None
    lengths = torch.tensor(bucket.lengths, device=device)
    return (torch.arange(bucket.lengths[-1], device=device) < lengths[:, None])[:, None, None, :]


def as_batch_of_one(own: KeysValues) -> KeysValues:
    """Add a batch dimension of size 1."""
    return KeysValues(own.keys[None], own.values[None])


def pad_keys_values(users: KeysValues, bucket: LengthBucket) -> KeysValues:
    """Return keys and values of the users of a bucket, each (B, longest, key heads, head width)."""
    return KeysValues(pad(users.keys, bucket), pad(users.values, bucket))


def pad(tokens: Tensor, bucket: LengthBucket) -> Tensor:
    """Return the tokens of a bucket as (B, longest, heads, head width); a view if all users have the same length."""
    total, longest = sum(bucket.lengths), bucket.lengths[-1]
    part = tokens if len(tokens) == total else tokens[bucket.start : bucket.start + total]
    if bucket.lengths[0] == longest:
        return part.view(len(bucket.lengths), longest, *part.shape[1:])
    padded = part.new_zeros(len(bucket.lengths) * longest, *part.shape[1:])
    return padded.index_copy(0, bucket.padded_index, part).view(len(bucket.lengths), longest, *part.shape[1:])


def unpad(padded: Tensor, bucket: LengthBucket) -> Tensor:
    """Return the tokens of a bucket without padding, (1, tokens, heads, head width)."""
    flat = padded.flatten(0, 1)
    if bucket.lengths[0] != bucket.lengths[-1]:
        flat = flat[bucket.padded_index]
    return flat[None]


def concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate tensors; a single one is returned without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
