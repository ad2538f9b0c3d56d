"""New items for a model without training, and items that it must no longer recommend."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.folders import folder_in_place
from slmrec.models.folder import (
    Vocabulary,
    load_recommender,
    may_recommend,
    read_about,
    replace_vocabulary,
    save_folder,
)
from slmrec.models.item_tables import item_rows, rows_of_titles, text_columns
from slmrec.models.model import Model, append_items
from slmrec.pipeline.stage import read_record

_READ = (".parquet", ".jsonl", ".csv")
Rows = list[dict[str, Any]]


class _Known(NamedTuple):
    """The items that a model knows."""

    rows: Tensor
    """(V+1, R)."""
    are_titles: Tensor
    """(R,) bool."""
    places: dict[str, int]


def add_items(model: Path, items: Path, output: Path | None = None) -> None:
    """Gives a model the items of a table; they are read in histories and recommended like the others.

    Args:
        model: a model folder.
        items: a table of `item_id`, perhaps `title`, and for each item either `vector` (a list of numbers, as
            `item_rows` has them; without the columns of titles they count as an item without title) or `like` (a list
            of known item ids, whose mean it gets); or a title alone, which a model that reads titles reads.
        output: a new folder; the model's own is replaced unless given.

    Raises:
        DataError: the table cannot be read, an id is missing, double or known, or a vector is none.
        CheckpointError: the model folder is incomplete, the output is there already, or titles cannot be read.
    """
    recommender, vocabulary = load_recommender(model)
    rows = _read(items)
    new_ids = _new_ids(items, rows, vocabulary)
    known = _Known(item_rows(recommender), text_columns(recommender), _places(vocabulary))
    vectors = [None if _has_title_alone(row) else _vector(items, row, known) for row in rows]
    read = iter(_read_titles(items, [row for row in rows if _has_title_alone(row)], recommender))
    append_items(recommender, torch.stack([next(read) if vector is None else vector for vector in vectors]))
    extended = _extended(vocabulary, new_ids, [row.get("title") for row in rows])
    target = (output or model).resolve()  # of a link, what it points to
    with folder_in_place(target, replaced=target == model.resolve()) as folder:
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("item_vectors.safetensors"), dirs_exist_ok=True)
        save_folder(folder, recommender, extended, read_about(model))
        _disown(folder)
    print(f"items add: {len(rows)} items, {recommender.num_items} in all, written to {output or model}", flush=True)


def mark_items(model: Path, items: Path, removed: bool, output: Path | None = None) -> None:
    """Items that shall never be recommended, or may be again; in histories they are read as before.

    Args:
        model: a model folder.
        items: a table with the column `item_id`.
        removed: whether they must not be recommended from now on.
        output: a new folder; the model's own is replaced unless given.

    Raises:
        DataError: the table cannot be read, or an item is unknown or double.
        CheckpointError: the model folder is incomplete, or the output is there already.
        ConfigError: nothing would be left to recommend.
    """
    _, vocabulary = load_recommender(model)
    places = _places(vocabulary)
    wanted = [str(item_id) for item_id in _ids(items, _read(items))]
    unknown = [item_id for item_id in wanted if item_id not in places]
    if unknown:
        raise DataError(
            f"{items}: item {unknown[0]!r} is not in {model} ({len(unknown)} unknown in all); remove the row"
        )
    allowed = may_recommend(vocabulary)
    allowed[[places[item_id] for item_id in wanted]] = not removed
    if not allowed.any():
        raise ConfigError(f"{items}: removes all {len(places)} items of {model}; leave at least one")
    target = (output or model).resolve()  # of a link, what it points to
    with folder_in_place(target, replaced=target == model.resolve()) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        replace_vocabulary(vocabulary._replace(removed=pa.array((~allowed[1:]).tolist())), folder)
    word = "removed" if removed else "restored"
    left = int(allowed.sum())
    print(f"items: {len(wanted)} {word}, {left} of {len(places)} may be recommended; {output or model}", flush=True)


def _disown(folder: Path) -> None:
    """What a stage of a run left is that stage's result no more: `slmrec run` would make it anew."""
    record = read_record(folder)
    if record:
        (folder / "stage.json").write_text(json.dumps(record | {"fingerprint": None}) + "\n", encoding="utf-8")


def _places(vocabulary: Vocabulary) -> dict[str, int]:
    return {str(item_id): item for item, item_id in enumerate(vocabulary.item_ids.to_pylist(), 1)}


def _ids(path: Path, rows: Rows) -> list[Any]:
    ids = [row.get("item_id") for row in rows]
    if None in ids:
        raise DataError(f"{path}: row {ids.index(None) + 1} has no item_id; name the item, or remove the row")
    item_id, number = Counter(map(str, ids)).most_common(1)[0]
    if number > 1:
        raise DataError(f"{path}: item {item_id!r} stands there {number} times; keep one row of it")
    return ids


def _new_ids(path: Path, rows: Rows, vocabulary: Vocabulary) -> pa.Array:
    """The ids of new items, as the vocabulary has them: texts or numbers."""
    places, kind = _places(vocabulary), vocabulary.item_ids.type
    ids = _ids(path, [row | {"item_id": _as_kind(path, row.get("item_id"), kind)} for row in rows])
    known = [item_id for item_id in ids if str(item_id) in places]
    if known:
        raise DataError(
            f"{path}: item {known[0]!r} is in the catalogue already ({len(known)} known in all); remove the row"
        )
    return pa.array(ids, kind)


def _as_kind(path: Path, item_id: Any, kind: pa.DataType) -> Any:
    """An id as the vocabulary has them: a number, whose text has one form alone, or a text."""
    if item_id is None or not pa.types.is_integer(kind):
        return item_id if item_id is None else str(item_id)
    try:
        return pa.scalar(int(str(item_id)), kind).as_py()
    except (ValueError, OverflowError, pa.ArrowInvalid):
        raise DataError(
            f"{path}: item {item_id!r} is no number, and the ids of this model are; give it a number"
        ) from None


def _has_title_alone(row: dict[str, Any]) -> bool:
    return row.get("vector") is None and row.get("like") is None and bool(str(row.get("title") or "").strip())


def _read_titles(path: Path, rows: Rows, model: Model) -> Tensor:
    """(n, R) of the rows that have a title alone."""
    if not rows:
        return torch.zeros(0)
    try:
        return rows_of_titles(model, [str(row["title"]) for row in rows])
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: item {rows[0]['item_id']!r} has a title alone ({len(rows)} such in all), which cannot be read: "
            f"{error}; or give vector or like"
        ) from None


def _vector(path: Path, row: dict[str, Any], known: _Known) -> Tensor:
    """(R,) what the model shall keep of a new item."""
    name, given, alike = repr(row["item_id"]), row.get("vector"), row.get("like")
    if (given is None) == (alike is None):
        has = "neither vector nor like nor title" if given is None else "both vector and like"
        raise DataError(f"{path}: item {name} has {has}; give one")
    if given is not None:
        return _given_vector(path, name, given, known.are_titles)
    if not isinstance(alike, list) or not alike:
        raise DataError(f"{path}: item {name}: like is {alike!r}, expected a list of item ids; name some")
    unknown = [item_id for item_id in alike if str(item_id) not in known.places]
    if unknown:
        raise DataError(f"{path}: item {name} is like {unknown[0]!r}, which the model does not know; leave it out")
    return known.rows[[known.places[str(item_id)] for item_id in alike]].mean(dim=0)


def _given_vector(path: Path, name: str, given: Any, are_titles: Tensor) -> Tensor:
    whole, learned = len(are_titles), int((~are_titles).sum())
    try:
        vector = torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError):
        raise DataError(f"{path}: item {name}: vector is {str(given)[:60]}, expected a list of numbers") from None
    if vector.shape not in {(whole,), (learned,)}:
        also = f", or {learned} without those of its title" if whole > learned else ""
        raise DataError(f"{path}: item {name}: vector has shape {tuple(vector.shape)}, expected {whole} numbers{also}")
    if not vector.isfinite().all():
        raise DataError(f"{path}: item {name}: vector holds a value that is not finite; mend it")
    return vector if len(vector) == whole else torch.zeros(whole).masked_scatter(~are_titles, vector)


def _extended(vocabulary: Vocabulary, new_ids: pa.Array, titles: list[Any]) -> Vocabulary:
    old, new = len(vocabulary.item_ids), len(new_ids)

    def joined(column: pa.Array | None, added: list[Any]) -> pa.Array | None:
        return None if column is None else pa.concat_arrays([column, pa.array(added, column.type)])

    named = vocabulary.titles if vocabulary.titles is not None or not any(titles) else pa.nulls(old, pa.string())
    texts = [None if title is None else str(title) for title in titles]
    return Vocabulary(
        pa.concat_arrays([vocabulary.item_ids, new_ids]),
        joined(named, texts),
        pa.concat_arrays([vocabulary.counts, pa.array([0] * new, vocabulary.counts.type)]),
        joined(vocabulary.removed, [False] * new),
    )


def _read(path: Path) -> Rows:
    """Rows of a table; in a csv, lists are JSON."""
    if path.suffix not in _READ:
        raise DataError(f"{path}: items are read from {', '.join(_READ)}; got {path.suffix or 'no suffix'!r}")
    try:
        rows = _rows(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (pa.ArrowInvalid, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    if not rows:
        raise DataError(f"{path}: holds no items")
    if not all(isinstance(row, dict) and "item_id" in row for row in rows):
        raise DataError(f"{path}: there is no column item_id; name the column of the items so")
    return rows


def _rows(path: Path) -> Rows:
    if path.suffix == ".parquet":
        table: Rows = pq.read_table(path).to_pylist()
        return table
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = dict.fromkeys(("item_id", "title", "vector", "like"), pa.string())
    options = pa_csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
    rows: Rows = pa_csv.read_csv(path, convert_options=options).to_pylist()
    lists = ("vector", "like")
    return [{key: json.loads(v) if key in lists and v else v for key, v in row.items()} for row in rows]
