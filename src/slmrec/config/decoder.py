"""Decoders over item vectors: the teacher, and the companion that may join it."""

from typing import Any, Literal

from pydantic import Field, model_validator

from slmrec.config.pretrain import Supervision
from slmrec.config.section import Section, check, check_layers
from slmrec.config.training import CompanionTraining, DecoderTraining, FinetuneTraining


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
        check(
            (self.backbone == "random") == (self.backbone_config is not None),
            "backbone_config belongs to backbone: random, and only to it",
        )
        check(
            self.backbone != "random" or self.lora is None,
            "LoRA on random weights teaches nothing: set lora: null, so that all weights train",
        )
        check(
            self.quantization_config is None or self.lora is not None,
            "quantization_config is for layers that stay as they are; give lora as well, or leave it out",
        )
        check_layers(self.layers, self.num_layers, type(self))
        check(
            self.backbone != "random" or self.titles is None or self.titles.source is not None,
            "a random backbone cannot read titles; give titles.source, for example smollm2-135m, or leave titles out",
        )
        check(
            self.backbone != "random" or isinstance(self.prompt, str),
            "a random backbone has no words to prompt with; leave prompt out",
        )
        if self.backbone == "random":
            return self
        has_response = self.prompt == "alpaca" or (isinstance(self.prompt, PromptTemplate) and self.prompt.response)
        check(
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
        check(len(set(self.ensemble)) == len(self.ensemble), f"ensemble is {list(self.ensemble)}; name each once")
        return self
