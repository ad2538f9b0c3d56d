"""What a model keeps for each item, as one table: read, and extended by new items."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slmrec.errors import CheckpointError
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.loader import Model
from slmrec.models.sasrec import SasRec
from slmrec.models.titles import TitleMap, TitleReader, read_titles

NUM_ALIKE = 3
"""Known items from which a new one of which only the title is known has what the model learned."""


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


def rows_of_titles(model: Model, titles: list[str], num_alike: int = NUM_ALIKE) -> Tensor:
    """(n, R) as in `item_rows`, of new items of which only the titles are known.

    Their titles are read as those of the known items were. What the model learned stands in from the `num_alike` items
    whose titles are most alike, by the cosine of the vectors of the first member's titles: `blended`.

    Raises:
        CheckpointError: the model reads no titles, its folder does not say how, or the language model cannot be had.
    """
    tables = list(_tables(model))
    readers = [_reader(table.owner) for table in tables if isinstance(table.owner, TitleMap)]
    if not readers:
        raise CheckpointError("the model reads no titles")
    states = {
        key: read_titles(key[0], list(titles), key[1])[1:] for key in {(one.source, one.layer) for one in readers}
    }
    vectors = [one.project(states[one.source, one.layer]) for one in readers]
    alike = most_alike(next(table.values for table in tables if table.is_titles), vectors[0], num_alike)
    read = iter(vectors)
    return torch.cat([next(read) if table.is_titles else blended(table.values.detach(), alike) for table in tables], 1)


def _reader(titles: TitleMap) -> TitleReader:
    if titles.reader is None:
        raise CheckpointError("the folder, of an earlier version, does not say how its titles were read")
    return titles.reader


def most_alike(known: Tensor, new: Tensor, num: int) -> Tensor:
    """(n, num) the known items (V+1, C) whose titles are nearest to new ones (n, C)."""
    closeness = nn.functional.normalize(new, dim=1) @ nn.functional.normalize(known, dim=1).T
    named = known.abs().sum(dim=1) > 0
    return closeness.masked_fill(~named, -torch.inf).topk(min(num, int(named.sum())), dim=1).indices


def blended(table: Tensor, alike: Tensor) -> Tensor:
    """(n, width) the direction of the mean of some rows (n, num) of a table, in their mean length.

    The mean itself is short, the shorter the less alike they are, and short vectors are hardly recommended
    (`benchmarks/new_items.py`).
    """
    rows = table[alike]
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=2).mean(dim=1, keepdim=True)
    return lengths * nn.functional.normalize(rows.mean(dim=1), dim=1)


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
            num_rows, width = values.shape
            table.owner.item_embeddings = nn.Embedding(num_rows, width, padding_idx=0, _weight=values)
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
        if isinstance(value, dict):
            _renumber(value, num_items)
