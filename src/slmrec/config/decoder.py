"""Decoders over item vectors: the teacher, and decoders among the base models."""

from typing import Any, Literal

from pydantic import Field, model_validator

from slmrec.config.base_models import BaseModelSettings, Supervision
from slmrec.config.section import Section, check, check_layers
from slmrec.config.training import DecoderBaseTraining, DecoderTraining, FinetuneTraining


class LoraSettings(Section):
    """Low-rank adapters, named as in PEFT. Defaults: published run script of SLMRec."""

    r: int = Field(16, ge=1)
    """Rank."""
    lora_alpha: float = Field(16, gt=0)
    """Scaling: the update is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before the adapters."""
    target_modules: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get an adapter."""


class PromptTemplate(Section):
    """Text before and after the items."""

    prefix: str = ""
    """Text before the items."""
    response: str = ""
    """Text after the items; the user vector is read at its last token."""


class DecoderSettings(Section):
    """A decoder over item vectors: its architecture, its input and its training."""

    backbone: str | None = "smollm2-135m"
    """A hub id, a local folder, a .gguf file, `smollm2-135m`, `gemma-3-270m`, or `random` (then give
    `backbone_config`)."""
    backbone_config: dict[str, Any] | None = None
    """Architecture of a `random` backbone, in transformers' names (`model_type`, `hidden_size`, ...)."""
    num_layers: int = Field(8, ge=1)
    """Number of decoder layers that are kept."""
    layer_step: int = Field(1, ge=1)
    """Keep every n-th layer; 1 keeps the first `num_layers`, 2 is the reference's `interval` variant."""
    layers: tuple[int, ...] | None = None
    """Explicit list of layers to keep, counted from 0; null: `num_layers` and `layer_step` decide."""
    lora: LoraSettings | None = LoraSettings()
    """Adapters on frozen layers; null trains the kept layers themselves."""
    quantization_config: dict[str, Any] | None = None
    """Quantisation of the frozen layers, in transformers' names: `{load_in_4bit: true, bnb_4bit_quant_type: nf4}`
    (QLoRA) or `{load_in_8bit: true}`; needs slmrec[quantization]."""
    prompt: Literal["alpaca", "none"] | PromptTemplate = "alpaca"
    """The reference's instruction form, no prompt, or a text of your own; a random backbone has none."""
    positions: Literal["contiguous", "right_aligned"] = "contiguous"
    """Numbering of the tokens: 0, 1, ... (`contiguous`), or such that the newest token of every history has the same
    position, as if short histories were padded on the left (`right_aligned`)."""
    item_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the item vectors that the decoder reads."""
    layer_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the outputs of attention and MLP of each layer, as in SASRec; the reference has none."""
    item_text: str | None = None
    """Name of the item text (a key of `item_text`) that joins the item vectors; null: no text."""
    item_text_width: int = Field(64, ge=1)
    """Width to which a learned linear map projects the text vectors, beside the D numbers of an item's own vector."""
    item_text_side: Literal["input", "score", "both"] = "both"
    """Use of the text: in the history that is read (`input`), in the scores (`score`), or in both."""
    max_history_items: int = Field(50, ge=1)
    """Number of newest items of a history that are read."""
    supervision: Supervision = "last_position"
    """Positions of a training history that are samples; `every_position` needs a prompt without response."""
    train: DecoderTraining = DecoderTraining()
    """Training settings."""

    @model_validator(mode="after")
    def _consistent(self) -> "DecoderSettings":
        is_random = self.backbone == "random"
        check(
            is_random == (self.backbone_config is not None),
            f"backbone is {self.backbone!r} and backbone_config is {self.backbone_config}; backbone: random needs "
            "backbone_config, and no other backbone uses it",
        )
        check(
            not is_random or self.lora is None,
            "LoRA on random weights teaches nothing: set lora: null, so that all weights train",
        )
        check_layers(self.layers, self.num_layers, type(self))
        check(
            self.backbone in (None, "random") or self.supervision != "every_position" or not self.has_response,
            "supervision: every_position reads scores at the items, so the prompt must have no response; "
            "set prompt: none, or a prompt with a prefix only",
        )
        has_prefix = self.prompt == "alpaca" or (isinstance(self.prompt, PromptTemplate) and bool(self.prompt.prefix))
        check(
            is_random or self.supervision != "every_position" or self.positions == "contiguous" or not has_prefix,
            "supervision: every_position reads all prefixes in one pass, but with positions: right_aligned an item has "
            "another distance to the prompt in each prefix; set positions: contiguous, or supervision: every_prefix",
        )
        return self

    @property
    def has_response(self) -> bool:
        """True if the prompt has text after the items."""
        if isinstance(self.prompt, PromptTemplate):
            return bool(self.prompt.response)
        return self.prompt == "alpaca"


class DecoderModel(DecoderSettings, BaseModelSettings):
    """A small decoder as base model, by default with random weights; its item vectors are learned from scratch."""

    kind: Literal["decoder"] = "decoder"
    """Architecture of the model."""
    backbone: str = "random"
    """A hub id, a local folder, a .gguf file, `smollm2-135m`, `gemma-3-270m`, or `random` (then give
    `backbone_config`)."""
    backbone_config: dict[str, Any] | None = Field(
        {
            "model_type": "llama",
            "vocab_size": 8,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
    )
    """Architecture of a `random` backbone, in transformers' names (`model_type`, `hidden_size`, ...)."""
    num_layers: int = Field(2, ge=1)
    """Number of decoder layers that are kept."""
    lora: LoraSettings | None = None
    """Adapters on frozen layers; null trains the kept layers themselves."""
    item_dim: int = Field(64, ge=1)
    """D, the width of the item vectors."""
    item_dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on the item vectors that the decoder reads."""
    layer_dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on the outputs of attention and MLP of each layer, as in SASRec."""
    supervision: Supervision = "every_prefix"
    """Positions of a training history that are samples."""
    train: DecoderBaseTraining = DecoderBaseTraining()
    """Training settings."""


class FinetuneWeights(Section):
    """Weights of the terms of the teacher's loss beside its cross-entropy; 0 leaves a term out."""

    multiple: float = Field(0.0, ge=0)
    """Multiple supervision of the inner blocks, as on the student. Source: published code of SLMRec, which has it in
    online distillation."""


class FinetuneConfig(DecoderSettings):
    """The teacher: the kept layers of a pretrained decoder over item vectors, mixed with base models."""

    backbone: str | None = "smollm2-135m"
    """A hub id, a local folder, a .gguf file, `smollm2-135m`, `gemma-3-270m`, or `random` (then give
    `backbone_config`); null: no decoder, so that the teacher is the weighted sum of `ensemble` alone."""
    item_vectors: str | None = "sasrec"
    """Item vectors that the decoder starts from: the name of a base model, a file (.npy, .safetensors, or the
    reference's .pkl; row i is item i of items.parquet), or null for random ones."""
    item_dim: int = Field(64, ge=1)
    """D, the width of the item vectors when `item_vectors` is null."""
    item_embeddings: Literal["fixed", "train", "reinitialise"] = "fixed"
    """The item vectors stay as they are, are trained further, or are trained from random values."""
    ensemble: tuple[str, ...] = ()
    """Names of base models whose scores are mixed with those of the decoder; the weights are fitted on validation."""
    weights: FinetuneWeights = FinetuneWeights()
    """Weights of the terms of the teacher's loss."""
    num_blocks: int = Field(4, ge=2)
    """Number of blocks of layers, whose ends `weights.multiple` supervises."""
    train: FinetuneTraining = FinetuneTraining()
    """Training settings."""

    @model_validator(mode="after")
    def _blocks_divide_the_depth(self) -> "FinetuneConfig":
        check(
            not self.weights.multiple or self.depth % self.num_blocks == 0,
            f"weights.multiple is {self.weights.multiple}, but num_blocks is {self.num_blocks}, which does not divide "
            f"{self.depth} layers; choose a number that does, or set weights.multiple to 0",
        )
        return self

    @property
    def depth(self) -> int:
        """Number of layers that are kept, whether listed or counted."""
        return self.num_layers if self.layers is None else len(self.layers)

    @model_validator(mode="after")
    def _ensemble_is_a_set(self) -> "FinetuneConfig":
        check(len(set(self.ensemble)) == len(self.ensemble), f"ensemble is {list(self.ensemble)}; name each model once")
        check(
            self.backbone is not None or bool(self.ensemble),
            "backbone is null and ensemble is empty, so the teacher would have no model; name base models in ensemble",
        )
        return self
