"""Several recommenders as one: the scores of a decoder and of smaller models, mixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.data.batching import pad_histories
from slmrec.models.decoder import DecoderRecommender, UserState
from slmrec.models.sasrec import SasRec
from slmrec.types import Encoded, Histories

Member = DecoderRecommender | SasRec
PREFIXES = 1024
"""Histories that SASRec reads at once, where every position of a batch is one."""


class EnsembleConfig(PretrainedConfig):
    """Architecture of an `Ensemble`: the configurations of its members, and what each one's scores weigh."""

    model_type = "slmrec_ensemble"

    def __init__(self, members: Sequence[dict[str, Any]] = (), weights: Sequence[float] = (), **kwargs: Any) -> None:
        self.members, self.weights = list(members), list(weights)
        super().__init__(**kwargs)


class Ensemble(PreTrainedModel):
    """The weighted sum of the scores of a decoder and of other models of the same items; a `SequenceEncoder`.

    A weighted sum of dot products is one dot product of the vectors side by side, so whatever works with user and item
    vectors works with it. In probabilities it is the weighted geometric mean of the members' distributions.

    The decoder comes first: its states are the ensemble's, and it alone trains.
    """

    config_class = EnsembleConfig
    base_model_prefix = "ensemble"
    config: EnsembleConfig

    def __init__(self, config: EnsembleConfig, members: Sequence[Member] | None = None) -> None:
        super().__init__(config)
        self.members = nn.ModuleList(members or [_member(settings) for settings in config.members])
        self.all_tied_weights_keys: dict[str, str] = {}
        self.is_loaded_in_4bit = any(getattr(member, "is_loaded_in_4bit", False) for member in self.members)

    def _init_weights(self, module: nn.Module) -> None:
        """Its members bring their weights."""

    @classmethod
    def of(cls, decoder: DecoderRecommender, others: Sequence[Member], weights: Sequence[float]) -> "Ensemble":
        """The ensemble of a decoder and other models.

        Args:
            decoder: its scores weigh what the others leave of 1.
            others: models of the same items that read histories of the same length.
            weights: of the others.
        """
        members = [decoder, *others]
        config = EnsembleConfig([member.config.to_dict() for member in members], [1 - sum(weights), *weights])
        return cls(config, members)

    @property
    def decoder(self) -> DecoderRecommender:
        """The first member."""
        first: DecoderRecommender = self.members[0]  # type: ignore[assignment]
        return first

    @property
    def others(self) -> list[Member]:
        """All members but the decoder."""
        return list(self.members)[1:]  # type: ignore[return-value]

    @property
    def num_items(self) -> int:
        """V."""
        return self.decoder.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history that all read."""
        return self.decoder.max_history_items

    @property
    def hidden_size(self) -> int:
        """H of the decoder."""
        return self.decoder.hidden_size

    @property
    def num_layers(self) -> int:
        """The decoder's depth."""
        return self.decoder.num_layers

    def item_vectors(self) -> Tensor:
        """(V+1, D): those of all members side by side; row 0 is padding."""
        return torch.cat([member.item_vectors() for member in (self.decoder, *self.others)], dim=1)

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """User vectors (N, D) and, if asked for, the decoder's states at the end of each block."""
        encoded = self.decoder.encode(histories, every_position=every_position, num_blocks=num_blocks)
        users = [encoded.users, *(_users(member, histories, every_position) for member in self.others)]
        return Encoded(self._weighted(users), encoded.hidden_states)

    def forward(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Call `encode`, for wrappers that call the model as a function."""
        return self.encode(histories, every_position=every_position, num_blocks=num_blocks)

    def train(self, mode: bool = True) -> "Ensemble":
        """As `nn.Module.train`, for the decoder: the other members do not learn, and drop nothing out."""
        super().train(mode)
        for member in self.others:
            member.eval()
        return self

    @property
    def is_incremental(self) -> bool:
        """Whether `append` can be used; SASRec is no hindrance, it is small enough to read a history again."""
        return all(one.is_incremental for one in (self.decoder, *self.others) if isinstance(one, DecoderRecommender))

    def new_state(self) -> "EnsembleState":
        """The state of a user without history, for `append`."""
        members = enumerate((self.decoder, *self.others))
        return EnsembleState([], {n: one.new_state() for n, one in members if isinstance(one, DecoderRecommender)})

    def append(self, state: "EnsembleState", item: int) -> Tensor:
        """The user vector (D,) after one more item; updates the state."""
        return self.append_all([state], [[item]])[0]

    def append_all(self, states: list["EnsembleState"], items: list[list[int]]) -> Tensor:
        """The user vectors (B, D) after some more items each; updates the states, which must be distinct.

        Decoders go on from what they know; SASRec, whose positions all move, reads the histories again.

        Raises:
            ConfigError: a decoder's positions are right-aligned, so that every new item moves all others.
        """
        for state, more in zip(states, items, strict=True):
            state.items = [*state.items, *more][-self.max_history_items :]
        users = []
        for number, member in enumerate((self.decoder, *self.others)):
            if isinstance(member, DecoderRecommender):
                known = [state.decoders[number] for state in states]
                users.append(member.append_all(known, items))
            else:
                users.append(_read_again(member, [state.items for state in states]))
        return self._weighted(users)

    def make_room(self, states: list["EnsembleState"]) -> None:
        """Prepares full states for their next event, as `DecoderRecommender.make_room`."""
        for number, member in enumerate((self.decoder, *self.others)):
            if isinstance(member, DecoderRecommender):
                member.make_room([state.decoders[number] for state in states])

    def _weighted(self, users: list[Tensor]) -> Tensor:
        weighted = [weight * vectors for weight, vectors in zip(self.config.weights, users, strict=True)]
        return torch.cat(weighted, dim=-1)


@dataclass
class EnsembleState:
    """What `Ensemble.append` keeps of a user."""

    items: list[int]
    """The newest items, oldest first."""
    decoders: dict[int, UserState]
    """What the decoders among the members keep, by their places."""


def _member(settings: dict[str, Any]) -> PreTrainedModel:
    """A member of a configuration, with weights still to be read."""
    member: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(**settings))
    return member


def _users(member: Member, histories: Histories, every_position: bool) -> Tensor:
    """(N, D) user vectors of one member."""
    if isinstance(member, DecoderRecommender) or not every_position:
        return member.encode(histories, every_position=every_position).users
    return torch.cat([member.encode(piece).users for piece in _prefixes(histories)])


def _prefixes(histories: Histories) -> Iterator[Histories]:
    """Each position as the newest of a history of its own: SASRec counts positions back from there."""
    rows = torch.repeat_interleave(histories.lengths)
    firsts = histories.lengths.cumsum(0) - histories.lengths
    lengths = torch.arange(1, len(rows) + 1, device=rows.device) - firsts[rows]
    for start in range(0, len(rows), PREFIXES):
        some = slice(start, start + PREFIXES)
        yield Histories(histories.items[rows[some]], lengths[some])


def _read_again(member: Member, histories: list[list[int]]) -> Tensor:
    """(B, D) the user vectors of whole histories."""
    with torch.inference_mode():
        return member.encode(pad_histories(histories, member.max_history_items).to(member.device)).users


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
AutoModel.register(EnsembleConfig, Ensemble)
