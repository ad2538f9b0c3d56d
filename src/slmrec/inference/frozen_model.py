"""Frozen models: models prepared for answers, and the state that they keep for each user between events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from slmrec.data.batching import pad_histories
from slmrec.topk import by_columns
from slmrec.types import Encoded, Histories, SequenceEncoder, Unit, timestamp_unit_of


@dataclass
class UserCache:
    """State of one user for incremental encoding."""

    items: list[int] = field(default_factory=list)
    """Newest items of the history, oldest first; at most `max_history_items`."""
    times: list[int] = field(default_factory=list)
    """Times of these items, for models that read them; else empty."""


def add_events(
    states: Sequence[Any], items: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None, longest: int
) -> Histories:
    """Append events to the states of some users, keep the newest `longest`, and return the histories."""
    for row, (state, new) in enumerate(zip(states, items, strict=True)):
        state.items = [*state.items, *new][-longest:]
        if times is not None:
            state.times = [*state.times, *times[row]][-longest:]
    known = None if times is None else [state.times for state in states]
    return pad_histories([state.items for state in states], longest, known)


class FrozenModel:
    """Model prepared for answers; `freeze` returns it. Implements `SequenceEncoder`.

    It encodes in eval mode and without gradients. It is a snapshot, and shares the weights that it does not copy: after
    more training, call `freeze` again.

    This class works for any encoder; subclasses are faster for some of them.

    Args:
        model: The encoder. A module is put into eval mode.
        fused: Use the fastest layers and memory layout. False: the model's own layers, so that results do not depend
            on the fast path; evaluation uses this.
    """

    is_incremental = False
    """True if `append` processes only the new items instead of the whole history."""

    def __init__(self, model: SequenceEncoder, *, fused: bool = True) -> None:
        if isinstance(model, nn.Module):
            model.eval()
        self.model: Any = model
        self._fused = fused

    @property
    def num_items(self) -> int:
        """V."""
        return int(self.model.num_items)

    @property
    def max_history_items(self) -> int:
        """Number of newest items of a history that the model reads."""
        return int(self.model.max_history_items)

    @property
    def timestamp_unit(self) -> Unit | None:
        """Unit in which the model reads the times of events; None: it reads none."""
        return timestamp_unit_of(self.model)

    @cached_property
    def device(self) -> torch.device:
        """Device of the model."""
        if isinstance(self.model, nn.Module):
            for weight in chain(self.model.parameters(), self.model.buffers()):
                return weight.device
        return self._item_matrix.device

    def item_vectors(self) -> Tensor:
        """Return (V+1, D) float32 item vectors, as they were at the first call; row 0 is padding."""
        return self._item_matrix

    @cached_property
    def _item_matrix(self) -> Tensor:
        with torch.no_grad():
            vectors: Tensor = self.model.item_vectors().detach().float()
        return by_columns(vectors) if self._fused else vectors

    @torch.inference_mode()
    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Encode histories as `SequenceEncoder.encode` does; they are moved to the device of the model."""
        encoded: Encoded = self.model.encode(
            histories.to(self.device), every_position=every_position, num_blocks=num_blocks
        )
        return encoded

    def new_state(self) -> Any:
        """Return the state of a user without history, for `append`."""
        return UserCache()

    def append(
        self, states: Sequence[Any], items: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None
    ) -> Encoded:
        """Append items to the histories of some users, update their states, and return the encoded histories.

        Args:
            states: Distinct states of `new_state`, one for each user.
            items: New items of each user, oldest first, at least one.
            times: Times of the new items, for a model that reads them.
        """
        return self.encode(add_events(states, items, times, self.max_history_items))

    def slide_window(self, states: Sequence[Any]) -> None:
        """Drop the oldest item of full states in advance, so that their next event is appended faster.

        Results do not change. Call it when there is time between events.
        """
