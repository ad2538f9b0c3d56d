"""Base models: the small models of `pretrain`, which teachers start from and are mixed with."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from slmrec.config.section import Section, check
from slmrec.config.training import BaseModelTraining, TextModelTraining

Supervision = Literal["last_position", "every_position", "every_prefix"]
"""Positions of a training history that are samples.

`last_position`: the newest training item of each user is the only target (the reference). `every_position`: all
positions of a history are targets in one pass. `every_prefix`: each prefix of a history is a sample of its own, read at
its last position.
"""


class StudentSettings(Section):
    """Settings that every student has, whatever its architecture."""

    starts_from_teacher: ClassVar[bool] = False
    """True if the student is made of layers of the teacher's decoder."""
    kind: str
    """Architecture of the student."""

    @property
    def depth(self) -> int:
        """Number of layers whose hidden states can be compared with those of a decoder; 0 if there are none."""
        return 0

    def check_window(self, max_history_items: int) -> None:
        """Refuse settings that do not suit a teacher that reads `max_history_items` items.

        Raises:
            ValueError: The student reads another number of items.
        """


DEFAULT_MAX_HISTORY_ITEMS = 50
"""Number of newest items that a model reads where neither its settings nor its teacher say otherwise."""


MAX_LOW_PASS_ITEMS = 2_048
"""Longest history with a low-pass filter, which holds a matrix of this size squared."""


class LowPassSettings(Section):
    """Low-pass filter beside the attention of each block. Defaults: published settings of BSARec for Beauty."""

    weight: float = Field(0.7, gt=0, lt=1)
    """α, the share of the filter in the output of a block; the attention has the rest."""
    frequencies: int = Field(5, ge=1)
    """c, the number of lowest frequencies that pass: 0, 1, ... cycles in `max_history_items` positions."""
    causal: bool = True
    """Filter each position with the items up to it alone, so that one pass encodes all prefixes of a history; false:
    with all items of the history that is read, as BSARec does."""


class TimeGapSettings(Section):
    """Attention bias by the time between two events and by their distance. Defaults: the bucket function of HSTU."""

    num_buckets: int = Field(128, ge=2, le=1_024)
    """Number of buckets of time gaps; the last one holds all longer gaps."""
    bucket_ratio: float = Field(1.35, gt=1, le=1_000)
    """Ratio of the bounds of neighbouring buckets; the first bucket ends at this number of seconds."""


class SasRecSettings(StudentSettings):
    """Architecture of a SASRec model: a small causal transformer over item vectors."""

    kind: Literal["sasrec"] = "sasrec"
    """Architecture of the model."""
    hidden_size: int = Field(64, ge=1)
    """H, the width of hidden states."""
    num_hidden_layers: int = Field(2, ge=1)
    """Number of transformer blocks."""
    num_attention_heads: int = Field(2, ge=1)
    """Attention heads of each block."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on embeddings, attention outputs and feed-forward outputs."""
    norm_first: bool = False
    """Normalise the input of attention and feed-forward network (pre-norm) instead of their output (post-norm)."""
    max_history_items: int | None = Field(None, ge=1)
    """Number of newest items of a history that are read; null: as many as the teacher reads."""
    positions: Literal["from_newest", "from_oldest", "relative"] = "from_newest"
    """`from_newest`: learned position embeddings, counted back from the newest item of the history. `from_oldest`:
    counted from the oldest item that is read. `relative`: an attention bias is learned for each distance between two
    items. Only the last two mean the same in every prefix of a history."""
    low_pass: LowPassSettings | None = None
    """Low-pass filter beside the attention, after BSARec; `{}` takes its default settings, null leaves it out."""
    time_gaps: TimeGapSettings | None = None
    """Learned attention bias by the time between two events, on a logarithmic scale, and by their distance, after HSTU;
    `{}` takes its default settings, null leaves it out. The log, and every history of a request, must then have
    times."""
    item_dim: int | None = Field(None, ge=1)
    """D, the width of item vectors; null: hidden_size. Another width adds a linear map before the first block and an
    MLP after the last one."""
    item_text: str | None = None
    """Name of the item text (a key of `item_text`) that the model reads; null: IDs alone."""
    item_side: Literal["ids", "text", "both"] = "ids"
    """Item vectors: learned by ID (`ids`; with item_text, they start from its leading components), computed from the
    text by an adaptor (`text`), or the sum of both."""
    adaptor_size: int | None = Field(256, ge=1)
    """Hidden width of the adaptor, an MLP that maps text vectors to item vectors; null: a linear map."""
    text_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the text vectors that the adaptor reads."""
    id_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that the ID vector of an item is left out in training, so that its text must stand for it."""
    scores: Literal["dot", "cosine"] = "dot"
    """Product of user and item vectors, or their cosine divided by `score_temperature`."""
    score_temperature: float = Field(0.07, gt=0)
    """Divisor of cosine scores."""
    repeat_score: Literal["none", "scalar", "by_age", "fitted"] = "none"
    """Term that is added to the scores of the items of the history. `scalar`: one number, which is trained with the
    other weights. `by_age`: one for each age (0: the newest item, up to 9: all older ones). `fitted`: one number, which
    is fitted on validation after training, so that the training ignores it. All learn from the log whether items are
    chosen again."""

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
        check(
            self.low_pass is None or self.num_positions <= MAX_LOW_PASS_ITEMS,
            f"max_history_items is {self.max_history_items}, but low_pass holds a matrix of its square; choose at "
            f"most {MAX_LOW_PASS_ITEMS}, or leave low_pass out",
        )
        return self

    @property
    def item_width(self) -> int:
        """D, the width of item vectors."""
        return self.item_dim or self.hidden_size

    @property
    def means_one_position(self) -> bool:
        """True if a position has the same state in every prefix of a history, so that one pass encodes all prefixes."""
        return self.positions != "from_newest" and (self.low_pass is None or self.low_pass.causal)

    @model_validator(mode="after")
    def _reads_text(self) -> "SasRecSettings":
        check(
            self.item_side == "ids" or self.item_text is not None,
            f"item_side is {self.item_side}, but item_text is null; name a section of item_text, or set item_side: ids",
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
        check(
            self.low_pass is None or self.low_pass.causal or self.supervision != "every_position",
            "supervision: every_position reads all prefixes in one pass, but low_pass.causal: false filters an item "
            "with those after it; set low_pass.causal: true, or supervision: every_prefix",
        )
        check(
            self.means_one_position or self.supervision != "every_position",
            "supervision: every_position reads all prefixes in one pass, but with positions: from_newest an item has "
            "another position in each prefix; set positions: from_oldest or relative, or supervision: every_prefix",
        )
        return self

    @model_validator(mode="after")
    def _repeats_compete(self) -> "SasRecModel":
        check(
            self.repeat_score in ("none", "fitted") or self.train.loss == "ce",
            f"repeat_score is {self.repeat_score}, but train.loss is {self.train.loss}, whose sampled items leave out "
            "those of the history; set train.loss: ce, or repeat_score: fitted",
        )
        return self


class TextModel(SasRecModel):
    """A text model: a SASRec whose item vectors are computed from item texts, with cosine scores.

    Source of the form: EnsRec.
    """

    kind: Literal["text"] = "text"  # type: ignore[assignment]
    """Architecture of the model."""
    hidden_size: int = Field(128, ge=1)
    """H, the width of hidden states."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout on embeddings, attention outputs and feed-forward outputs."""
    norm_first: bool = True
    """Normalise the input of attention and feed-forward network (pre-norm) instead of their output (post-norm)."""
    positions: Literal["from_newest", "from_oldest", "relative"] = "from_oldest"
    """Meaning of positions, as in `SasRecSettings`."""
    item_text: str | None = "words"
    """Name of the item text (a key of `item_text`) that the model reads; null: IDs alone."""
    item_side: Literal["ids", "text", "both"] = "text"
    """Item vectors: learned by ID, computed from the text by an adaptor, or the sum of both."""
    scores: Literal["dot", "cosine"] = "cosine"
    """Product of user and item vectors, or their cosine divided by `score_temperature`."""
    supervision: Supervision = "every_position"
    """Positions of a training history that are samples."""
    train: TextModelTraining = TextModelTraining()
    """Training settings."""


class SasRecStudent(SasRecSettings):
    """A student of SASRec's size."""

    init: Literal["random", "projected"] = "random"
    """Initial item vectors: random, or `projected`: those whose scores are nearest to the teacher's among all vectors
    of `item_dim` numbers (a truncated singular value decomposition). With `item_side: both`, the adaptor of the text
    starts at zero."""

    @model_validator(mode="after")
    def _learns_repeats_from_teacher(self) -> "SasRecStudent":
        check(
            self.repeat_score != "fitted",
            "repeat_score is fitted, but a student learns the score of repeats from its teacher; set repeat_score: "
            "scalar, by_age or none",
        )
        return self

    @model_validator(mode="after")
    def _starts_by_id(self) -> "SasRecStudent":
        by_text = self.item_side == "text" or (self.item_side == "ids" and self.item_text is not None)
        check(
            self.init == "random" or not by_text,
            f"init is projected, which is where ID vectors start, but item_side is {self.item_side} and item_text is "
            f"{self.item_text}; set item_side: both, leave item_text out, or set init: random",
        )
        return self
