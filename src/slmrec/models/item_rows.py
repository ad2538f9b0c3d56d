"""What a model keeps for each item, as one table: read, and extended by new items."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import Model
from slmrec.models.sasrec import SasRec
from slmrec.models.titles import TitleMap


class _Table(NamedTuple):
    """A table of a part of the model; row 0 is padding."""

    owner: nn.Module
    values: Tensor
    """(V+1, width)."""
    is_titles: bool


def item_rows(model: Model) -> Tensor:
    """(V+1, R) all that a model keeps of each item, side by side, member by member.

    Of each member the learned vectors; of one that reads titles then the vectors of its titles, which its learned map
    reads.
    """
    return torch.cat([table.values.detach() for table in _tables(model)], dim=1)


def title_columns(model: Model) -> Tensor:
    """(R,) bool: the columns of `item_rows` that stand for titles."""
    return torch.cat([torch.full((table.values.shape[1],), table.is_titles) for table in _tables(model)])


def append_items(model: Model, rows: Tensor) -> None:
    """Gives a model n more items, in place, as the items V+1, V+2, ...

    Args:
        model: any.
        rows: (n, R) as in `item_rows`.
    """
    tables = list(_tables(model))
    parts = torch.split(rows, [table.values.shape[1] for table in tables], dim=1)
    for table, part in zip(tables, parts, strict=True):
        values = torch.cat([table.values.detach(), part.to(table.values)])
        if isinstance(table.owner, TitleMap):
            table.owner.vectors = values
        else:
            table.owner.item_embeddings = nn.Embedding.from_pretrained(values, freeze=False, padding_idx=0)  # type: ignore[no-untyped-call]
    num_items = model.num_items + len(rows)
    for part_of in model.modules():
        if isinstance(part_of, PreTrainedModel):
            _renumber(part_of.config.__dict__, num_items)


def _tables(model: Model) -> Iterator[_Table]:
    for member in model.modules():
        if isinstance(member, SasRec | DecoderRecommender):
            yield _Table(member, member.item_embeddings.weight, is_titles=False)
        if isinstance(member, TitleMap):
            yield _Table(member, member.vectors, is_titles=True)


def _renumber(settings: dict[str, Any], num_items: int) -> None:
    """Writes the number of items wherever a configuration, or that of a member within it, has it."""
    for name, value in settings.items():
        if name == "num_items":
            settings[name] = num_items
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                _renumber(inner, num_items)
