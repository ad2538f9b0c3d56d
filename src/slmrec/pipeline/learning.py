"""What the training stages share: choose samples, validate, fit, save."""

from typing import Any

import numpy as np
import torch
from torch import nn

from slmrec.config import DecoderTraining, TrainConfig
from slmrec.data.dataset import Dataset, Samples
from slmrec.errors import DataError
from slmrec.evaluation.rank import validate
from slmrec.models.build import compile_layers
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import save_recommender
from slmrec.models.loader import Model
from slmrec.pipeline.stage import Task
from slmrec.training.full_softmax import ItemSampler
from slmrec.training.trackers import Trackers
from slmrec.training.trainer import TrainingSamples, fit

EVAL_BATCH = 256
SAMPLING_EXPONENT = 0.75
"""Between uniform (0) and by popularity (1)."""


def training_samples(dataset: Dataset, supervision: str, model: Model) -> TrainingSamples:
    """What a model trains on, given which positions of a history are samples.

    Raises:
        DataError: no history is long enough to train on.
    """
    samples = dataset.train(supervision, model.max_history_items)
    if not len(samples):
        events = {
            "leave_one_out": "4 events that a training sample takes (the last two are held out)",
            "temporal": "2 events before the time of validation that a training sample takes",
        }[dataset.split_rule]
        raise DataError(f"none of the {dataset.num_users} users has the {events}; give longer histories")
    return TrainingSamples(
        samples=samples,
        max_history_items=model.max_history_items,
        every_position=supervision == "every_position",
    )


def cross_entropy_settings(dataset: Dataset, settings: TrainConfig) -> dict[str, Any]:
    """What the losses are told: how labels are smoothed, or how items are drawn, by the counts of the train split."""
    if settings.num_sampled is None:
        return {"label_smoothing": settings.label_smoothing_factor}
    counts = torch.from_numpy(dataset.train_counts())
    return {"sampler": ItemSampler(counts, SAMPLING_EXPONENT), "num_sampled": settings.num_sampled}


def adjust_decoder(model: DecoderRecommender, settings: DecoderTraining) -> None:
    """Saves memory or time in training, as asked; the numbers stay the same up to rounding."""
    if settings.gradient_checkpointing:
        model.decoder.gradient_checkpointing_enable()
    if settings.torch_compile:
        compile_layers(model)


def learn(
    task: Task,
    name: str,
    model: Model,
    loss: nn.Module,
    data: TrainingSamples,
    dataset: Dataset,
    settings: TrainConfig,
) -> dict[str, float]:
    """Trains a model inside its loss, writes its folder, and returns the metrics of its best epoch on validation."""
    held_out = validation_sample(task, dataset, settings)
    done = fit(
        loss,
        data,
        settings,
        validate=lambda: validate(model, held_out, EVAL_BATCH),
        folder=task.folder / "training",
        seed=task.config.seed,
        name=name,
        trackers=Trackers(task.config.report_to, task.output),
    )
    sizes: dict[str, Any] = {
        "num_parameters": model.num_parameters(),
        "num_trainable_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "best_epoch": done.best_epoch,
        "epochs": done.epoch,
        "samples_at_once": done.samples_at_once,
        "samples_per_step": done.samples_per_step,
        "peak_learning_rate": done.peak_learning_rate,
        "training_s": round(done.seconds, 3),
    }
    save_recommender(model, dataset, task.folder, f"SLMRec {name}", done.best)
    return {f"valid/{key}": value for key, value in done.best.items()} | sizes


def validation_sample(task: Task, dataset: Dataset, settings: TrainConfig) -> Samples:
    """The users, all or some, on whom the epochs are compared; the same ones for a seed."""
    held_out = dataset.held_out("valid")
    if not 0 < settings.eval_max_users < len(held_out):
        return held_out
    chosen = np.random.default_rng(task.config.seed).choice(len(held_out), settings.eval_max_users, replace=False)
    return held_out.take(chosen)


def forget_training_state(task: Task) -> None:
    """Drops what was kept for resumption; the log stays."""
    for file in (task.folder / "training").glob("*.safetensors"):
        file.unlink()
