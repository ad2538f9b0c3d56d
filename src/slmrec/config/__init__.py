"""The configuration: every setting, its default and its meaning. Defaults live here and nowhere else."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, SerializeAsAny, model_validator

from slmrec.config.base_models import (
    BaseModelSettings,
    LowPassSettings,
    SasRecModel,
    SasRecSettings,
    SasRecStudent,
    StudentSettings,
    TextModel,
    TimeGapSettings,
)
from slmrec.config.decoder import DecoderModel, DecoderSettings, FinetuneConfig, LoraSettings, PromptTemplate
from slmrec.config.distill import DecoderStudent, DistillConfig, DistillWeights
from slmrec.config.effects import refuse_settings_without_effect
from slmrec.config.item_text import ItemTextConfig
from slmrec.config.kinds import BaseModelByKind
from slmrec.config.prepare import PrepareConfig
from slmrec.config.section import Section, check, check_folder_names
from slmrec.config.studies import AblateConfig, ColdConfig, DepthConfig, EvaluateConfig
from slmrec.config.training import DecoderTraining, TrainConfig

__all__ = [
    "BaseModelSettings",
    "Config",
    "DecoderModel",
    "DecoderSettings",
    "DecoderStudent",
    "DecoderTraining",
    "DistillConfig",
    "DistillWeights",
    "EvaluateConfig",
    "FinetuneConfig",
    "ItemTextConfig",
    "LoraSettings",
    "LowPassSettings",
    "PrepareConfig",
    "PromptTemplate",
    "SasRecModel",
    "SasRecSettings",
    "SasRecStudent",
    "Section",
    "StudentSettings",
    "TextModel",
    "TimeGapSettings",
    "TrainConfig",
]

BASELINES = ("popularity", "cooccurrence")
"""Base models without settings, which `pretrain` always writes."""
RESERVED_NAMES = ("decoder", "teacher", "student", *BASELINES)
"""Names that base models must not have, since they name other models of a run."""


def _default_base_models() -> dict[str, BaseModelSettings]:
    return {"sasrec": SasRecModel()}


class Config(Section):
    """Settings of the whole pipeline: the content of one YAML file.

    Example:
        >>> Config(seed=7).pretrain["sasrec"].hidden_size
        64
    """

    seed: int = 42
    """Seed of initial weights, of the order of training samples, of dropout, and of sampled negatives."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Experiment trackers that receive the training curves, and all settings as parameters; training/log.jsonl in the
    folder of each model has the curves too."""
    prepare: PrepareConfig = PrepareConfig()
    """Preparation of a data set from raw logs."""
    item_text: dict[str, ItemTextConfig] = Field(default_factory=dict)
    """Vectors of item texts by name; models refer to them by `item_text: NAME`."""
    pretrain: dict[str, SerializeAsAny[BaseModelByKind]] = Field(default_factory=_default_base_models)
    """Base models by name; several seeds of one model are several names."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Architecture and training of the teacher."""
    distill: DistillConfig = DistillConfig()
    """Architecture and training of the student."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation of all models."""
    ablate: AblateConfig = AblateConfig()
    """Ablation of the distillation; only `slmrec ablate` reads it."""
    cold: ColdConfig = ColdConfig()
    """Study of items without training events; only `slmrec cold` and `slmrec ablate --what language` read it."""
    depth: DepthConfig = DepthConfig()
    """Study of depth; only `slmrec depth` reads it."""

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for check_part in (
            _check_names,
            _check_references,
            _check_ensemble,
            _check_student,
            _check_blocks,
            _check_block_heads,
        ):
            check_part(self)
        refuse_settings_without_effect(self)
        return self

    @property
    def trains_teacher(self) -> bool:
        """True if the teacher is trained in this run, rather than taken from another folder."""
        return self.distill.teacher == "finetune"

    @property
    def trains_student(self) -> bool:
        """True if the run distils a student; otherwise it trains its base models alone."""
        return self.distill.teacher is not None

    @property
    def base_model_of_teacher(self) -> str | None:
        """Name of the base model whose item vectors the teacher's decoder starts from; None if there is none."""
        source = self.finetune.item_vectors
        return source if source in self.pretrain and self.finetune.backbone is not None else None


def _check_names(config: Config) -> None:
    for section in ("pretrain", "item_text"):
        check_folder_names(getattr(config, section), section)
    for name in config.pretrain:
        check(
            name not in RESERVED_NAMES,
            f"pretrain has {name!r}, which is reserved for another model of the run; choose another name",
        )


def _check_references(config: Config) -> None:
    """Refuse names of base models, item texts and models to evaluate that do not exist."""
    readers: dict[str, Section] = {f"pretrain.{name}": model for name, model in config.pretrain.items()}
    readers |= {"finetune": config.finetune, "distill.student": config.distill.student}
    for where, section in readers.items():
        text = getattr(section, "item_text", None)
        check(
            text is None or text in config.item_text,
            f"{where}.item_text is {text!r}, which is not a key of item_text ({_listed(config.item_text)})",
        )
        check(
            text is None or getattr(section, "item_side", "text") != "ids" or config.item_text[text].whitening == "pca",
            f"{where}.item_side is ids, so item vectors start from the leading components of item_text.{text}, whose "
            f"order whitening: {config.item_text[text].whitening if text else None} does not keep; set "
            f"item_text.{text}.whitening=pca, or item_side: text or both",
        )
    source = config.finetune.item_vectors
    check(
        source is None
        or source in config.pretrain
        or "." in source
        or "/" in source
        or config.finetune.backbone is None
        or not config.trains_teacher,
        f"finetune.item_vectors is {source!r}, which is neither a base model ({_listed(config.pretrain)}) nor a file; "
        "name a base model of pretrain, a file, or null",
    )
    known = [*config.pretrain, *BASELINES, *(("teacher", "student") if config.trains_student else ())]
    for name in config.evaluate.models or ():
        check(name in known, f"evaluate.models has {name!r}, which is not a model of the run; choose from {known}")


def _check_ensemble(config: Config) -> None:
    finetune, distill = config.finetune, config.distill
    if not config.trains_teacher:
        return
    for name in finetune.ensemble:
        check(
            name in config.pretrain,
            f"finetune.ensemble has {name!r}, which is not a base model of pretrain ({_listed(config.pretrain)})",
        )
        member = config.pretrain[name]
        check(
            getattr(member, "lora", None) is None,
            f"pretrain.{name}.lora: adapters of a base model cannot be saved in an ensemble; set pretrain.{name}.lora="
            "null",
        )
        check(
            member.max_history_items == finetune.max_history_items,
            f"finetune.max_history_items is {finetune.max_history_items} and pretrain.{name}.max_history_items is "
            f"{member.max_history_items}; the models of an ensemble read histories of one length, so set both alike",
        )
    check(
        (bool(finetune.ensemble) and finetune.backbone is not None) or not distill.keep_ensemble,
        f"distill.keep_ensemble is true, but finetune.backbone is {finetune.backbone!r} and finetune.ensemble "
        f"{list(finetune.ensemble)}; it needs a decoder mixed with base models, so set distill.keep_ensemble=false",
    )


def _check_student(config: Config) -> None:
    """Refuse students that cannot learn from the teacher in the chosen way, and settings of one that is not trained."""
    if not config.trains_student:
        for name, section, default in (
            ("finetune", config.finetune, FinetuneConfig()),
            ("distill", config.distill, DistillConfig(teacher=None)),
        ):
            check(
                section == default,
                f"distill.teacher is null, so the settings of {name} have no effect; leave them out, or set "
                "distill.teacher: finetune",
            )
        return
    distill, student = config.distill, config.distill.student
    name = f"distill.student.kind is {student.kind!r}"
    check(
        student.starts_from_teacher or not distill.keep_ensemble,
        f"distill.keep_ensemble is true, but {name}, which cannot replace the teacher's decoder; set "
        "distill.keep_ensemble=false, or choose kind decoder",
    )
    check(
        student.depth > 0 or not distill.weights.needs_states,
        f"distill.weights of cosine, norm and multiple read hidden states, but {name}, which has none to compare; set "
        "these weights to 0",
    )
    if config.trains_teacher:
        _check_student_of_teacher(config)


def _check_student_of_teacher(config: Config) -> None:
    distill, student, finetune = config.distill, config.distill.student, config.finetune
    no_decoder = "but finetune.backbone is null, so the teacher has no decoder"
    check(
        finetune.backbone is not None or not student.starts_from_teacher,
        f"distill.student.kind is {student.kind!r}, {no_decoder} whose layers the student could start from; choose "
        "another kind, such as sasrec",
    )
    check(
        finetune.backbone not in (None, "random") or getattr(student, "init", None) != "pretrained",
        f"distill.student.init is pretrained, but finetune.backbone is {finetune.backbone!r}, which has no pretrained "
        "layers; name a pretrained backbone, or set distill.student.init: teacher",
    )
    check(
        finetune.backbone is not None or distill.mode == "offline",
        f"distill.mode is online, {no_decoder} that could keep learning; set distill.mode=offline",
    )
    student.check_window(finetune.max_history_items)


def _check_blocks(config: Config) -> None:
    """Refuse a number of blocks that does not divide the depths of student and teacher."""
    distill, student = config.distill, config.distill.student
    if not (config.trains_teacher and distill.weights.needs_states):
        return
    teacher_depth = config.finetune.depth
    check(
        student.depth % distill.num_blocks == teacher_depth % distill.num_blocks == 0,
        f"distill.num_blocks is {distill.num_blocks}, but the student has {student.depth} layers and the teacher "
        f"{teacher_depth}; choose a number that divides both",
    )


def _check_block_heads(config: Config) -> None:
    """Refuse terms that read heads at blocks which the teacher does not have, or has elsewhere."""
    distill, finetune = config.distill, config.finetune
    if not config.trains_teacher:
        return
    multiple = finetune.weights.multiple
    check(
        multiple > 0 or not distill.weights.block_kl,
        f"distill.weights.block_kl is {distill.weights.block_kl}, but finetune.weights.multiple is 0, so the teacher "
        "has no heads at its blocks; give finetune.weights.multiple a value, or set distill.weights.block_kl=0",
    )
    reads_heads = multiple > 0 and (distill.weights.block_kl > 0 or distill.mode == "online")
    check(
        not reads_heads or finetune.num_blocks == distill.num_blocks,
        f"finetune.num_blocks is {finetune.num_blocks} and distill.num_blocks is {distill.num_blocks}; the heads of "
        "the teacher belong to its blocks, so set both alike",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
