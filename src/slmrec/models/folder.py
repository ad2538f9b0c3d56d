"""Model folders: weights, architecture, item vocabulary and a card; nothing else is needed to recommend."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from huggingface_hub import HfApi, snapshot_download
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from slmrec.data.dataset import Dataset
from slmrec.data.parquet import RowsError, read_table
from slmrec.errors import CheckpointError
from slmrec.files import one_line, read_json, sha256, special_file, write_json
from slmrec.folders import RULES
from slmrec.models.card import HUB_ID, About, Measured, card, check_card
from slmrec.models.loader import load_model, save_model
from slmrec.models.model import Model
from slmrec.storage.cache import local
from slmrec.version import __version__, is_outdated

_CONFIG, _ITEMS, _ABOUT, _CARD = "config.json", "items.parquet", "about.json", "README.md"
_PUBLISHED = [_CONFIG, _ITEMS, _ABOUT, _CARD, RULES, "*.safetensors", "adapter_config.json"]
_TRAINING_STAGES = ("pretrain", "finetune", "distill")
_MAX_BYTES, _MAX_BYTES_OF_ITEM = 2**26, 2**13
"""Largest size of a vocabulary in memory, in all and for each item."""
_IS_TEXT = (pa.types.is_string, pa.types.is_large_string)
_IS_NUMBER = (pa.types.is_integer, pa.types.is_floating)
_COLUMN_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "item": (pa.types.is_integer,),
    "item_id": (*_IS_TEXT, pa.types.is_integer),
    "title": (*_IS_TEXT, pa.types.is_null),
    "count": _IS_NUMBER,
    "removed": (pa.types.is_boolean,),
}
_ABOUT_TYPE = TypeAdapter(About)


class Vocabulary(NamedTuple):
    """The catalogue with the caller's item ids; row i-1 is item i."""

    item_ids: pa.Array
    titles: pa.Array | None
    counts: pa.Array
    """Number of events of each item in the train split."""
    removed: pa.Array | None = None
    """True if an item must not be recommended; None if every item may be. Histories may contain removed items."""
    columns: Mapping[str, pa.Array] = MappingProxyType({})
    """Further columns of the items, by name (`prepare.item_columns`)."""


def save_recommender(
    model: Model, dataset: Dataset, folder: Path, title: str, metrics: dict[str, float], protocol: str = ""
) -> None:
    """Write the folder of a model that was trained on a data set; `load_recommender` opens it.

    A model with adapters is saved as adapters and heads, without the weights of the backbone that they adapt.

    Args:
        model: The model.
        dataset: The data set, whose items become the vocabulary.
        folder: Folder to write.
        title: Title of the card.
        metrics: Validation metrics by name.
        protocol: Ranking protocol of the metrics.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from slmrec.models.baselines import Popularity
        >>> with TemporaryDirectory() as parent:
        ...     save_recommender(Popularity.of(dataset), dataset, Path(parent), "popularity", {})
        ...     load_recommender(Path(parent))[0].num_items == dataset.num_items
        True
    """
    counts = pa.array(dataset.train_counts()[1:])
    vocabulary = Vocabulary(dataset.item_ids, dataset.titles, counts, columns=dataset.other_item_columns())
    save_folder(folder, model, vocabulary, About(title, metrics, dataset.preparation, protocol=protocol))


def save_folder(folder: Path, model: Model, vocabulary: Vocabulary, about: About) -> None:
    """Write the folder of any model and vocabulary; existing files are replaced once all new ones are written.

    `about.json` holds the checksums of the other files and comes last, so that a folder in which only some files were
    replaced is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as temporary:
        partial = Path(temporary)
        save_model(model, partial)
        write_vocabulary(vocabulary, partial / _ITEMS)
        _write_card(partial, model, vocabulary, about)
        names = sorted(file.name for file in partial.iterdir())
        sums = {name: sha256(partial / name) for name in names if name != _CARD}
        write_json(partial / _ABOUT, {"slmrec": __version__, **asdict(about), "sha256": sums})
        for name in [*names, _ABOUT]:
            (partial / name).replace(folder / name)


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Write the columns `item, item_id, title, count, removed` that the vocabulary has, and its further columns."""
    columns = {"item": pa.array(range(1, len(vocabulary.item_ids) + 1)), "item_id": vocabulary.item_ids}
    optional = {"title": vocabulary.titles, "count": vocabulary.counts, "removed": vocabulary.removed}
    columns |= {name: column for name, column in optional.items() if column is not None}
    pq.write_table(pa.table(columns | dict(vocabulary.columns)), path)


def replace_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Replace the vocabulary of a model folder, and its checksum."""
    write_vocabulary(vocabulary, folder / _ITEMS)
    content = _read_about(folder)
    if "sha256" in content:
        content["sha256"][_ITEMS] = sha256(folder / _ITEMS)
        write_json(folder / _ABOUT, content)


def note_measured(folder: Path, model: Model, measured: tuple[Measured, ...]) -> bool:
    """Add the results of an evaluation to the folder and the card of a model; checksums do not change.

    Returns:
        False for a folder without `about.json`, which another program made; it stays as it is.
    """
    content = _read_about(folder)
    if not content:
        return False
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as temporary:
        partial = Path(temporary)
        write_json(partial / _ABOUT, content | {"measured": [asdict(result) for result in measured]})
        _write_card(partial, model, read_vocabulary(folder, model.num_items), read_about(partial))
        for name in (_ABOUT, _CARD):
            (partial / name).replace(folder / name)
    return True


def _write_card(folder: Path, model: Model, vocabulary: Vocabulary, about: About) -> None:
    text = card(model, about, vocabulary.item_ids[0].as_py(), _ITEMS)
    (folder / _CARD).write_text(text, encoding="utf-8")


def load_recommender(folder: Path, model_class: type[Model] | None = None) -> tuple[Model, Vocabulary]:
    """Return the model of a folder, in eval mode, and its vocabulary; see `load_model` for `model_class`.

    Raises:
        CheckpointError: A file is missing, damaged, or not the file that was saved; the weights do not fit the
            architecture; or the folder was written by version 0.1.

    Example:
        >>> model, vocabulary = load_recommender(Path(folder))
        >>> model.num_items, vocabulary.item_ids[0].as_py()
        (40, 'i00')
    """
    _check_is_model(folder)
    _check_version(folder)
    model = load_model(folder, model_class)
    vocabulary = read_vocabulary(folder, model.num_items)
    check_sums(folder)
    return model, vocabulary


def may_recommend(vocabulary: Vocabulary) -> Tensor:
    """Return (V+1,) bool: the items that have not been removed, without the padding item."""
    if vocabulary.removed is None:
        return torch.arange(len(vocabulary.item_ids) + 1) > 0
    return torch.tensor([False, *(not removed for removed in vocabulary.removed.to_pylist())])


def fingerprint_of(folder: Path) -> str:
    """Return the SHA-256 of the files of a model folder on which its recommendations depend.

    Raises:
        CheckpointError: It is not a model folder.
    """
    _check_is_model(folder)
    names = [_CONFIG, *sorted(file.name for file in folder.glob("*.safetensors")), _ITEMS]
    sums = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def read_about(folder: Path) -> About:
    """Return the metadata of a model; folders of other programs may have none.

    Raises:
        CheckpointError: The file of the metadata cannot be read.
    """
    content = _read_about(folder)
    known = {name: content[name] for name in About.__dataclass_fields__ if name in content}
    try:
        _ABOUT_TYPE.validate_json(json.dumps(known), strict=True)
        about = About(**known | {"measured": tuple(Measured(**result) for result in known.get("measured", ()))})
        check_card(about)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(folder / _ABOUT, f"{where}: {first['msg']}") from None
    except (TypeError, ValueError) as error:
        raise _damaged(folder / _ABOUT, one_line(error)) from None
    return about


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return the model folder of a path, URI or hub id; remote models are downloaded once, into a cache.

    Args:
        source: A folder, a URI such as `s3://bucket/out/distill`, or `owner/name` on the hub.
        revision: A branch, tag or commit on the hub.

    Raises:
        CheckpointError: There is no such folder, and no such model on the hub either.
        StorageError: A URI cannot be read.
    """
    if (folder := local(source)).exists():
        return folder
    if not HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{source}: no such folder; give the output of a training stage, or a hub id (owner/name)"
        )
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=_PUBLISHED))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: neither a folder nor a model on the hub that can be reached ({one_line(error)}); give the "
            "output of a training stage, or the id of a published model"
        ) from None


def publish(folder: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Upload a model folder to the hub, and return the address of the commit.

    Raises:
        CheckpointError: The hub cannot be reached, or refuses the upload.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        message = f"Upload of slmrec {__version__}"
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{repo_id}: cannot be published ({one_line(error)}); log in with 'hf auth login', or give a token that "
            "may write"
        ) from None
    return str(commit.commit_url)


def _check_is_model(folder: Path) -> None:
    for file in folder.iterdir() if folder.is_dir() else ():
        if kind := special_file(file):
            raise CheckpointError(f"{file}: is {kind}, which is no part of a model folder; remove it")
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: not a model folder (config.json is missing); give the output of a training stage"
        )


def _check_version(folder: Path) -> None:
    """Refuse folders of version 0.1."""
    version = _read_about(folder).get("slmrec", "")
    try:
        config = read_json(folder / _CONFIG)
    except (OSError, ValueError):
        return  # reported when the model is built
    has_old_layout = isinstance(config, dict) and isinstance(config.get("members"), list)
    if is_outdated(version) or has_old_layout:
        stage = next((name for name in (folder.name, folder.parent.name) if name in _TRAINING_STAGES), "run")
        raise CheckpointError(
            f"{folder}: trained by version {version or '0.1'}, whose folders this version does not read; train it "
            f"again with `slmrec {stage} --force`"
        )


def read_vocabulary(folder: Path, num_items: int) -> Vocabulary:
    """Return the items of a model folder; a CheckpointError says what is wrong with their file."""
    path = folder / _ITEMS
    try:
        items = read_table(path, num_items, _MAX_BYTES + num_items * _MAX_BYTES_OF_ITEM)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: {_ITEMS} is missing, without which items have no ids") from None
    except RowsError as error:
        raise CheckpointError(
            f"{path.parent}: {_ITEMS} has {error.num_rows} rows but the model knows {num_items} items"
        ) from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    absent = [name for name in ("item", "item_id", "count") if name not in items.column_names]
    if absent:
        raise _damaged(path, f"column {absent[0]} is missing")
    if any(items[name].null_count for name in {"item_id", "count", "item", "removed"} & set(items.column_names)):
        raise _damaged(path, "an item has no id or no count")
    for name, is_type in _COLUMN_TYPES.items():
        if name in items.column_names and not any(check(items[name].type) for check in is_type):
            raise _damaged(path, f"column {name} has the type {items[name].type}")
    if not np.array_equal(items["item"].to_numpy(), np.arange(1, num_items + 1)):
        raise _damaged(path, f"column item is not 1 to {num_items} in order")
    counts = pc.cast(items["count"], pa.float64(), safe=False).to_numpy()
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise _damaged(path, "a count is no number of events")
    _check_unique(path, [str(item_id) for item_id in items["item_id"].to_pylist()])
    columns = {name: items[name].combine_chunks() for name in items.column_names}
    known = {name: columns.pop(name, None) for name in _COLUMN_TYPES}
    return Vocabulary(known["item_id"], known["title"], known["count"], known["removed"], columns)


def _check_unique(path: Path, item_ids: list[str]) -> None:
    if len(set(item_ids)) < len(item_ids):
        [(repeated, _)] = Counter(item_ids).most_common(1)
        raise _damaged(path, f"item_id {repeated!r} occurs more than once")


def check_sums(folder: Path) -> None:
    """Check that the files of a model folder are those that were saved.

    Raises:
        CheckpointError: A file is missing or has another content.
    """
    for name, expected in _read_about(folder).get("sha256", {}).items():
        if Path(name).name != name or name == "..":
            raise _damaged(folder / _ABOUT, f"sha256 names {name!r}, which is not a file of the folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; the folder is incomplete, copy it again")
        if sha256(folder / name) != expected:
            raise _damaged(folder / name, f"it is not the file that was saved, as its checksum in {_ABOUT} shows")


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / _ABOUT
    if not path.is_file():
        return {}
    try:
        content = read_json(path, allow_nan=False)
    except (OSError, ValueError) as error:
        raise _damaged(path, one_line(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("sha256", {}), dict):
        raise _damaged(path, "it is no JSON object")
    return content


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: {reason}; copy the folder again, or save it with save_pretrained")
