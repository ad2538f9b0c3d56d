"""The plan of a batch as one row of tokens without pads: where each token stands and where its users are read."""

from typing import NamedTuple

import torch
from torch import Tensor

from slmrec.models.packed.attention import Group, KeysValues, groups_of
from slmrec.models.packed.masks import PackedRow
from slmrec.types import Histories


class Row(NamedTuple):
    """[prefix; user; user; ...]: the users in ascending order of length, each its items and then the response."""

    item_rows: Tensor
    """(items,) the batch's row of each item token, in the order of the packed row."""
    item_columns: Tensor
    """(items,) its column."""
    order: Tensor
    """(tokens,) for each token its place in [prefix; all items; response]."""
    positions: Tensor
    """(tokens,) position ids."""
    places: Tensor
    """(N,) tokens at which the users are read, in the batch's order."""
    last_places: Tensor
    """(N,) the same in what the last layer puts out."""
    newest: Tensor | None
    """(B,) each user's last token, in the row's order; None where every position is read."""
    groups: list[Group]
    num_prefix: int

    def packing(self, longest: int, cached_prefix: list[KeysValues] | None) -> PackedRow:
        """What the attention layers are given."""
        return PackedRow(self.groups, self.num_prefix, longest, self.positions.device, cached_prefix, self.newest)


def pack(
    histories: Histories, every_position: bool, num_prefix: int, num_response: int, prefix_known: bool, pads: Tensor
) -> Row:
    """The plan of a batch.

    Args:
        histories: the histories.
        every_position: read the users at every item position instead of only the newest one.
        num_prefix: P.
        num_response: S.
        prefix_known: the prefix was computed before and takes no place in the row.
        pads: (B,) positions left free between the prefix and the items of each user.
    """
    device = histories.items.device
    in_row = 0 if prefix_known else num_prefix
    if len(histories.lengths) == 1:
        return _pack_one(histories, every_position, num_prefix, num_response, in_row, int(pads[0]))
    sizes, users = torch.sort(histories.lengths + num_response, stable=True)
    starts = in_row + sizes.cumsum(0) - sizes
    user = torch.repeat_interleave(users, sizes)
    columns = torch.arange(len(user), device=device) - torch.repeat_interleave(starts - in_row, sizes)
    is_item = columns < histories.lengths[user]
    prefix = torch.arange(in_row, device=device)
    first_response = in_row + int(is_item.sum())
    origin = torch.where(is_item, in_row + is_item.cumsum(0) - 1, first_response + columns - histories.lengths[user])
    positions = torch.cat([prefix, num_prefix + columns + pads[user]])
    ends = starts + sizes - 1
    back = torch.empty_like(users).index_copy(0, users, torch.arange(len(users), device=device))
    if every_position:
        places = torch.repeat_interleave(starts[back], histories.lengths) + _counted(histories.lengths)
        last_places, newest = places, None
    else:
        places, last_places, newest = ends[back], back, ends
    return Row(
        user[is_item],
        columns[is_item],
        torch.cat([prefix, origin]),
        positions,
        places,
        last_places,
        newest,
        groups_of(sizes.tolist(), device),
        num_prefix,
    )


def _pack_one(
    histories: Histories, every_position: bool, num_prefix: int, num_response: int, in_row: int, num_pads: int
) -> Row:
    """The same plan for a single user, whose tokens stand in order."""
    num_items = int(histories.lengths[0])
    size = num_items + num_response
    order = torch.arange(in_row + size, device=histories.items.device)
    shifted = order[: size if num_pads else 0] + num_prefix + num_pads
    positions = torch.cat([order[:in_row], shifted]) if num_pads else order + (num_prefix - in_row)
    items, first = order[:num_items], torch.zeros_like(order[:num_items])
    places = order[in_row : in_row + num_items] if every_position else order[-1:]
    last_places, newest = (places, None) if every_position else (first[:1], places)
    groups = [Group(0, (size,))]
    return Row(first, items, order, positions, places, last_places, newest, groups, num_prefix)


def _counted(lengths: Tensor) -> Tensor:
    """0, 1, ... for each length, back to back."""
    total = torch.arange(int(lengths.sum()), device=lengths.device)
    return total - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
