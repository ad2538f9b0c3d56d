"""SASRec, and which positions of a history a model is trained on."""

from typing import Literal

from pydantic import Field, model_validator

from slmrec.config.section import Section, check
from slmrec.config.training import PretrainTraining

Supervision = Literal["last_position", "every_position", "every_prefix"]
"""Which positions of a training history are samples.

`last_position`: one sample a user, its newest training item (the reference). `every_position`: all positions of a
history in one pass. `every_prefix`: each prefix of a history is a sample of its own, read at its last position.
"""


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
        check(
            self.supervision != "every_position",
            "low_pass sees later items, so supervision: every_position would show each position its target; set "
            "supervision: every_prefix, or leave low_pass out",
        )
        num_frequencies = self.max_history_items // 2 + 1
        check(
            self.low_pass.frequencies < num_frequencies,
            f"low_pass.frequencies is {self.low_pass.frequencies}, but max_history_items is {self.max_history_items}, "
            f"which has {num_frequencies} frequencies: nothing would be held back; lower the one or raise the other",
        )
        return self
