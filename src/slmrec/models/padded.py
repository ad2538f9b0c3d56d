"""Padded formulation of the decoder: the prompt is repeated for every user."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slmrec.models.packed.batch import free_positions
from slmrec.models.packed.interface import NAME
from slmrec.models.packed.rows import PaddedAttention, is_padded_faster, pad_rows
from slmrec.types import Encoded, Histories

if TYPE_CHECKING:
    from slmrec.models.decoder import DecoderRecommender


def is_padded(model: "DecoderRecommender", histories: Histories) -> bool:
    """Return whether a batch is encoded padded, by the setting `engine` of the model or, with `auto`, by its sizes."""
    device, num_users = histories.items.device.type, len(histories.lengths)
    if model.engine != "auto" or device == "cpu" or num_users == 1:
        return model.engine == "padded"
    num_prefix, num_response = len(model.prefix), len(model.response)
    packed = num_prefix + int(histories.lengths.sum()) + num_users * num_response
    padded = num_users * (num_prefix + histories.items.shape[1] + num_response)
    linear = [part for part in model.decoder.layers[0].modules() if isinstance(part, nn.Linear)]
    return is_padded_faster(device, sum(part.in_features * part.out_features for part in linear), packed, padded)


def encode_rows(
    model: "DecoderRecommender", histories: Histories, every_position: bool, num_blocks: int, per_block: int
) -> Encoded:
    """Return what `DecoderRecommender.encode` returns, computed with a padded row for each user.

    Args:
        model: The recommender.
        histories: Histories on its device.
        every_position: Encode every item position instead of only the newest one.
        num_blocks: Number of blocks whose final hidden states are returned.
        per_block: Number of layers of a block.
    """
    pads = free_positions(histories, model.config.positions, model.config.max_history_items)
    batch = pad_rows(histories, every_position, len(model.prefix), len(model.response), pads)
    output = model.decoder(
        inputs_embeds=batch.inputs(model.item_inputs(histories.items), model.prefix, model.response),
        position_ids=batch.position_ids,
        pattern=PaddedAttention(model.max_tokens),
        use_cache=False,
        output_hidden_states=num_blocks > 0,
    )
    last = output.last_hidden_state[batch.supervised]
    if not num_blocks:
        return Encoded(model.score(last))
    inner = (output.hidden_states[per_block * block][batch.supervised] for block in range(1, num_blocks))
    return Encoded(model.score(last), (*inner, last))


class PaddedEncoder(nn.Module):
    """User vectors of a decoder, computed by transformers' own model with its own attention and masks.

    Each user is a row [prefix; padding; items; response], as in the reference. Tests and benchmarks compare the engine
    with it; nothing else uses it. It shares the weights of the model.

    Args:
        model: The recommender.
        width: Number of items of a row; shorter histories are padded to it.
    """

    def __init__(self, model: "DecoderRecommender", width: int) -> None:
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
