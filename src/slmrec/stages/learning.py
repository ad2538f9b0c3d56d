"""What the three training stages share: validate, fit, save."""

from typing import Any

import numpy as np
from torch import nn

from slmrec.checkpoint import save_recommender
from slmrec.config import TrainConfig
from slmrec.data.dataset import Dataset
from slmrec.evaluation import validate
from slmrec.models.folder import Model
from slmrec.stages.folders import Task
from slmrec.training import TrainingSamples, fit

EVAL_BATCH = 256


def learn(
    task: Task,
    name: str,
    model: Model,
    loss: nn.Module,
    dataset: Dataset,
    supervision: str,
    settings: TrainConfig,
) -> dict[str, float]:
    """Trains a model inside its loss, writes its folder, and returns the metrics of its best epoch on validation."""
    seed = task.config.seed
    held_out = dataset.held_out("valid")
    if 0 < settings.eval_max_users < len(held_out):
        rows = np.random.default_rng(seed).choice(len(held_out), settings.eval_max_users, replace=False)
        held_out = held_out.take(rows)
    data = TrainingSamples(
        samples=dataset.train(supervision, model.max_history_items),
        max_history_items=model.max_history_items,
        every_position=supervision == "every_position",
    )
    done = fit(
        loss,
        data,
        settings,
        validate=lambda: validate(model, held_out, EVAL_BATCH),
        folder=task.folder / "training",
        seed=seed,
        name=name,
    )
    sizes: dict[str, Any] = {
        "num_parameters": model.num_parameters(),
        "num_trainable_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "best_epoch": done.best_epoch,
        "epochs": done.epoch,
        "training_s": round(done.seconds, 3),
    }
    save_recommender(model, dataset, task.folder, f"SLMRec {name}", done.best)
    return {f"valid/{key}": value for key, value in done.best.items()} | sizes


def forget_training_state(task: Task) -> None:
    """Drops what was kept for resumption; the log stays."""
    for file in (task.folder / "training").glob("*.safetensors"):
        file.unlink()
