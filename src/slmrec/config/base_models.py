"""Base models: the small models of `pretrain`, which teachers start from and are mixed with."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from slmrec.config.section import Section, check
from slmrec.config.training import BaseModelTraining

Supervision = Literal["last_position", "every_position", "every_prefix"]
"""Positions of a training history that are samples.

`last_position`: the newest training item of each user is the only target (the reference). `every_position`: all
positions of a history are targets in one pass. `every_prefix`: each prefix of a history is a sample of its own, read at
its last position.
"""


class StudentSettings(Section):
    """Settings that every student has, whatever its architecture."""

    has_hidden_states: ClassVar[bool] = False
    """True if the student has hidden states that can be compared with those of a decoder."""
    starts_from_teacher: ClassVar[bool] = False
    """True if the student is made of layers of the teacher's decoder."""
    kind: str
    """Architecture of the student."""

    @property
    def depth(self) -> int:
        """Number of layers whose hidden states can be compared."""
        return 0

    def check_window(self, max_history_items: int) -> None:
        """Refuse settings that do not suit a teacher that reads `max_history_items` items.

        Raises:
            ValueError: The student reads another number of items.
        """


DEFAULT_MAX_HISTORY_ITEMS = 50
"""Number of newest items that a model reads where neither its settings nor its teacher say otherwise."""


class LowPassSettings(Section):
    """Low-pass filter beside the attention of each block. Defaults: published settings of BSARec for Beauty."""

    weight: float = Field(0.7, gt=0, lt=1)
    """α, the share of the filter in the output of a block; the attention has the rest."""
    frequencies: int = Field(5, ge=1)
    """c, the number of lowest frequencies that pass: 0, 1, ... cycles in `max_history_items` positions."""


class SasRecSettings(StudentSettings):
    """Architecture of a SASRec model."""

    kind: Literal["sasrec"] = "sasrec"
    """Architecture of the model."""
    hidden_size: int = Field(64, ge=1)
    """D, the width of item vectors and hidden states."""
    num_hidden_layers: int = Field(2, ge=1)
    """Number of transformer blocks."""
    num_attention_heads: int = Field(2, ge=1)
    """Attention heads of each block."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on embeddings, attention outputs and feed-forward outputs."""
    max_history_items: int | None = Field(None, ge=1)
    """Number of newest items of a history that are read; null: as many as the teacher reads."""
    positions: Literal["from_newest", "relative"] = "from_newest"
    """`from_newest`: learned position embeddings, counted back from the newest item of the history. `relative`: an
    attention bias is learned for each distance between two items, so that positions mean the same in every prefix."""
    low_pass: LowPassSettings | None = None
    """Low-pass filter beside the attention, as in BSARec; `{}` takes its default settings, null leaves it out."""

    @property
    def num_positions(self) -> int:
        """Number of positions that the model distinguishes."""
        return self.max_history_items or DEFAULT_MAX_HISTORY_ITEMS

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "SasRecSettings":
        check(
            self.hidden_size % self.num_attention_heads == 0,
            f"num_attention_heads is {self.num_attention_heads}, which does not divide hidden_size {self.hidden_size}; "
            "choose a number that divides it",
        )
        return self

    @model_validator(mode="after")
    def _filter_has_effect(self) -> "SasRecSettings":
        if self.max_history_items is not None:
            self.check_filter(self.max_history_items)
        return self

    def check_window(self, max_history_items: int) -> None:
        """Refuse a window other than the teacher's, and a low-pass filter that lets all of it pass."""
        window = self.max_history_items or max_history_items
        check(
            window == max_history_items,
            f"distill.student.max_history_items is {window}, but the teacher reads {max_history_items} items; "
            "leave distill.student.max_history_items out",
        )
        self.check_filter(window)

    def check_filter(self, max_history_items: int) -> None:
        """Refuse a low-pass filter that would pass every frequency of a window.

        Raises:
            ValueError: The window has no more frequencies than the filter passes.
        """
        num_frequencies = max_history_items // 2 + 1
        check(
            self.low_pass is None or self.low_pass.frequencies < num_frequencies,
            f"low_pass.frequencies is {self.low_pass and self.low_pass.frequencies}, but a window of max_history_items "
            f"{max_history_items} has {num_frequencies} frequencies, so the filter would pass everything; lower "
            "low_pass.frequencies or raise max_history_items",
        )


class BaseModelSettings(Section):
    """Settings that every base model has, whatever its architecture."""

    kind: str = "sasrec"
    """Architecture of the model."""
    max_history_items: int = Field(50, ge=1)
    """Number of newest items of a history that are read."""
    supervision: Supervision = "every_prefix"
    """Positions of a training history that are samples."""
    seed: int | None = None
    """Seed of this model, so that several models of the same settings differ; null: the seed of the run."""
    train: BaseModelTraining = BaseModelTraining()
    """Training settings."""


class SasRecModel(SasRecSettings, BaseModelSettings):
    """A SASRec model, trained on interactions alone."""

    kind: Literal["sasrec"] = "sasrec"
    """Architecture of the model."""
    max_history_items: int = Field(50, ge=1)
    """Number of newest items of a history that are read."""

    @model_validator(mode="after")
    def _every_position_is_served(self) -> "SasRecModel":
        """Refuse training in one pass where a position would be another function of the history than in serving."""
        one_pass = self.supervision == "every_position"
        check(
            self.low_pass is None or not one_pass,
            "low_pass sees later items, so supervision: every_position would need a pass for each position; set "
            "supervision: every_prefix, or leave low_pass out",
        )
        check(
            self.positions == "relative" or not one_pass,
            "supervision: every_position reads all prefixes in one pass, but with positions: from_newest an item has "
            "another position in each prefix; set positions: relative, or supervision: every_prefix",
        )
        return self
