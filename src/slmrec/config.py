"""The whole configuration: every setting, its default and what it does. Defaults live here and nowhere else."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Supervision = Literal["last_position", "every_position", "every_prefix"]
"""Which positions of a training history are samples.

`last_position`: one sample a user, its newest training item (the reference). `every_position`: all positions of a
history in one pass. `every_prefix`: each prefix of a history is a sample of its own, read at its last position.
"""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_layers(layers: tuple[int, ...] | None, num_layers: int, section: "type[Section]") -> None:
    unset = section.model_fields["num_layers"].default
    _check(
        layers is None or num_layers in (unset, len(layers)),
        f"layers lists {len(layers or ())} layers but num_layers is {num_layers}; give one of them",
    )


def _whole_or_auto(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    _check(whole or value == "auto", f"got {value!r}, expected a whole number from 1, or auto")
    return value


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_whole_or_auto)]


class Section(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
        _check(
            not auto or self.reference_batch_size is not None,
            "per_device_train_batch_size is auto and reference_batch_size is not set; give the samples of a step that "
            f"learning_rate ({self.learning_rate:g}) belongs to",
        )
        _check(
            not auto or self.gradient_accumulation_steps == 1,
            f"per_device_train_batch_size is auto, and gradient_accumulation_steps is "
            f"{self.gradient_accumulation_steps}; auto divides a step itself, leave gradient_accumulation_steps out",
        )
        return self

    @model_validator(mode="after")
    def _sampling_is_whole(self) -> "TrainConfig":
        _check(
            (self.loss == "sampled_softmax") == (self.num_sampled is not None),
            f"loss is {self.loss} and num_sampled is {self.num_sampled}; num_sampled belongs to loss: sampled_softmax, "
            "which needs it (for example 8192)",
        )
        _check(
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


class PrepareConfig(Section):
    """From raw logs to the data-set folder."""

    input: str | None = None
    """The log: a file or a folder of parts, plain, .gz or .zst; for another engine, Parquet or the name of a table."""
    format: Literal["auto", "sequences", "csv", "tsv", "scsv", "ssv", "psv", "dat", "parquet", "jsonl", "reference"] = (
        "auto"
    )
    """`sequences` is one line a user (`user item item ...`); tables that are text have a comma (csv), tab (tsv),
    semicolon (scsv), space (ssv), | (psv) or :: (dat, as MovieLens) between their fields; `reference` is the paper's
    processed csv with lists; `auto` goes by the content."""
    columns: tuple[str, ...] | None = None
    """Names of all columns, in order, of a file without header, for example [user_id, item_id, rating, timestamp]."""
    user_col: str | None = None
    """The table's column of users; null: the usual names (user_id, reviewerID, userId)."""
    item_col: str | None = None
    """The table's column of items; null: the usual names (item_id, parent_asin, asin, movieId)."""
    time_col: str | None = None
    """The table's column of times, whole numbers or dates; null: the usual names (timestamp, unixReviewTime)."""
    rating_col: str | None = None
    """The table's column of ratings, read if a rule needs it; null: the usual names (rating, overall)."""
    tie_col: str | None = None
    """A column that orders events of the same time; null: they are in the order of the file (of another engine, whose
    rows have no order, in that of the item ids)."""
    items: str | None = None
    """A table of items with titles and whatever else is known of them, optional."""
    items_id_col: str | None = None
    """Its column of ids; null: the usual names (item_id, parent_asin, asin, movieId)."""
    title_col: str | None = None
    """Its column of titles; null: the usual names (title, movie_title, name)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with rows that are no events: stop at the first, or leave them out, count them, and write them to
    rejected.parquet."""
    preset: Literal["paper"] | None = None
    """`paper`: the rules of the reference's notebook (rating 3 or more, users of 5 events, items of 20, one pass, no
    repeats); what is set besides counts on top."""
    min_rating: float | None = None
    """Events of a lower rating are left out."""
    min_user_events: int = Field(3, ge=3)
    """Users of fewer events are left out; leave-one-out needs 3."""
    min_item_events: int = Field(1, ge=1)
    """Items of fewer events are left out."""
    core: Literal["fixed_point", "single_pass"] = "fixed_point"
    """Repeat the last two rules until both hold (k-core), or apply them once: to users, to items, and at the end to
    users again."""
    order: Literal["time", "file"] = "time"
    """A user's events are in the order of their times, or of the file."""
    repeats: Literal["keep", "drop", "merge"] = "keep"
    """An item again in a history: keep it, drop all but the first event, or merge those that follow one another."""
    max_history: int | None = Field(None, ge=3)
    """The newest events of a user that are kept; null: all."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """The last two events of each user are held out, or all events from one time on, for all users."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """Of a temporal split, the share of all events in the validation period."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """Of a temporal split, the share of all events in the test period, the newest."""
    engine: str = "duckdb"
    """What computes: `duckdb` (embedded), `spark`, or the connection URL of another Ibis backend."""
    memory_limit: str = "4GB"
    """Memory that DuckDB may take; what does not fit goes to the output's disk."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """Source: the reference's notebook; its thresholds are in the paper's description of the data sets."""
        if isinstance(values, dict) and values.get("preset") == "paper":
            paper = {"min_rating": 3, "min_user_events": 5, "min_item_events": 20}
            return paper | {"core": "single_pass", "repeats": "drop"} | values
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "PrepareConfig":
        _check(
            self.split == "leave_one_out" or self.order == "time",
            "split: temporal needs order: time; leave order out, or use split: leave_one_out",
        )
        _check(
            self.items is not None or not (self.items_id_col or self.title_col),
            "items_id_col and title_col are columns of items; give items, or leave them out",
        )
        _check(
            self.valid_share + self.test_share < 1,
            f"valid_share and test_share add up to {self.valid_share + self.test_share}; leave something to train on",
        )
        return self


class LowPassSettings(Section):
    """A filter of the sequence beside the attention of each block. Defaults: BSARec, published settings for Beauty."""

    weight: float = Field(0.7, gt=0, lt=1)
    """α: the filter's share of a block; the attention has the rest."""
    frequencies: int = Field(5, ge=1)
    """c: the lowest frequencies that pass: 0, 1, ... cycles in `max_history_items` positions."""


class PretrainConfig(Section):
    """SASRec, whose item vectors the teacher starts from."""

    item_vectors: str | None = None
    """Bring item vectors instead (.npy, .safetensors, or the reference's .pkl): row i is item i of items.parquet."""
    hidden_size: int = Field(64, ge=1)
    """D, the width of an item vector."""
    num_hidden_layers: int = Field(2, ge=1)
    """Transformer blocks."""
    num_attention_heads: int = Field(2, ge=1)
    """Heads of each block."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """On embeddings, attention outputs and feed-forward outputs."""
    max_history_items: int = Field(50, ge=1)
    """The newest items of a history that are read."""
    low_pass: LowPassSettings | None = None
    """Filter the sequence beside the attention, as BSARec does; `{}` takes its settings, null leaves it out."""
    supervision: Supervision = "every_prefix"
    """Which positions are samples; `every_position` cannot be had with `low_pass`."""
    train: PretrainTraining = PretrainTraining()
    """How it is trained."""

    @model_validator(mode="after")
    def _consistent(self) -> "PretrainConfig":
        if self.low_pass is None:
            return self
        _check(
            self.supervision != "every_position",
            "low_pass sees later items, so supervision: every_position would show each position its target; set "
            "supervision: every_prefix, or leave low_pass out",
        )
        num_frequencies = self.max_history_items // 2 + 1
        _check(
            self.low_pass.frequencies < num_frequencies,
            f"low_pass.frequencies is {self.low_pass.frequencies}, but max_history_items is {self.max_history_items}, "
            f"which has {num_frequencies} frequencies: nothing would be held back; lower the one or raise the other",
        )
        return self


class LoraSettings(Section):
    """Low-rank adapters; names and meaning are PEFT's. Defaults: SLMRec's published run script."""

    r: int = Field(16, ge=1)
    """Rank."""
    lora_alpha: float = Field(16, gt=0)
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before the adapters."""
    target_modules: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """The linear maps that get an adapter."""


class PromptTemplate(Section):
    """Text before and after the items."""

    prefix: str = ""
    """Read before the items."""
    response: str = ""
    """Read after the items; the user vector is taken at its last token."""


class TitleSettings(Section):
    """Item titles as the language model reads them, joined to the item vectors by a learned map."""

    source: str | None = None
    """Whose hidden states are read: a backbone as in `finetune.backbone`; null: that one."""
    layer: int = Field(20, ge=1)
    """After how many of its layers."""
    num_components: int = Field(128, ge=1)
    """C, the principal components of the states that are kept."""
    width: int = Field(64, ge=1)
    """What the map makes of them, beside the D numbers of an item's own vector."""
    side: Literal["input", "score", "both"] = "both"
    """Whether titles are read with the history, count in the scores, or both."""
    required: bool = True
    """Stop if the data have no titles, or (false) go on without."""


class DecoderConfig(Section):
    """A decoder over item vectors: how it is built, what it reads, how it is trained."""

    backbone: str = "smollm2-135m"
    """A hub id, a local folder, a .gguf file, `smollm2-135m`, or `random` (then give `backbone_config`)."""
    backbone_config: dict[str, Any] | None = None
    """The architecture of a `random` backbone, in transformers' names (`model_type`, `hidden_size`, ...)."""
    num_layers: int = Field(8, ge=1)
    """Decoder layers kept."""
    layer_step: int = Field(1, ge=1)
    """Keep every n-th layer; 1 keeps the first `num_layers`, 2 is the reference's `interval` variant."""
    layers: tuple[int, ...] | None = None
    """Keep exactly these layers (from 0) instead."""
    lora: LoraSettings | None = LoraSettings()
    """Adapters on frozen layers; null trains the kept layers themselves."""
    quantization_config: dict[str, Any] | None = None
    """Keep the frozen layers in 4 or 8 bits, in transformers' names: `{load_in_4bit: true, bnb_4bit_quant_type: nf4}`
    (QLoRA) or `{load_in_8bit: true}`; takes slmrec[quantization]."""
    prompt: Literal["alpaca", "none"] | PromptTemplate = "alpaca"
    """The reference's instruction form, nothing, or a text of your own; a random backbone has none."""
    positions: Literal["contiguous", "right_aligned"] = "contiguous"
    """`contiguous` numbers the tokens 0, 1, ...; `right_aligned` lets the pads of a short history take up positions."""
    item_table: Literal["frozen", "trained", "fresh"] = "frozen"
    """The item vectors stay as pretrained, are trained on from there, or are trained from random ones."""
    item_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the item vectors that the decoder reads."""
    layer_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on what attention and MLP of each layer add to the states, as SASRec has it; the reference has none."""
    titles: TitleSettings | None = None
    """Join what the titles say; null: the item vectors alone."""
    max_history_items: int = Field(50, ge=1)
    """The newest items of a history that are read."""
    supervision: Supervision = "last_position"
    """Which positions are samples; `every_position` needs a prompt without response."""
    train: DecoderTraining = DecoderTraining()
    """How it is trained."""

    @model_validator(mode="after")
    def _consistent(self) -> "DecoderConfig":
        _check(
            (self.backbone == "random") == (self.backbone_config is not None),
            "backbone_config belongs to backbone: random, and only to it",
        )
        _check(
            self.backbone != "random" or self.lora is None,
            "LoRA on random weights teaches nothing: set lora: null, so that all weights train",
        )
        _check(
            self.quantization_config is None or self.lora is not None,
            "quantization_config is for layers that stay as they are; give lora as well, or leave it out",
        )
        _check_layers(self.layers, self.num_layers, type(self))
        _check(
            self.backbone != "random" or self.titles is None or self.titles.source is not None,
            "a random backbone cannot read titles; give titles.source, for example smollm2-135m, or leave titles out",
        )
        _check(
            self.backbone != "random" or isinstance(self.prompt, str),
            "a random backbone has no words to prompt with; leave prompt out",
        )
        if self.backbone == "random":
            return self
        has_response = self.prompt == "alpaca" or (isinstance(self.prompt, PromptTemplate) and self.prompt.response)
        _check(
            self.supervision != "every_position" or not has_response,
            "supervision: every_position reads scores at the items, so the prompt must have no response; "
            "set prompt: none, or a prompt with a prefix only",
        )
        return self


class CompanionConfig(DecoderConfig):
    """A small decoder, trained from scratch, whose scores the teacher can mix in; what it gets wrong, it gets wrong
    otherwise than a decoder that starts from SASRec's item vectors."""

    backbone: str = "random"
    """A hub id, a local folder, a .gguf file, `smollm2-135m`, or `random` (then give `backbone_config`)."""
    backbone_config: dict[str, Any] | None = {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    """The architecture of a `random` backbone, in transformers' names (`model_type`, `hidden_size`, ...)."""
    num_layers: int = Field(2, ge=1)
    """Decoder layers."""
    lora: LoraSettings | None = None
    """Adapters on frozen layers; null trains the layers themselves."""
    prompt: Literal["alpaca", "none"] | PromptTemplate = "none"
    """The reference's instruction form, nothing, or a text of your own; a random backbone has none."""
    item_table: Literal["frozen", "trained", "fresh"] = "fresh"
    """The item vectors stay as pretrained, are trained on from there, or are trained from random ones."""
    item_dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on the item vectors that the decoder reads."""
    layer_dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on what attention and MLP of each layer add to the states, as SASRec has it."""
    supervision: Supervision = "every_prefix"
    """Which positions are samples."""
    train: CompanionTraining = CompanionTraining()
    """How it is trained."""


class FinetuneConfig(DecoderConfig):
    """The teacher: the kept layers of a pretrained decoder over item vectors."""

    ensemble: tuple[Literal["sasrec", "companion"], ...] = ()
    """Models whose scores the teacher's are mixed with, each by the share that is best on validation."""
    train: FinetuneTraining = FinetuneTraining()
    """How it is trained."""

    @model_validator(mode="after")
    def _each_once(self) -> "FinetuneConfig":
        _check(len(set(self.ensemble)) == len(self.ensemble), f"ensemble is {list(self.ensemble)}; name each once")
        return self


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
        _check(any(self.model_dump().values()), "all weights are 0, so there is nothing to learn; give one a value")
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
        _check(self.init == "fresh" or self.backbone_config is None, "backbone_config belongs to init: fresh")
        _check(self.init == "teacher" or self.layers == "first", "layers belongs to init: teacher")
        _check_layers(None if isinstance(self.layers, str) else self.layers, self.num_layers, type(self))
        _check(
            not self.normalized_states or self.weights.norm > 0,
            "normalized_states belongs to weights.norm, which is 0: the cosine knows no length",
        )
        _check(self.kl_temperature == 1 or self.weights.kl > 0, "kl_temperature belongs to weights.kl, which is 0")
        _check(
            self.num_blocks > 1 or not self.weights.multiple,
            "num_blocks is 1, so weights.multiple has no block to supervise; set distill.weights.multiple=0, or "
            "num_blocks to 2 or more",
        )
        _check(
            self.mode == "offline" or self.teacher_states is None,
            "teacher_states belongs to mode: offline; online the teacher's outputs change with every step",
        )
        return self


def _depth(part: DecoderConfig | DistillConfig) -> int:
    return part.num_layers if part.layers is None or isinstance(part.layers, str) else len(part.layers)


class EvaluateConfig(Section):
    """All models side by side on the test split."""

    protocols: tuple[Literal["full_history_excluded", "full", "sampled"], ...] = (
        "full_history_excluded",
        "full",
        "sampled",
    )
    """Rankings to report; one forward pass serves all."""
    models: tuple[Literal["popularity", "cooccurrence", "sasrec", "companion", "teacher", "student"], ...] | None = (
        Field(None, min_length=1)
    )
    """What is evaluated; null: all that there is."""
    num_negatives: int = Field(999, ge=1)
    """Negatives a user of the `sampled` protocol, drawn once from the items outside the user's history and stored."""
    batch_size: int = Field(256, ge=1)
    """Users encoded at once."""
    timing_users: int = Field(2000, ge=1)
    """Users over whom the speed of each model is measured, in turn, the median of three rounds."""


class AblateConfig(Section):
    """Variants of the distillation, side by side; read by `slmrec ablate` alone."""

    variants: dict[str, dict[str, Any]] | None = None
    """By name, the settings of distill that differ, `{distill.weights.kl: 0}`; `{}` is the recipe as it is. null: the
    recipe as `full`, without each of its terms, with cross-entropy alone, and online (offline if the recipe is online).
    Source: SLMRec's ablation of its losses."""
    seeds: tuple[int, ...] = Field((42, 1, 2), min_length=1)
    """Each variant is distilled with each of these; all share one teacher."""
    baseline: str = "full"
    """The variant that the others are compared with."""

    @model_validator(mode="after")
    def _consistent(self) -> "AblateConfig":
        _check(len(set(self.seeds)) == len(self.seeds), f"seeds are {list(self.seeds)}; name each seed once")
        names = ["full"] if self.variants is None else list(self.variants)
        _check(self.baseline in names, f"baseline is {self.baseline!r}, which is no variant; choose of: {names}")
        for name, changes in (self.variants or {}).items():
            _check(
                re.fullmatch(r"\w[\w.-]*", name) is not None and name != "base",
                f"variants has {name!r}: a variant is a folder; take letters, digits, '_', '.' and '-', and not 'base'",
            )
            for key in changes:
                _check(
                    key.startswith("distill."),
                    f"variants.{name} changes {key!r}; only settings of distill can differ (distill.num_layers, "
                    "...), since what comes before is done once for all",
                )
        return self


class DepthConfig(Section):
    """Models of several depths, and what each layer of the deepest does; read by `slmrec depth` alone."""

    num_layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Depths to train, each as finetune says but alone, without ensemble; null: 1, 2, 4, ... and all layers that the
    backbone has. The deepest is the one whose layers are looked at."""
    layer_steps: tuple[int, ...] = ()
    """Train also models of every n-th layer of the deepest, for each n given. Source: the reference's `interval`."""
    head_samples: int = Field(4000, ge=1)
    """Training samples from which a head is fitted to each layer."""
    similarity_users: int = Field(1000, ge=4)
    """Validation users over whom the layers' representations are compared."""
    drop_users: int = Field(1000, ge=0)
    """Validation users whom the deepest model ranks for with each one of its layers left out; 0: leave none out."""
    quality_loss: float = Field(0.01, ge=0, lt=1)
    """The depth recommended is the smallest whose NDCG@10 falls short of the best one's by no more than this share."""

    @model_validator(mode="after")
    def _consistent(self) -> "DepthConfig":
        for name, values, least in (("num_layers", self.num_layers or (), 1), ("layer_steps", self.layer_steps, 2)):
            _check(
                len(set(values)) == len(values) and min(values, default=least) >= least,
                f"{name} is {list(values)}; name each number once, from {least}",
            )
        return self


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
            _check(
                student % distill.num_blocks == teacher % distill.num_blocks == 0,
                f"distill.num_blocks is {distill.num_blocks}, but the student has {student} layers and the teacher "
                f"{teacher}; choose a number that divides both",
            )
        _check(
            self.companion is not None or "companion" not in (self.evaluate.models or ()),
            "evaluate.models names companion, but there is no section of that name; leave it out",
        )
        _check(
            self.pretrain.item_vectors is None or "sasrec" not in (self.evaluate.models or ()),
            "evaluate.models names sasrec, but with pretrain.item_vectors none is trained; leave it out",
        )
        return self

    def _check_ensemble(self) -> None:
        finetune, brought = self.finetune, self.pretrain.item_vectors
        _check(
            "sasrec" not in finetune.ensemble or brought is None or self.distill.teacher is not None,
            "finetune.ensemble names sasrec, but pretrain.item_vectors brings vectors alone; leave one out",
        )
        _check(
            "companion" not in finetune.ensemble or self.companion is not None,
            "finetune.ensemble names companion, but there is no section of that name; give `companion: {}`",
        )
        _check(
            bool(finetune.ensemble or self.distill.teacher) or not self.distill.keep_ensemble,
            "distill.keep_ensemble is true, but finetune.ensemble names no other model; leave it out",
        )
        _check(
            "companion" not in finetune.ensemble or self.companion is None or self.companion.lora is None,
            "companion.lora: adapters of a companion cannot be kept with the teacher; set companion.lora=null",
        )
        lengths = {"sasrec": self.pretrain.max_history_items}
        if self.companion:
            lengths["companion"] = self.companion.max_history_items
        for name in finetune.ensemble:
            _check(
                lengths[name] == finetune.max_history_items,
                f"finetune reads the newest {finetune.max_history_items} items and {name} {lengths[name]}; in an "
                "ensemble all read alike: set one max_history_items",
            )
