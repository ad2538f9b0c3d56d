"""The student, distilled from the teacher."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmrec.config import DistillConfig
from slmrec.config.kinds import KINDS, load_object
from slmrec.data.batching import collate
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import load_recommender, save_recommender
from slmrec.models.model import Model
from slmrec.pipeline.ensemble_weights import save_ensemble
from slmrec.pipeline.fitting import (
    cross_entropy_settings,
    fit_model,
    remove_training_state,
    training_samples,
    validation_users,
)
from slmrec.pipeline.stage import Task
from slmrec.progress import progress
from slmrec.training.losses import DistillationLoss, LiveTeacher
from slmrec.training.teacher_cache import StoredTeacher, fingerprint, store_teacher_states
from slmrec.training.trainer import TrainingSamples
from slmrec.types import Histories, ModelParts

_LOG = logging.getLogger(__name__)
INFLUENCE_USERS = 256
"""Number of validation users on whom the influence of layers is measured."""


def build(task: Task) -> dict[str, float]:
    """Train the student on the data and on the outputs of the teacher."""
    settings, dataset = task.config.distill, Dataset.load(task.output / "prepare")
    folder = task.output / "finetune" if task.config.trains_teacher else Path(settings.teacher)
    teacher = load_teacher(folder, dataset)
    ensemble = _kept_ensemble(settings, teacher, folder)
    if ensemble is not None:
        teacher = ensemble.models["decoder"]
    torch.manual_seed(task.config.seed)
    student = build_student(settings, dataset.num_items, teacher, _validation_histories(dataset, teacher))
    data = training_samples(dataset, task.config.finetune.supervision, student.max_history_items)
    loss = _loss(task, student, teacher, data, dataset)
    depths = {"num_layers": student.num_layers, "teacher_num_layers": teacher.num_layers}
    del teacher  # offline its outputs are cached and its weights are not needed any more
    metrics = fit_model(task, "distill", student, loss, data, settings.train)
    if ensemble is not None:
        mixed = ensemble.with_member("decoder", student)
        validation = validation_users(task, dataset, settings.train)
        metrics |= save_ensemble(task, dataset, "distill", mixed, validation)
    if isinstance(loss.teacher, LiveTeacher):
        tuned: Any = loss.teacher.model
        tuned = tuned if ensemble is None else ensemble.with_member("decoder", tuned)
        save_recommender(tuned.eval(), dataset, task.folder / "teacher", "SLMRec teacher, trained online", {})
    remove_training_state(task)
    return metrics | depths


def load_teacher(folder: Path, dataset: Dataset) -> Model:
    """Return the model of a folder, to be used as teacher.

    Raises:
        CheckpointError: It was trained on another data set.
    """
    model, vocabulary = load_recommender(folder)
    if not vocabulary.item_ids.equals(dataset.item_ids):
        raise CheckpointError(
            f"{folder}: trained on another data set ({len(vocabulary.item_ids)} items, here {dataset.num_items}, or "
            "other ids); give a teacher of this data, or run finetune on it"
        )
    return model


def build_student(settings: DistillConfig, num_items: int, teacher: Model, histories: Histories | None) -> Model:
    """Return the student with its initial weights.

    Args:
        settings: Settings of the distillation.
        num_items: V.
        teacher: Model that teaches; a decoder student starts from its layers.
        histories: Some validation histories, on which layers can be compared; None where none are needed.
    """
    kind = KINDS[settings.student.kind]
    parts = ModelParts(num_items, section="distill.student", teacher=teacher, histories=histories)
    student: Model = load_object(kind.build_student or kind.build)(settings.student, parts)
    if student.max_history_items != teacher.max_history_items:
        raise ConfigError(
            f"distill.student.max_history_items is {student.max_history_items}, but the teacher reads "
            f"{teacher.max_history_items} items; set both alike"
        )
    return student


def _validation_histories(dataset: Dataset, teacher: Model) -> Histories:
    samples = dataset.held_out("valid")
    rows = np.arange(min(len(samples), INFLUENCE_USERS))
    return collate(samples, rows, teacher.max_history_items).histories


def _kept_ensemble(settings: DistillConfig, teacher: Model, folder: Path) -> Ensemble | None:
    """Return the ensemble whose base models are mixed with the student; None if the student stands alone.

    Raises:
        ConfigError: The ensemble is to be kept, but the teacher has none, or no decoder that a student could replace.
    """
    if not settings.keep_ensemble:
        return None
    if not isinstance(teacher, Ensemble) or "decoder" not in teacher.members:
        raise ConfigError(
            f"distill.keep_ensemble is true, but the teacher in {folder} is not a mixture of a decoder and base models "
            "(every other weight came out 0, or it has no decoder); set distill.keep_ensemble=false"
        )
    return teacher


def _loss(task: Task, student: Model, teacher: Model, data: TrainingSamples, dataset: Dataset) -> DistillationLoss:
    settings = task.config.distill
    is_online = settings.mode == "online"
    student.apply_training_options(settings.train)
    if is_online:
        teacher.requires_grad_(False)  # base models of an ensemble stay as they are
        _trainable_decoder(teacher).set_trainable(train_items=task.config.finetune.item_embeddings == "train")
    return DistillationLoss(
        student,
        LiveTeacher(teacher) if is_online else _cached_teacher(task, teacher, data),
        widths=(student.hidden_size, teacher.hidden_size),
        item_width=student.item_vectors().shape[1],
        num_blocks=settings.num_blocks,
        weights=settings.weights.model_dump(),
        kl_temperature=settings.kl_temperature,
        online=is_online,
        **cross_entropy_settings(dataset, settings.train),
    )


def _trainable_decoder(teacher: Model) -> DecoderRecommender:
    """Return the decoder of a teacher that keeps learning.

    Raises:
        ConfigError: It has none.
    """
    if teacher.decoder_part is None:
        raise ConfigError(
            "distill.mode is online, but the teacher has no decoder that could keep learning; set distill.mode=offline"
        )
    return teacher.decoder_part


def _cached_teacher(task: Task, teacher: Model, data: TrainingSamples) -> StoredTeacher:
    """Return the cached outputs of the teacher for all training samples; they are computed unless a file has them."""
    settings = task.config.distill
    folder = task.cache or task.output / "teacher_outputs"
    read: dict[str, Any] = {"max_history_items": data.max_history_items, "every_position": data.every_position}
    compares_states = settings.weights.cosine or settings.weights.norm
    # A file with hidden states holds the user vectors too, so it serves where only these are needed.
    choices = [settings.num_blocks] if compares_states else [0, settings.num_blocks]
    keys = {number: fingerprint(teacher, data.samples, num_blocks=number, **read) for number in choices}
    paths = {number: folder / f"{key}.safetensors" for number, key in keys.items()}
    num_blocks = next((number for number in choices if paths[number].exists()), choices[0])
    path, key, wanted = paths[num_blocks], keys[num_blocks], {"num_blocks": num_blocks, **read}
    if path.exists():
        _LOG.info("distill: teacher outputs taken from %s", path)
    else:
        _store(teacher, data, path, {"fingerprint": key, **wanted})
    return StoredTeacher.open(path, key, teacher.item_vectors().cpu(), data.samples, **wanted)


def _store(teacher: Model, data: TrainingSamples, path: Path, wanted: dict[str, Any]) -> None:
    start = time.perf_counter()
    on_device: Any = teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    with progress("distill: teacher outputs", total=len(data.samples)) as advance:
        store_teacher_states(on_device, data.samples, path, progress=advance, **wanted)
    seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
    _LOG.info("distill: teacher outputs computed in %.0f s, cached in %s (%.1f MB)", seconds, path, size)
