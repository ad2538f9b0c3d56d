"""Layout of a packed batch: the position of every token, and the tokens at which the users are read."""

from typing import NamedTuple

import torch
from torch import Tensor

from slmrec.models.packed.attention import KeysValues, LengthBucket, length_buckets
from slmrec.models.packed.masks import PackedAttention
from slmrec.types import Histories


class PackedBatch(NamedTuple):
    """Layout [prefix; user; user; ...] of a batch as one sequence without padding.

    The users stand in ascending order of length, each with its items followed by the response tokens.
    """

    item_rows: Tensor
    """(items,) row in the histories of each item token, in packed order."""
    item_columns: Tensor
    """(items,) column in the histories of each item token."""
    order: Tensor
    """(tokens,) index of each token in [prefix; all items; response]."""
    position_ids: Tensor
    """(tokens,) position of each token for the positional encoding."""
    supervised: Tensor
    """(N,) tokens at which the users are read, in the order of the histories."""
    supervised_in_output: Tensor
    """(N,) the same positions in the output of the last layer, which may run for the newest tokens only."""
    newest_tokens: Tensor | None
    """(B,) newest token of each user, in packed order; None if every position is read."""
    buckets: list[LengthBucket]
    num_prefix: int

    def items_of(self, histories: Histories) -> Tensor:
        """Return the items (items,) in packed order."""
        return histories.items[self.item_rows, self.item_columns]

    def inputs(self, items: Tensor, prefix: Tensor | None, response: Tensor) -> Tensor:
        """Return the input vectors (tokens, H) of the decoder.

        Args:
            items: (items, H) vectors of the items in packed order.
            prefix: (P, H) vectors of the prefix; None if its keys and values are precomputed.
            response: (S, H) vectors of the response.
        """
        parts = [items] if prefix is None else [prefix.to(items.dtype), items]
        if len(response):
            return torch.cat([*parts, response.to(items.dtype)])[self.order]
        return items if prefix is None else torch.cat(parts)

    def attention(self, max_tokens: int, prefix: list[KeysValues] | None) -> PackedAttention:
        """Return the attention pattern of the batch.

        Args:
            max_tokens: Largest number of tokens of one user.
            prefix: Precomputed keys and values of the prefix by layer; None: the prefix is part of the batch.
        """
        device = self.position_ids.device
        return PackedAttention(self.buckets, self.num_prefix, max_tokens, device, prefix, self.newest_tokens)


def free_positions(histories: Histories, positions: str, max_history_items: int) -> Tensor:
    """Return (B,) the number of position ids left free between the prefix and the items of each user."""
    if positions == "contiguous":
        return torch.zeros_like(histories.lengths)
    return max_history_items - histories.lengths


def pack(
    histories: Histories, every_position: bool, num_prefix: int, num_response: int, prefix_cached: bool, pads: Tensor
) -> PackedBatch:
    """Return the packed layout of a batch.

    Args:
        histories: Histories of the users.
        every_position: Read the users at every item position instead of only at the newest one.
        num_prefix: P.
        num_response: S.
        prefix_cached: The keys and values of the prefix are precomputed, so it takes no place in the batch.
        pads: (B,) number of position ids left free between the prefix and the items of each user.
    """
    device = histories.items.device
    in_batch = 0 if prefix_cached else num_prefix
    if len(histories.lengths) == 1:
        return _pack_one(histories, every_position, num_prefix, num_response, in_batch, int(pads[0]))
    sizes, users = torch.sort(histories.lengths + num_response, stable=True)
    starts = in_batch + sizes.cumsum(0) - sizes
    user = torch.repeat_interleave(users, sizes)
    columns = torch.arange(len(user), device=device) - torch.repeat_interleave(starts - in_batch, sizes)
    is_item = columns < histories.lengths[user]
    prefix = torch.arange(in_batch, device=device)
    first_response = in_batch + int(is_item.sum())
    source = torch.where(is_item, in_batch + is_item.cumsum(0) - 1, first_response + columns - histories.lengths[user])
    position_ids = torch.cat([prefix, num_prefix + columns + pads[user]])
    ends = starts + sizes - 1
    inverse = torch.empty_like(users).index_copy(0, users, torch.arange(len(users), device=device))
    if every_position:
        firsts = torch.repeat_interleave(starts[inverse], histories.lengths)
        supervised = firsts + _ranges(histories.lengths)
        supervised_in_output, newest = supervised, None
    else:
        supervised, supervised_in_output, newest = ends[inverse], inverse, ends
    return PackedBatch(
        user[is_item],
        columns[is_item],
        torch.cat([prefix, source]),
        position_ids,
        supervised,
        supervised_in_output,
        newest,
        length_buckets(sizes.tolist(), device),
        num_prefix,
    )


def _pack_one(
    histories: Histories, every_position: bool, num_prefix: int, num_response: int, in_batch: int, num_pads: int
) -> PackedBatch:
    """Return the layout of a single user, whose tokens need no sorting."""
    num_items = int(histories.lengths[0])
    size = num_items + num_response
    order = torch.arange(in_batch + size, device=histories.items.device)
    if num_pads:
        position_ids = torch.cat([order[:in_batch], order[:size] + num_prefix + num_pads])
    else:
        position_ids = order + (num_prefix - in_batch)
    items, zeros = order[:num_items], torch.zeros_like(order[:num_items])
    supervised = order[in_batch : in_batch + num_items] if every_position else order[-1:]
    in_output, newest = (supervised, None) if every_position else (zeros[:1], supervised)
    buckets = [LengthBucket(0, (size,))]
    return PackedBatch(zeros, items, order, position_ids, supervised, in_output, newest, buckets, num_prefix)


def _ranges(lengths: Tensor) -> Tensor:
    """Return 0, 1, ... up to each length, concatenated."""
    total = torch.arange(int(lengths.sum()), device=lengths.device)
    return total - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
