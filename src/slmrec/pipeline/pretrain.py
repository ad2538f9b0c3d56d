"""SASRec on the train split; its item vectors are what the teacher starts from."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from slmrec.config import Config
from slmrec.data.dataset import Dataset
from slmrec.data.item_vectors import read_item_vectors
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.pipeline.learning import cross_entropy_settings, forget_training_state, learn, training_samples
from slmrec.pipeline.stage import Stage, Task
from slmrec.training.losses import NextItemLoss


def build(task: Task) -> dict[str, float]:
    """Trains SASRec, or takes over the item vectors that the user brings."""
    settings = task.config.pretrain
    dataset = Dataset.load(task.output / "prepare")
    if settings.item_vectors:
        vectors = read_item_vectors(Path(settings.item_vectors), dataset.num_items)
        save_file({"item_vectors": vectors}, task.folder / "item_vectors.safetensors")
        return {"num_parameters": vectors.numel(), "num_trainable_parameters": 0}
    torch.manual_seed(task.config.seed)
    model = SasRec(
        SasRecConfig(
            num_items=dataset.num_items,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.num_attention_heads,
            dropout=settings.dropout,
            max_history_items=settings.max_history_items,
            low_pass=settings.low_pass.model_dump() if settings.low_pass else None,
        )
    )
    loss = NextItemLoss(model, **cross_entropy_settings(dataset, settings.train))
    data = training_samples(dataset, settings.supervision, model)
    metrics = learn(task, "pretrain", model, loss, data, dataset, settings.train)
    save_file({"item_vectors": model.item_vectors().detach().cpu()}, task.folder / "item_vectors.safetensors")
    forget_training_state(task)
    return metrics


def _sources(config: Config) -> tuple[str | None, ...]:
    return (config.pretrain.item_vectors,)


STAGE = Stage("pretrain", lambda config: ("prepare",), build, _sources)
