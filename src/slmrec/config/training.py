"""How a model is trained, with the defaults of each stage."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from slmrec.config.section import Section, check


def _whole_or_auto(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    check(whole or value == "auto", f"got {value!r}, expected a whole number from 1, or auto")
    return value


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_whole_or_auto)]


class TrainConfig(Section):
    """How one model is trained; names are those of transformers' TrainingArguments."""

    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW."""
    num_train_epochs: int = Field(10, ge=0)
    """Passes over the training samples; 0 trains nothing."""
    max_steps: int = Field(-1, ge=-1)
    """Stop after this many optimiser steps; -1: the epochs decide."""
    per_device_train_batch_size: BatchSize = 64
    """Users (or samples) a batch and device; `auto`: a step takes `reference_batch_size` in all, as many at once as
    memory allows."""
    reference_batch_size: int | None = Field(None, ge=1)
    """Samples of the step that `learning_rate` belongs to: a step of another size takes the rate times the square root
    of the ratio of sizes; null: the rate is taken as it is."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Batches whose gradients are added up before a step."""
    warmup_steps: int = Field(100, ge=0)
    """Steps over which the learning rate rises from 0."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """What the learning rate does after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of AdamW, on matrices only (not on norms and biases)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    average_decay: float = Field(0.0, ge=0, lt=1)
    """Validate and keep a running average of the weights, in which the latest weigh 1 - this; 0: the latest alone."""
    eval_max_users: int = Field(0, ge=0)
    """Validation users scored after each epoch, the same ones every time; 0: all."""
    early_stopping_patience: int = Field(5, ge=1)
    """Epochs without a better validation NDCG@10 before training stops."""
    bf16: bool | Literal["auto"] = "auto"
    """bfloat16 matrix products: yes, no, or where the hardware has them."""
    loss: Literal["ce", "sampled_softmax"] = "ce"
    """Cross-entropy over the whole catalogue, or, for catalogues of millions, over the target and drawn items."""
    num_sampled: int | None = Field(None, ge=1)
    """Items drawn a step for `sampled_softmax`, shared by all its positions; give it with that loss, and only then."""
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    """The share of each label that is spread evenly over the catalogue; for loss: ce."""

    @model_validator(mode="after")
    def _batch_is_whole(self) -> "TrainConfig":
        auto = self.per_device_train_batch_size == "auto"
        check(
            not auto or self.reference_batch_size is not None,
            "per_device_train_batch_size is auto and reference_batch_size is not set; give the samples of a step that "
            f"learning_rate ({self.learning_rate:g}) belongs to",
        )
        check(
            not auto or self.gradient_accumulation_steps == 1,
            f"per_device_train_batch_size is auto, and gradient_accumulation_steps is "
            f"{self.gradient_accumulation_steps}; auto divides a step itself, leave gradient_accumulation_steps out",
        )
        return self

    @model_validator(mode="after")
    def _sampling_is_whole(self) -> "TrainConfig":
        check(
            (self.loss == "sampled_softmax") == (self.num_sampled is not None),
            f"loss is {self.loss} and num_sampled is {self.num_sampled}; num_sampled belongs to loss: sampled_softmax, "
            "which needs it (for example 8192)",
        )
        check(
            self.loss == "ce" or not self.label_smoothing_factor,
            "label_smoothing_factor spreads labels over the whole catalogue; it belongs to loss: ce",
        )
        return self


class PretrainTraining(TrainConfig):
    """Defaults for SASRec. Source: the recipe of BSARec's SASRec baseline (batch 256, 5e-4)."""

    num_train_epochs: int = Field(32, ge=0)
    """Passes over the training samples."""
    per_device_train_batch_size: BatchSize = 256
    """Samples a batch and device, or `auto`."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""


class DecoderTraining(TrainConfig):
    """How a decoder is trained."""

    gradient_checkpointing: bool = False
    """Compute the layers' inner states again in the backward pass instead of keeping them: less memory, more time."""
    torch_compile: bool = False
    """Compile the layers' norms and MLPs: some seconds at the start for a share of each step; takes a C++ compiler."""


class CompanionTraining(DecoderTraining):
    """Defaults for the small decoder from scratch: those of SASRec, and a running average of the weights."""

    num_train_epochs: int = Field(20, ge=0)
    """Passes over the training samples."""
    per_device_train_batch_size: BatchSize = 256
    """Samples a batch and device, or `auto`."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    average_decay: float = Field(0.995, ge=0, lt=1)
    """Validate and keep a running average of the weights, in which the latest weigh 1 - this; 0: the latest alone."""


class FinetuneTraining(DecoderTraining):
    """Defaults for the teacher. Source: SLMRec's published run script."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    num_train_epochs: int = Field(3, ge=0)
    """Passes over the training samples; 0 trains nothing."""
    per_device_train_batch_size: BatchSize = 256
    """Users (or samples) a batch and device, or `auto`."""


class DistillTraining(DecoderTraining):
    """Defaults for the student. Source: SLMRec's published run script."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    num_train_epochs: int = Field(5, ge=0)
    """Passes over the training samples; 0 trains nothing."""
    per_device_train_batch_size: BatchSize = 128
    """Users (or samples) a batch and device, or `auto`."""
    warmup_steps: int = Field(50, ge=0)
    """Steps over which the learning rate rises from 0."""
