"""The student: fewer layers, taught by the teacher."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from slmrec.config import Config, DistillConfig
from slmrec.data.batching import collate
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.backbone import choose_layers, evenly_spaced
from slmrec.models.build import fresh_student, layer_influence, set_trainable, student_from
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble, Member
from slmrec.models.folder import load_recommender, save_recommender
from slmrec.pipeline.ensemble import save_ensemble
from slmrec.pipeline.learning import (
    adjust_decoder,
    cross_entropy_settings,
    forget_training_state,
    learn,
    training_samples,
)
from slmrec.pipeline.stage import Stage, Task
from slmrec.training.losses import DistillationLoss, LiveTeacher
from slmrec.training.teacher_cache import StoredTeacher, fingerprint, store_teacher_states
from slmrec.training.trainer import TrainingSamples

Teacher = DecoderRecommender | Ensemble
INFLUENCE_USERS = 256
"""Users on whom the influence of the layers is measured."""


def build(task: Task) -> dict[str, float]:
    """Builds the student, and trains it on the data and on the teacher."""
    settings = task.config.distill
    dataset = Dataset.load(task.output / "prepare")
    teacher = load_teacher(Path(settings.teacher) if settings.teacher else task.output / "finetune", dataset)
    others = _others(settings, teacher)
    if others is not None:
        teacher = _decoder(teacher)  # what the others know, the student has from them
    torch.manual_seed(task.config.seed)
    student = _student(settings, _decoder(teacher), dataset)
    _check_blocks(settings, student, teacher)
    data = training_samples(dataset, task.config.finetune.supervision, student)
    loss = _loss(task, student, teacher, data, dataset)
    sizes = {"num_layers": student.num_layers, "teacher_num_layers": teacher.num_layers}
    del teacher  # offline its answers are stored and its weights are of no more use
    metrics = learn(task, "distill", student, loss, data, dataset, settings.train)
    if others is not None:
        metrics |= save_ensemble(task, "distill", Ensemble.of(student, *others), settings.train)
    if isinstance(loss.teacher, LiveTeacher):
        tuned: Any = loss.teacher.model
        if others is not None:
            tuned = Ensemble.of(tuned, *others)
        save_recommender(tuned.eval(), dataset, task.folder / "teacher", "SLMRec teacher, trained online", {})
    forget_training_state(task)
    return metrics | sizes


def load_teacher(folder: Path, dataset: Dataset) -> Teacher:
    """The teacher of a folder.

    Raises:
        CheckpointError: it is no decoder, or was trained on another data set.
    """
    model, vocabulary = load_recommender(folder)
    if not isinstance(model, DecoderRecommender | Ensemble):
        raise CheckpointError(f"{folder}: a {model.config.model_type} model; expected the output of finetune")
    if not vocabulary.item_ids.equals(dataset.item_ids):
        raise CheckpointError(
            f"{folder}: trained on another data set ({len(vocabulary.item_ids)} items, here {dataset.num_items}, or "
            "other ids); give a teacher of this data, or run finetune on it"
        )
    return model


def _loss(
    task: Task, student: DecoderRecommender, teacher: Teacher, data: TrainingSamples, dataset: Dataset
) -> DistillationLoss:
    settings = task.config.distill
    online = settings.mode == "online"
    adjust_decoder(student, settings.train)
    if online:
        teacher.requires_grad_(False)  # SASRec, where it has a say, stays as it is
        set_trainable(_decoder(teacher), task.config.finetune.item_table == "trained")
    return DistillationLoss(
        student,
        LiveTeacher(teacher) if online else _stored(task, teacher, data),
        widths=(student.hidden_size, teacher.hidden_size),
        item_width=student.item_vectors().shape[1],
        num_blocks=settings.num_blocks,
        weights=settings.weights.model_dump(),
        kl_temperature=settings.kl_temperature,
        normalized_states=settings.normalized_states,
        online=online,
        **cross_entropy_settings(dataset, settings.train),
    )


def _stored(task: Task, teacher: Teacher, data: TrainingSamples) -> StoredTeacher:
    """The teacher's answers to all training samples, computed unless an earlier run has."""
    settings = task.config.distill
    folder = Path(settings.teacher_states) if settings.teacher_states else task.output / "teacher_states"
    read: dict[str, Any] = {"max_history_items": data.max_history_items, "every_position": data.every_position}
    compared = settings.weights.cosine or settings.weights.norm
    choices = [settings.num_blocks] if compared else [0, settings.num_blocks]  # user vectors come with blocks as well
    keys = {number: fingerprint(teacher, data.samples, num_blocks=number, **read) for number in choices}
    paths = {number: folder / f"{key}.safetensors" for number, key in keys.items()}
    num_blocks = next((number for number in choices if paths[number].exists()), choices[0])
    path, key, wanted = paths[num_blocks], keys[num_blocks], {"num_blocks": num_blocks, **read}
    if path.exists():
        print(f"distill: the teacher's outputs taken from {path}", flush=True)
    else:
        _store(teacher, data, path, {"fingerprint": key, **wanted})
    return StoredTeacher.open(path, key, teacher.item_vectors().cpu(), data.samples, **wanted)


def _store(teacher: Teacher, data: TrainingSamples, path: Path, wanted: dict[str, Any]) -> None:
    start = time.perf_counter()
    on_device: Any = teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(transient=True) as progress:
        bar = progress.add_task("distill: the teacher's outputs", total=len(data.samples))
        store_teacher_states(
            on_device, data.samples, path, progress=lambda number: progress.advance(bar, number), **wanted
        )
    seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
    print(
        f"distill: the teacher's outputs computed once in {seconds:.0f} s, stored in {path} ({size:.1f} MB)", flush=True
    )


def _others(settings: DistillConfig, teacher: Teacher) -> tuple[list[Member], list[float]] | None:
    """What the student's scores are mixed with, and the weights; None: with nothing."""
    if not settings.keep_ensemble:
        return None
    if not isinstance(teacher, Ensemble):
        if settings.teacher:
            raise ConfigError(f"distill.keep_ensemble is true, but {settings.teacher} is no ensemble; leave it out")
        return None  # no model had a share
    return teacher.others, teacher.config.weights[1:]


def _decoder(teacher: Teacher) -> DecoderRecommender:
    return teacher.decoder if isinstance(teacher, Ensemble) else teacher


def _student(settings: DistillConfig, teacher: DecoderRecommender, dataset: Dataset) -> DecoderRecommender:
    if settings.init == "fresh":
        return begin_student(settings, teacher, ())
    layers = _layers(settings, teacher, dataset)
    print(f"distill: the student starts from the teacher's layers {', '.join(map(str, layers))} (from 0)", flush=True)
    return begin_student(settings, teacher, layers)


def begin_student(settings: DistillConfig, teacher: DecoderRecommender, layers: tuple[int, ...]) -> DecoderRecommender:
    """The student, untrained: from some of the teacher's layers or, with `init: fresh`, from random ones."""
    learning: Any = {
        "item_dropout": settings.item_dropout,
        "layer_dropout": settings.layer_dropout,
        "train_items": settings.item_table == "trained",
    }
    if settings.init == "fresh":
        return fresh_student(teacher, settings.num_layers, settings.backbone_config or {}, **learning)
    return student_from(teacher, layers, **learning)


def _layers(settings: DistillConfig, teacher: DecoderRecommender, dataset: Dataset) -> tuple[int, ...]:
    """The teacher's layers from which the student starts."""
    depth, num = teacher.num_layers, settings.num_layers
    if not isinstance(settings.layers, str):
        return choose_layers(depth, num, 1, settings.layers, "distill")
    first = choose_layers(depth, num, 1, None, "distill")
    if settings.layers == "evenly_spaced":
        return evenly_spaced(depth, num)
    if settings.layers == "influence":
        samples = dataset.held_out("valid")
        rows = np.arange(min(len(samples), INFLUENCE_USERS))
        influence = layer_influence(teacher, collate(samples, rows, teacher.max_history_items).histories)
        return tuple(sorted(np.argsort(-influence.numpy(), kind="stable")[:num].tolist()))
    return first


def _check_blocks(settings: DistillConfig, student: DecoderRecommender, teacher: Teacher) -> None:
    blocks, weights = settings.num_blocks, settings.weights
    if not (weights.cosine or weights.norm or weights.multiple):
        return
    if student.num_layers % blocks or teacher.num_layers % blocks:
        raise ConfigError(
            f"distill.num_blocks is {blocks}, but the student has {student.num_layers} layers and the teacher "
            f"{teacher.num_layers}; choose a number that divides both"
        )


def _sources(config: Config) -> tuple[str | None, ...]:
    return (config.distill.teacher,)


def _needs(config: Config) -> tuple[str, ...]:
    return ("prepare",) if config.distill.teacher else ("prepare", "finetune")


STAGE = Stage("distill", _needs, build, _sources)
