"""Recommenders as graphs for other runtimes: fixed operations on dynamic shapes, the best items chosen inside."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from slmrec.models.build import standalone
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.loader import Model
from slmrec.types import Encoded, Histories, SequenceEncoder

INPUTS = ("items", "lengths", "excluded", "allowed", "k")
OUTPUTS = ("best", "scores")


class ExportableDecoder(nn.Module):
    """The user vectors of a decoder at the newest position, by the stock transformers model on a padded batch.

    A row is [prefix; pads; items; response], as long as the longest history of the batch needs; pads are masked, and
    positions are those of the model, so that the vectors are the model's own. Takes the model's weights over.
    """

    def __init__(self, model: DecoderRecommender) -> None:
        super().__init__()
        self.model = model
        model.decoder.set_attn_implementation("eager")  # fused attention has no place in a graph for other runtimes

    @property
    def num_items(self) -> int:
        """V."""
        return self.model.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history."""
        return self.model.max_history_items

    def item_vectors(self) -> Tensor:
        """(V+1, D)."""
        return self.model.item_vectors()

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """User vectors (B, D).

        Raises:
            ValueError: block states or every position are asked for.
        """
        if num_blocks or every_position:
            raise ValueError("an exported decoder gives the vector of the newest position alone")
        model, (num_users, width) = self.model, histories.items.shape
        pads = width - histories.lengths[:, None]
        items = histories.items.gather(1, (torch.arange(width) - pads).clamp(min=0))
        prefix, response = (part.expand(num_users, -1, -1) for part in (model.prefix, model.response))
        inputs = torch.cat([prefix, model.item_inputs(items), response], dim=1)
        at = torch.arange(inputs.shape[1])
        after = at >= len(model.prefix)
        # Contiguous: the items follow the prefix. Right-aligned: they end at the longest history's last place.
        moved = pads if model.config.positions == "contiguous" else pads * 0 + width - model.max_history_items
        positions = (at - after * moved).clamp(min=0)
        real = ~after | (at >= len(model.prefix) + pads)
        visible = real[:, None, None, :] & (at[None, :] <= at[:, None])
        mask = torch.zeros_like(visible, dtype=inputs.dtype).masked_fill(~visible, torch.finfo(inputs.dtype).min)
        output = model.decoder(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False)
        return Encoded(model.score(output.last_hidden_state[:, -1]))


class TopItems(nn.Module):
    """From histories to their best items, as `slmrec.training.full_softmax.top_k` chooses them.

    Args:
        model: what encodes histories.
        item_vectors: (V+1, D).
        allowed: (V+1,) bool, the items that may be recommended at all.
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
        self, items: Tensor, lengths: Tensor, excluded: Tensor, allowed: Tensor, k: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Items (B, k) and scores (B, k), best first; where fewer are left, the item 0 with the score -inf.

        Args:
            items: (B, L) the newest items of each history, oldest first, padded with 0 on the right.
            lengths: (B,) how many there are, at least 1.
            excluded: (B, E) items that a user must not get, padded with 0.
            allowed: (V+1,) bool, the items that anyone may get.
            k: scalar; at most V are given.
        """
        users = self.model.encode(Histories(items, lengths)).users
        scores = (users @ self.table.T).masked_fill(~(allowed & self.may_rank), -torch.inf)
        scores = scores.scatter(1, excluded, -torch.inf)
        wanted: Any = k.clamp(1, len(self.may_rank) - 1).item()  # traced: a symbol, no number
        torch._check(wanted >= 1)  # type: ignore[no-untyped-call]
        torch._check(wanted < len(self.may_rank))  # type: ignore[no-untyped-call]
        best, places = torch.topk(scores, wanted, dim=1)
        return places.masked_fill(best == -torch.inf, 0), best


def as_program(model: Model, allowed: Tensor) -> ExportedProgram:
    """The graph of `TopItems` with any number of users, items and exclusions; adapters are merged.

    Args:
        model: is not changed.
        allowed: (V+1,) bool, the items that may be recommended at all.
    """
    graph = TopItems(exportable(model), model.item_vectors(), allowed).eval()
    width = min(2, model.max_history_items)
    example = (
        torch.ones(3, width, dtype=torch.int64),
        torch.full((3,), width),
        torch.ones(3, 4, dtype=torch.int64),
        torch.ones(model.num_items + 1, dtype=torch.bool),
        torch.tensor(1),
    )
    per_user = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes: tuple[dict[int, Any], ...] = (per_user, {0: Dim.DYNAMIC}, per_user, {}, {})
    with torch.no_grad():
        return torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)


def exportable(model: Model) -> SequenceEncoder:
    """A copy whose decoders, itself or its members, run as the stock transformers model does."""
    model.train(False)  # forgets the prefix that is kept for inference, which cannot be copied
    copied = copy.deepcopy(model)
    if isinstance(copied, DecoderRecommender):
        return _exportable(copied)
    for name, member in list(copied.named_modules()):
        if isinstance(member, DecoderRecommender):
            parent, _, own = name.rpartition(".")
            setattr(copied.get_submodule(parent), own, _exportable(member))
    return copied


def _exportable(model: DecoderRecommender) -> ExportableDecoder:
    return ExportableDecoder(standalone(model) if model.config.lora else model)
