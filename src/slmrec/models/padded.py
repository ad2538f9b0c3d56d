"""The naive formulation, for comparison: every user padded to the longest history, the prompt in front of each."""

import torch
from torch import Tensor, nn

from slmrec.models.decoder import DecoderRecommender
from slmrec.models.packed.interface import NAME
from slmrec.types import Encoded, Histories


class PaddedEncoder(nn.Module):
    """The same user vectors as the model's own, by the stock transformers model with its fused attention.

    A row is [prefix; pads; items; response] for each user, as in the reference, whose pads stand in the middle. Tests
    and benchmarks measure the engine against this; nothing else uses it. Shares the model's weights.

    Args:
        model: the recommender.
        width: items a row has place for; shorter histories are padded to it.
    """

    def __init__(self, model: DecoderRecommender, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width

    @property
    def num_items(self) -> int:
        """V."""
        return self.model.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history."""
        return self.width

    def item_vectors(self) -> Tensor:
        """(V+1, D)."""
        return self.model.item_vectors()

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """User vectors (N, D) and block states (N, H), as `DecoderRecommender.encode`."""
        model = self.model
        num_prefix = len(model.prefix)
        columns = torch.arange(histories.items.shape[1], device=histories.items.device)
        rows, columns = torch.nonzero(columns < histories.lengths[:, None], as_tuple=True)
        pads = self.width - histories.lengths
        items = histories.items.new_zeros(len(histories.items), self.width).index_put(
            (rows, columns + pads[rows]), histories.items[rows, columns]
        )
        vectors = model.item_inputs(items)
        prompt = [part.expand(len(items), -1, -1) for part in (model.prefix, model.response)]
        inputs = torch.cat([prompt[0], vectors, prompt[1]], dim=1)
        at = torch.arange(inputs.shape[1], device=items.device)
        is_pad = (at >= num_prefix) & (at < num_prefix + pads[:, None])
        positions = at.expand(len(items), -1)
        if model.config.positions == "contiguous":
            positions = positions - (at >= num_prefix) * pads[:, None]
        output = self._stock(inputs, (~is_pad).long(), positions.clamp(min=0), num_blocks)
        if every_position:
            read = (rows, num_prefix + pads[rows] + columns)
        else:
            read = (torch.arange(len(items), device=items.device), torch.full_like(histories.lengths, len(at) - 1))
        users = model.score(output.last_hidden_state[read])
        if not num_blocks:
            return Encoded(users)
        per_block = model.num_layers // num_blocks
        return Encoded(users, tuple(output.hidden_states[per_block * k][read] for k in range(1, num_blocks + 1)))

    def _stock(self, inputs: Tensor, mask: Tensor, positions: Tensor, num_blocks: int):  # type: ignore[no-untyped-def]
        decoder = self.model.decoder
        decoder.set_attn_implementation("sdpa" if decoder._supports_sdpa else "eager")
        try:
            return decoder(
                inputs_embeds=inputs,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                output_hidden_states=num_blocks > 0,
            )
        finally:
            decoder.set_attn_implementation(NAME)
