"""Sources of text vectors: words, and language models."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slmrec.config import ItemTextConfig
from slmrec.config.item_text import MINILM, WORDS
from slmrec.data.item_vectors import read_item_vectors, read_matrix
from slmrec.data.vectors_by_id import vector_width
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.backbone import check_backbone, read_architecture
from slmrec.models.text.language_models import language_model_folder, read_by_language_model
from slmrec.models.text.minilm import MINILM_ARCHIVE
from slmrec.models.text.words import FittedWords, default_width, fit_words, read_words


class TextVectors(NamedTuple):
    """Vectors of texts as a source gives them, before whitening."""

    values: Tensor
    """(V+1, H); row 0 and the rows of items without a text are zero."""
    words: FittedWords | None = None
    """Recipe of the vectors if the source is `words`."""


def item_texts(settings: ItemTextConfig, rows: Mapping[str, Sequence[Any]], num: int) -> list[str]:
    """Return the texts of items by the template; an item without a value in any of its columns has none.

    Args:
        settings: The template.
        rows: Values by column; a column that is absent has no values.
        num: Number of items.

    Example:
        >>> settings = ItemTextConfig(template="{title} by {brand}")
        >>> item_texts(settings, {"title": ["Lamp", None], "brand": ["Ikea", None]}, 2)
        ['Lamp by Ikea', '']
    """
    columns = {name: [_shown(value) for value in rows.get(name, [None] * num)] for name in settings.columns}
    return [_text(settings.template, {name: values[row] for name, values in columns.items()}) for row in range(num)]


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(_shown, value)))
    return "" if value is None else str(value)


def _text(template: str, values: dict[str, str]) -> str:
    present = [bool(value.strip()) for value in values.values()]
    if not any(present):
        return ""
    text = template.format_map(values)
    return text if all(present) else " ".join(text.split())


def read_texts(
    settings: ItemTextConfig,
    texts: Sequence[str],
    words: FittedWords | None = None,
    progress: Callable[[int], None] | None = None,
    section: str = "item_text",
) -> TextVectors:
    """Return the vectors of the texts of items 1..V; `""` stands for no text.

    Args:
        settings: Settings of the source.
        texts: Texts of the items.
        words: Recipe by which words are read; None: it is fitted to the texts.
        progress: Called after each batch with the number of texts in it.
        section: Path of the settings in the YAML, for messages.

    Raises:
        CheckpointError: The source cannot be found, or reads no texts.
        ConfigError: A setting does not suit the source.
    """
    given = [(item, text) for item, text in enumerate(texts, 1) if text.strip()]
    some = [text for _, text in given]
    if settings.reads_file:
        raise CheckpointError(f"the text vectors of its items come from {settings.source}, which reads no new texts")
    if settings.source == WORDS:
        words = words or fit_words(some, _num_components(settings, len(some), section), settings)
        vectors = read_words(words, some, settings)
    else:
        vectors = read_by_language_model(settings, some, progress, section)
    values = torch.zeros(len(texts) + 1, vectors.shape[1])
    values[[item for item, _ in given]] = vectors
    return TextVectors(values, words)


def check_source(settings: ItemTextConfig, section: str) -> None:
    """Check that a source can be opened; of a language model at most the configuration is read.

    Raises:
        CheckpointError: It cannot be found.
    """
    if settings.source == MINILM:
        MINILM_ARCHIVE.find(f"{section}.source")
    elif settings.reads_language_model:
        check_backbone(settings.source, None, f"{section}.source")
    elif settings.reads_file and not Path(settings.source).is_file():
        raise CheckpointError(f"{section}.source is {settings.source!r}: no such file")


def text_width(settings: ItemTextConfig, num_texts: int, section: str) -> int:
    """Return C, the width of the text vectors of a catalogue, without reading texts.

    Args:
        settings: Settings of the source.
        num_texts: Number of texts; 0 if it is not known, so that a file of vectors may have any number of rows.
        section: Path of the settings in the YAML, for messages.

    Raises:
        CheckpointError: The source cannot be found.
        DataError: The file of vectors is missing or damaged, or has another number of rows.
    """
    if settings.num_components is not None:
        return settings.num_components
    if settings.source == WORDS:
        return default_width(num_texts)
    if settings.reads_file:
        path = Path(settings.source)
        if path.suffix == ".parquet":
            return vector_width(path)
        return (read_item_vectors(path, num_texts) if num_texts else read_matrix(path)).shape[1]
    return int(read_architecture(language_model_folder(settings, section), f"{section}.source")["hidden_size"])


def _num_components(settings: ItemTextConfig, num_texts: int, section: str) -> int:
    num = settings.num_components or default_width(num_texts)
    if num > num_texts:
        raise ConfigError(
            f"{section}.num_components is {num}, but only {num_texts} items have a text; choose 1-{num_texts}"
        )
    return num
