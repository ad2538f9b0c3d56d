"""Vectors of item texts of a data set, read once by a language model and cached."""

import hashlib
import json
import logging
import time

from safetensors.torch import load_file, save_file
from torch import Tensor

from slmrec.config import Config, ItemTextConfig
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError, DataError
from slmrec.files import write_atomically
from slmrec.models.backbone import cache_folder, content_of
from slmrec.models.titles import MAX_TITLE_TOKENS, ItemText, TitleReader, read_titles, whitened
from slmrec.progress import progress

_LOG = logging.getLogger(__name__)


def read_item_text(config: Config, section: str, name: str | None, dataset: Dataset) -> ItemText | None:
    """Return the text vectors that a model reads; None if it reads none, or if they are optional and absent.

    Args:
        config: All settings.
        section: Path of the model's section, for messages.
        name: Key of `item_text`; None for a model without text.
        dataset: The data set with its titles.

    Raises:
        DataError: The text is required and the data set has no titles.
        ConfigError: More components are requested than the language model is wide.
    """
    if name is None:
        return None
    settings = config.item_text[name]
    titles = dataset.titles.to_pylist() if dataset.titles is not None else []
    if not any(titles):
        if settings.required:
            raise DataError(
                f"{section}.item_text is {name!r}, but the items have no titles; give a table of items with --items "
                f"FILE, or set item_text.{name}.required=false"
            )
        _LOG.info("%s: the items have no titles (--items FILE gives them); training without text", section)
        return None
    vectors = _title_vectors(section, name, settings, titles)
    if settings.num_components > vectors.shape[1]:
        raise ConfigError(
            f"item_text.{name}.num_components is {settings.num_components}, but the width of {settings.source} is "
            f"{vectors.shape[1]}; choose 1-{vectors.shape[1]}"
        )
    white = whitened(vectors, settings.num_components)
    return ItemText(white.vectors, TitleReader(settings.source, settings.layer, white.mean, white.axes))


def _title_vectors(section: str, name: str, settings: ItemTextConfig, titles: list[str | None]) -> Tensor:
    """Return (V+1, H) hidden states of all titles, from the cache if they were read before."""
    facts = [1, content_of(settings.source), settings.layer, MAX_TITLE_TOKENS, titles]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    path = cache_folder() / "titles" / f"{key}.safetensors"
    if path.exists():
        _LOG.info("%s: title vectors taken from %s", section, path)
        return load_file(path)["vectors"]
    start = time.perf_counter()
    with progress(f"{section}: reading titles", total=len(titles)) as advance:
        vectors = read_titles(settings.source, titles, settings.layer, advance, f"item_text.{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        save_file({"vectors": vectors}, temporary)
    _LOG.info("%s: titles read in %.0f s, cached in %s", section, time.perf_counter() - start, path)
    return vectors
