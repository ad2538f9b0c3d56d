"""Rows of items over all item tables of a model, and rows for new items of which only the text is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slmrec.config import ItemTextConfig
from slmrec.config.item_text import MINILM
from slmrec.errors import CheckpointError
from slmrec.models.backbone import SMOLLM2
from slmrec.models.model import Model
from slmrec.models.text.item_text import TextMap, TextReader
from slmrec.models.text.sources import item_texts, read_texts
from slmrec.models.untrusted import local_source

NUM_SIMILAR = 3
"""Number of known items whose learned vectors stand in for those of a new item with a text only."""


def item_rows(model: Model) -> Tensor:
    """Return the rows (V+1, R) of all item tables of a model, side by side.

    The order is that of the models of an ensemble; each has its learned vectors first and then, if it reads item
    texts, the text vectors.

    Example:
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> item_rows(SasRec(SasRecConfig(num_items=100, hidden_size=16))).shape
        torch.Size([101, 16])
    """
    return torch.cat([table.values for table in model.item_tables()], dim=1)


def text_columns(model: Model) -> Tensor:
    """Return (R,) bool: the columns of `item_rows` that hold text vectors."""
    tables = model.item_tables()
    return torch.cat([torch.full((table.values.shape[1],), table.text is not None) for table in tables])


def rows_of_texts(
    model: Model, columns: Mapping[str, Sequence[Any]], num: int, num_similar: int = NUM_SIMILAR
) -> Tensor:
    """Return rows (n, R), as in `item_rows`, of new items of which only the texts are known.

    Texts are made and read in the way of the known items. Learned vectors are taken from the `num_similar` known items
    with the most similar texts, by the cosine of the text vectors in the first table in which a new item has a text:
    see `blended`.

    Args:
        model: A model that reads texts.
        columns: Values of the new items by the names that templates use, such as `title`.
        num: Number of new items.
        num_similar: Number of known items whose learned vectors are blended.

    Raises:
        CheckpointError: The model reads no texts, its folder does not say how, the source cannot be found, or it knows
            no word of a text.
    """
    tables = model.item_tables()
    readers = [_reader(table.text) for table in tables if table.text is not None]
    if not readers:
        raise CheckpointError("the model reads no titles")
    vectors = [reader.project(values) for reader, values in zip(readers, _read(readers, columns, num), strict=True)]
    known = [table.values for table in tables if table.text is not None]
    similar = _most_similar_by_first_text(known, vectors, num_similar)
    if (unread := (similar == 0).any(dim=1).nonzero()[:, 0]).numel():
        text = item_texts(readers[0].settings, columns, num)[int(unread[0])]
        raise CheckpointError(f"no part of {text!r} occurs in the texts of the known items")
    remaining = iter(vectors)
    return torch.cat(
        [blended(table.values, similar) if table.text is None else next(remaining) for table in tables], dim=1
    )


def text_columns_of_items(model: Model) -> tuple[str, ...]:
    """Return the names of the columns of which the texts of the model's items are made; `title` if it reads none."""
    readers = [text.reader for text in model.text_maps().values() if text.reader is not None]
    return tuple(dict.fromkeys(name for reader in readers for name in reader.settings.columns)) or ("title",)


def _read(readers: list[TextReader], columns: Mapping[str, Sequence[Any]], num: int) -> list[Tensor]:
    """Return the vectors (n, H) of the source of each reader; readers of one source share them."""
    read: list[tuple[TextReader, Tensor]] = []
    for reader in readers:
        values = next((values for earlier, values in read if earlier.reads_like(reader)), None)
        if values is None:
            texts = item_texts(reader.settings, columns, num)
            values = read_texts(_with_local_source(reader.settings), texts, reader.words).values[1:]
        read.append((reader, values))
    return [values for _, values in read]


def _most_similar_by_first_text(known: list[Tensor], new: list[Tensor], num: int) -> Tensor:
    """Return `most_similar` items (n, num) by the first table in which a new item has a vector; 0: there is none."""
    similar = torch.zeros(len(new[0]), 0, dtype=torch.int64)
    for table, vectors in zip(known, new, strict=True):
        found = most_similar(table, vectors, num).masked_fill(~vectors.any(dim=1, keepdim=True), 0)
        similar = found if not similar.numel() else torch.where(similar == 0, found[:, : similar.shape[1]], similar)
    return similar


def _with_local_source(settings: ItemTextConfig) -> ItemTextConfig:
    """Return settings that a folder names, with the local copy of a model of the hub, which is not asked."""
    if not settings.reads_language_model or settings.source in (MINILM, SMOLLM2):
        return settings
    try:
        return settings.model_copy(update={"source": local_source(settings.source)})
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _reader(text: TextMap) -> TextReader:
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
