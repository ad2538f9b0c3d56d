"""Title vectors of a data set, read by the backbone once and kept in the cache."""

import hashlib
import json
import os
import time

from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from slmrec.config import DecoderConfig, TitleSettings
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError, DataError
from slmrec.models.backbone import cache_folder, content_of
from slmrec.models.titles import MAX_TITLE_TOKENS, TitleReader, Titles, read_titles, whitened


def titles_of(name: str, settings: DecoderConfig, dataset: Dataset) -> Titles | None:
    """The titles, as the language model reads them; None if they are not asked for, or optional and absent.

    Args:
        name: the section whose settings they are.
        settings: with what is asked for.
        dataset: with the titles.

    Raises:
        DataError: titles are required and the data have none.
        ConfigError: more components are asked for than the backbone is wide.
    """
    wanted = settings.titles
    if wanted is None:
        return None
    titles = dataset.titles.to_pylist() if dataset.titles is not None else []
    if not any(titles):
        if wanted.required:
            raise DataError(
                f"{name}.titles is set, but the items have no titles; give a table of items with --items FILE, or "
                f"set {name}.titles=null"
            )
        print(f"{name}: the items have no titles (--items FILE gives them); going on without", flush=True)
        return None
    source = wanted.source or settings.backbone
    vectors = _vectors(name, wanted, source, titles)
    if wanted.num_components > vectors.shape[1]:
        raise ConfigError(
            f"{name}.titles.num_components is {wanted.num_components} but the backbone's width is "
            f"{vectors.shape[1]}; choose 1-{vectors.shape[1]}"
        )
    found = whitened(vectors, wanted.num_components)
    return Titles(found.vectors, wanted.width, wanted.side, TitleReader(source, wanted.layer, found.mean, found.axes))


def _vectors(name: str, wanted: TitleSettings, source: str, titles: list[str | None]) -> Tensor:
    facts = [1, content_of(source), wanted.layer, MAX_TITLE_TOKENS, titles]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    path = cache_folder() / "titles" / f"{key}.safetensors"
    if path.exists():
        print(f"{name}: the titles' vectors taken from {path}", flush=True)
        return load_file(path)["vectors"]
    start = time.perf_counter()
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"{name}: the titles, read by the backbone", total=len(titles))
        vectors = read_titles(source, titles, wanted.layer, lambda number: progress.advance(bar, number))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"vectors": vectors}, partial)
    partial.replace(path)
    print(f"{name}: titles read in {time.perf_counter() - start:.0f} s, kept in {path}", flush=True)
    return vectors
