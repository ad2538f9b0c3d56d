"""The plans of rows of tokens: which query sees which key, layer by layer."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.utils.rnn import pad_sequence

from slmrec.models.packed import flex
from slmrec.models.packed.attention import (
    Group,
    KeysValues,
    ScoreRule,
    attend_group,
    causal,
    joined,
    not_pads,
    one_segment,
    padded,
    padded_keys,
    unpadded,
)


class Packing(Protocol):
    """The plan of a row: which query sees which key."""

    @property
    def longest(self) -> int:
        """Tokens of the longest user whom the model will ever read, prompt included."""

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        """(tokens, heads, head width) of the queries (tokens, heads, head width)."""


@dataclass
class PackedRow:
    """All tokens of a row as queries: [prefix; users], or the users alone over a prefix computed before."""

    groups: list[Group]
    num_prefix: int
    longest: int
    device: torch.device
    cached_prefix: list[KeysValues] | None = None
    """Keys and values of the prefix by layer; None: the prefix stands in the row."""
    newest: Tensor | None = None
    """(B,) places of the users' newest tokens, if the last layer is to run for these alone; see `read_newest`."""

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        """The prefix attends to itself; each user to the prefix and to its own tokens, causally."""
        if self.num_prefix and flex.serves(query, rule):
            return flex.attend(query, self.answers(layer, own), self.mask, rule)
        prefix, users, outputs = self.split(layer, own), self.users(own), []
        if prefix is not None and self.cached_prefix is None:
            outputs.append(attend_group(query[None, : self.num_prefix], one_segment(prefix), None, rule))
            query = query[self.num_prefix :]
        for group in self.groups:
            # A pad stands after the tokens of its user, where only pads see it.
            attended = attend_group(padded(query, group), padded_keys(users, group), prefix, rule)
            outputs.append(unpadded(attended, group))
        return joined([output.flatten(0, 1) for output in outputs])

    def answers(self, layer: int, own: KeysValues) -> KeysValues:
        """Keys and values of prefix and users."""
        if self.cached_prefix is None:
            return own
        pairs = zip(self.cached_prefix[layer], own, strict=True)
        return KeysValues(*(torch.cat([before.to(part.dtype), part]) for before, part in pairs))

    @cached_property
    def segments(self) -> Tensor:
        """(tokens,) -1 for the prefix, then each user's number in the row."""
        lengths = torch.tensor([self.num_prefix, *(length for group in self.groups for length in group.lengths)])
        return torch.repeat_interleave(torch.arange(flex.PREFIX, len(lengths) - 1), lengths).to(self.device)

    @cached_property
    def mask(self) -> BlockMask:
        """Of FlexAttention, for all tokens that ask."""
        asking = slice(self.num_prefix if self.cached_prefix is not None else 0, None)
        places = torch.arange(len(self.segments), device=self.device)
        return flex.segment_mask(self.segments[asking], places[asking], self.segments)

    @cached_property
    def newest_mask(self) -> BlockMask:
        """Of FlexAttention, where only each user's newest token asks."""
        users = torch.arange(int(self.segments[-1]) + 1, device=self.device)
        places = torch.searchsorted(self.segments, users, right=True) - 1
        return flex.segment_mask(users, places, self.segments)

    def split(self, layer: int, own: KeysValues) -> KeysValues | None:
        """Keys and values of the prefix; None without one."""
        if not self.num_prefix:
            return None
        if self.cached_prefix is not None:
            return self.cached_prefix[layer]
        return KeysValues(own.keys[: self.num_prefix], own.values[: self.num_prefix])

    def users(self, own: KeysValues) -> KeysValues:
        """Keys and values of the users' tokens."""
        skipped = 0 if self.cached_prefix is not None else self.num_prefix
        if not skipped:
            return own
        return KeysValues(own.keys[skipped:], own.values[skipped:])


@dataclass
class NewestQueries:
    """Only each user's newest token asks; all tokens answer."""

    row: PackedRow
    answers: KeysValues
    """Keys and values of the whole row."""

    @property
    def longest(self) -> int:
        """Of the row."""
        return self.row.longest

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        """(B, heads, head width), users in the row's order."""
        if self.row.num_prefix and flex.serves(query, rule):
            return flex.attend(query, self.row.answers(layer, self.answers), self.row.newest_mask, rule)
        prefix, users, outputs, first = self.row.split(layer, self.answers), self.row.users(self.answers), [], 0
        for group in self.row.groups:
            queries = query[first : first + len(group.lengths), None]
            keys = padded_keys(users, group)
            outputs.append(attend_group(queries, keys, prefix, rule, not_pads(group, query.device))[:, 0])
            first += len(group.lengths)
        return joined(outputs)


@dataclass
class Recorder:
    """A single segment, causally; keeps the keys and values of every layer."""

    longest: int
    recorded: list[KeysValues] = field(default_factory=list)

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        """(tokens, heads, head width)."""
        self.recorded.append(own)
        return attend_group(query[None], one_segment(own), None, rule)[0]


@dataclass
class Continuations:
    """New tokens of several users, each after its own past; keeps the new keys and values of every layer."""

    longest: int
    lengths: list[int]
    """New tokens of each user."""
    pasts: list[Tensor | None]
    """(tokens, W) of each user's tokens before, as `recorded` gives them; None for a user without any."""
    prefix: list[KeysValues] | None
    """Keys and values of the prefix, by layer."""
    device: torch.device
    _recorded: list[Tensor] = field(default_factory=list)

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        """(tokens, heads, head width), users one after the other."""
        prefix = self.prefix[layer] if self.prefix is not None else None
        attended = attend_group(self._padded(query), self._answers(own), prefix, rule, self._visible)
        return attended.flatten(0, 1) if self._is_even else attended[self._is_new]

    def recorded(self) -> Tensor:
        """(tokens, W): of each new token the keys and values of all layers, side by side."""
        return torch.cat([both.flatten(1) for both in self._recorded], dim=1)

    def _answers(self, own: KeysValues) -> KeysValues:
        """(B, K, key heads, head width): each user's past, pads, its new tokens, pads."""
        both = torch.cat(own, dim=1)
        answers, start = self._padded(both), sum(before.shape[1] * before.shape[2] for before in self._recorded)
        self._recorded.append(both)
        if self._past is not None:
            past = self._past[:, :, start : start + both.shape[1] * both.shape[2]]
            answers = torch.cat([past.reshape(*past.shape[:2], *both.shape[1:]), answers], dim=1)
        return KeysValues(*answers.chunk(2, dim=2))

    def _padded(self, tokens: Tensor) -> Tensor:
        """(B, longest, ...)."""
        if self._is_even:
            return tokens.reshape(len(self.lengths), self.lengths[0], *tokens.shape[1:])
        return pad_sequence(list(torch.split(tokens, self.lengths)), batch_first=True)

    @cached_property
    def _is_even(self) -> bool:
        """Whether all have as many new tokens."""
        return min(self.lengths) == max(self.lengths)

    @cached_property
    def _past(self) -> Tensor | None:
        """(B, longest, W), padded once for all layers."""
        known = [past for past in self.pasts if past is not None]
        if not known:
            return None
        if len(self.pasts) == 1:
            return known[0][None]
        return pad_sequence([known[0][:0] if past is None else past for past in self.pasts], batch_first=True)

    @cached_property
    def _is_new(self) -> Tensor:
        """(B, Q)."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.arange(max(self.lengths), device=self.device) < lengths[:, None]

    @cached_property
    def _visible(self) -> Tensor | None:
        """(B, Q, 1, K): the past without its pads, and the new tokens up to one's own; None: causally, as there are
        no pads between them."""
        lengths = [0 if past is None else len(past) for past in self.pasts]
        if min(lengths) == max(lengths):
            return None
        before = torch.arange(max(lengths), device=self.device)
        is_past = before < torch.tensor(lengths, device=self.device)[:, None]
        among_new = causal(max(self.lengths), max(self.lengths), self.device)
        shape = len(lengths), max(self.lengths), 1, -1
        return torch.cat([is_past[:, None, None].expand(shape), among_new.expand(shape)], dim=3)
