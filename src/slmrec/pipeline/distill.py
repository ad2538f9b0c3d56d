"""The student, distilled from the teacher."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slmrec.config import DistillConfig
from slmrec.config.kinds import KINDS, load_object
from slmrec.data.batching import collate
from slmrec.data.dataset import Dataset
from slmrec.data.teacher_lists import read_lists
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.folder import load_recommender, save_recommender
from slmrec.models.model import Model, ModelParts
from slmrec.models.text.item_text import ItemText
from slmrec.pipeline.ensemble_weights import save_ensemble
from slmrec.pipeline.fitting import (
    catalogue_loss,
    fit_model,
    remove_training_state,
    timestamp_unit,
    training_samples,
)
from slmrec.pipeline.item_text import read_item_text
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import validation
from slmrec.processes import is_main, num_local, on_main
from slmrec.progress import progress
from slmrec.training.block_heads import read_block_heads
from slmrec.training.list_targets import ListTargets
from slmrec.training.losses import DistillationLoss
from slmrec.training.samples import TrainingSamples
from slmrec.training.sharding import spread
from slmrec.training.teacher import FrozenTeacher, LiveTeacher
from slmrec.training.teacher_cache import CachedTeacher, cache_keys, write_teacher_cache
from slmrec.training.terms import needs_states, needs_teacher
from slmrec.types import Histories, Unit

_LOG = logging.getLogger(__name__)
SAMPLED_USERS = 8192
"""Number of users whose histories a student's initial weights may depend on."""


def build(task: Task) -> dict[str, float]:
    """Train the student on the data and on the outputs of the teacher."""
    settings, dataset = task.config.distill, Dataset.load(task.output / "prepare")
    if settings.teacher is None:
        raise ConfigError(
            "distill.teacher is null, so this run has no student; set distill.teacher=finetune, or a folder"
        )
    folder = task.output / "finetune" if task.config.trains_teacher else Path(settings.teacher)
    teacher = load_teacher(folder, dataset)
    _check_teacher(task, teacher, folder)
    ensemble = _kept_ensemble(settings, teacher, folder)
    if ensemble is not None and ensemble.decoder_part is not None:
        teacher = ensemble.decoder_part
    torch.manual_seed(task.config.seed)
    text = read_item_text(task.config, "distill.student", settings.item_text, dataset)
    unit = timestamp_unit(dataset, settings.student, "distill.student")
    student = build_student(settings, dataset.num_items, teacher, _validation_histories(dataset, teacher), text, unit)
    reads = _unit_of_batches(settings, student, teacher)
    data = training_samples(dataset, task.config.finetune.supervision, student.max_history_items, reads)
    data = replace(data, augment=settings.augment)
    loss = _loss(task, student, teacher, data, dataset, read_block_heads(folder, task.config))
    depths = {"num_layers": student.num_layers, "teacher_num_layers": teacher.num_layers}
    del teacher  # offline its outputs are cached and its weights are not needed any more
    metrics = fit_model(task, "distill", student, loss, data, settings.train)
    if ensemble is not None:
        mixed = ensemble.with_decoder(student)
        measured_on = validation(task, dataset, settings.train.eval_max_users)
        metrics |= save_ensemble(task, dataset, "distill", mixed, measured_on)
    if settings.mode == "online":
        tuned: Any = loss.teacher.model
        tuned = tuned if ensemble is None else ensemble.with_decoder(tuned)
        if is_main():
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


def build_student(
    settings: DistillConfig,
    num_items: int,
    teacher: Model,
    histories: Histories | None,
    text: ItemText | None = None,
    timestamp_unit: Unit | None = None,
) -> Model:
    """Return the student with its initial weights.

    Args:
        settings: Settings of the distillation.
        num_items: V.
        teacher: Model that teaches; a decoder student starts from its layers.
        histories: Some validation histories, on which layers and scores can be compared; None where none are needed.
        text: Vectors of the item texts that the student reads.
        timestamp_unit: Unit of the times of the data; None: they have none.
    """
    kind, own = KINDS[settings.student.kind], settings.student
    if getattr(own, "max_history_items", 0) is None:
        own = own.model_copy(update={"max_history_items": teacher.max_history_items})
    parts = ModelParts(num_items, text, "distill.student", teacher, histories, timestamp_unit)
    student: Model = load_object(kind.build_student or kind.build)(own, parts)
    if student.max_history_items != teacher.max_history_items:
        raise ConfigError(
            f"distill.student.max_history_items is {student.max_history_items}, but the teacher reads "
            f"{teacher.max_history_items} items; leave distill.student.max_history_items out"
        )
    return student


def _check_teacher(task: Task, teacher: Model, folder: Path) -> None:
    """Refuse a teacher that cannot teach in the chosen way; the configuration knows the teacher of its own run alone.

    Raises:
        ConfigError: A term or mode needs a decoder, but the teacher has none, or it cannot read every position.
    """
    settings, supervision = task.config.distill, task.config.finetune.supervision
    if settings.weights.block_kl and teacher.decoder_part is not teacher and not settings.keep_ensemble:
        raise ConfigError(
            f"distill.weights.block_kl is {settings.weights.block_kl}, but the scores of the ensemble in {folder} have "
            "no blocks; set distill.keep_ensemble=true, or distill.weights.block_kl=0"
        )
    if teacher.decoder_part is None:
        if settings.weights.needs_states:
            raise ConfigError(
                f"distill.weights of cosine, norm and multiple read hidden states, but the teacher in {folder} has no "
                "decoder; set these weights to 0"
            )
        if settings.mode == "online":
            raise ConfigError(
                f"distill.mode is online, but the teacher in {folder} has no decoder that could keep learning; set "
                "distill.mode=offline"
            )
    elif supervision == "every_position" and not teacher.decoder_part.reads_prefixes_in_one_pass:
        raise ConfigError(
            f"finetune.supervision is every_position, but the prompt of the teacher in {folder} makes the states of a "
            "position differ from those of its prefix alone; set finetune.supervision=every_prefix"
        )


def _validation_histories(dataset: Dataset, teacher: Model) -> Histories:
    samples = dataset.held_out("valid")
    rows = np.arange(min(len(samples), SAMPLED_USERS))
    return collate(samples, rows, teacher.max_history_items, timestamp_unit=teacher.timestamp_unit).histories


def _unit_of_batches(settings: DistillConfig, student: Model, teacher: Model) -> Unit | None:
    """Return the unit of times in training batches, which only a teacher without cached outputs reads too.

    Raises:
        ConfigError: Student and teacher read the same batches in different units.
    """
    reads_batches = settings.mode == "online" or settings.augment is not None
    live = teacher.timestamp_unit if reads_batches else None
    if None not in (live, student.timestamp_unit) and live != student.timestamp_unit:
        raise ConfigError(
            f"the teacher reads times in {live}, and the student in {student.timestamp_unit}, from the same batches; "
            "set distill.mode=offline and distill.augment=null, whose outputs of the teacher are computed before"
        )
    return student.timestamp_unit or live


def _kept_ensemble(settings: DistillConfig, teacher: Model, folder: Path) -> Model | None:
    """Return the ensemble whose base models are mixed with the student; None if the student stands alone.

    Raises:
        ConfigError: The ensemble is to be kept, but the teacher has none, or no decoder that a student could replace.
    """
    if not settings.keep_ensemble:
        return None
    if teacher.decoder_part in (None, teacher):
        raise ConfigError(
            f"distill.keep_ensemble is true, but the teacher in {folder} is not a mixture of a decoder and base models "
            "(every other weight came out 0, or it has no decoder); set distill.keep_ensemble=false"
        )
    return teacher


def _loss(
    task: Task,
    student: Model,
    teacher: Model,
    data: TrainingSamples,
    dataset: Dataset,
    heads: nn.ModuleList | None,
) -> DistillationLoss:
    settings = task.config.distill
    student.apply_training_options(settings.train)
    if settings.mode == "online":
        teacher.requires_grad_(False)  # base models of an ensemble stay as they are
        if teacher.decoder_part is not None:  # `_check_teacher` refused teachers without one
            teacher.decoder_part.set_trainable(train_items=task.config.finetune.item_embeddings != "fixed")
    outputs: nn.Module
    if settings.mode == "online":
        outputs = LiveTeacher(teacher)
    elif settings.augment is not None or not needs_teacher(settings):
        outputs = FrozenTeacher(teacher)
    else:
        outputs = _cached_teacher(task, teacher, data)
    item_counts = dataset.train_counts() if settings.weights.stratified_kl else None
    return DistillationLoss(
        student,
        outputs,
        settings,
        catalogue_loss(dataset, settings.train),
        item_counts,
        _lists(settings, dataset, data),
        heads,
        task.config.finetune.weights.multiple,
    )


def _lists(settings: DistillConfig, dataset: Dataset, data: TrainingSamples) -> ListTargets | None:
    if settings.lists is None:
        return None
    lists, message = read_lists(Path(settings.lists), dataset)
    targets = ListTargets(lists, data, settings.list_weights)
    _LOG.info("distill: %s; %d of these users have a training sample", message, targets.num_users)
    return targets


def _cached_teacher(task: Task, teacher: Model, data: TrainingSamples) -> CachedTeacher:
    """Return the cached outputs of the teacher for all training samples; they are computed unless a file has them."""
    settings, folder = task.config.distill, task.cache or task.output / "teacher_outputs"
    # A file with hidden states holds the user vectors too, so it serves where only these are needed.
    choices = [settings.num_blocks] if needs_states(settings, "teacher") else [0, settings.num_blocks]
    num_blocks, key, exists = on_main(lambda: _cache_to_use(cache_keys(teacher, data, choices), folder))
    path = folder / f"{key}.safetensors"
    if exists:
        _LOG.info("distill: teacher outputs taken from %s", path)
    else:
        if settings.teacher_device_map is None:
            teacher = teacher.to("cuda" if torch.cuda.is_available() else "cpu")
        else:
            spread(teacher)
        _write_cache(teacher, data, path, num_blocks, key)
    ages = teacher.age_scores()
    items, ages = teacher.item_vectors().cpu(), None if ages is None else ages.cpu()
    return CachedTeacher.open(path, key, items, data, num_blocks=num_blocks, age_scores=ages)


def _cache_to_use(keys: dict[int, str], folder: Path) -> tuple[int, str, bool]:
    """Return the number of blocks, the key and the existence of the first file that exists, or else of the first."""
    existing = [num_blocks for num_blocks, key in keys.items() if (folder / f"{key}.safetensors").exists()]
    num_blocks = next(iter([*existing, *keys]))
    return num_blocks, keys[num_blocks], bool(existing)


def _write_cache(teacher: Model, data: TrainingSamples, path: Path, num_blocks: int, key: str) -> None:
    start = time.perf_counter()
    with progress("distill: teacher outputs", total=len(data), num_alike=num_local()) as advance:
        write_teacher_cache(teacher, data, path, num_blocks=num_blocks, key=key, progress=advance)
    seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
    _LOG.info("distill: teacher outputs computed in %.0f s, cached in %s (%.1f MB)", seconds, path, size)
