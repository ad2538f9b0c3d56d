"""Rows of items over all item tables of a model, and rows for new items of which only the text is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slmrec.config import ItemTextConfig
from slmrec.config.item_text import MINILM
from slmrec.data.dataset import Ints
from slmrec.errors import CheckpointError
from slmrec.models.ensemble import Ensemble
from slmrec.models.model import Model
from slmrec.models.text.item_text import TextMap, TextReader
from slmrec.models.text.sources import item_texts, read_texts
from slmrec.models.untrusted import local_source
from slmrec.packaged import DECODERS

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
    tables, vectors = model.item_tables(), text_rows(model, columns, num)
    if not vectors:
        raise CheckpointError("the model reads no titles")
    readers = [_reader(table.text) for table in tables if table.text is not None]
    known = [table.values for table in tables if table.text is not None]
    similar = _most_similar_by_first_text(known, vectors, num_similar)
    if (unread := (similar == 0).any(dim=1).nonzero()[:, 0]).numel():
        text = item_texts(readers[0].settings, columns, num)[int(unread[0])]
        raise CheckpointError(f"no part of {text!r} occurs in the texts of the known items")
    remaining = iter(vectors)
    return torch.cat(
        [blended(table.values, similar) if table.text is None else next(remaining) for table in tables], dim=1
    )


def text_rows(model: Model, columns: Mapping[str, Sequence[Any]], num: int) -> list[Tensor]:
    """Return the text vectors (n, C) of new items for each table of a model that holds text vectors, in their order.

    Args:
        model: A model.
        columns: Values of the new items by the names that templates use.
        num: Number of new items.

    Raises:
        CheckpointError: The folder of the model does not say how texts are read, or the source cannot be found.
    """
    readers = [_reader(table.text) for table in model.item_tables() if table.text is not None]
    return [reader.project(values) for reader, values in zip(readers, _read(readers, columns, num), strict=True)]


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
    if not settings.reads_language_model or settings.source in (MINILM, *DECODERS):
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


def rearrange_items(model: Model, origins: Tensor, columns: Mapping[str, Sequence[Any]]) -> None:
    """Give a model another catalogue, in place: known items take their rows along, and new ones are read by their text.

    Args:
        model: The model.
        origins: (V'+1,) number of each item of the new catalogue in the model; 0 for padding and for new items, whose
            learned rows become zero, see `replace_rows`.
        columns: Values of the new items by the names that templates use, such as `title`.

    Raises:
        CheckpointError: The model reads texts, and those of new items cannot be read; it has the new catalogue then,
            with zeros as their text vectors.
    """
    is_new = origins == 0
    is_new[0] = False
    tables = model.item_tables()
    for table in tables:
        values = table.values[origins]
        values[origins == 0] = 0
        table.replace(values)
    model.set_num_items(len(origins) - 1)
    if is_new.any() and any(table.text is not None for table in tables):
        rows = iter(text_rows(model, columns, int(is_new.sum())))
        for table in model.item_tables():
            if table.text is not None:
                values = table.values.clone()
                values[is_new] = next(rows).to(values)
                table.replace(values)


def replace_rows(model: Model, items: Ints, text: Tensor | None, neighbours: Tensor | None = None) -> None:
    """Replace the learned rows of some items in place, from the rows of other items.

    The new row is the blend of the `NUM_SIMILAR` other items with the most similar texts (`item_tables.blended`). An
    item without text, or without an item of similar text, gets the blend of its neighbours, or without any the mean of
    the rows of all other items. In a model that learned with ID dropout to score items by their text alone, the row is
    zero.

    Args:
        model: The model; tables of text vectors stay as they are.
        items: The items.
        text: Text vectors (V+1, C) of all items; None if there are none.
        neighbours: (n, K) other items for each of the items, 0 for items that have none; None if none has any.
    """
    for part in single_models(model):
        for table in part.item_tables():
            if table.text is None:
                values = table.values.clone()
                values[torch.from_numpy(items)] = 0
                if not drops_ids(part):
                    _blend_rows(values, table.values, items, text, neighbours)
                table.replace(values)


def _blend_rows(values: Tensor, learned: Tensor, items: Ints, text: Tensor | None, neighbours: Tensor | None) -> None:
    chosen = torch.from_numpy(items)
    values[chosen] = mean_of_others(learned, items)
    if neighbours is not None:
        has_any = neighbours.all(dim=1)
        values[chosen[has_any]] = blended(learned, neighbours[has_any]).to(values)
    if text is None:
        return
    known = text.clone()
    known[chosen] = 0
    has_text = chosen[text[chosen].abs().sum(dim=1) > 0]
    if known.any() and len(has_text):
        similar = most_similar(known, text[has_text], NUM_SIMILAR)
        values[has_text] = blended(learned, similar).to(values)


def single_models(model: Model) -> list[Model]:
    """Return the models of an ensemble, or the model itself."""
    return list(model.models.values()) if isinstance(model, Ensemble) else [model]


def drops_ids(model: Model) -> bool:
    """Return whether a model learned with ID dropout to score items by their text alone."""
    return bool(getattr(model.config, "id_dropout", 0))


def mean_of_others(vectors: Tensor, items: Ints) -> Tensor:
    """Return the mean vector (D,) of all items but some, of vectors (V+1, D)."""
    others = torch.ones(len(vectors), dtype=torch.bool)
    others[0] = False
    others[torch.from_numpy(items)] = False
    return vectors[others.to(vectors.device)].mean(dim=0)


def append_items(model: Model, rows: Tensor) -> None:
    """Add n items to a model, in place, as the items V+1, V+2, ...

    Args:
        model: The model.
        rows: (n, R) rows of all item tables, side by side.
    """
    tables = model.item_tables()
    parts: Sequence[Tensor] = torch.split(rows, [table.values.shape[1] for table in tables], dim=1)
    for table, part in zip(tables, parts, strict=True):
        table.replace(torch.cat([table.values, part.to(table.values)]))
    model.set_num_items(model.num_items + len(rows))
