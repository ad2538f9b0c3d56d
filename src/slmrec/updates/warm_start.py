"""Models of an update: they take their weights along, get rows for new items, and the shipped one learns further."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from slmrec.config import BASELINES, Config, DecoderTraining, ItemTextConfig, TrainConfig
from slmrec.config.item_text import WORDS
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.errors import CheckpointError
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import Vocabulary, load_recommender, replace_vocabulary, save_recommender
from slmrec.models.item_tables import (
    NUM_SIMILAR,
    rearrange_items,
    replace_rows,
    text_columns_of_items,
)
from slmrec.models.model import Model
from slmrec.models.text.sources import item_texts, read_texts
from slmrec.pipeline.fitting import catalogue_loss, training_samples
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import validation
from slmrec.training.losses import NextItemLoss
from slmrec.training.trainer import fit

_LOG = logging.getLogger(__name__)
MIN_SECONDS = 0.5
"""Time below which a training is left out."""


@dataclass(frozen=True)
class WarmStart:
    """Settings of the training of a model that was trained before; all others are those of its first training."""

    learning_rate: float = 0.5
    """Learning rate, as a share of that of the first training."""
    num_epochs: int = 6
    """Number of passes over the samples, if the time suffices."""
    replay: float = 2.0
    """Number of samples that the model knows for each one with an event that it has not learned from; they keep it from
    forgetting."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    window: int = 2
    """Number of places before and after a new item in a history within which its neighbours are counted."""

    def of(self, train: TrainConfig, num_samples: int, minutes: float) -> TrainConfig:
        """Return the settings of a training.

        Args:
            train: Settings of the first training.
            num_samples: Number of training samples.
            minutes: Time of the training with its validations.
        """
        size = train.per_device_train_batch_size if train.reference_batch_size is None else train.reference_batch_size
        steps = self.num_epochs * num_samples / (int(size) * train.gradient_accumulation_steps)
        changes: dict[str, Any] = {
            "learning_rate": self.learning_rate * train.learning_rate,
            "num_train_epochs": self.num_epochs,
            "max_steps": -1,
            "max_minutes": minutes,
            "warmup_steps": round(self.warmup_share * steps),
            "lr_scheduler_type": "linear",
            "early_stopping_patience": self.num_epochs,
            "ema_decay": 0.0,
        }
        if hasattr(train, "torch_compile"):
            changes["torch_compile"] = False  # it takes longer than an update should
        return train.model_copy(update=changes)


WARM_START = WarmStart()


def carry_over(
    task: Task, source: Path, section: str, *, learned: Dataset | None = None, until: float = 0.0
) -> dict[str, float]:
    """Write a model of a run for the catalogue of the task's data set, and train it further if there is time.

    Args:
        task: The step.
        source: Folder of the model before the update.
        section: Path of its section in the YAML.
        learned: Data set whose training events the model has learned from; None: its weights stay, only items join.
        until: Value of `time.monotonic` at which training ends.

    Returns:
        Validation metrics and sizes.
    """
    dataset = Dataset.load(task.output / "prepare")
    model, vocabulary = with_items_of(source, dataset)
    measured_on = validation(task, dataset)
    facts: dict[str, float] = {}
    metrics: dict[str, float] = {}
    if learned is not None:
        is_newer = unlearned(learned, dataset)
        facts, metrics = train_further(model, task, dataset, section, is_newer, until), measured_on.metrics(model)
    save_recommender(model, dataset, task.folder, f"SLMRec {section}", metrics, measured_on.protocol)
    _keep_removed(vocabulary, dataset, task.folder)
    sizes = {"num_layers": model.num_layers, "num_parameters": model.num_parameters(), "num_trainable_parameters": 0}
    return {f"valid/{key}": value for key, value in metrics.items()} | sizes | facts


def _keep_removed(vocabulary: Vocabulary, dataset: Dataset, folder: Path) -> None:
    """Keep items from being recommended that were removed from the model before the update."""
    if vocabulary.removed is None:
        return
    removed = vocabulary.item_ids.filter(vocabulary.removed)
    new = load_recommender(folder)[1]
    replace_vocabulary(new._replace(removed=pc.is_in(dataset.item_ids, value_set=removed)), folder)


def with_items_of(source: Path, dataset: Dataset) -> tuple[Model, Vocabulary]:
    """Return the model of a folder with the catalogue of a data set, and the vocabulary that it had.

    New items have the vectors of their texts in a model that reads texts. Their learned rows are blended from those of
    the items with the most similar texts, or, without texts, from those of their neighbours in the histories.
    """
    model, vocabulary = load_recommender(source)
    origins = pc.fill_null(pc.index_in(dataset.item_ids, value_set=vocabulary.item_ids), -1)
    numbers = np.append(0, np.asarray(origins.to_numpy(zero_copy_only=False), np.int64) + 1)
    new = np.flatnonzero(numbers[1:] == 0) + 1
    columns = text_columns_of_items(model)
    values = {name: [column[item - 1] for item in new] for name, column in dataset.item_columns(columns).items()}
    try:
        rearrange_items(model, torch.from_numpy(numbers), values)
    except CheckpointError as error:
        _LOG.warning("update: %s does not read the texts of %d new items: %s", source, len(new), error)
    if len(new):
        replace_rows(model, new, _text(model, dataset), neighbours_of(new, dataset, numbers > 0))
    return model.eval(), vocabulary


def _text(model: Model, dataset: Dataset) -> Tensor | None:
    """Return text vectors (V+1, C) by which items are compared: those that the model reads, or the words of titles."""
    own = [table.values for table in model.item_tables() if table.text is not None]
    if own or dataset.titles is None:
        return own[0] if own else None
    settings = ItemTextConfig(source=WORDS)
    texts = item_texts(settings, dataset.item_columns(settings.columns), dataset.num_items)
    return read_texts(settings, texts).values if any(texts) else None


def neighbours_of(items: Ints, dataset: Dataset, is_known: Any) -> Tensor:
    """Return (n, K) known items that stand most often beside some items in the training histories; 0: there are none.

    Args:
        items: (n,) items.
        dataset: The data set.
        is_known: (V+1,) whether an item may be a neighbour.
    """
    users, events = (np.concatenate(parts) for parts in zip(*dataset.train_events(), strict=True))
    place = np.full(dataset.num_items + 1, -1)
    place[items] = np.arange(len(items))
    pairs = []
    for distance in range(1, min(WARM_START.window, len(events) - 1) + 1):
        same = users[distance:] == users[:-distance]
        for item, other in ((events[distance:], events[:-distance]), (events[:-distance], events[distance:])):
            chosen = same & (place[item] >= 0) & is_known[other]
            pairs.append(place[item[chosen]] * len(place) + other[chosen])
    keys, counts = np.unique(np.concatenate([np.empty(0, np.int64), *pairs]), return_counts=True)
    order = np.lexsort((-counts, keys // len(place)))
    owners, others = keys[order] // len(place), keys[order] % len(place)
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
    best = np.zeros((len(items), NUM_SIMILAR), np.int64)
    first = rank < NUM_SIMILAR
    best[owners[first], rank[first]] = others[first]
    for column in range(1, NUM_SIMILAR):  # an item with fewer neighbours counts the first one again
        best[:, column] = np.where(best[:, column] == 0, best[:, 0], best[:, column])
    return torch.from_numpy(best)


def unlearned(learned: Dataset, dataset: Dataset) -> Any:
    """Return (events,) whether an event is newer than those of its user that a model has learned from.

    Args:
        learned: Data set whose training events it has learned from; its users have the same numbers.
        dataset: A later data set.
    """
    lengths, before = np.diff(dataset.offsets), np.zeros(dataset.num_users, np.int64)
    num_learned, known = before.copy(), np.diff(learned.offsets)
    before[: learned.num_users] = known
    for users, _ in learned.train_events():
        num_learned += np.bincount(users, minlength=dataset.num_users)
    num_newer = np.maximum(lengths, before) - num_learned  # longer before: `max_history` has cut off old events
    ages = np.repeat(dataset.offsets[1:], lengths) - np.arange(len(dataset.flat))
    return ages <= np.repeat(num_newer, lengths)


def newer_and_replayed(samples: Samples, is_newer: Any, seed: int) -> Samples:
    """Return the samples with a target that a model has not learned from, and a random part of the others."""
    newest = np.concatenate([np.empty(0, np.int64), *(samples.spans(rows)[1] for rows in samples.chunks())])
    chosen = is_newer[newest]
    others = np.flatnonzero(~chosen)
    num = min(len(others), round(WARM_START.replay * int(chosen.sum())) or len(others))
    replayed = np.random.default_rng(seed).choice(others, num, replace=False)
    return samples.take(np.sort(np.concatenate([np.flatnonzero(chosen), replayed])))


def train_further(
    model: Model, task: Task, dataset: Dataset, section: str, is_newer: Any, until: float
) -> dict[str, float]:
    """Train a model, or each model of an ensemble, by next-item prediction, and return the time and the best epochs.

    Args:
        model: The model.
        task: The step.
        dataset: Data set of the update.
        section: Path of the model's section.
        is_newer: (events,) events that the model has not learned from.
        until: Value of `time.monotonic` at which training ends.
    """
    parts = model.models if isinstance(model, Ensemble) else {section: model}
    facts, folder = {"training_s": 0.0, "epochs": 0.0}, task.folder / "training"
    for number, (name, part) in enumerate(parts.items()):
        seconds = (until - time.monotonic()) / (len(parts) - number)
        if seconds < MIN_SECONDS:
            _LOG.info("update: no time is left to train %s", name)
            continue
        where = section if name in (section, "decoder") else f"pretrain.{name}"
        progress = _fit(part, task, dataset, where, is_newer, seconds, folder if len(parts) == 1 else folder / name)
        facts["training_s"] += round(progress.seconds, 3)
        facts["epochs"] = max(facts["epochs"], progress.epoch)
        if len(parts) == 1:
            facts["best_epoch"] = progress.best_epoch
    for file in folder.rglob("*.safetensors"):  # the state from which a training is resumed, which an update is not
        file.unlink()
    return facts


def _fit(model: Model, task: Task, dataset: Dataset, section: str, is_newer: Any, seconds: float, folder: Path) -> Any:
    config, measured_on = task.config, validation(task, dataset)
    base = config.pretrain.get(section.removeprefix("pretrain."))
    settings = base or (config.finetune if section == "finetune" else config.distill)
    supervision = base.supervision if base else config.finetune.supervision
    data = training_samples(dataset, supervision, model.max_history_items, model.timestamp_unit)
    data = replace(data, samples=newer_and_replayed(data.samples, is_newer, config.seed))
    train = WARM_START.of(settings.train, len(data), seconds / 60)
    if (decoder := model.decoder_part) is not None:
        own: Any = config.distill.student if section == "distill" else settings
        decoder.set_trainable(train_items=getattr(own, "item_embeddings", "fixed") != "fixed")
        model.apply_training_options(cast(DecoderTraining, train))
    return fit(
        NextItemLoss(model, catalogue_loss(dataset, train)),
        data,
        train,
        validate=lambda: measured_on.metrics(model),
        folder=folder,
        seed=config.seed,
        name=section,
    )


def models_of(config: Config) -> Mapping[str, str]:
    """Return the section of each trained model by its folder."""
    sections = {f"pretrain/{name}": f"pretrain.{name}" for name in config.pretrain if name not in BASELINES}
    return sections | {"finetune": "finetune", "distill": "distill"}
