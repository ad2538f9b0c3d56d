"""The student and the terms of its loss."""

from typing import Any, Literal

from pydantic import Field, model_validator

from slmrec.config.section import Section, check, check_layers
from slmrec.config.training import DistillTraining


class DistillWeights(Section):
    """Weights of the terms of the student's loss; 0 leaves a term out."""

    ce: float = Field(1.0, ge=0)
    """Cross-entropy over the catalogue."""
    cosine: float = Field(1.0, ge=0)
    """λ1, feature direction. Source: SLMRec, loss of the reference (1.0)."""
    norm: float = Field(0.1, ge=0)
    """λ2, feature norm. Source: SLMRec, loss of the reference (0.1)."""
    multiple: float = Field(1.0, ge=0)
    """λ3, multiple supervision."""
    kl: float = Field(0.0, ge=0)
    """λ4, Kullback-Leibler divergence to the teacher's scores."""

    @model_validator(mode="after")
    def _consistent(self) -> "DistillWeights":
        check(any(self.model_dump().values()), "all weights are 0, so there is nothing to learn; give one a value")
        return self


class DistillConfig(Section):
    """The student: fewer layers, taught by the teacher."""

    teacher: str | None = None
    """The teacher's folder; null: the output folder of finetune."""
    mode: Literal["offline", "online"] = "offline"
    """`offline`: the teacher is frozen. `online`: it goes on learning beside the student."""
    teacher_states: str | None = None
    """Folder of the stored outputs of the teacher, which runs of the same teacher and data share; null:
    OUT/teacher_states. Offline only."""
    num_layers: int = Field(4, ge=1)
    """Decoder layers of the student."""
    layers: tuple[int, ...] | Literal["first", "evenly_spaced", "influence"] = "first"
    """The teacher's layers that the student starts from: a list (from 0), the first ones, evenly spaced ones, or those
    that change the states most (Men et al. 2024, block influence)."""
    init: Literal["teacher", "fresh"] = "teacher"
    """Start from the teacher's layers and heads, or from random weights."""
    backbone_config: dict[str, Any] | None = None
    """For `init: fresh`: what differs from the teacher's architecture, for example `hidden_size`."""
    num_blocks: int = Field(4, ge=1)
    """B: points at which the states of student and teacher are compared."""
    weights: DistillWeights = DistillWeights()
    """Weights of the loss terms."""
    normalized_states: bool = False
    """Compare the norms' term between states scaled to length 1, so that large states do not rule it."""
    kl_temperature: float = Field(1.0, gt=0)
    """Both score distributions are softened by this before they are compared."""
    item_table: Literal["frozen", "trained"] = "frozen"
    """Whether the student's item vectors stay as the teacher's."""
    keep_ensemble: bool = False
    """`true`: the teacher's decoder teaches the student's, and finetune.ensemble's models join it with the teacher's
    shares. `false`: the whole teacher teaches a student that is a decoder alone."""
    item_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the item vectors that the student reads."""
    layer_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on what attention and MLP of each of its layers add to the states."""
    train: DistillTraining = DistillTraining()
    """How it is trained; the samples are those of finetune.supervision."""

    @model_validator(mode="after")
    def _consistent(self) -> "DistillConfig":
        check(self.init == "fresh" or self.backbone_config is None, "backbone_config belongs to init: fresh")
        check(self.init == "teacher" or self.layers == "first", "layers belongs to init: teacher")
        check_layers(None if isinstance(self.layers, str) else self.layers, self.num_layers, type(self))
        check(
            not self.normalized_states or self.weights.norm > 0,
            "normalized_states belongs to weights.norm, which is 0: the cosine knows no length",
        )
        check(self.kl_temperature == 1 or self.weights.kl > 0, "kl_temperature belongs to weights.kl, which is 0")
        check(
            self.num_blocks > 1 or not self.weights.multiple,
            "num_blocks is 1, so weights.multiple has no block to supervise; set distill.weights.multiple=0, or "
            "num_blocks to 2 or more",
        )
        check(
            self.mode == "offline" or self.teacher_states is None,
            "teacher_states belongs to mode: offline; online the teacher's outputs change with every step",
        )
        return self
