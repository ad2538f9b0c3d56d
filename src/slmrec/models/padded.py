"""Padded formulation of the decoder, for comparison: the prompt is repeated for every user."""

from typing import Any

import torch
from torch import Tensor, nn

from slmrec.models.decoder import DecoderRecommender
from slmrec.models.packed.interface import NAME
from slmrec.types import Encoded, Histories


class PaddedEncoder(nn.Module):
    """User vectors of a decoder, computed by transformers' own model with its fused attention on a padded batch.

    Each user is a row [prefix; padding; items; response], as in the reference. Tests and benchmarks compare packed
    batches with it; nothing else uses it. It shares the weights of the model.

    Args:
        model: The recommender.
        width: Number of items of a row; shorter histories are padded to it.
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
        """Number of newest items of a history that the model reads."""
        return self.width

    def item_vectors(self) -> Tensor:
        """Return (V+1, D) item vectors."""
        return self.model.item_vectors()

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return user vectors (N, D) and hidden states (N, H) of blocks, as `DecoderRecommender.encode` does."""
        model = self.model
        num_prefix = len(model.prefix)
        columns = torch.arange(histories.items.shape[1], device=histories.items.device)
        rows, columns = torch.nonzero(columns < histories.lengths[:, None], as_tuple=True)
        pads = self.width - histories.lengths
        items = histories.items.new_zeros(len(histories.items), self.width).index_put(
            (rows, columns + pads[rows]), histories.items[rows, columns]
        )
        prompt = [part.expand(len(items), -1, -1) for part in (model.prefix, model.response)]
        inputs = torch.cat([prompt[0], model.item_inputs(items), prompt[1]], dim=1)
        tokens = torch.arange(inputs.shape[1], device=items.device)
        is_pad = (tokens >= num_prefix) & (tokens < num_prefix + pads[:, None])
        position_ids = tokens.expand(len(items), -1)
        if model.config.positions == "contiguous":
            position_ids = position_ids - (tokens >= num_prefix) * pads[:, None]
        output = self._run(inputs, (~is_pad).long(), position_ids.clamp(min=0), num_blocks)
        if every_position:
            supervised = (rows, num_prefix + pads[rows] + columns)
        else:
            users = torch.arange(len(items), device=items.device)
            supervised = (users, torch.full_like(histories.lengths, len(tokens) - 1))
        vectors = model.score(output.last_hidden_state[supervised])
        if not num_blocks:
            return Encoded(vectors)
        per_block = model.num_layers // num_blocks
        states = (output.hidden_states[per_block * k][supervised] for k in range(1, num_blocks + 1))
        return Encoded(vectors, tuple(states))

    def _run(self, inputs: Tensor, mask: Tensor, position_ids: Tensor, num_blocks: int) -> Any:
        """Run transformers' decoder with its own attention."""
        decoder = self.model.decoder
        decoder.set_attn_implementation("sdpa" if decoder._supports_sdpa else "eager")
        try:
            return decoder(
                inputs_embeds=inputs,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=False,
                output_hidden_states=num_blocks > 0,
            )
        finally:
            decoder.set_attn_implementation(NAME)
