"""Items that are withheld from training: their choice, the data without them, and their rows in item tables."""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from slmrec.config import BASELINES, Config
from slmrec.data.dataset import Dataset, Ints
from slmrec.data.subset import Bools, write_subset
from slmrec.errors import ConfigError
from slmrec.models.folder import load_recommender, read_about, save_folder
from slmrec.models.item_tables import NUM_SIMILAR, drops_ids, replace_rows, single_models
from slmrec.models.model import Model
from slmrec.pipeline.item_text import read_item_text
from slmrec.pipeline.stage import Task
from slmrec.pipeline.table import Step

_LOG = logging.getLogger(__name__)
_FILE = "withheld.parquet"


def draw_items(dataset: Dataset, config: Config) -> Ints:
    """Return the items that are withheld, drawn by the seed among those with enough training events.

    Raises:
        ConfigError: Too few items have that many events, or no item would be drawn.
    """
    settings = config.cold
    known = np.flatnonzero(dataset.train_counts() >= settings.min_train_events)
    number = round(settings.share * dataset.num_items)
    if not 0 < number < len(known):
        raise ConfigError(
            f"cold.share is {settings.share:g}, which is {number} of {dataset.num_items} items, but {len(known)} items "
            f"have {settings.min_train_events} or more training events (cold.min_train_events); choose a share that "
            f"gives 1 to {max(1, len(known) - 1)} items, or lower cold.min_train_events"
        )
    return np.sort(np.random.default_rng(config.seed).choice(known, number, replace=False))


def withhold_items(task: Task, source: Path) -> dict[str, float]:
    """Write the data set without the events of the withheld items; the items stay in the catalogue with their texts.

    The log without these events is split by the same rule. With leave-one-out, other events of a user may therefore be
    held out, but no event that was held out becomes a training event.

    Args:
        task: The step.
        source: Folder of the whole data set.
    """
    dataset = Dataset.load(source)
    items = draw_items(dataset, task.config)
    counts = write_subset(source, task.folder, ~is_withheld(dataset, items)[dataset.flat])
    item_ids = dataset.item_ids.take(pa.array(items - 1))
    pq.write_table(pa.table({"item": items, "item_id": item_ids}), task.folder / _FILE)
    _LOG.info("cold: %s of %s items withheld", f"{len(items):,}", f"{dataset.num_items:,}")
    return counts | {"num_withheld_items": len(items)}


def withheld_items(folder: Path) -> Ints:
    """Return the withheld items of a data set that `withhold_items` wrote."""
    return np.array(pq.read_table(folder / _FILE, columns=["item"])["item"].to_numpy(), np.int64)


def is_withheld(dataset: Dataset, items: Ints) -> Bools:
    """Return (V+1,) whether an item is withheld."""
    mask = np.zeros(dataset.num_items + 1, bool)
    mask[items] = True
    return mask


def write_target_users(source: Path, output: Path, split: Literal["valid", "test"], items: Ints) -> int:
    """Write the users whose held-out item is withheld, with all other withheld items taken from their histories.

    Args:
        source: Folder of the whole data set.
        output: Existing folder of the new data set, in which the other users have no events.
        split: Split whose held-out item must be withheld.
        items: The withheld items.

    Returns:
        Number of these users, including those whose history is empty without withheld items.
    """
    dataset = Dataset.load(source)
    samples = dataset.held_out(split)
    _, targets, users = samples.spans(np.arange(len(samples)))
    mask = is_withheld(dataset, items)
    chosen = mask[dataset.flat[targets]]
    first_kept = np.full(dataset.num_users, len(dataset.flat))
    first_kept[users[chosen]] = targets[chosen]
    lengths = np.diff(dataset.offsets)
    target_of_event = np.repeat(first_kept, lengths)
    is_later = np.arange(len(dataset.flat)) >= target_of_event
    has_target = target_of_event < len(dataset.flat)
    write_subset(source, output, has_target & (is_later | ~mask[dataset.flat]))
    return int(chosen.sum())


def build_with_rows(task: Task, step: Step) -> dict[str, float]:
    """Execute a step of the pipeline, and give the withheld items rows in the item tables of its models.

    Learned rows of items without events are no better than random, and training pushes them away from every user. So
    they are replaced, as `slmrec items add` does for new items: see `replace_rows`. A student that learned from the
    teacher's scores alone keeps its rows, since the teacher scored the withheld items by their new rows.
    """
    metrics = step.build(task)
    if step.stage.name == "prepare" or step.model in BASELINES:
        return metrics
    dataset, items = Dataset.load(task.output / "prepare"), withheld_items(task.output / "prepare")
    is_student = step.stage.name == "distill"
    folders = [] if is_student and learns_rows_from_teacher(task.config) else [task.folder]
    folders += [path for path in (task.folder / "teacher",) if path.is_dir()]  # a teacher that was trained online
    for folder in folders:
        model, vocabulary = load_recommender(folder)
        replace_rows(model, items, text_of(model, task.config, dataset))
        save_folder(folder, model, vocabulary, read_about(folder))
    return metrics


def learns_rows_from_teacher(config: Config) -> bool:
    """Return whether the student learns the rows of withheld items from the teacher's scores, and nothing else."""
    distill, weights = config.distill, config.distill.weights
    learns_all = bool(weights.kl) and distill.kl_top_k is None
    return learns_all and not (weights.ce or weights.multiple or weights.lists) and distill.mode == "offline"


def text_of(model: Model, config: Config, dataset: Dataset) -> Tensor | None:
    """Return text vectors (V+1, C) by which items are compared; None if the run has none.

    They are those that the model reads, or, for a model without text, those of the first key of `item_text`.
    """
    own = [table.values for table in model.item_tables() if table.text is not None]
    if own:
        return own[0]
    name = next(iter(config.item_text), None)
    text = read_item_text(config, "cold", name, dataset)
    return None if text is None else text.vectors


def origin_of_rows(name: str, model: Model, config: Config, dataset: Dataset) -> str:
    """Return in words how a model knows the withheld items."""
    tables = [(part, table.text is None) for part in single_models(model) for table in part.item_tables()]
    origins = [] if all(is_learned for _, is_learned in tables) else ["their texts, which the model reads"]
    if any(is_learned and not drops_ids(part) for part, is_learned in tables):
        if name == "student" and learns_rows_from_teacher(config):
            origins.append("rows learned from the teacher's scores")
        elif text_of(model, config, dataset) is not None:
            origins.append(f"rows blended from the {NUM_SIMILAR} trained items with the most similar texts")
        else:
            origins.append("the mean of all rows, since no text is known")
    return " and ".join(origins)
