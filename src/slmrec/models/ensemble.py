"""Ensembles: the weighted sum of the scores of several models."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from slmrec.models.model import ItemTable, Model, model_without_weights, register, skeleton_of
from slmrec.types import Encoded, Histories, SequenceEncoder, Unit

if TYPE_CHECKING:
    from slmrec.models.decoder import DecoderRecommender
    from slmrec.models.text.item_text import TextMap


class EnsembleConfig(PretrainedConfig):
    """Architecture of an `Ensemble`: the configurations of its models by name, and the weights of their scores.

    Args:
        members: Configurations of the models by name.
        weights: Weights of their scores by name.
        order: Names in the order in which vectors are concatenated, which JSON objects do not keep; None: as given.
    """

    model_type = "slmrec_ensemble"

    def __init__(
        self,
        members: Mapping[str, dict[str, Any]] | None = None,
        weights: Mapping[str, float] | None = None,
        order: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        members, weights = members or {}, weights or {}
        self.order = list(members if order is None else order)
        """Names in the order of the concatenated vectors, since config.json sorts the keys of dictionaries."""
        self.members = {name: members[name] for name in self.order}
        self.weights = {name: weights[name] for name in self.order}
        super().__init__(**kwargs)


class Ensemble(Model):
    """Weighted sum of the scores of several models of the same items.

    A weighted sum of dot products is one dot product of the concatenated vectors, so everything that works with user
    and item vectors works with an ensemble. In probabilities, it is the weighted geometric mean of the distributions.

    The model named `decoder` provides the hidden states, and it alone trains.

    Args:
        config: Architecture.
        models: The models by name; None: they are built from the configuration.

    Example:
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> models = {name: SasRec(SasRecConfig(num_items=40, hidden_size=8)) for name in ("one", "two")}
        >>> Ensemble.of(models, {"one": 0.7, "two": 0.3}).num_items
        40
    """

    config_class = EnsembleConfig
    base_model_prefix = "ensemble"
    config: EnsembleConfig

    def __init__(self, config: EnsembleConfig, models: Mapping[str, Model] | None = None) -> None:
        super().__init__(config)
        built = models or {
            name: model_without_weights(AutoConfig.for_model(**values)) for name, values in config.members.items()
        }
        self.members = nn.ModuleDict(built)
        self.is_loaded_in_4bit = any(getattr(model, "is_loaded_in_4bit", False) for model in built.values())

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights of the models as they are."""

    @classmethod
    def skeleton(cls, config: EnsembleConfig) -> "Ensemble":
        """Return the ensemble of the skeletons of its models."""
        configs = {name: AutoConfig.for_model(**values) for name, values in config.members.items()}
        return cls(config, {name: skeleton_of(values) for name, values in configs.items()})

    def check_values(self) -> None:
        """Check the weights of all models, and that the models have the same items."""
        for model in self.models.values():
            model.check_values()
        sizes = {(model.num_items, model.max_history_items) for model in self.models.values()}
        if len(sizes) > 1:
            raise ValueError(f"its models differ in (items, length of histories): {sorted(sizes)}")
        units = {model.timestamp_unit for model in self.models.values()} - {None}
        if len(units) > 1:
            raise ValueError(f"its models read times in different units: {units}")

    @classmethod
    def of(cls, models: Mapping[str, Model], weights: Mapping[str, float]) -> "Ensemble":
        """Return the ensemble of some models.

        Args:
            models: Models of the same items that read histories of the same length, by name.
            weights: Weight of the scores of each model.
        """
        return cls(EnsembleConfig({name: model.config.to_dict() for name, model in models.items()}, weights), models)

    @property
    def models(self) -> dict[str, Model]:
        """The models by name."""
        return {name: cast(Model, model) for name, model in self.members.items()}

    def with_decoder(self, model: Model) -> "Ensemble":
        """Return the ensemble with another model in the place of its decoder."""
        return Ensemble.of({**self.models, "decoder": model}, self.config.weights)

    @property
    def decoder_part(self) -> "DecoderRecommender | None":
        """Model named `decoder`; None if there is none."""
        return cast("DecoderRecommender", self.members["decoder"]) if "decoder" in self.members else None

    @property
    def num_items(self) -> int:
        """V."""
        return self._first.num_items

    @property
    def max_history_items(self) -> int:
        """Number of newest items of a history that the models read."""
        return self._first.max_history_items

    @property
    def timestamp_unit(self) -> Unit | None:
        """Unit in which at least one of the models reads the times of events; None: none of them does."""
        return next((unit for model in self.models.values() if (unit := model.timestamp_unit)), None)

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states of the decoder, or else of the first model."""
        return (self.decoder_part or self._first).hidden_size

    @property
    def num_layers(self) -> int:
        """Depth of the decoder, or else of the first model."""
        return (self.decoder_part or self._first).num_layers

    @property
    def _first(self) -> Model:
        return next(iter(self.models.values()))

    def item_vectors(self) -> Tensor:
        """(V+1, D) item vectors of all models, concatenated; row 0 is padding."""
        return torch.cat([model.item_vectors() for model in self.models.values()], dim=1)

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
            encoders: Encoders that stand in for the models, by name, such as frozen models; None: the models.

        Raises:
            ValueError: Hidden states are requested, but there is no decoder.
        """
        if num_blocks and self.decoder_part is None:
            raise ValueError("the ensemble has no decoder, so it has no hidden states")
        users: list[Tensor] = []
        states: tuple[Tensor, ...] = ()
        for name, model in self.models.items():
            encoder = model if encoders is None else encoders[name]
            if name == "decoder":
                encoded = encoder.encode(histories, every_position=every_position, num_blocks=num_blocks)
                users.append(encoded.users)
                states = encoded.hidden_states
            else:
                users.append(encoder.encode(histories, every_position=every_position).users)
        return Encoded(self.weighted(users), states, self.history_bonus(histories, every_position=every_position))

    def age_scores(self) -> Tensor | None:
        """Return the weighted sum of the models' scores (A,) for the items of the history."""
        weighted = [
            weight * scores
            for model, weight in zip(self.models.values(), self.config.weights.values(), strict=True)
            if (scores := model.age_scores()) is not None
        ]
        longest = max(map(len, weighted), default=0)
        padded = [torch.cat([scores, scores[-1:].expand(longest - len(scores))]) for scores in weighted]
        return torch.stack(padded).sum(dim=0) if padded else None

    def train(self, mode: bool = True) -> "Ensemble":
        """Set the mode of the decoder; the other models do not learn and stay in eval mode."""
        super().train(mode)
        for name, model in self.models.items():
            if name != "decoder":
                model.eval()
        return self

    @property
    def has_adapters(self) -> bool:
        """True if one of the models has adapters."""
        return any(model.has_adapters for model in self.models.values())

    def merged(self) -> "Ensemble":
        """Return the ensemble of the models with their adapters merged, in eval mode."""
        return Ensemble.of({name: model.merged() for name, model in self.models.items()}, self.config.weights).eval()

    def own_state_dict(self) -> dict[str, Tensor]:
        """Return the weights of all models that the folder of the ensemble holds."""
        return self._by_submodule(lambda model: model.own_state_dict())

    def text_maps(self) -> "dict[str, TextMap]":
        """Return the modules of all models that read item texts."""
        return self._by_submodule(lambda model: model.text_maps())

    def _by_submodule(self, read: Callable[[Model], dict[str, Any]]) -> dict[str, Any]:
        models = self.models.items()
        return {f"members.{key}.{name}": value for key, model in models for name, value in read(model).items()}

    def map_decoders(self, convert: "Callable[[DecoderRecommender], nn.Module]") -> SequenceEncoder:
        """Replace every decoder among the models."""
        for name, model in self.models.items():
            self.members[name] = cast(nn.Module, model.map_decoders(convert))
        return self

    def item_tables(self) -> list[ItemTable]:
        """Return the tables of all models."""
        return [table for model in self.models.values() for table in model.item_tables()]

    def set_num_items(self, num_items: int) -> None:
        """Change V of all models."""
        for name, model in self.models.items():
            model.set_num_items(num_items)
            self.config.members[name] = model.config.to_dict()

    def weighted(self, users: list[Tensor]) -> Tensor:
        """Return the user vectors (N, D) of the models, in their order, times their weights and concatenated."""
        weighted = [weight * vectors for weight, vectors in zip(self.config.weights.values(), users, strict=True)]
        return torch.cat(weighted, dim=-1)


register(Ensemble)
