"""Frozen decoders: precomputed prompt, fused layers where they pay, and incremental decoding with a key/value cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from slmrec.inference.frozen_model import FrozenModel, UserCache
from slmrec.models import fused_llama
from slmrec.models.decoder import DecoderRecommender, Prefix
from slmrec.models.packed.masks import AttentionPattern, IncrementalAttention
from slmrec.types import Encoded, Histories


@dataclass
class KVCache(UserCache):
    """Key/value cache of one user's history."""

    keys_values: Tensor | None = None
    """(items, W) keys and values of all layers of each item, side by side; None before the first item."""


class FrozenDecoder(FrozenModel):
    """Decoder with a precomputed prompt.

    A small plain LLaMA on a CPU runs as fused layers, which are copies of its weights; other decoders run their own
    layers. Where positions are contiguous, `append` processes only the new items and the response, in one pass for
    all users, until a user has `max_history_items` items: then the oldest item is dropped, all positions change, and
    the whole window is encoded again, unless `slide_window` was called before.

    Args:
        model: The decoder.
        fused: Use fused layers if possible.
    """

    model: DecoderRecommender

    def __init__(self, model: DecoderRecommender, *, fused: bool = True) -> None:
        super().__init__(model, fused=fused)
        self.is_incremental = model.config.positions == "contiguous"
        self._layers: fused_llama.FusedLlama | None = None
        self._item_inputs: Tensor | None = None
        with torch.inference_mode():
            self._prefix: Prefix | None = model.prefill()
            if fused and fused_llama.can_fuse(model.decoder):
                self._layers = fused_llama.FusedLlama(model.decoder, model.max_tokens)
                if (model.num_items + 1) * model.hidden_size <= fused_llama.MAX_WEIGHTS:
                    self._item_inputs = model.item_inputs(torch.arange(model.num_items + 1))

    @property
    def is_fused(self) -> bool:
        """True if the decoder runs as fused layers."""
        return self._layers is not None

    @torch.inference_mode()
    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Encode histories; hidden states and histories beyond `max_history_items` need the model's own layers."""
        model, histories = self.model, histories.to(self.device)
        if self._layers is None or num_blocks or histories.items.shape[1] > self.max_history_items:
            return model.encode(histories, every_position=every_position, num_blocks=num_blocks, prefix=self._prefix)
        batch = model.pack(histories, every_position, self._prefix is not None)
        items = self._inputs_of(batch.items_of(histories))
        inputs = batch.inputs(items, None if self._prefix is not None else model.prefix, model.response)
        pattern = batch.attention(model.max_tokens, self._prefix)
        output = self._run(inputs, batch.position_ids, pattern)
        return Encoded(model.score(output[batch.supervised_in_output]))

    def new_state(self) -> UserCache:
        """Return the state of a user without history."""
        return KVCache() if self.is_incremental else UserCache()

    @torch.inference_mode()
    def append(
        self, states: Sequence[Any], items: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None
    ) -> Encoded:
        """Append items to the histories of some users; see `FrozenModel.append`. Decoders read no times."""
        if not self.is_incremental:
            return super().append(states, items)
        return Encoded(self._extend(states, [self._fit(*pair) for pair in zip(states, items, strict=True)]))

    @torch.inference_mode()
    def slide_window(self, states: Sequence[Any]) -> None:
        """Encode full histories again without their oldest item, so that the next event costs one item."""
        full = [state for state in states if len(state.items) == self.max_history_items > 1]
        if not self.is_incremental or not full:
            return
        recomputed = [KVCache() for _ in full]
        self._extend(recomputed, [state.items[1:] for state in full])
        for state, cache in zip(full, recomputed, strict=True):
            state.items, state.keys_values = cache.items, cache.keys_values

    def _fit(self, cache: KVCache, items: Sequence[int]) -> list[int]:
        """Return the items to process after the cache; a cache that would become too long is emptied."""
        if len(cache.items) + len(items) <= self.max_history_items:
            return list(items)
        window = [*cache.items, *items][-self.max_history_items :]
        cache.items, cache.keys_values = [], None
        return window

    def _extend(self, caches: Sequence[KVCache], items: list[list[int]]) -> Tensor:
        """Return the user vectors (B, D) after more items of each user, all of which fit, and update the caches."""
        model, device = self.model, self.device
        inputs = self._inputs_of(torch.tensor([item for new in items for item in new], device=device))
        if len(model.response):
            parts = torch.split(inputs, [len(new) for new in items])
            inputs = torch.cat([part for own in parts for part in (own, model.response)])
        lengths = [len(new) + len(model.response) for new in items]
        starts = [len(model.prefix) + len(cache.items) for cache in caches]
        positions = [start + step for start, length in zip(starts, lengths, strict=True) for step in range(length)]
        cached = [cache.keys_values for cache in caches]
        pattern = IncrementalAttention(model.max_tokens, lengths, cached, self._prefix, device)
        output = self._run(inputs, torch.tensor(positions, device=device), pattern)
        for cache, new, own in zip(caches, items, torch.split(pattern.recorded(), lengths), strict=True):
            # A copy, because a view would keep the keys and values of the whole batch alive.
            earlier = own[:0] if cache.keys_values is None else cache.keys_values
            cache.keys_values = torch.cat([earlier, own[: len(new)]])
            cache.items = [*cache.items, *new]
        if len(output) > len(caches):
            output = output[torch.tensor([end - 1 for end in accumulate(lengths)], device=device)]
        users: Tensor = model.score(output)
        return users

    def _inputs_of(self, items: Tensor) -> Tensor:
        """Return the input vectors (tokens, H) of items."""
        return self.model.item_inputs(items) if self._item_inputs is None else self._item_inputs.index_select(0, items)

    def _run(self, inputs: Tensor, position_ids: Tensor, pattern: AttentionPattern) -> Tensor:
        """Return the output of the last layer after the final norm."""
        if self._layers is not None:
            return self._layers.run(inputs, position_ids, pattern)
        return self.model.run_layers(inputs, position_ids, pattern).output
