"""The whole configuration: every setting, its default and what it does. Defaults live here and nowhere else."""

from typing import Literal

from pydantic import model_validator

from slmrec.config.decoder import CompanionConfig, DecoderConfig, FinetuneConfig, PromptTemplate, TitleSettings
from slmrec.config.distill import DistillConfig
from slmrec.config.prepare import PrepareConfig
from slmrec.config.pretrain import LowPassSettings, PretrainConfig
from slmrec.config.section import Section, check
from slmrec.config.studies import AblateConfig, DepthConfig, EvaluateConfig
from slmrec.config.training import DecoderTraining, TrainConfig

__all__ = [
    "CompanionConfig",
    "Config",
    "DecoderConfig",
    "DecoderTraining",
    "DistillConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "LowPassSettings",
    "PrepareConfig",
    "PretrainConfig",
    "PromptTemplate",
    "Section",
    "TitleSettings",
    "TrainConfig",
]


class Config(Section):
    """One YAML: the whole pipeline."""

    seed: int = 42
    """Seeds everything that is drawn."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Where training curves go besides OUT/<stage>/training/log.jsonl: to OUT/tensorboard, or to a run of that tracker
    named after OUT and the stage."""
    prepare: PrepareConfig = PrepareConfig()
    pretrain: PretrainConfig = PretrainConfig()
    companion: CompanionConfig | None = None
    finetune: FinetuneConfig = FinetuneConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ablate: AblateConfig = AblateConfig()
    depth: DepthConfig = DepthConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        distill, weights = self.distill, self.distill.weights
        self._check_ensemble()
        if distill.teacher is None and (weights.cosine or weights.norm or weights.multiple):
            student, teacher = _depth(distill), _depth(self.finetune)
            check(
                student % distill.num_blocks == teacher % distill.num_blocks == 0,
                f"distill.num_blocks is {distill.num_blocks}, but the student has {student} layers and the teacher "
                f"{teacher}; choose a number that divides both",
            )
        check(
            self.companion is not None or "companion" not in (self.evaluate.models or ()),
            "evaluate.models names companion, but there is no section of that name; leave it out",
        )
        check(
            self.pretrain.item_vectors is None or "sasrec" not in (self.evaluate.models or ()),
            "evaluate.models names sasrec, but with pretrain.item_vectors none is trained; leave it out",
        )
        return self

    def _check_ensemble(self) -> None:
        finetune, brought = self.finetune, self.pretrain.item_vectors
        check(
            "sasrec" not in finetune.ensemble or brought is None or self.distill.teacher is not None,
            "finetune.ensemble names sasrec, but pretrain.item_vectors brings vectors alone; leave one out",
        )
        check(
            "companion" not in finetune.ensemble or self.companion is not None,
            "finetune.ensemble names companion, but there is no section of that name; give `companion: {}`",
        )
        check(
            bool(finetune.ensemble or self.distill.teacher) or not self.distill.keep_ensemble,
            "distill.keep_ensemble is true, but finetune.ensemble names no other model; leave it out",
        )
        check(
            "companion" not in finetune.ensemble or self.companion is None or self.companion.lora is None,
            "companion.lora: adapters of a companion cannot be kept with the teacher; set companion.lora=null",
        )
        lengths = {"sasrec": self.pretrain.max_history_items}
        if self.companion:
            lengths["companion"] = self.companion.max_history_items
        for name in finetune.ensemble:
            check(
                lengths[name] == finetune.max_history_items,
                f"finetune reads the newest {finetune.max_history_items} items and {name} {lengths[name]}; in an "
                "ensemble all read alike: set one max_history_items",
            )


def _depth(part: DecoderConfig | DistillConfig) -> int:
    return part.num_layers if part.layers is None or isinstance(part.layers, str) else len(part.layers)
