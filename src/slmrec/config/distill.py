"""The student and the terms of its loss."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, create_model, model_validator

from slmrec.config.base_models import StudentSettings
from slmrec.config.decoder import LoraSettings
from slmrec.config.kinds import StudentByKind
from slmrec.config.section import Section, check, check_layers
from slmrec.config.training import DistillTraining

OWN_TERMS: dict[str, bool] = {}
"""Terms of the user's own, by name, and whether they read hidden states; `register_term` adds them."""


class DistillWeights(Section):
    """Weights of the terms of the student's loss; 0 leaves a term out."""

    ce: float = Field(1.0, ge=0)
    """Cross-entropy over the catalogue."""
    cosine: float = Field(1.0, ge=0)
    """λ1, cosine loss between hidden states. Source: SLMRec, loss of the reference (1.0)."""
    norm: float = Field(0.1, ge=0)
    """λ2, norm (L2) loss between hidden states. Source: SLMRec, loss of the reference (0.1)."""
    multiple: float = Field(1.0, ge=0)
    """λ3, multiple supervision."""
    kl: float = Field(0.0, ge=0)
    """λ4, Kullback-Leibler divergence from the teacher's scores."""
    stratified_kl: float = Field(0.0, ge=0)
    """Kullback-Leibler divergence from the teacher's scores within groups of items of similar popularity, which leaves
    the share of each group to the other terms. Source: UnKD (Chen et al. 2023)."""

    block_kl: float = Field(0.0, ge=0)
    """Kullback-Leibler divergence between the scores at the end of each inner block, which the heads of multiple
    supervision compute for student and teacher. Source: published code of SLMRec, which has it online."""

    lists: float = Field(0.0, ge=0)
    """Cross-entropy of the items that a teacher outside lists (`distill.lists`). Source: DLLM2Rec (Cui et al. 2024)."""

    @model_validator(mode="after")
    def _consistent(self) -> "DistillWeights":
        check(any(self.model_dump().values()), "all weights are 0, so there is nothing to learn; give one a value")
        return self

    @property
    def needs_states(self) -> bool:
        """True if a term reads hidden states."""
        own = (getattr(self, name, 0.0) for name, reads_states in OWN_TERMS.items() if reads_states)
        return bool(self.cosine or self.norm or self.multiple or self.block_kl or any(own))


def _with_own_terms(values: Any) -> Any:
    """Read weights of terms of the user's own, whose default is 0."""
    if not OWN_TERMS or isinstance(values, Section):
        return values
    own: dict[str, Any] = {name: (float, Field(0.0, ge=0)) for name in OWN_TERMS}
    return create_model("DistillWeights", __base__=DistillWeights, **own).model_validate(values)


class DecoderStudent(StudentSettings):
    """A student of the teacher's architecture with fewer layers."""

    starts_from_teacher: ClassVar[bool] = True
    kind: Literal["decoder"] = "decoder"
    """Architecture of the student."""
    init: Literal["teacher", "pretrained"] = "teacher"
    """Initial weights: the layers and heads of the teacher's decoder, or `pretrained`: layers of the teacher's backbone
    as they were before the teacher was tuned, with new heads (the reference)."""
    num_layers: int = Field(4, ge=1)
    """Number of decoder layers."""
    layers: tuple[int, ...] | Literal["first", "evenly_spaced", "influence"] = "first"
    """Layers of the teacher, or with `init: pretrained` of its whole backbone, that the student starts from: a list
    (from 0), the first ones, evenly spaced ones, or those of the teacher that change the hidden states most (Men et al.
    2024, block influence)."""
    lora: LoraSettings | None = None
    """Adapters on frozen layers, which train with the heads (the reference); null trains all layers."""
    item_embeddings: Literal["fixed", "train"] = "fixed"
    """The item vectors stay as the teacher's, or are trained further."""
    item_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the item vectors that the student reads."""

    @model_validator(mode="after")
    def _consistent(self) -> "DecoderStudent":
        check_layers(None if isinstance(self.layers, str) else self.layers, self.num_layers, type(self))
        check(
            self.init == "teacher" or self.layers != "influence",
            "layers: influence is measured on the tuned layers of the teacher, which init: pretrained does not take; "
            "set layers: first, evenly_spaced or a list, or init: teacher",
        )
        return self

    @property
    def depth(self) -> int:
        """Number of layers, whether listed or counted."""
        return self.num_layers if isinstance(self.layers, str) else len(self.layers)


class ListWeights(Section):
    """Weights of the items of a list; those of each list are normalised to a sum of 1.

    Defaults: published code of DLLM2Rec (Cui et al. 2024).
    """

    position: float = Field(0.3, ge=0)
    """Share of weights that fall with the place in the list, exp(-place / temperature)."""
    confidence: float = Field(0.5, ge=0)
    """Share of weights by the confidence of the teacher; without a column `confidence`, the other shares remain."""
    agreement: float = Field(0.1, ge=0)
    """Weight of an item that is also among the best items of the student, as many as the list is long."""
    temperature: float = Field(1.0, gt=0)
    """Number of places over which the weight falls by a factor of e."""

    @model_validator(mode="after")
    def _weighs_something(self) -> "ListWeights":
        check(
            self.position + self.confidence + self.agreement > 0,
            "all weights are 0, so lists teach nothing; give position, confidence or agreement a value",
        )
        return self


class AugmentSettings(Section):
    """Changes of training histories, one for each history that is changed; null leaves a change out.

    Defaults: ratios of CL4SRec (Xie et al. 2022).
    """

    share: float = Field(0.5, gt=0, le=1)
    """Share of the histories that are changed."""
    crop: float | None = Field(0.6, gt=0, lt=1)
    """Share of a history that is kept, as one contiguous part."""
    drop: float | None = Field(0.3, gt=0, lt=1)
    """Probability of each item of a history to be dropped."""
    reorder: float | None = Field(0.6, gt=0, le=1)
    """Share of a history, one contiguous part, whose items are shuffled."""

    @model_validator(mode="after")
    def _changes_something(self) -> "AugmentSettings":
        check(
            (self.crop, self.drop, self.reorder) != (None, None, None),
            "crop, drop and reorder are null, so no history is changed; give one of them, or leave augment out",
        )
        return self


class DistillConfig(Section):
    """The student, and its distillation from the teacher."""

    teacher: str | None = "finetune"
    """`finetune` for the teacher of this run, or the folder of another model, such as a student of another run; null:
    the run trains its base models alone."""
    teacher_device_map: Literal["auto"] | None = None
    """`auto` spreads the decoder layers of the teacher over the GPUs of this machine, and its CPU where they are full,
    while its outputs are computed, for a teacher that does not fit on one GPU; null: one device."""
    mode: Literal["offline", "online"] = "offline"
    """`offline`: the teacher is frozen. `online`: the teacher keeps learning beside the student."""
    student: SerializeAsAny[StudentByKind] = DecoderStudent()
    """Architecture of the student, by `kind`."""
    num_blocks: int = Field(4, ge=1)
    """B, the number of points at which hidden states of student and teacher are compared."""
    weights: SerializeAsAny[Annotated[DistillWeights, BeforeValidator(_with_own_terms)]] = DistillWeights()
    """Weights of the loss terms."""
    kl_temperature: float = Field(1.0, gt=0)
    """Temperature by which both score distributions are divided before they are compared."""
    kl_top_k: int | None = Field(None, ge=1)
    """Number of the teacher's best items whose scores `weights.kl` compares, together with all other items as one
    class; null: the scores of all items."""
    num_popularity_groups: int = Field(4, ge=2)
    """Number of groups of items with equally many training events, for `weights.stratified_kl`."""
    lists: str | None = None
    """File of lists of a teacher outside, for `weights.lists`: one row for each item of a user's list, with `user_id`,
    `item_id`, `rank` and optionally `confidence`."""
    list_weights: ListWeights = ListWeights()
    """Weights of the items of a list."""
    augment: AugmentSettings | None = None
    """Changes of histories, for which the teacher computes its outputs in every step instead of once; `{}` takes the
    default settings, null leaves them out."""
    keep_ensemble: bool = False
    """`true`: the teacher's decoder teaches the student's decoder, and the base models of the teacher are mixed with it
    by the same weights. `false`: the whole teacher teaches a student that stands alone."""
    train: DistillTraining = DistillTraining()
    """Training settings; the samples are those of finetune.supervision."""

    @property
    def item_text(self) -> str | None:
        """Name of the item text that the student reads."""
        return getattr(self.student, "item_text", None)

    @model_validator(mode="after")
    def _consistent(self) -> "DistillConfig":
        check(
            self.num_blocks > 1 or not self.weights.multiple,
            "num_blocks is 1, so weights.multiple has no block to supervise; set distill.weights.multiple=0, or "
            "num_blocks to 2 or more",
        )
        check(
            self.weights.multiple > 0 or not self.weights.block_kl,
            f"weights.block_kl is {self.weights.block_kl}, but weights.multiple is 0, so the student has no heads at "
            "its blocks; give weights.multiple a value, or set distill.weights.block_kl=0",
        )
        check(
            self.lists is not None or not self.weights.lists,
            f"weights.lists is {self.weights.lists}, but lists is null; name the file of the lists, or set "
            "distill.weights.lists=0",
        )
        check(
            getattr(self.student, "repeat_score", "none") == "none" or self.train.loss == "ce",
            f"student.repeat_score is set, but train.loss is {self.train.loss}, whose sampled items leave out those of "
            "the history; set train.loss: ce, or student.repeat_score: none",
        )
        return self
