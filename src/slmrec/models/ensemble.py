"""Several recommenders as one: the scores of a decoder and of smaller models, mixed."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.models.decoder import DecoderRecommender
from slmrec.models.sasrec import SasRec
from slmrec.types import Encoded, Histories, SequenceEncoder

Member = DecoderRecommender | SasRec
PREFIXES = 1024
"""Histories that SASRec reads at once, where every position of a batch is one."""


class EnsembleConfig(PretrainedConfig):
    """Architecture of an `Ensemble`: the configurations of its members by name, and the weights of their scores."""

    model_type = "slmrec_ensemble"

    def __init__(
        self,
        members: Mapping[str, dict[str, Any]] | None = None,
        weights: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.members, self.weights = dict(members or {}), dict(weights or {})
        super().__init__(**kwargs)


class Ensemble(PreTrainedModel):
    """Weighted sum of the scores of several models of the same items; a `SequenceEncoder`.

    A weighted sum of dot products is one dot product of the concatenated vectors, so everything that works with user
    and item vectors works with it. In probabilities it is the weighted geometric mean of the members' distributions.

    A member named `decoder` gives its hidden states, and it alone trains.
    """

    config_class = EnsembleConfig
    base_model_prefix = "ensemble"
    config: EnsembleConfig

    def __init__(self, config: EnsembleConfig, members: Mapping[str, Member] | None = None) -> None:
        super().__init__(config)
        built = members or {name: _member(settings) for name, settings in config.members.items()}
        self.members = nn.ModuleDict(built)
        self.all_tied_weights_keys: dict[str, str] = {}
        self.is_loaded_in_4bit = any(getattr(member, "is_loaded_in_4bit", False) for member in built.values())

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights of the members as they are."""

    @classmethod
    def of(cls, members: Mapping[str, Member], weights: Mapping[str, float]) -> "Ensemble":
        """Return the ensemble of some models.

        Args:
            members: Models of the same items that read histories of the same length, by name.
            weights: Weight of the scores of each model.
        """
        configs = {name: member.config.to_dict() for name, member in members.items()}
        return cls(EnsembleConfig(configs, weights), members)

    def with_member(self, name: str, model: Member) -> "Ensemble":
        """Return the ensemble with another model in the place of a member."""
        return Ensemble.of({**self.members, name: model}, self.config.weights)

    @property
    def decoder_part(self) -> DecoderRecommender | None:
        """Member named `decoder`; None if there is none."""
        return self.members["decoder"] if "decoder" in self.members else None

    @property
    def num_items(self) -> int:
        """V."""
        return self._first.num_items

    @property
    def max_history_items(self) -> int:
        """Number of newest items of a history that the members read."""
        return self._first.max_history_items

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states of the decoder, or else of the first member."""
        return (self.decoder_part or self._first).hidden_size

    @property
    def num_layers(self) -> int:
        """Depth of the decoder, or else of the first member."""
        return (self.decoder_part or self._first).num_layers

    @property
    def _first(self) -> Any:
        return next(iter(self.members.values()))

    def item_vectors(self) -> Tensor:
        """(V+1, D) item vectors of all members, concatenated; row 0 is padding."""
        return torch.cat([member.item_vectors() for member in self.members.values()], dim=1)

    def encode(
        self,
        histories: Histories,
        *,
        every_position: bool = False,
        num_blocks: int = 0,
        encoders: Mapping[str, SequenceEncoder] | None = None,
    ) -> Encoded:
        """Return user vectors (N, D) and, with `num_blocks` > 0, the decoder's hidden states at the end of each block.

        Args:
            histories: Histories on the device of the models.
            every_position: Encode every item position instead of only the newest one.
            num_blocks: Number of blocks of equal depth whose final hidden states are returned.
            encoders: Encoders that stand in for the members, by name, such as frozen members; None: the members.

        Raises:
            ValueError: Hidden states are requested, but there is no decoder.
        """
        if num_blocks and self.decoder_part is None:
            raise ValueError("the ensemble has no decoder, so it has no hidden states")
        users, states = [], ()
        for name, member in self.members.items():
            encoder = member if encoders is None else encoders[name]
            if name == "decoder":
                encoded = encoder.encode(histories, every_position=every_position, num_blocks=num_blocks)
                users.append(encoded.users)
                states = encoded.hidden_states
            else:
                users.append(_users(member, encoder, histories, every_position))
        return Encoded(self.weighted(users), states)

    def forward(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Call `encode`, for wrappers that call the model as a function."""
        return self.encode(histories, every_position=every_position, num_blocks=num_blocks)

    def train(self, mode: bool = True) -> "Ensemble":
        """Set the mode of the decoder; the other members do not learn and stay in eval mode."""
        super().train(mode)
        for name, member in self.members.items():
            if name != "decoder":
                member.eval()
        return self

    def weighted(self, users: list[Tensor]) -> Tensor:
        """Return (N, D) the user vectors of the members, in their order, times their weights and concatenated."""
        weighted = [weight * vectors for weight, vectors in zip(self.config.weights.values(), users, strict=True)]
        return torch.cat(weighted, dim=-1)


def _member(settings: dict[str, Any]) -> PreTrainedModel:
    """A member of a configuration, with weights still to be read."""
    member: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(**settings))
    return member


def _users(member: Member, encoder: SequenceEncoder, histories: Histories, every_position: bool) -> Tensor:
    """(N, D) user vectors of one member."""
    if isinstance(member, DecoderRecommender) or not every_position:
        return encoder.encode(histories, every_position=every_position).users
    return torch.cat([encoder.encode(piece).users for piece in _prefixes(histories)])


def _prefixes(histories: Histories) -> Iterator[Histories]:
    """Each position as the newest of a history of its own: SASRec counts positions back from there."""
    rows = torch.repeat_interleave(histories.lengths)
    firsts = histories.lengths.cumsum(0) - histories.lengths
    lengths = torch.arange(1, len(rows) + 1, device=rows.device) - firsts[rows]
    for start in range(0, len(rows), PREFIXES):
        some = slice(start, start + PREFIXES)
        yield Histories(histories.items[rows[some]], lengths[some])


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
AutoModel.register(EnsembleConfig, Ensemble)
