"""Training settings, with the defaults of each stage."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from slmrec.config.section import Section, check


def _whole_or_auto(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    check(whole or value == "auto", f"got {value!r}, expected a whole number from 1, or auto")
    return value


Engine = Literal["auto", "packed", "padded"]
BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_whole_or_auto)]


class TrainConfig(Section):
    """Training settings of one model, named as in transformers' TrainingArguments."""

    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW."""
    num_train_epochs: int = Field(10, ge=0)
    """Number of passes over the training samples; 0 skips training."""
    max_steps: int = Field(-1, ge=-1)
    """Maximum number of optimiser steps; -1 sets no limit."""
    max_minutes: float | None = Field(None, gt=0)
    """Maximum time of training with its validations, in minutes; null sets no limit. The schedule of the learning rate
    ends by then too, so results repeat exactly only where the limit has no effect."""
    per_device_train_batch_size: BatchSize = 64
    """Samples per batch and device; `auto` takes `reference_batch_size` samples per step, in batches that fit into
    memory."""
    reference_batch_size: int | None = Field(None, ge=1)
    """Samples per step for which `learning_rate` was chosen; for another step size the rate is multiplied by the square
    root of the ratio. null: no scaling."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Number of batches whose gradients are accumulated before a step."""
    warmup_steps: int = Field(100, ge=0)
    """Number of steps over which the learning rate rises from 0."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Schedule of the learning rate after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW, applied to matrices only (not to norms and biases)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum gradient norm; larger gradients are clipped."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then validated and saved; 0: no average."""
    eval_max_users: int = Field(0, ge=0)
    """Number of validation users scored after each epoch, the same users every time; 0: all."""
    early_stopping_patience: int = Field(5, ge=1)
    """Number of epochs without a better validation NDCG@10 after which training stops."""
    bf16: bool | Literal["auto"] = "auto"
    """Use bfloat16 matrix products; `auto` uses them where the hardware supports them."""
    fsdp: bool = False
    """Shard weights, gradients and optimiser state over the processes (FSDP2) instead of copying them (DDP), for models
    whose training does not fit on one device; results are those of DDP."""
    loss: Literal["ce", "sampled_softmax"] = "ce"
    """Cross-entropy over the whole catalogue (`ce`), or over the target and sampled items (`sampled_softmax`), for
    catalogues of millions of items."""
    num_sampled: int | None = Field(None, ge=1)
    """Number of items sampled per step for `loss: sampled_softmax`, shared by all positions; required by it."""
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over the catalogue; needs `loss: ce`."""

    unseen_items: Literal["compete", "left_out"] = "compete"
    """Items without training events: they `compete` with the target of each position, which pushes their scores down,
    or are `left_out` of the softmax, so that a model that reads texts may rank them by these; needs `loss: ce`."""

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
        check(
            not (auto and self.fsdp),
            "per_device_train_batch_size is auto, and fsdp is true; with fsdp give the number of samples, since "
            "processes that share their weights cannot try different sizes",
        )
        return self

    @property
    def memory_savers(self) -> tuple[str, ...]:
        """Settings, as `name=value`, that would lower the memory of training."""
        return ()

    @model_validator(mode="after")
    def _sampling_is_whole(self) -> "TrainConfig":
        check(
            (self.loss == "sampled_softmax") == (self.num_sampled is not None),
            f"loss is {self.loss} and num_sampled is {self.num_sampled}; loss: sampled_softmax needs num_sampled (for "
            "example 8192), and no other loss uses it",
        )
        return self


class BaseModelTraining(TrainConfig):
    """Defaults of a base model. Source: recipe of BSARec's SASRec baseline (batch size 256, learning rate 5e-4)."""

    num_train_epochs: int = Field(32, ge=0)
    """Number of passes over the training samples."""
    per_device_train_batch_size: BatchSize = 256
    """Samples per batch and device, or `auto`."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate after the warm-up."""


class TextModelTraining(BaseModelTraining):
    """Defaults of a text model."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    num_train_epochs: int = Field(24, ge=0)
    """Number of passes over the training samples."""
    per_device_train_batch_size: BatchSize = 128
    """Samples per batch and device, or `auto`."""


class DecoderTraining(TrainConfig):
    """Training settings of a decoder."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    torch_compile: bool = False
    """Compile the norms and MLPs of the layers; needs a C++ compiler and some seconds at the start."""
    engine: Engine = "auto"
    """Form of the batches: all users in one sequence without padding (`packed`), or a padded row for each user
    (`padded`). `auto` takes the faster one for each batch: packed on a CPU, and padded for small layers on a GPU."""

    @model_validator(mode="after")
    def _is_not_compiled(self) -> "DecoderTraining":
        check(not (self.fsdp and self.torch_compile), "fsdp and torch_compile are both true; leave one of them out")
        return self

    @property
    def memory_savers(self) -> tuple[str, ...]:
        """Settings, as `name=value`, that would lower the memory of training."""
        return () if self.gradient_checkpointing else ("gradient_checkpointing=true",)


class DecoderBaseTraining(DecoderTraining, BaseModelTraining):
    """Defaults of a decoder as base model: those of SASRec, and an average of the weights."""

    num_train_epochs: int = Field(20, ge=0)
    """Number of passes over the training samples."""
    per_device_train_batch_size: BatchSize = 256
    """Samples per batch and device, or `auto`."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate after the warm-up."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then validated and saved; 0: no average."""


class FinetuneTraining(DecoderTraining):
    """Defaults of the teacher. Source: published run script of SLMRec."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    num_train_epochs: int = Field(3, ge=0)
    """Number of passes over the training samples; 0 skips training."""
    per_device_train_batch_size: BatchSize = 256
    """Samples per batch and device, or `auto`."""


class DistillTraining(DecoderTraining):
    """Defaults of the student. Source: published run script of SLMRec."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    num_train_epochs: int = Field(5, ge=0)
    """Number of passes over the training samples; 0 skips training."""
    per_device_train_batch_size: BatchSize = 128
    """Samples per batch and device, or `auto`."""
    warmup_steps: int = Field(50, ge=0)
    """Number of steps over which the learning rate rises from 0."""
