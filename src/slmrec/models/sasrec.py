"""SASRec: a small causal transformer over item vectors, which are learned by ID, computed from item texts, or both.

Source: Kang and McAuley, Self-Attentive Sequential Recommendation (ICDM 2018). This implementation differs in two ways
that later work found to matter: the meaning of positions is a setting, and the loss is cross-entropy over all items.

Optionally, each block mixes its attention with a low-pass filter of the sequence. Source: Shin et al., An
Attentive Inductive Bias for Sequential Recommendation beyond the Self-Attention (AAAI 2024; BSARec). Optionally, a
learned bias by the time between two events is added to the attention. Source: Zhai et al., Actions Speak Louder than
Words: Trillion-Parameter Sequential Transducers for Generative Recommendations (ICML 2024; HSTU).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.config import SasRecSettings, SasRecStudent
from slmrec.errors import DataError
from slmrec.models.blocks import Block, GapBuckets, LowPass
from slmrec.models.model import ItemTable, Model, ModelConfig, ModelParts, embedding_table, register
from slmrec.models.projection import leading_components, projected_items
from slmrec.models.text.item_text import TextAdaptor, TextMap
from slmrec.types import PER_SECOND, Encoded, Histories, Unit

START_RMS = 0.3
"""Root mean square of initial item vectors that are not random."""
NUM_AGES = 10
"""Number of ages of items with a repeat score of their own."""
REPEAT_SCALE = 10.0
"""Factor of the repeat scores, which reach the size of logits in few steps."""
MAX_PREFIXES = 1024
"""Number of prefixes that are encoded at once where every position of a history needs a pass of its own."""


class SasRecConfig(ModelConfig):
    """Architecture of a `SasRec`: the settings of `SasRecSettings`."""

    model_type = "slmrec_sasrec"
    section = SasRecSettings
    num_components = 0
    """C, the width of the text vectors; 0 without text."""
    timestamp_unit = "s"
    """Unit of times, for a model with `time_gaps`."""


class SasRec(Model):
    """SASRec: user vectors of width D from histories.

    Args:
        config: Architecture; the weights are random.

    Example:
        >>> model = SasRec(SasRecConfig(num_items=100, hidden_size=16)).eval()
        >>> model.encode(Histories(torch.tensor([[3, 7, 0]]), torch.tensor([2]))).users.shape
        torch.Size([1, 16])
    """

    config_class = SasRecConfig
    base_model_prefix = "sasrec"
    config: SasRecConfig

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        settings: SasRecSettings = config.settings
        self.settings, width = settings, settings.hidden_size
        self.item_embeddings, self.text = None, None
        if settings.item_side != "text":
            self.item_embeddings = nn.Embedding(config.num_items + 1, settings.item_width, padding_idx=0)
        if settings.item_side != "ids":
            sizes = config.num_items, config.num_components, settings.item_width
            self.text = TextAdaptor(*sizes, settings.adaptor_size, settings.text_dropout)
        self.position_embeddings = None
        if settings.positions != "relative":
            self.position_embeddings = nn.Embedding(settings.num_positions, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.input_map: nn.Module = nn.Identity()
        self.output_map: nn.Module = nn.Identity()
        if settings.item_width != width:
            self.input_map = nn.Linear(settings.item_width, width)
            self.output_map = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, settings.item_width)
            )
        self.repeat_scores = None
        if settings.repeat_score != "none":
            num_ages = NUM_AGES if settings.repeat_score == "by_age" else 1
            self.repeat_scores = nn.Parameter(torch.zeros(num_ages), requires_grad=not self.fits_repeat_score)
        self.layers = nn.ModuleList(Block(settings) for _ in range(settings.num_hidden_layers))
        self._gap_buckets = None
        if settings.time_gaps is not None:
            if config.timestamp_unit not in PER_SECOND:
                raise ValueError(
                    f"timestamp_unit is {config.timestamp_unit!r}, expected one of {', '.join(PER_SECOND)}"
                )
            self._gap_buckets = GapBuckets(settings.time_gaps, config.timestamp_unit)
        self.post_init()

    @property
    def max_history_items(self) -> int:
        """Number of newest items of a history that the model reads."""
        return self.settings.num_positions

    @property
    def timestamp_unit(self) -> Unit | None:
        """Unit in which the model reads the times of events; None: it reads none."""
        return None if self._gap_buckets is None else self._gap_buckets.unit

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states."""
        return self.settings.hidden_size

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, LowPass):
            nn.init.normal_(module.beta)

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        vectors = self._vectors()
        return F.normalize(vectors, dim=-1) if self.settings.scores == "cosine" else vectors

    def _vectors(self, items: Tensor | None = None) -> Tensor:
        """Return the vectors (..., D) of some items as they are learned, or (V+1, D) of all items."""
        parts = []
        if self.item_embeddings is not None:
            ids = self.item_embeddings.weight if items is None else self.item_embeddings(items)
            if self.training and self.settings.id_dropout:
                ids = ids * (torch.rand(ids.shape[:-1], device=ids.device) >= self.settings.id_dropout)[..., None]
            parts.append(ids)
        if self.text is not None:
            parts.append(self.text(items))
        return sum(parts[1:], parts[0])

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return user vectors (N, D) at the supervised positions; hidden states are not available.

        The vector of a position is that of the prefix that ends there. Where positions mean the same in every prefix,
        one pass gives all of them; otherwise each prefix is encoded by itself.

        Raises:
            DataError: The model reads times, and the histories have none.
            ValueError: Hidden states are requested.
        """
        if num_blocks:
            raise ValueError("SASRec returns no hidden states; set num_blocks to 0")
        if every_position and not self.settings.means_one_position:
            users = torch.cat([self._encode_by_length(prefixes, False) for prefixes in _prefixes(histories)])
        elif self.training and histories.items.device.type == "cpu" and not self.is_sharded:
            users = self._encode_by_length(histories, every_position)
        else:
            users = self._encode(histories, every_position)
        return Encoded(users, bonus=self.history_bonus(histories, every_position=every_position))

    def _encode_by_length(self, histories: Histories, every_position: bool) -> Tensor:
        """Encode histories of similar lengths together, so that a CPU computes little padding."""
        groups = _groups_by_length(histories.lengths)
        users = [self._encode(histories.select(rows).trimmed(), every_position) for rows in groups]
        rows = torch.cat(groups)
        if every_position:
            rows = torch.repeat_interleave(rows, histories.lengths[rows])
        return torch.cat(users)[rows.argsort(stable=True)]

    def _encode(self, histories: Histories, every_position: bool) -> Tensor:
        """Return the user vectors (N, D) of histories whose positions mean the same in every prefix."""
        columns = torch.arange(histories.items.shape[1], device=histories.items.device)
        is_item = columns < histories.lengths[:, None]
        x, gaps = self._inputs(histories, columns), self._gaps(histories)
        for layer in self.layers[:-1]:
            x = layer(x, x, None, columns[None], is_item, gaps)
        if every_position:
            return self._users(self.layers[-1](x, x, None, columns[None], is_item, gaps)[is_item])
        last = histories.lengths - 1
        rows = torch.arange(x.shape[0], device=x.device)
        newest = x[rows, last].unsqueeze(1)
        gaps = None if gaps is None else gaps[rows, last].unsqueeze(1)
        states = self.layers[-1](newest, x, is_item[:, None, None, :], last[:, None], is_item, gaps).squeeze(1)
        return self._users(states)

    def age_scores(self) -> Tensor | None:
        """Return the scores (A,) of the items of the history by their age; training ignores a fitted score."""
        if self.repeat_scores is None or (self.training and self.fits_repeat_score):
            return None
        return REPEAT_SCALE * self.repeat_scores

    @property
    def fits_repeat_score(self) -> bool:
        """True if the score of the items of the history is fitted on validation after training."""
        return bool(self.settings.repeat_score == "fitted")

    @torch.no_grad()
    def set_repeat_score(self, score: float) -> None:
        """Set the score that is added for each occurrence of an item in the history."""
        assert self.repeat_scores is not None
        self.repeat_scores.fill_(score / REPEAT_SCALE)

    def _gaps(self, histories: Histories) -> Tensor | None:
        """Return the buckets (B, L, L) of the times between two events; None if the model reads no times."""
        if self._gap_buckets is None:
            return None
        if histories.times is None:
            raise DataError(
                "the model reads the times of events, but the histories have none; give `timestamps`, as long as each "
                f"history, in {self.timestamp_unit}"
            )
        return self._gap_buckets.of(histories.times)

    def _inputs(self, histories: Histories, columns: Tensor) -> Tensor:
        """Return the input (B, L, H) of the first block."""
        x: Tensor = self.input_map(self._vectors(histories.items))
        if self.position_embeddings is not None:
            from_newest = self.settings.positions == "from_newest"
            places = (histories.lengths[:, None] - 1 - columns).clamp(min=0) if from_newest else columns
            x = x + self.position_embeddings(places)
        inputs: Tensor = self.dropout(x if self.settings.norm_first else self.norm(x))
        return inputs

    def _users(self, states: Tensor) -> Tensor:
        """Return the user vectors (N, D) of outputs of the last block."""
        users: Tensor = self.output_map(self.norm(states) if self.settings.norm_first else states)
        is_cosine = self.settings.scores == "cosine"
        return F.normalize(users, dim=-1) / self.settings.score_temperature if is_cosine else users

    def text_maps(self) -> dict[str, TextMap]:
        """Return the adaptor of the item texts."""
        return {} if self.text is None else {"text": self.text}

    def item_tables(self) -> list[ItemTable]:
        """Return the tables that get a row for each new item."""
        ids = [] if self.item_embeddings is None else [embedding_table(self)]
        return ids + [text.table() for text in self.text_maps().values()]

    @torch.no_grad()
    def start_items(self, vectors: Tensor) -> None:
        """Set the initial item vectors (V+1, D), scaled to a root mean square of 0.3; row 0 becomes zero.

        The last linear map is scaled by the inverse, so that scores keep their size.
        """
        assert self.item_embeddings is not None
        scale = START_RMS / vectors[1:].square().mean().sqrt().clamp(min=1e-12)
        self.item_embeddings.weight.copy_(scale * vectors)
        self.item_embeddings.weight[0] = 0
        if isinstance(self.output_map, nn.Sequential):
            self.output_map[-1].weight.div_(scale)  # type: ignore[operator]


def _groups_by_length(lengths: Tensor) -> list[Tensor]:
    """Return the rows of histories with 1, 2, 3-4, 5-8, ... items, without empty groups."""
    powers = torch.ceil(torch.log2(lengths.double()))
    return [torch.nonzero(powers == power).flatten() for power in torch.unique(powers)]


def _prefixes(histories: Histories) -> Iterator[Histories]:
    """Yield every prefix of the histories as a history of its own, some at a time."""
    rows = torch.repeat_interleave(histories.lengths)
    firsts = histories.lengths.cumsum(0) - histories.lengths
    lengths = torch.arange(1, len(rows) + 1, device=rows.device) - firsts[rows]
    for start in range(0, len(rows), MAX_PREFIXES):
        some = slice(start, start + MAX_PREFIXES)
        yield histories.select(rows[some])._replace(lengths=lengths[some])


def build_sasrec(settings: SasRecSettings, parts: ModelParts) -> SasRec:
    """Return a SASRec model with random weights; item IDs with a text start from its leading components."""
    config = SasRecConfig.of(settings, parts.num_items)
    text = parts.item_text
    if text is None and settings.item_text is not None:  # optional text that the items do not have
        by_id = {"item_text": None, "item_side": "ids", "id_dropout": 0.0}
        config = SasRecConfig.of(settings.model_copy(update=by_id), parts.num_items)
    config.num_components = 0 if text is None else text.vectors.shape[1]
    if settings.time_gaps is not None and parts.timestamp_unit is not None:  # None in a dry run before `prepare`
        config.timestamp_unit = parts.timestamp_unit
    model = SasRec(config)
    if model.text is not None and text is not None:
        model.text.vectors.copy_(text.vectors)
        model.text.reader = text.reader
    elif text is not None:
        model.start_items(leading_components(text.vectors, settings.item_width))
    return model


def build_sasrec_student(settings: SasRecStudent, parts: ModelParts) -> SasRec:
    """Return a student of SASRec's size; its item vectors are random, or projected from the teacher's."""
    model = build_sasrec(settings, parts)
    if settings.init == "projected" and parts.teacher is not None and parts.histories is not None:  # not in a dry run
        if model.text is not None:
            nn.init.zeros_(model.text.map[-1].weight)  # type: ignore[index]
        model.start_items(projected_items(parts.teacher, parts.histories, settings.item_width))
    return model


register(SasRec)
