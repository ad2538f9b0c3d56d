"""The engine's attention: one packed row, whose users share the prompt and see nothing of each other.

A batch is one row [prefix; user 1; user 2; ...] without pads. Registered with transformers' attention interface, so
that any decoder which uses it runs unmodified: the plan of the row travels as the keyword `packing` through the
decoder into every attention layer, which hands queries, keys and values to `packing.attend`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel

from slmrec.errors import ConfigError
from slmrec.models import flex

NAME = "slmrec_packed"
CPU = torch.device("cpu")
PADDED_SHARE = 1.25
"""Segments are attended together, padded to the longest, while that costs at most this much more."""
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "is_causal"}


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
    """By PyTorch's fused attention where keys are not shared: faster, and rounded otherwise."""


class Packing(Protocol):
    """The plan of a row: which query sees which key."""

    @property
    def longest(self) -> int:
        """Tokens of the longest user whom the model will ever read, prompt included."""

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        """(tokens, heads, head width) of the queries (tokens, heads, head width)."""


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
            outputs.append(_attend_group(query[None, : self.num_prefix], _one(prefix), None, rule))
            query = query[self.num_prefix :]
        for group in self.groups:
            # A pad stands after the tokens of its user, where only pads see it.
            attended = _attend_group(_padded(query, group), _padded_keys(users, group), prefix, rule)
            outputs.append(_unpadded(attended, group))
        return _joined([output.flatten(0, 1) for output in outputs])

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
            keys = _padded_keys(users, group)
            outputs.append(_attend_group(queries, keys, prefix, rule, _not_pads(group, query.device))[:, 0])
            first += len(group.lengths)
        return _joined(outputs)


@dataclass
class Recorder:
    """A single segment, causally; keeps the keys and values of every layer."""

    longest: int
    recorded: list[KeysValues] = field(default_factory=list)

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        """(tokens, heads, head width)."""
        self.recorded.append(own)
        return _attend_group(query[None], _one(own), None, rule)[0]


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
        attended = _attend_group(self._padded(query), self._answers(own), prefix, rule, self._visible)
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
        causal = _causal(max(self.lengths), max(self.lengths), self.device)
        shape = len(lengths), max(self.lengths), 1, -1
        return torch.cat([is_past[:, None, None].expand(shape), causal.expand(shape)], dim=3)


class _KeysTakenError(Exception):
    """Carries a layer's keys and values out of it, so that what the layer would do with them is not computed."""

    def __init__(self, answers: KeysValues) -> None:
        self.answers = answers


@dataclass
class _TakeKeys:
    longest: int

    def attend(self, layer: int, query: Tensor, own: KeysValues, rule: ScoreRule) -> Tensor:
        raise _KeysTakenError(own)


def read_newest(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """A pre-hook of the last decoder layer, which then runs on the newest token of each user alone, if so planned.

    The layer is entered once with all tokens, up to its keys and values, and then run on the newest tokens over them.
    """
    row = keywords.get("packing")
    if not isinstance(row, PackedRow) or row.newest is None:
        return None
    hidden, *others = arguments
    try:
        layer.forward(hidden, *others, **keywords | {"packing": _TakeKeys(row.longest)})
    except _KeysTakenError as taken:
        answers = taken.answers
    else:
        raise ConfigError(f"{type(layer).__name__} does not attend through transformers' attention interface")
    at = row.newest
    cosine, sine = keywords["position_embeddings"]
    fewer = {
        "packing": NewestQueries(row, answers),
        "position_embeddings": (cosine[:, at], sine[:, at]),
        "position_ids": keywords["position_ids"][:, at],
    }
    return (hidden[:, at], *others), keywords | fewer


def use_packed_attention(decoder: PreTrainedModel) -> None:
    """Lets a decoder attend through the plan it is given."""
    decoder.set_attn_implementation(NAME)
    decoder.layers[-1].register_forward_pre_hook(read_newest, with_kwargs=True)


def check_attention(decoder: PreTrainedModel) -> None:
    """Refuses decoders whose attention is of another kind; what a layer alone knows is checked when it attends.

    Raises:
        ConfigError: its architecture does not use transformers' attention interface, or has layers of another kind.
    """
    name = type(decoder).__name__
    if not decoder._supports_attention_backend:
        raise ConfigError(f"backbone {name}: its attention cannot be replaced; choose a LLaMA-like decoder")
    odd = set(getattr(decoder.config, "layer_types", None) or ()) - _SUPPORTED_LAYERS
    if not getattr(decoder.config, "is_causal", True) or getattr(decoder.config, "use_bidirectional_attention", None):
        odd.add("bidirectional")
    if odd:
        kinds = ", ".join(sorted(odd))
        raise ConfigError(f"backbone {name}: it has {kinds} layers; choose a decoder with causal attention in all")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; query, key, value: (1, heads, tokens, head width)."""
    name = type(module).__name__
    if packing is None:
        raise ConfigError(f"{name} was called without a plan of its row; call DecoderRecommender.encode")
    unknown = [word for word, setting in others.items() if setting is not None and word not in _HARMLESS]
    if unknown:
        raise ConfigError(f"backbone with {name}: {', '.join(unknown)} is not supported; choose another backbone")
    if sliding_window is not None and sliding_window < packing.longest:
        raise ConfigError(
            f"backbone with {name}: its sliding window is {sliding_window} tokens but prompt and history have up to "
            f"{packing.longest}; lower max_history_items or shorten the prompt"
        )
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    rule = ScoreRule(scaling, softcap, dropout)
    return packing.attend(module.layer_idx, query, KeysValues(key, value), rule)[None], None  # type: ignore[arg-type]


def _attend_group(
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
    is_plain = query.is_cuda and visible is None and num_queries == num_keys and rule.softcap is None
    if before is None and (rule.is_fused or is_plain):
        return _fused(query, own, rule, visible)
    if visible is None and num_queries > 1:
        visible = _causal(num_queries, num_keys, query.device)
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
    """As `_attend_group` in one kernel, without shared tokens or softcap."""
    num_queries, num_keys = query.shape[1], own.keys.shape[1]
    is_causal = visible is None and 1 < num_queries == num_keys
    if visible is None and 1 < num_queries < num_keys:
        visible = _causal(num_queries, num_keys, query.device)
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


def _causal(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    asked = torch.arange(num_keys - num_queries, num_keys, device=device)
    return (torch.arange(num_keys, device=device) <= asked[:, None])[None, :, None, :]


def _not_pads(group: Group, device: torch.device) -> Tensor | None:
    """(B, 1, 1, K): the keys that are tokens of their user; None if all are."""
    if group.lengths[0] == group.lengths[-1]:
        return None
    lengths = torch.tensor(group.lengths, device=device)
    return (torch.arange(group.lengths[-1], device=device) < lengths[:, None])[:, None, None, :]


def _one(own: KeysValues) -> KeysValues:
    return KeysValues(own.keys[None], own.values[None])


def _padded_keys(users: KeysValues, group: Group) -> KeysValues:
    return KeysValues(_padded(users.keys, group), _padded(users.values, group))


def _padded(tokens: Tensor, group: Group) -> Tensor:
    """(B, longest, heads, head width): a view if all are equally long."""
    total, longest = sum(group.lengths), group.lengths[-1]
    part = tokens if len(tokens) == total else tokens[group.start : group.start + total]
    if group.lengths[0] == longest:
        return part.view(len(group.lengths), longest, *part.shape[1:])
    padded = part.new_zeros(len(group.lengths) * longest, *part.shape[1:])
    return padded.index_copy(0, group.places, part).view(len(group.lengths), longest, *part.shape[1:])


def _unpadded(attended: Tensor, group: Group) -> Tensor:
    """(1, tokens, heads, head width)."""
    flat = attended.flatten(0, 1)
    if group.lengths[0] != group.lengths[-1]:
        flat = flat[group.places]
    return flat[None]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


_register: Callable[..., None] = AttentionInterface.register
_register(NAME, _attend)  # no function for masks, so that transformers builds none: the plan says what is visible
