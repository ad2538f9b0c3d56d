"""Items of a model folder: add new items without training, and remove items from recommendation or restore them."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from slmrec.data.ids import id_text
from slmrec.data.parquet import unpacked_size
from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.files import one_line, parse_json, special_file
from slmrec.folders import folder_in_place, read_record
from slmrec.inference.catalogue import Catalogue, ItemIdError
from slmrec.locks import model_locked
from slmrec.models.folder import (
    Vocabulary,
    load_recommender,
    may_recommend,
    read_about,
    replace_vocabulary,
    save_folder,
)
from slmrec.models.item_tables import append_items, item_rows, rows_of_texts, text_columns, text_columns_of_items
from slmrec.models.model import Model

_LOG = logging.getLogger(__name__)
_FORMATS = (".parquet", ".jsonl", ".csv")
Rows = list[dict[str, Any]]


class _Known(NamedTuple):
    """Items that a model has before new ones are added."""

    rows: Tensor
    """(V+1, R) rows of all item tables."""
    is_text: Tensor
    """(R,) bool: the columns that hold text vectors."""
    catalogue: Catalogue


def add_items(model: Path, items: Path, output: Path | None = None) -> None:
    """Add the items of a table to a model, without training; they then occur in histories and recommendations.

    Args:
        model: A model folder.
        items: A table with `item_id`, optionally `title`, and for each item one of: `vector` (its row of `item_rows`,
            with or without the columns of text vectors), `like` (a list of known item ids, whose rows are averaged), or
            the columns of its text alone (`title`, unless the model's template names others), for a model that reads
            texts.
        output: A new folder; None: the folder of the model is replaced.

    Raises:
        DataError: The table cannot be read; an id is missing, repeated or known; or a vector is not valid.
        CheckpointError: The model folder is incomplete, the output exists, titles cannot be read, or another process
            writes the model for more than a minute.

    Example:
        >>> from slmrec import Recommender
        >>> table = output / "new.jsonl"
        >>> _ = table.write_text('{"item_id": "new", "title": "Lamp", "like": ["i01", "i02"]}')
        >>> add_items(Path(folder), table, output / "more")
        >>> Recommender.from_pretrained(output / "more").title("new")
        'Lamp'
    """
    target = (output or model).resolve()  # a link stays, and the folder that it points to is replaced
    with model_locked(target):
        recommender, vocabulary = load_recommender(model)
        columns = text_columns_of_items(recommender)
        rows = _read(items, columns)
        new_ids = _new_ids(items, rows, vocabulary)
        known = _Known(item_rows(recommender), text_columns(recommender), Catalogue(vocabulary))
        vectors = [None if _has_text_only(row, columns) else _vector(items, row, known) for row in rows]
        with_text_only = [row for row, vector in zip(rows, vectors, strict=True) if vector is None]
        from_texts = iter(_read_texts(items, with_text_only, columns, recommender))
        append_items(recommender, torch.stack([next(from_texts) if vector is None else vector for vector in vectors]))
        extended = _extended(items, vocabulary, new_ids, rows)
        with folder_in_place(target, replaced=target == model.resolve()) as folder:
            shutil.copytree(
                model, folder, ignore=shutil.ignore_patterns("item_vectors.safetensors"), dirs_exist_ok=True
            )
            save_folder(folder, recommender, extended, read_about(model))
            _forget_stage(folder)
    _LOG.info("items add: %d items, %d in all, written to %s", len(rows), recommender.num_items, output or model)


def mark_items(model: Path, items: Path, removed: bool, output: Path | None = None) -> None:
    """Remove items from recommendation, or restore them; histories may contain removed items.

    Args:
        model: A model folder.
        items: A table with the column `item_id`.
        removed: True: the items are not recommended from now on. False: they are recommended again.
        output: A new folder; None: the folder of the model is replaced.

    Raises:
        DataError: The table cannot be read, or an item is unknown or repeated.
        CheckpointError: The model folder is incomplete, the output exists, or another process writes the model for
            more than a minute.
        ConfigError: No item would be left to recommend.

    Example:
        >>> from slmrec import Recommender
        >>> table = output / "gone.jsonl"
        >>> _ = table.write_text('{"item_id": "i03"}')
        >>> mark_items(Path(folder), table, removed=True, output=output / "fewer")
        >>> recommender = Recommender.from_pretrained(output / "fewer")
        >>> "i03" in recommender.recommend([["i01"]], k=40).table["item_id"].to_pylist()
        False
    """
    target = (output or model).resolve()  # a link stays, and the folder that it points to is replaced
    with model_locked(target):
        _, vocabulary = load_recommender(model)
        numbers = Catalogue(vocabulary).items
        item_ids = [str(item_id) for item_id in _ids(items, _read(items), vocabulary)]
        unknown = [item_id for item_id in item_ids if item_id not in numbers]
        if unknown:
            raise DataError(
                f"{items}: item {unknown[0]!r} is not in {model} ({len(unknown)} unknown in all); remove the row"
            )
        allowed = may_recommend(vocabulary)
        allowed[[numbers[item_id] for item_id in item_ids]] = not removed
        if not allowed.any():
            raise ConfigError(f"{items}: removes all {len(numbers)} items of {model}; leave at least one")
        with folder_in_place(target, replaced=target == model.resolve()) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
            replace_vocabulary(vocabulary._replace(removed=pa.array((~allowed[1:]).tolist())), folder)
    change, left = "removed" if removed else "restored", int(allowed.sum())
    _LOG.info(
        "items: %d %s, %d of %d may be recommended; %s", len(item_ids), change, left, len(numbers), output or model
    )


def _forget_stage(folder: Path) -> None:
    """Mark a changed folder as no longer the result of its stage, so that `slmrec run` executes the stage again."""
    record = read_record(folder)
    if record:
        (folder / "stage.json").write_text(json.dumps(record | {"fingerprint": None}) + "\n", encoding="utf-8")


def _ids(path: Path, rows: Rows, vocabulary: Vocabulary) -> list[str | int]:
    """Return ids in the type of the vocabulary: 9.0 and `009` are 9 where all ids are whole numbers."""
    ids, id_type = [], vocabulary.item_ids.type
    for number, row in enumerate(rows, 1):
        item_id = row.get("item_id")
        if item_id is None:
            raise DataError(f"{path}: row {number} has no item_id; name the item, or remove the row")
        try:
            text = id_text(item_id, pa.types.is_integer(id_type))
        except ValueError as error:
            raise DataError(f"{path}: row {number}: item_id is {item_id!r}: {error}") from None
        ids.append(_converted(path, text, id_type))
    item_id, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: item {item_id!r} occurs {count} times; keep one row of it")
    return ids


def _new_ids(path: Path, rows: Rows, vocabulary: Vocabulary) -> pa.Array:
    """Return the ids of new items with the type of the vocabulary: texts or numbers."""
    numbers, ids = Catalogue(vocabulary).items, _ids(path, rows, vocabulary)
    known = [item_id for item_id in ids if str(item_id) in numbers]
    if known:
        raise DataError(
            f"{path}: item {known[0]!r} is in the catalogue already ({len(known)} known in all); remove the row"
        )
    return pa.array(ids, vocabulary.item_ids.type)


def _converted(path: Path, item_id: str, id_type: pa.DataType) -> str | int:
    """Convert the text of an id to the type of the vocabulary."""
    if not pa.types.is_integer(id_type):
        return item_id
    try:
        return int(pa.scalar(int(item_id), id_type).as_py())
    except (ValueError, OverflowError, pa.ArrowInvalid):
        raise DataError(
            f"{path}: item {item_id!r} is not a number, but the ids of this model are; give a number"
        ) from None


def _has_text_only(row: dict[str, Any], columns: tuple[str, ...]) -> bool:
    if row.get("vector") is not None or row.get("like") is not None:
        return False
    return any(str(row.get(name) or "").strip() for name in columns)


def _read_texts(path: Path, rows: Rows, columns: tuple[str, ...], model: Model) -> Tensor:
    """Return the item rows (n, R) of items that have only a text."""
    if not rows:
        return torch.zeros(0)
    try:
        return rows_of_texts(model, {name: [row.get(name) for row in rows] for name in columns}, len(rows))
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: item {rows[0]['item_id']!r} has only a {' or '.join(columns)} ({len(rows)} such items in all), "
            f"which cannot be read: {error}; give vector or like"
        ) from None


def _vector(path: Path, row: dict[str, Any], known: _Known) -> Tensor:
    """Return the item row (R,) of a new item."""
    name, given, similar = repr(row["item_id"]), row.get("vector"), row.get("like")
    if (given is None) == (similar is None):
        fault = "neither vector nor like nor title" if given is None else "both vector and like"
        raise DataError(f"{path}: item {name} has {fault}; give one")
    if given is not None:
        return _given_vector(path, name, given, known.is_text)
    if not isinstance(similar, list) or not similar:
        raise DataError(f"{path}: item {name}: like is {similar!r}, expected a list of item ids; name some")
    try:
        items, unknown = known.catalogue.split(similar)
    except ItemIdError as error:
        raise DataError(f"{path}: item {name}: like: {error}; correct it") from None
    if unknown:
        raise DataError(f"{path}: item {name} is like {unknown[0]!r}, which the model does not know; leave it out")
    return known.rows[items].mean(dim=0)


def _given_vector(path: Path, name: str, given: Any, is_text: Tensor) -> Tensor:
    width, learned = len(is_text), int((~is_text).sum())
    try:
        vector = torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError):
        raise DataError(f"{path}: item {name}: vector is {str(given)[:60]}, expected a list of numbers") from None
    if vector.shape not in {(width,), (learned,)}:
        also = f", or {learned} without those of its title" if width > learned else ""
        raise DataError(f"{path}: item {name}: vector has shape {tuple(vector.shape)}, expected {width} numbers{also}")
    if not vector.isfinite().all():
        raise DataError(f"{path}: item {name}: vector has a value that is not finite; correct it")
    return vector if len(vector) == width else torch.zeros(width).masked_scatter(~is_text, vector)


def _extended(path: Path, vocabulary: Vocabulary, new_ids: pa.Array, rows: Rows) -> Vocabulary:
    old, new = len(vocabulary.item_ids), len(new_ids)

    def joined(column: pa.Array | None, added: list[Any]) -> pa.Array | None:
        return None if column is None else pa.concat_arrays([column, pa.array(added, column.type)])

    titles = [row.get("title") for row in rows]
    known = vocabulary.titles if vocabulary.titles is not None or not any(titles) else pa.nulls(old, pa.string())
    texts = [None if title is None else str(title) for title in titles]
    return Vocabulary(
        pa.concat_arrays([vocabulary.item_ids, new_ids]),
        joined(known, texts),
        pa.concat_arrays([vocabulary.counts, pa.array([0] * new, vocabulary.counts.type)]),
        joined(vocabulary.removed, [False] * new),
        {name: _with_values(path, name, column, rows) for name, column in vocabulary.columns.items()},
    )


def _with_values(path: Path, name: str, column: pa.Array, rows: Rows) -> pa.Array:
    """Append the values of new items to a column of the vocabulary; null where they have none."""
    values = [row.get(name) for row in rows]
    if pa.types.is_string(column.type):
        values = [None if value is None else str(value) for value in values]
    try:
        return pa.concat_arrays([column, pa.array(values, column.type)])
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"{path}: column {name}: {one_line(error)}; expected values of type {column.type}") from None


def _read(path: Path, columns: tuple[str, ...] = ()) -> Rows:
    """Return the rows of a table; lists in a csv file are JSON, and some columns are texts."""
    if path.suffix not in _FORMATS:
        raise DataError(f"{path}: items are read from {', '.join(_FORMATS)}; got {path.suffix or 'no suffix'!r}")
    if kind := special_file(path):
        raise DataError(f"{path}: is {kind}, expected a file; save the items to a file first")
    try:
        rows = _rows(path, columns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (pa.ArrowInvalid, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from None
    if not rows:
        raise DataError(f"{path}: has no rows; list the items")
    if not all(isinstance(row, dict) and "item_id" in row for row in rows):
        raise DataError(f"{path}: there is no column item_id; rename the column of the items")
    return rows


def _rows(path: Path, columns: tuple[str, ...]) -> Rows:
    if path.suffix == ".parquet":
        unpacked_size(path, path, pq.read_schema(path).names)
        table: Rows = pq.read_table(path).to_pylist()
        return table
    if path.suffix == ".jsonl":
        return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = dict.fromkeys(("item_id", "title", "vector", "like", *columns), pa.string())
    options = pa_csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
    rows: Rows = pa_csv.read_csv(path, convert_options=options).to_pylist()
    return [
        row | {key: _list_of_json(number, key, row[key]) for key in ("vector", "like") if row.get(key)}
        for number, row in enumerate(rows, 1)
    ]


def _list_of_json(number: int, key: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        example = '["a", "b"]' if key == "like" else "[0.5, 1.5]"
        raise ValueError(f"row {number}: {key} is {text[:60]!r}, expected a list such as {example}") from None
