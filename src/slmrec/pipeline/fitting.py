"""Training of one model as all stages do it: choose samples, validate, fit, save."""

from typing import Any

from torch import nn

from slmrec.config import Section, TrainConfig
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError, DataError
from slmrec.models.folder import save_recommender
from slmrec.models.model import Model
from slmrec.pipeline.repeat_score import fit_repeat_score
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import validation
from slmrec.processes import barrier, is_main
from slmrec.storage.cache import named
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.samples import TrainingSamples
from slmrec.training.trackers import Trackers
from slmrec.training.trainer import fit
from slmrec.training.training_state import TrainingProgress
from slmrec.types import Unit


def timestamp_unit(dataset: Dataset, settings: Section, section: str) -> Unit | None:
    """Return the unit of the times of a data set; None if it has none.

    Args:
        dataset: The data set.
        settings: Settings of a model that will be trained on it.
        section: Path of these settings in the YAML, for messages.

    Raises:
        ConfigError: The model reads times, but the data set has none.
    """
    if dataset.times is None and getattr(settings, "time_gaps", None) is not None:
        raise ConfigError(
            f"{section}.time_gaps reads the times of events, but the log has no column of times; leave time_gaps out, "
            "or name the column: prepare.time_col=NAME"
        )
    return None if dataset.times is None else dataset.times.unit


def training_samples(
    dataset: Dataset, supervision: str, max_history_items: int, timestamp_unit: Unit | None = None
) -> TrainingSamples:
    """Return the training samples of a data set.

    Args:
        dataset: The data set.
        supervision: Positions of a history that are samples, as in `slmrec.config.base_models.Supervision`.
        max_history_items: Number of newest items of a history that the model reads.
        timestamp_unit: Unit in which the model reads the times of events; None: it reads none.

    Raises:
        DataError: No history is long enough to train on.
    """
    samples = dataset.train(supervision, max_history_items)
    if not len(samples):
        events = {
            "leave_one_out": "4 events that a training sample takes (the last two are held out)",
            "temporal": "2 events before the time of validation that a training sample takes",
            "newest": "2 events that a training sample takes",
        }[dataset.split_rule]
        raise DataError(f"none of the {dataset.num_users} users has the {events}; give longer histories")
    return TrainingSamples(samples, max_history_items, supervision == "every_position", timestamp_unit)


def catalogue_loss(dataset: Dataset, settings: TrainConfig) -> CatalogueLoss:
    """Return the cross-entropy over the catalogue or a part of it, as counts in the train split decide."""
    needs_counts = settings.num_sampled is not None or settings.unseen_items == "left_out"
    item_counts = dataset.train_counts() if needs_counts else None
    return CatalogueLoss(settings, item_counts)


def fit_model(
    task: Task, section: str, model: Model, loss: nn.Module, data: TrainingSamples, settings: TrainConfig
) -> dict[str, float]:
    """Train a model inside its loss, write its folder, and return its validation metrics and sizes.

    Args:
        task: The step.
        section: Path of the model's section in the YAML, for messages.
        model: The model that is saved.
        loss: Module that returns `LossTerms` for a batch.
        data: Training samples.
        settings: Training settings.
    """
    dataset = Dataset.load(task.output / "prepare")
    measured_on = validation(task, dataset, settings.eval_max_users)

    def validate() -> dict[str, float]:
        if model.fits_repeat_score and measured_on.protocol == "full":  # where the score has an effect
            fit_repeat_score(model, measured_on.samples)
        return measured_on.metrics(model)

    progress = fit(
        loss,
        data,
        settings,
        validate=validate,
        folder=task.folder / "training",
        seed=task.config.seed,
        name=section,
        trackers=Trackers(task.config.report_to, task.output, named(task.config.model_dump(mode="json"))),
    )
    best, sizes = progress.best, _sizes(model, progress)
    if model.fits_repeat_score:
        sizes["repeat_score"] = fit_repeat_score(model, measured_on.samples)
        best = measured_on.metrics(model)
    if settings.max_minutes is not None:
        sizes["reached_max_minutes"] = int(progress.reached_max_minutes)
    if is_main():
        save_recommender(model, dataset, task.folder, f"SLMRec {section}", best, measured_on.protocol)
    return {f"valid/{key}": value for key, value in best.items()} | sizes


def _sizes(model: Model, progress: TrainingProgress) -> dict[str, Any]:
    """Return facts of a model and its training."""
    return {
        "num_layers": model.num_layers,
        "num_parameters": model.num_parameters(),
        "num_trainable_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "samples_at_once": progress.samples_at_once,
        "samples_per_step": progress.samples_per_step,
        "peak_learning_rate": progress.peak_learning_rate,
        "training_s": round(progress.seconds, 3),
    }


def remove_training_state(task: Task) -> None:
    """Delete the state that was saved for resumption; the log stays."""
    barrier()  # the others have read it
    if not is_main():
        return
    for file in (task.folder / "training").glob("*.safetensors"):
        file.unlink()
