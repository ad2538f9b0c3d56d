"""Freezing: turn a trained model into the form that answers requests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import torch

from slmrec.inference.frozen_model import FrozenModel, UserCache, add_events
from slmrec.inference.incremental import FrozenDecoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.types import Encoded, Histories, SequenceEncoder


@singledispatch
def freeze(model: SequenceEncoder, *, fused: bool = True) -> FrozenModel:
    """Return a model prepared for answers: what does not depend on the request is computed once.

    This covers the item vectors, the keys and values of a decoder's prompt, and, for a small LLaMA on a CPU, fused
    layers. The result is a snapshot that shares the weights it does not copy: after more training, call `freeze`
    again. The model itself keeps nothing for inference. Any encoder works; `freeze.register` adds faster forms.

    Args:
        model: The encoder. A module is put into eval mode.
        fused: Use fused layers and the memory layout that is fast for top-k. False: the model's own layers, for
            results that are bit-identical on all paths; evaluation uses this.

    Example:
        >>> import torch
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> from slmrec.types import Histories
        >>> frozen = freeze(SasRec(SasRecConfig(num_items=20, hidden_size=8, max_history_items=5)))
        >>> frozen.encode(Histories(torch.tensor([[3, 7, 0]]), torch.tensor([2]))).users.shape
        torch.Size([1, 8])
        >>> state = frozen.new_state()
        >>> frozen.append([state], [[3, 7]]).users.shape
        torch.Size([1, 8])
    """
    return FrozenModel(model, fused=fused)


@freeze.register
def _(model: DecoderRecommender, *, fused: bool = True) -> FrozenModel:
    return FrozenDecoder(model, fused=fused)


@freeze.register
def _(model: Ensemble, *, fused: bool = True) -> FrozenModel:
    return FrozenEnsemble(model, fused=fused)


@dataclass
class EnsembleCache(UserCache):
    """State of one user for every member of an ensemble."""

    members: dict[str, Any] = field(default_factory=dict)


class FrozenEnsemble(FrozenModel):
    """Ensemble whose members are frozen; members that are not incremental encode the history again at each event."""

    model: Ensemble

    def __init__(self, model: Ensemble, *, fused: bool = True) -> None:
        super().__init__(model, fused=fused)
        members: Any = model.members.items()
        self.members: dict[str, FrozenModel] = {name: freeze(member, fused=fused) for name, member in members}
        self.is_incremental = any(member.is_incremental for member in self.members.values())

    @torch.inference_mode()
    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Encode histories as `Ensemble.encode` does, with the frozen members."""
        return self.model.encode(
            histories.to(self.device), every_position=every_position, num_blocks=num_blocks, encoders=self.members
        )

    def new_state(self) -> UserCache:
        """Return the state of a user without history."""
        return EnsembleCache(members={name: member.new_state() for name, member in self.members.items()})

    @torch.inference_mode()
    def append(
        self, states: Sequence[Any], items: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None = None
    ) -> Encoded:
        """Append items to the histories of some users; see `FrozenModel.append`."""
        histories = add_events(states, items, times, self.max_history_items).to(self.device)
        users = [
            member.append([state.members[name] for state in states], items, times).users
            for name, member in self.members.items()
        ]
        return Encoded(self.model.weighted(users), bonus=self.model.history_bonus(histories))

    def slide_window(self, states: Sequence[Any]) -> None:
        """Slide the windows of all members."""
        for name, member in self.members.items():
            member.slide_window([state.members[name] for state in states])
