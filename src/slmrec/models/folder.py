"""Model folders: weights, architecture, item vocabulary and a card; nothing else is needed to recommend."""

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError
from slmrec.models.card import HUB_ID, About, Measured, card
from slmrec.models.loader import Model, load_model, save_model
from slmrec.version import __version__

_CONFIG, _ITEMS, _ABOUT, _CARD = "config.json", "items.parquet", "about.json", "README.md"
_PUBLISHED = [_CONFIG, _ITEMS, _ABOUT, _CARD, "*.safetensors", "adapter_config.json"]


class Vocabulary(NamedTuple):
    """The catalogue in the caller's ids; row i-1 is item i."""

    item_ids: pa.Array
    titles: pa.Array | None
    counts: pa.Array
    """How often each item occurs in the train split."""
    removed: pa.Array | None = None
    """Whether an item must never be recommended; None if all may be. In histories it is still read."""


def save_recommender(model: Model, dataset: Dataset, folder: Path, title: str, metrics: dict[str, float]) -> None:
    """Writes a folder that `load_recommender` opens, of a model that was trained on a data set.

    A model with adapters is saved as adapters and heads, without the weights of the backbone they adapt.
    """
    counts = pa.array(dataset.train_counts()[1:])
    vocabulary = Vocabulary(dataset.item_ids, dataset.titles, counts)
    save_folder(folder, model, vocabulary, About(title, metrics, dataset.preparation))


def save_folder(folder: Path, model: Model, vocabulary: Vocabulary, about: About) -> None:
    """The same of any model and vocabulary. What is there is replaced once all files are written.

    `about.json` holds the checksums of the others and comes last: a folder that was replaced in part is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as aside:
        partial = Path(aside)
        save_model(model, partial)
        write_vocabulary(vocabulary, partial / _ITEMS)
        _write_card(partial, model, vocabulary, about)
        names = sorted(file.name for file in partial.iterdir())
        sums = {name: _sha256(partial / name) for name in names if name != _CARD}
        _write_about(partial, {"slmrec": __version__, **asdict(about), "sha256": sums})
        for name in [*names, _ABOUT]:
            (partial / name).replace(folder / name)


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Writes `item, item_id, title, count, removed`, without what is unknown of all items."""
    columns = {"item": pa.array(range(1, len(vocabulary.item_ids) + 1)), "item_id": vocabulary.item_ids}
    optional = {"title": vocabulary.titles, "count": vocabulary.counts, "removed": vocabulary.removed}
    columns |= {name: column for name, column in optional.items() if column is not None}
    pq.write_table(pa.table(columns), path)


def replace_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes the vocabulary of a model folder anew, and its checksum."""
    write_vocabulary(vocabulary, folder / _ITEMS)
    content = _read_about(folder)
    if "sha256" in content:
        content["sha256"][_ITEMS] = _sha256(folder / _ITEMS)
        _write_about(folder, content)


def note_measured(folder: Path, model: Model, measured: tuple[Measured, ...]) -> bool:
    """Writes what an evaluation found of a model into its folder and card; whether it could.

    A folder without `about.json`, of an earlier version or of another program, stays as it is. No checksum changes:
    those are of what the model answers from.
    """
    content = _read_about(folder)
    if not content:
        return False
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as aside:
        partial = Path(aside)
        _write_about(partial, content | {"measured": [asdict(found) for found in measured]})
        _write_card(partial, model, _read_items(folder / _ITEMS), read_about(partial))
        for name in (_ABOUT, _CARD):
            (partial / name).replace(folder / name)
    return True


def _write_about(folder: Path, content: dict[str, Any]) -> None:
    (folder / _ABOUT).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_card(folder: Path, model: Model, vocabulary: Vocabulary, about: About) -> None:
    text = card(model, about, vocabulary.item_ids[0].as_py(), _ITEMS)
    (folder / _CARD).write_text(text, encoding="utf-8")


def load_recommender(folder: Path) -> tuple[Model, Vocabulary]:
    """The model of a folder, in eval mode, and its vocabulary.

    Raises:
        CheckpointError: a file is missing, damaged, or not the one that was saved, or the weights do not fit the
            architecture.
    """
    _check_is_model(folder)
    vocabulary = _read_items(folder / _ITEMS)
    model = load_model(folder)
    if len(vocabulary.item_ids) != model.num_items:
        raise CheckpointError(
            f"{folder}: {_ITEMS} has {len(vocabulary.item_ids)} rows but the model knows {model.num_items} items"
        )
    check_sums(folder)
    return model, vocabulary


def may_recommend(vocabulary: Vocabulary) -> Tensor:
    """(V+1,) bool: the items that have not been removed; padding never may be."""
    if vocabulary.removed is None:
        return torch.arange(len(vocabulary.item_ids) + 1) > 0
    return torch.tensor([False, *(not removed for removed in vocabulary.removed.to_pylist())])


def fingerprint_of(folder: Path) -> str:
    """SHA-256 of the files of a model folder that decide its answers.

    Raises:
        CheckpointError: it is no model folder.
    """
    _check_is_model(folder)
    names = [_CONFIG, *sorted(file.name for file in folder.glob("*.safetensors")), _ITEMS]
    sums = {name: _sha256(folder / name) for name in names if (folder / name).is_file()}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def read_about(folder: Path) -> About:
    """What is known of a model beyond itself; folders of other programs may have nothing.

    Raises:
        CheckpointError: the file that says it cannot be read.
    """
    content = _read_about(folder)
    known = {name: content[name] for name in About.__dataclass_fields__ if name in content}
    try:
        return About(**known | {"measured": tuple(Measured(**found) for found in known.get("measured", ()))})
    except TypeError as error:
        raise _damaged(folder / _ABOUT, _one_line(error)) from None


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The model folder that a path or a hub id stands for; a hub's is downloaded into the hub's cache, once.

    Args:
        source: a folder, or `owner/name` on the hub.
        revision: a branch, tag or commit on the hub.

    Raises:
        CheckpointError: there is no such folder, and no such model on the hub either.
    """
    if Path(source).exists():
        return Path(source)
    if not HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{source}: no such folder; give the output of a training stage, or a hub id (owner/name)"
        )
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=_PUBLISHED))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: neither a folder nor a model on the hub that can be reached ({_one_line(error)}); give the "
            "output of a training stage, or the id of a published model"
        ) from None


def publish(folder: Path, repo_id: str, private: bool, token: str | None) -> str:
    """Uploads a model folder to the hub; the address of the commit.

    Raises:
        CheckpointError: the hub cannot be reached, or refuses.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        message = f"Upload of slmrec {__version__}"
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{repo_id}: cannot be published ({_one_line(error)}); log in with 'hf auth login', or give a token that "
            "may write"
        ) from None
    return str(done.commit_url)


def item_vectors_of(folder: Path) -> Tensor:
    """The item vectors (V+1, D) that a pretrain folder hands to the teacher.

    Raises:
        CheckpointError: the folder has none.
    """
    path = folder / "item_vectors.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; run the pretrain stage")
    return load_file(path)["item_vectors"]


def _check_is_model(folder: Path) -> None:
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: not a model folder (config.json is missing); give the output of a training stage"
        )


def _read_items(path: Path) -> Vocabulary:
    try:
        items = pq.read_table(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: {_ITEMS} is missing, without which items have no ids") from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, _one_line(error)) from None
    absent = [name for name in ("item", "item_id", "count") if name not in items.column_names]
    if absent:
        raise _damaged(path, f"column {absent[0]} is missing")
    if items["item"].to_pylist() != list(range(1, items.num_rows + 1)):
        raise _damaged(path, f"column item is not 1 to {items.num_rows} in order")
    if any(items[name].null_count for name in ("item_id", "count")):
        raise _damaged(path, "an item has no id or no count")
    _check_unique(path, [str(item_id) for item_id in items["item_id"].to_pylist()])
    found = {name: items[name].combine_chunks() for name in items.column_names}
    return Vocabulary(found["item_id"], found.get("title"), found["count"], found.get("removed"))


def _check_unique(path: Path, item_ids: list[str]) -> None:
    if len(set(item_ids)) < len(item_ids):
        [(again, _)] = Counter(item_ids).most_common(1)
        raise _damaged(path, f"item_id {again!r} is there more than once")


def check_sums(folder: Path) -> None:
    """Whether the files of a model folder are those that were saved.

    Raises:
        CheckpointError: one is missing or another one.
    """
    for name, expected in _read_about(folder).get("sha256", {}).items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; the folder is incomplete, copy it anew")
        if _sha256(folder / name) != expected:
            raise _damaged(folder / name, f"it is not the file that was saved, as its checksum in {_ABOUT} shows")


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / _ABOUT
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, _one_line(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("sha256", {}), dict):
        raise _damaged(path, "it is no JSON object")
    return content


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: {reason}; copy the folder anew, or save it with save_pretrained")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
