"""The teacher: some layers of a pretrained decoder over item vectors, mixed with base models."""

from pathlib import Path

import torch
from torch import Tensor

from slmrec.config import Config
from slmrec.data.dataset import Dataset
from slmrec.data.item_vectors import read_item_vectors
from slmrec.models.build import build_decoder, open_backbone, random_item_vectors
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import load_recommender
from slmrec.models.model import Model
from slmrec.pipeline.ensemble_weights import mix
from slmrec.pipeline.fitting import catalogue_loss, fit_model, remove_training_state, training_samples
from slmrec.pipeline.item_text import read_item_text
from slmrec.pipeline.stage import Task
from slmrec.processes import is_main, main_first
from slmrec.training.block_heads import write_block_heads
from slmrec.training.losses import NextItemLoss


def build(task: Task) -> dict[str, float]:
    """Train the decoder, if there is one, and mix it with the base models of the ensemble."""
    settings, dataset = task.config.finetune, Dataset.load(task.output / "prepare")
    members: dict[str, Model] = {}
    metrics: dict[str, float] = {"num_trainable_parameters": 0}
    if settings.backbone is not None:
        members["decoder"], metrics = _train_decoder(task, dataset)
    if settings.ensemble:
        members |= {name: load_recommender(task.output / "pretrain" / name)[0] for name in settings.ensemble}
        metrics |= mix(task, dataset, members)
    remove_training_state(task)
    return metrics


def _train_decoder(task: Task, dataset: Dataset) -> tuple[DecoderRecommender, dict[str, float]]:
    """Build and train the decoder, and write its folder."""
    settings = task.config.finetune
    vectors = teacher_item_vectors(task.config, task.output, dataset)
    text = read_item_text(task.config, "finetune", settings.item_text, dataset)
    torch.manual_seed(task.config.seed)
    with main_first():  # which unpacks the backbone into the cache
        backbone = open_backbone(settings, "finetune")
    if vectors is None or settings.item_embeddings == "reinitialise":
        width = settings.item_dim if vectors is None else vectors.shape[1]
        vectors = random_item_vectors(dataset.num_items, width)
    model = build_decoder(
        settings, backbone, vectors, text, section="finetune", train_items=settings.item_embeddings != "fixed"
    )
    model.apply_training_options(settings.train)
    loss = NextItemLoss(model, catalogue_loss(dataset, settings.train), settings.weights.multiple, settings.num_blocks)
    data = training_samples(dataset, settings.supervision, model.max_history_items)
    metrics = fit_model(task, "finetune", model, loss, data, settings.train)
    if loss.heads is not None and is_main():
        write_block_heads(loss.heads, task.folder)
    return model, metrics | {"num_layers": model.num_layers}


def teacher_item_vectors(config: Config, output: Path, dataset: Dataset) -> Tensor | None:
    """Return the item vectors (V+1, D) that the decoder starts from; None where they are random, or not of this run.

    Raises:
        DataError: A file of vectors does not fit the items of the data set.
    """
    settings = config.finetune
    if settings.item_vectors in config.pretrain:
        model, _ = load_recommender(output / "pretrain" / settings.item_vectors)
        vectors: Tensor = model.item_vectors()
        return vectors.detach()
    if settings.item_vectors is None or settings.backbone is None or not config.trains_teacher:
        return None
    return read_item_vectors(Path(settings.item_vectors), dataset.num_items)
