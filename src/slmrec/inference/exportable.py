"""Recommenders as computation graphs for other runtimes: fixed operations, dynamic shapes, top-k inside the graph."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from slmrec.errors import ConfigError
from slmrec.files import one_line
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.model import Model
from slmrec.types import Encoded, Histories, SequenceEncoder

INPUTS = ("items", "lengths", "excluded", "allowed", "k")
TIMES = "timestamps"
"""Further input of models that read the times of events."""
OUTPUTS = ("best", "scores")


class ExportableDecoder(nn.Module):
    """User vectors of a decoder at the newest position, computed by transformers' own model on a padded batch.

    Each user is a row [prefix; padding; items; response], as long as the longest history of the batch requires. The
    padding is masked and the positions are those of the model, so the user vectors are the same. Shares the weights of
    the model and changes its attention.
    """

    def __init__(self, model: DecoderRecommender) -> None:
        super().__init__()
        self.model = model
        model.decoder.set_attn_implementation("eager")  # other runtimes have no fused attention

    @property
    def num_items(self) -> int:
        """V."""
        return self.model.num_items

    @property
    def max_history_items(self) -> int:
        """Number of newest items of a history that the model reads."""
        return self.model.max_history_items

    def item_vectors(self) -> Tensor:
        """Return (V+1, D) item vectors."""
        return self.model.item_vectors()

    def age_scores(self) -> None:
        """Return None: decoders have no scores of the items of the history."""

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return user vectors (B, D).

        Raises:
            ValueError: Hidden states or every position are requested.
        """
        if num_blocks or every_position:
            raise ValueError("an exported decoder returns the user vector of the newest position only")
        model, (num_users, width) = self.model, histories.items.shape
        pads = width - histories.lengths[:, None]
        items = histories.items.gather(1, (torch.arange(width) - pads).clamp(min=0))
        prefix, response = (part.expand(num_users, -1, -1) for part in (model.prefix, model.response))
        inputs = torch.cat([prefix, model.item_inputs(items), response], dim=1)
        tokens = torch.arange(inputs.shape[1])
        is_after_prefix = tokens >= len(model.prefix)
        # Contiguous: the items follow the prefix. Right-aligned: they end where the longest possible history ends.
        shift = pads if model.config.positions == "contiguous" else pads * 0 + width - model.max_history_items
        positions = (tokens - is_after_prefix * shift).clamp(min=0)
        is_token = ~is_after_prefix | (tokens >= len(model.prefix) + pads)
        visible = is_token[:, None, None, :] & (tokens[None, :] <= tokens[:, None])
        mask = torch.zeros_like(visible, dtype=inputs.dtype).masked_fill(~visible, torch.finfo(inputs.dtype).min)
        output = model.decoder(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False)
        return Encoded(model.score(output.last_hidden_state[:, -1]))


class TopItems(nn.Module):
    """Best items of histories, as `slmrec.topk.top_k` chooses them.

    Args:
        model: Encoder of histories.
        item_vectors: (V+1, D) item vectors.
        allowed: (V+1,) bool, items that may be recommended at all.
    """

    table: Tensor
    may_rank: Tensor

    def __init__(self, model: SequenceEncoder, item_vectors: Tensor, allowed: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("table", item_vectors.detach().float().clone())
        self.register_buffer("may_rank", allowed.clone())
        self.may_rank[0] = False

    def forward(
        self,
        items: Tensor,
        lengths: Tensor,
        excluded: Tensor,
        allowed: Tensor,
        k: Tensor,
        timestamps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return items (B, k) and scores (B, k), best first; where fewer are left, the item is 0 and the score -inf.

        Args:
            items: (B, L) newest items of each history, oldest first, padded with 0 on the right.
            lengths: (B,) number of items of each history, at least 1.
            excluded: (B, E) items that a user must not get, padded with 0.
            allowed: (V+1,) bool, items that may be recommended in this request.
            k: Scalar number of items; at most V are returned.
            timestamps: (B, L) times of the items in the `timestamp_unit` of the model, padded with 0; None: the model
                reads no times.
        """
        encoded = self.model.encode(Histories(items, lengths, timestamps))
        scores = encoded.users @ self.table.T
        if encoded.bonus is not None:
            scores = scores.scatter_add(1, encoded.bonus.items, encoded.bonus.scores)
        scores = scores.masked_fill(~(allowed & self.may_rank), -torch.inf)
        scores = scores.scatter(1, excluded, -torch.inf)
        size: Any = k.clamp(1, len(self.may_rank) - 1).item()  # a symbol while the graph is traced
        torch._check(size >= 1)  # type: ignore[no-untyped-call]
        torch._check(size < len(self.may_rank))  # type: ignore[no-untyped-call]
        best, places = torch.topk(scores, size, dim=1)
        return places.masked_fill(best == -torch.inf, 0), best


def as_program(model: Model, allowed: Tensor) -> ExportedProgram:
    """Return the graph of `TopItems` for any number of users, items and exclusions; adapters are merged.

    Args:
        model: The model; it is not changed.
        allowed: (V+1,) bool, items that may be recommended at all.

    Raises:
        ConfigError: Scores of the model are more than products of user and item vectors, or its operations cannot be
            traced.
    """
    check_exportable(model)
    graph = TopItems(exportable(model), model.item_vectors(), allowed).eval()
    width = min(2, model.max_history_items)
    example: tuple[Tensor, ...] = (
        torch.ones(3, width, dtype=torch.int64),
        torch.full((3,), width),
        torch.ones(3, 4, dtype=torch.int64),
        torch.ones(model.num_items + 1, dtype=torch.bool),
        torch.tensor(1),
    )
    per_user = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes: tuple[dict[int, Any], ...] = (per_user, {0: Dim.DYNAMIC}, per_user, {}, {})
    if model.timestamp_unit is not None:
        example, shapes = (*example, torch.zeros(3, width, dtype=torch.int64)), (*shapes, per_user)
    try:
        with torch.no_grad():
            return torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
    except RuntimeError as error:
        raise ConfigError(
            f"export: torch.export cannot trace {type(model).__name__} with histories of any length "
            f"({one_line(error)}); use its model folder"
        ) from None


def check_exportable(model: Model) -> None:
    """Refuse models whose scores have a term besides the product of user and item vectors.

    Raises:
        ConfigError: The model has such a term.
    """
    one = torch.ones(1, 1, dtype=torch.int64)
    first = Histories(one, one[0], one)
    with torch.inference_mode():
        has_bonus = model.encode(first).bonus is not None
    if has_bonus and model.age_scores() is None:
        raise ConfigError(
            f"export: {type(model).__name__} adds scores to single items, which neither a graph nor an index holds; "
            "use its model folder"
        )


def exportable(model: Model) -> SequenceEncoder:
    """Return a copy in eval mode whose decoders, itself or its members, run transformers' own attention."""
    return copy.deepcopy(model).eval().map_decoders(_exportable)


def _exportable(model: DecoderRecommender) -> ExportableDecoder:
    return ExportableDecoder(model.merged() if model.has_adapters else model)
