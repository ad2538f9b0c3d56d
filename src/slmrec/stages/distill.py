"""The student: fewer layers, taught by the teacher."""

from pathlib import Path

import torch

from slmrec.checkpoint import load_recommender, save_recommender
from slmrec.config import Config, DistillConfig
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError
from slmrec.losses import DistillationLoss
from slmrec.models.backbone import choose_layers
from slmrec.models.decoder import DecoderRecommender, fresh_student, set_trainable, student_from
from slmrec.stages.folders import Stage, Task
from slmrec.stages.learning import forget_training_state, learn


def build(task: Task) -> dict[str, float]:
    """Builds the student, and trains it on the data and on the teacher."""
    settings = task.config.distill
    dataset = Dataset.load(task.output / "prepare")
    teacher = load_teacher(Path(settings.teacher) if settings.teacher else task.output / "finetune", dataset)
    torch.manual_seed(task.config.seed)
    student = _student(settings, teacher)
    _check_blocks(settings, student, teacher)
    if settings.mode == "online":
        set_trainable(teacher, task.config.finetune.item_table == "trained")
    loss = DistillationLoss(
        student,
        teacher,
        widths=(student.hidden_size, teacher.hidden_size),
        item_width=student.item_vectors().shape[1],
        num_blocks=settings.num_blocks,
        weights=settings.weights.model_dump(),
        kl_temperature=settings.kl_temperature,
        online=settings.mode == "online",
    )
    metrics = learn(task, "distill", student, loss, dataset, task.config.finetune.supervision, settings.train)
    if settings.mode == "online":
        save_recommender(teacher.eval(), dataset, task.folder / "teacher", "SLMRec teacher, trained online", {})
    forget_training_state(task)
    return metrics | {"num_layers": student.num_layers, "teacher_num_layers": teacher.num_layers}


def load_teacher(folder: Path, dataset: Dataset) -> DecoderRecommender:
    """The teacher of a folder.

    Raises:
        CheckpointError: it is no decoder, or was trained on another data set.
    """
    model, vocabulary = load_recommender(folder)
    if not isinstance(model, DecoderRecommender):
        raise CheckpointError(f"{folder}: a {model.config.model_type} model; expected the output of finetune")
    if not vocabulary.item_ids.equals(dataset.item_ids):
        raise CheckpointError(
            f"{folder}: trained on another data set ({len(vocabulary.item_ids)} items, here {dataset.num_items}, or "
            "other ids); give a teacher of this data, or run finetune on it"
        )
    return model


def _student(settings: DistillConfig, teacher: DecoderRecommender) -> DecoderRecommender:
    dropout, train_items = settings.item_dropout, settings.item_table == "trained"
    if settings.init == "fresh":
        changes = settings.backbone_config or {}
        return fresh_student(teacher, settings.num_layers, changes, item_dropout=dropout, train_items=train_items)
    layers = choose_layers(teacher.num_layers, settings.num_layers, 1, settings.layers, "distill")
    return student_from(teacher, layers, item_dropout=dropout, train_items=train_items)


def _check_blocks(settings: DistillConfig, student: DecoderRecommender, teacher: DecoderRecommender) -> None:
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
