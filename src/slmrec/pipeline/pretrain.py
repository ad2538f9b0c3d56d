"""A base model: SASRec or another small model that learns from interactions, item texts, or both; or a baseline."""

from dataclasses import replace

import torch

from slmrec.config import BASELINES, Config
from slmrec.config.kinds import KINDS, load_object
from slmrec.data.dataset import Dataset
from slmrec.models.baselines import build_baseline
from slmrec.models.folder import save_recommender
from slmrec.models.model import Model, ModelParts
from slmrec.pipeline.fitting import (
    catalogue_loss,
    fit_model,
    remove_training_state,
    timestamp_unit,
    training_samples,
)
from slmrec.pipeline.item_text import read_item_text
from slmrec.pipeline.stage import Task
from slmrec.processes import main_first, on_main
from slmrec.training.losses import NextItemLoss
from slmrec.training.samples import TrainingSamples


def build(task: Task) -> dict[str, float]:
    """Train the base model of the task's name, or count the events of a baseline."""
    name, dataset = str(task.model), Dataset.load(task.output / "prepare")
    if name in BASELINES:
        return on_main(lambda: _count(name, dataset, task))
    settings, section = task.config.pretrain[name], f"pretrain.{name}"
    if settings.seed is not None:
        task = replace(task, config=task.config.model_copy(update={"seed": settings.seed}))
    model, loss, data = untrained(task.config, name, dataset)
    metrics = fit_model(task, section, model, loss, data, settings.train)
    remove_training_state(task)
    return metrics


def untrained(config: Config, name: str, dataset: Dataset) -> tuple[Model, NextItemLoss, TrainingSamples]:
    """Return a base model with initial weights, its loss, and its training samples."""
    settings, section = config.pretrain[name], f"pretrain.{name}"
    text = read_item_text(config, section, getattr(settings, "item_text", None), dataset)
    parts = ModelParts(dataset.num_items, text, section, timestamp_unit=timestamp_unit(dataset, settings, section))
    torch.manual_seed(config.seed)
    with main_first():  # which unpacks a backbone into the cache
        model: Model = load_object(KINDS[settings.kind].build)(settings, parts)
    loss = NextItemLoss(model, catalogue_loss(dataset, settings.train))
    data = training_samples(dataset, settings.supervision, model.max_history_items, model.timestamp_unit)
    return model, loss, data


def _count(name: str, dataset: Dataset, task: Task) -> dict[str, float]:
    """Write a baseline, and return its size."""
    baseline = build_baseline(name, dataset)
    save_recommender(baseline, dataset, task.folder, f"SLMRec pretrain.{name}", {})
    return {"num_parameters": baseline.num_parameters(), "num_trainable_parameters": 0}
