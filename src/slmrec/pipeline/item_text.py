"""Vectors of item texts of a data set, read once and cached."""

import hashlib
import json
import logging
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from slmrec.config import Config, ItemTextConfig
from slmrec.config.item_text import MINILM
from slmrec.data.dataset import Dataset
from slmrec.data.item_vectors import read_item_vectors
from slmrec.data.vectors_by_id import read_vectors_by_id
from slmrec.errors import ConfigError, DataError
from slmrec.files import cache_folder, write_atomically
from slmrec.models.backbone import content_of
from slmrec.models.text.item_text import ItemText, TextReader
from slmrec.models.text.language_models import MAX_TOKENS
from slmrec.models.text.sources import TextVectors, item_texts, read_texts
from slmrec.models.text.whitening import whitened
from slmrec.models.text.words import VERSION as WORDS_VERSION
from slmrec.models.text.words import FittedWords
from slmrec.processes import main_first
from slmrec.progress import progress

_LOG = logging.getLogger(__name__)
_VERSION = 1
"""Version of the ways in which sources read texts; it changes with their results."""


def read_item_text(config: Config, section: str, name: str | None, dataset: Dataset) -> ItemText | None:
    """Return the text vectors that a model reads; None if it reads none, or if they are optional and absent.

    Args:
        config: All settings.
        section: Path of the model's section, for messages.
        name: Key of `item_text`; None for a model without text.
        dataset: The data set with its items.

    Raises:
        DataError: The text is required and the items have none, or the template names a column that they lack.
        ConfigError: A setting does not suit the source.
        CheckpointError: The source cannot be found.
    """
    if name is None:
        return None
    settings, where = config.item_text[name], f"item_text.{name}"
    if settings.reads_file:
        vectors = TextVectors(_vectors_of_file(Path(settings.source), dataset))
    else:
        texts = _texts(settings, where, dataset)
        if not any(texts):
            _refuse_missing(settings, section, name)
            return None
        with main_first():
            vectors = _cached(section, where, settings, texts)
    width = vectors.values.shape[1]
    if (settings.num_components or 1) > width:
        raise ConfigError(
            f"{where}.num_components is {settings.num_components}, but the width of {settings.source} is {width}; "
            f"choose 1-{width}"
        )
    white = whitened(vectors.values, settings)
    reader = TextReader(settings, white.mean, white.axes, vectors.words)
    return ItemText(_shuffled(white.vectors, settings.seed) if settings.shuffled else white.vectors, reader)


def check_item_texts(config: Config, dataset: Dataset) -> None:
    """Check, before any model is trained, that the items have the texts that models of the run must read.

    Raises:
        DataError: A text is required and the items have none, or the template names a column that they lack.
    """
    sections = {f"pretrain.{name}": model for name, model in config.pretrain.items()}
    for section, model in {**sections, "finetune": config.finetune, "distill.student": config.distill.student}.items():
        name = getattr(model, "item_text", None)
        if name is not None and config.item_text[name].required and not config.item_text[name].reads_file:
            settings = config.item_text[name]
            if not any(_texts(settings, f"item_text.{name}", dataset)):
                _refuse_missing(settings, section, name)


def _vectors_of_file(path: Path, dataset: Dataset) -> torch.Tensor:
    if path.suffix == ".parquet":
        return read_vectors_by_id(path, dataset.item_ids)
    return read_item_vectors(path, dataset.num_items)


def _texts(settings: ItemTextConfig, where: str, dataset: Dataset) -> list[str]:
    columns = dataset.item_columns(settings.columns)
    unknown = [name for name in settings.columns if name not in columns and name != "title"]
    if unknown:
        raise DataError(
            f"{where}.template is {settings.template!r}, but the items have no column {unknown[0]!r}; give a table of "
            f"items with it (--items FILE), and keep it by prepare.item_columns=[{', '.join(unknown)}]"
        )
    return item_texts(settings, columns, dataset.num_items)


def _refuse_missing(settings: ItemTextConfig, section: str, name: str) -> None:
    """Refuse a data set without texts, unless they are optional."""
    columns = " or ".join("titles" if column == "title" else column for column in settings.columns)
    if settings.required:
        raise DataError(
            f"{section}.item_text is {name!r}, but the items have no {columns}; give a table of items with --items "
            f"FILE, take a recipe without text, such as --config sequences, or set item_text.{name}.required=false"
        )
    _LOG.info("%s: the items have no %s (--items FILE gives them); training without text", section, columns)


def _shuffled(vectors: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the vectors with the rows of the items that have a text in random order."""
    items = (vectors.abs().sum(dim=1) > 0).nonzero()[:, 0]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    shuffled = vectors.clone()
    shuffled[items] = vectors[items[order]]
    return shuffled


def _cached(section: str, where: str, settings: ItemTextConfig, texts: list[str]) -> TextVectors:
    """Return the vectors of all texts, from the cache if they were read before."""
    facts = [_VERSION, *_facts(settings), [text or None for text in texts]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    path = cache_folder() / "titles" / f"{key}.safetensors"
    if path.exists():
        _LOG.info("%s: text vectors taken from %s", section, path)
        tensors = load_file(path)
        values = tensors.pop("vectors")
        return TextVectors(values, FittedWords(**tensors) if tensors else None)
    start = time.perf_counter()
    with progress(f"{section}: reading texts", total=sum(1 for text in texts if text)) as advance:
        vectors = read_texts(settings, texts, None, advance, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"vectors": vectors.values, **(vectors.words._asdict() if vectors.words else {})}
    with write_atomically(path) as temporary:
        save_file(tensors, temporary)
    _LOG.info("%s: texts read in %.0f s, cached in %s", section, time.perf_counter() - start, path)
    return vectors


def _facts(settings: ItemTextConfig) -> list[object]:
    """Return everything but the texts that the vectors of a source depend on."""
    if not settings.reads_language_model:
        return [settings.source, WORDS_VERSION, settings.num_components, settings.num_hashes, settings.ngram_weight]
    content = settings.source if settings.source == MINILM else content_of(settings.source)
    # A source with `layer` is a decoder, whose limit is known; that of an encoder is part of its content.
    limit = settings.max_tokens or (None if settings.layer is None else MAX_TOKENS)
    return [content, settings.layer, limit, *([settings.seed] if settings.random_weights else [])]
