"""Attention patterns: which keys each query of a batch sees, and where the keys and values come from."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.utils.rnn import pad_sequence

from slmrec.models.packed import flex
from slmrec.models.packed.attention import (
    AttentionSettings,
    KeysValues,
    LengthBucket,
    as_batch_of_one,
    attend,
    causal_mask,
    concatenate,
    pad,
    pad_keys_values,
    padding_mask,
    unpad,
)


class AttentionPattern(Protocol):
    """Attention of one batch; every layer calls `attend` with its queries, keys and values."""

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of one user that the model reads, prompt included."""

    def attend(self, layer: int, query: Tensor, own: KeysValues, settings: AttentionSettings) -> Tensor:
        """Return the attention output (tokens, heads, head width).

        Args:
            layer: Index of the layer.
            query: (tokens, heads, head width).
            own: Keys and values of the tokens of the batch.
            settings: Settings of the layer.
        """


@dataclass
class PackedAttention:
    """Attention of a packed batch: the prefix attends to itself, each user to the prefix and causally to itself."""

    buckets: list[LengthBucket]
    num_prefix: int
    max_tokens: int
    device: torch.device
    prefix: list[KeysValues] | None = None
    """Precomputed keys and values of the prefix by layer; None: the prefix is part of the batch."""
    newest_tokens: Tensor | None = None
    """(B,) newest token of each user, if the last layer runs for these only; None: it runs for all tokens."""

    def attend(self, layer: int, query: Tensor, own: KeysValues, settings: AttentionSettings) -> Tensor:
        """Return the attention output (tokens, heads, head width)."""
        if self.num_prefix and flex.is_supported(query, settings):
            return flex.attend(query, self.all_keys_values(layer, own), self.block_mask, settings)
        prefix, users, outputs = self.prefix_keys_values(layer, own), self.user_keys_values(own), []
        if prefix is not None and self.prefix is None:
            outputs.append(attend(query[None, : self.num_prefix], as_batch_of_one(prefix), None, settings))
            query = query[self.num_prefix :]
        for bucket in self.buckets:
            # Padding stands after the tokens of its user, so a causal mask hides it from them.
            output = attend(pad(query, bucket), pad_keys_values(users, bucket), prefix, settings)
            outputs.append(unpad(output, bucket))
        return concatenate([output.flatten(0, 1) for output in outputs])

    def all_keys_values(self, layer: int, own: KeysValues) -> KeysValues:
        """Keys and values of the prefix and of all users."""
        if self.prefix is None:
            return own
        pairs = zip(self.prefix[layer], own, strict=True)
        return KeysValues(*(torch.cat([prefix.to(part.dtype), part]) for prefix, part in pairs))

    def prefix_keys_values(self, layer: int, own: KeysValues) -> KeysValues | None:
        """Keys and values of the prefix; None if there is no prefix."""
        if not self.num_prefix:
            return None
        if self.prefix is not None:
            return self.prefix[layer]
        return KeysValues(own.keys[: self.num_prefix], own.values[: self.num_prefix])

    def user_keys_values(self, own: KeysValues) -> KeysValues:
        """Keys and values of the users' tokens."""
        skipped = 0 if self.prefix is not None else self.num_prefix
        if not skipped:
            return own
        return KeysValues(own.keys[skipped:], own.values[skipped:])

    @cached_property
    def segments(self) -> Tensor:
        """(tokens,) segment of each token: -1 for the prefix, then the number of the user in the batch."""
        lengths = torch.tensor([self.num_prefix, *(length for bucket in self.buckets for length in bucket.lengths)])
        segments = torch.arange(flex.PREFIX_SEGMENT, len(lengths) - 1)
        return torch.repeat_interleave(segments, lengths).to(self.device)

    @cached_property
    def block_mask(self) -> BlockMask:
        """FlexAttention mask of all queries."""
        queries = slice(self.num_prefix if self.prefix is not None else 0, None)
        positions = torch.arange(len(self.segments), device=self.device)
        return flex.segment_mask(self.segments[queries], positions[queries], self.segments)

    @cached_property
    def newest_block_mask(self) -> BlockMask:
        """FlexAttention mask of the newest token of each user."""
        users = torch.arange(int(self.segments[-1]) + 1, device=self.device)
        positions = torch.searchsorted(self.segments, users, right=True) - 1
        return flex.segment_mask(users, positions, self.segments)


@dataclass
class NewestTokenAttention:
    """Attention of the newest token of each user over the keys and values of the whole packed batch."""

    packed: PackedAttention
    keys_values: KeysValues
    """Keys and values of all tokens of the batch."""

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of one user."""
        return self.packed.max_tokens

    def attend(self, layer: int, query: Tensor, own: KeysValues, settings: AttentionSettings) -> Tensor:
        """Return the attention output (B, heads, head width), users in the order of the packed batch."""
        packed = self.packed
        if packed.num_prefix and flex.is_supported(query, settings):
            keys_values = packed.all_keys_values(layer, self.keys_values)
            return flex.attend(query, keys_values, packed.newest_block_mask, settings)
        prefix, users = packed.prefix_keys_values(layer, self.keys_values), packed.user_keys_values(self.keys_values)
        outputs, first = [], 0
        for bucket in packed.buckets:
            queries = query[first : first + len(bucket.lengths), None]
            mask = padding_mask(bucket, query.device)
            outputs.append(attend(queries, pad_keys_values(users, bucket), prefix, settings, mask)[:, 0])
            first += len(bucket.lengths)
        return concatenate(outputs)


@dataclass
class PrefillAttention:
    """Causal attention of a single sequence that records the keys and values of every layer."""

    max_tokens: int
    recorded: list[KeysValues] = field(default_factory=list)

    def attend(self, layer: int, query: Tensor, own: KeysValues, settings: AttentionSettings) -> Tensor:
        """Return the attention output (tokens, heads, head width)."""
        self.recorded.append(own)
        return attend(query[None], as_batch_of_one(own), None, settings)[0]


@dataclass
class IncrementalAttention:
    """Attention of new tokens of several users, each over its own key/value cache; records the new keys and values."""

    max_tokens: int
    lengths: list[int]
    """Number of new tokens of each user."""
    caches: list[Tensor | None]
    """(tokens, W) keys and values of the earlier tokens of each user, as `recorded` returns them; None: no tokens."""
    prefix: list[KeysValues] | None
    """Keys and values of the prefix by layer."""
    device: torch.device
    _recorded: list[Tensor] = field(default_factory=list)

    def attend(self, layer: int, query: Tensor, own: KeysValues, settings: AttentionSettings) -> Tensor:
        """Return the attention output (tokens, heads, head width), users one after the other."""
        prefix = self.prefix[layer] if self.prefix is not None else None
        output = attend(self._pad(query), self._all_keys_values(own), prefix, settings, self._mask)
        return output.flatten(0, 1) if self._is_even else output[self._is_new]

    def recorded(self) -> Tensor:
        """Return (tokens, W): the keys and values of all layers of each new token, side by side."""
        return torch.cat([layer.flatten(1) for layer in self._recorded], dim=1)

    def _all_keys_values(self, own: KeysValues) -> KeysValues:
        """Return (B, K, key heads, head width): cached tokens, padding, new tokens, padding of each user."""
        new = torch.cat(own, dim=1)
        start = sum(layer.shape[1] * layer.shape[2] for layer in self._recorded)
        self._recorded.append(new)
        keys_values = self._pad(new)
        if self._padded_caches is not None:
            cached = self._padded_caches[:, :, start : start + new.shape[1] * new.shape[2]]
            keys_values = torch.cat([cached.reshape(*cached.shape[:2], *new.shape[1:]), keys_values], dim=1)
        return KeysValues(*keys_values.chunk(2, dim=2))

    def _pad(self, tokens: Tensor) -> Tensor:
        """Return (B, longest, ...)."""
        if self._is_even:
            return tokens.reshape(len(self.lengths), self.lengths[0], *tokens.shape[1:])
        return pad_sequence(list(torch.split(tokens, self.lengths)), batch_first=True)

    @cached_property
    def _is_even(self) -> bool:
        """True if all users have the same number of new tokens."""
        return min(self.lengths) == max(self.lengths)

    @cached_property
    def _padded_caches(self) -> Tensor | None:
        """(B, longest, W), padded once for all layers."""
        filled = [cache for cache in self.caches if cache is not None]
        if not filled:
            return None
        if len(self.caches) == 1:
            return filled[0][None]
        return pad_sequence([filled[0][:0] if cache is None else cache for cache in self.caches], batch_first=True)

    @cached_property
    def _is_new(self) -> Tensor:
        """(B, Q) whether an entry of the padded batch is a token."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.arange(max(self.lengths), device=self.device) < lengths[:, None]

    @cached_property
    def _mask(self) -> Tensor | None:
        """(B, Q, 1, K) cached tokens without padding, and new tokens causally.

        None: causal, because no padding stands between cached and new tokens.
        """
        lengths = [0 if cache is None else len(cache) for cache in self.caches]
        if min(lengths) == max(lengths):
            return None
        columns = torch.arange(max(lengths), device=self.device)
        is_cached = columns < torch.tensor(lengths, device=self.device)[:, None]
        among_new = causal_mask(max(self.lengths), max(self.lengths), self.device)
        shape = len(lengths), max(self.lengths), 1, -1
        return torch.cat([is_cached[:, None, None].expand(shape), among_new.expand(shape)], dim=3)
