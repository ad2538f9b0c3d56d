"""Rows of items over all item tables of a model, and rows for new items of which only the title is known."""

import torch
from torch import Tensor, nn

from slmrec.errors import CheckpointError
from slmrec.models.model import Model
from slmrec.models.titles import TitleMap, TitleReader, read_titles

NUM_SIMILAR = 3
"""Number of known items whose learned vectors stand in for those of a new item with a title only."""


def item_rows(model: Model) -> Tensor:
    """Return the rows (V+1, R) of all item tables of a model, side by side.

    The order is that of the models of an ensemble; each has its learned vectors first and then, if it reads item
    texts, the text vectors.
    """
    return torch.cat([table.values for table in model.item_tables()], dim=1)


def text_columns(model: Model) -> Tensor:
    """Return (R,) bool: the columns of `item_rows` that hold text vectors."""
    tables = model.item_tables()
    return torch.cat([torch.full((table.values.shape[1],), table.text is not None) for table in tables])


def rows_of_titles(model: Model, titles: list[str], num_similar: int = NUM_SIMILAR) -> Tensor:
    """Return rows (n, R), as in `item_rows`, of new items of which only the titles are known.

    Titles are read in the way of the known items. Learned vectors are taken from the `num_similar` known items with the
    most similar titles, by the cosine of the text vectors in the first table of texts: see `blended`.

    Raises:
        CheckpointError: The model reads no titles, its folder does not say how, or the language model cannot be found.
    """
    tables = model.item_tables()
    readers = [_reader(table.text) for table in tables if table.text is not None]
    if not readers:
        raise CheckpointError("the model reads no titles")
    states = {
        (source, layer): read_titles(source, list(titles), layer)[1:]
        for source, layer in {(reader.source, reader.layer) for reader in readers}
    }
    vectors = [reader.project(states[reader.source, reader.layer]) for reader in readers]
    known = next(table.values for table in tables if table.text is not None)
    similar = most_similar(known, vectors[0], num_similar)
    remaining = iter(vectors)
    return torch.cat(
        [blended(table.values, similar) if table.text is None else next(remaining) for table in tables], dim=1
    )


def _reader(text: TitleMap) -> TitleReader:
    if text.reader is None:
        raise CheckpointError("the folder does not say how its titles were read")
    return text.reader


def most_similar(known: Tensor, new: Tensor, num: int) -> Tensor:
    """Return the items (n, num) among the known ones (V+1, C) whose text vectors are nearest to new ones (n, C)."""
    cosines = nn.functional.normalize(new, dim=1) @ nn.functional.normalize(known, dim=1).T
    has_text = known.abs().sum(dim=1) > 0
    return cosines.masked_fill(~has_text, -torch.inf).topk(min(num, int(has_text.sum())), dim=1).indices


def blended(table: Tensor, items: Tensor) -> Tensor:
    """Return vectors (n, width) with the direction of the mean of some rows (n, num) of a table, and their mean length.

    The plain mean is shorter the less similar the rows are, and short vectors are hardly recommended
    (`benchmarks/new_items.py`).

    Example:
        >>> blended(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), torch.tensor([[1, 2]])).norm()
        tensor(3.0000)
    """
    rows = table[items]
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=2).mean(dim=1, keepdim=True)
    return lengths * nn.functional.normalize(rows.mean(dim=1), dim=1)
