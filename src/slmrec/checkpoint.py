"""Model folders: weights, architecture, item vocabulary and a card; nothing else is needed to recommend."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError
from slmrec.models.folder import Model, load_model, save_model

_ITEMS = "items.parquet"
_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}


class Vocabulary(NamedTuple):
    """The catalogue in the caller's ids; row i-1 is item i."""

    item_ids: pa.Array
    titles: pa.Array | None
    counts: pa.Array
    """How often each item occurs in the train split."""
    removed: pa.Array | None = None
    """Whether an item must never be recommended; None if all may be. In histories it is still read."""


def save_recommender(model: Model, dataset: Dataset, folder: Path, title: str, metrics: dict[str, float]) -> None:
    """Writes a folder that `load_recommender` opens.

    A model with adapters is saved as adapters and heads, without the weights of the backbone they adapt.
    """
    vocabulary = Vocabulary(dataset.item_ids, dataset.titles, pa.array(dataset.train_counts()[1:]))
    write_recommender(model, vocabulary, folder, title, metrics)


def write_recommender(
    model: Model, vocabulary: Vocabulary, folder: Path, title: str, metrics: dict[str, float]
) -> None:
    """The same, with a vocabulary in place of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    write_items(vocabulary, folder)
    (folder / "README.md").write_text(_card(model, title, metrics, vocabulary.item_ids[0].as_py()), encoding="utf-8")


def write_items(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes the vocabulary of a model folder."""
    write_vocabulary(vocabulary, folder / _ITEMS)


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Writes `item, item_id, title, count, removed`, without what is unknown of all items."""
    columns = {"item": pa.array(range(1, len(vocabulary.item_ids) + 1)), "item_id": vocabulary.item_ids}
    optional = {"title": vocabulary.titles, "count": vocabulary.counts, "removed": vocabulary.removed}
    columns |= {name: column for name, column in optional.items() if column is not None}
    pq.write_table(pa.table(columns), path)


def load_recommender(folder: Path) -> tuple[Model, Vocabulary]:
    """The model of a folder, in eval mode, and its vocabulary.

    Raises:
        CheckpointError: a file is missing, or the weights do not fit the architecture.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: not a model folder (config.json is missing); give the output of a training stage"
        )
    model = load_model(folder)
    try:
        items = pq.read_table(folder / _ITEMS)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {_ITEMS} is missing, without which items have no ids") from None
    if items.num_rows != model.num_items:
        raise CheckpointError(
            f"{folder}: {_ITEMS} has {items.num_rows} rows but the model knows {model.num_items} items"
        )
    found = {name: items[name].combine_chunks() for name in items.column_names}
    return model, Vocabulary(found["item_id"], found.get("title"), found["count"], found.get("removed"))


def may_recommend(vocabulary: Vocabulary) -> Tensor:
    """(V+1,) bool: the items that have not been removed; padding never may be."""
    if vocabulary.removed is None:
        return torch.arange(len(vocabulary.item_ids) + 1) > 0
    return torch.tensor([False, *(not removed for removed in vocabulary.removed.to_pylist())])


def fingerprint_of(folder: Path) -> str:
    """What identifies the weights and the vocabulary of a model folder."""
    found = hashlib.sha256()
    for name in ("model.safetensors", _ITEMS):
        with (folder / name).open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


def item_vectors_of(folder: Path) -> Tensor:
    """The item vectors (V+1, D) that a pretrain folder hands to the teacher.

    Raises:
        CheckpointError: the folder has none.
    """
    path = folder / "item_vectors.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; run the pretrain stage")
    return load_file(path)["item_vectors"]


def _card(model: Model, title: str, metrics: dict[str, float], item_id: str | int) -> str:
    figures = "".join(f"| {name} | {value:.4f} |\n" for name, value in metrics.items())
    heading = "Validation split, full ranking, history not excluded:\n\n| metric | value |\n|---|---|\n"
    backbone = str(getattr(model.config, "backbone", None))
    hub_id = _HUB_IDS.get(backbone, backbone)
    base = f"base_model: {hub_id}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) else ""
    use = f'from slmrec import Recommender\n\nRecommender.from_pretrained("this folder").recommend([[{item_id!r}]])'
    return (
        f"---\nlibrary_name: slmrec\npipeline_tag: other\n{base}tags: [sequential-recommendation]\n---\n\n"
        f"# {title}\n\nNext-item recommendation for {model.num_items} items, {model.num_parameters():,} parameters.\n\n"
        f"```python\n{use}\n```\n" + (f"\n{heading}{figures}" if metrics else "")
    )
