"""Base classes of all models: the architecture of a model, and the operations that callers need from it.

A new architecture derives from both, implements `encode` and `item_vectors`, and is registered with `register`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from slmrec.config import DecoderTraining, Section, StudentSettings
from slmrec.config.kinds import KINDS, Kind
from slmrec.errors import CheckpointError, ConfigError
from slmrec.types import Encoded, Histories, ItemBonus, SequenceEncoder, Unit

if TYPE_CHECKING:
    from slmrec.models.decoder import DecoderRecommender
    from slmrec.models.text.item_text import ItemText, TextMap


class ModelConfig(PretrainedConfig):
    """Architecture of a model: the number of items and the settings of its section, which is written to config.json.

    A subclass sets `model_type` and `section`. The settings are validated by the section whenever a configuration is
    made or read, so that values out of range are refused.

    Args:
        num_items: Number of items, V.
        values: Settings of the section, and what transformers adds.
    """

    section: ClassVar[type[Section]]
    """Class of the settings."""

    def __init_subclass__(cls, **options: Any) -> None:
        if "__init__" not in vars(cls):
            cls.__init__ = ModelConfig.__init__  # type: ignore[method-assign] # else transformers generates one
        super().__init_subclass__(**options)

    def __init__(self, num_items: int = 1, **values: Any) -> None:
        names = self._names() & values.keys()
        settings = self.section.model_validate({name: values.pop(name) for name in names})
        self.num_items = num_items
        for name, value in settings.model_dump(mode="json", include=self._names()).items():
            setattr(self, name, value)
        super().__init__(**values)

    @classmethod
    def of(cls, settings: Section, num_items: int) -> "ModelConfig":
        """Return the architecture of a section, or of a section that extends it by settings of training."""
        return cls(num_items, **settings.model_dump(mode="json", include=cls._names()))

    @property
    def settings(self) -> Any:
        """Settings as an instance of `section`."""
        return self.section.model_validate({name: getattr(self, name) for name in self._names()})

    @classmethod
    def _names(cls) -> set[str]:
        return set(cls.section.model_fields) - {"kind"}


class ModelParts(NamedTuple):
    """Inputs from which a model is built, besides its settings."""

    num_items: int
    """V."""
    item_text: "ItemText | None" = None
    """Vectors of the item texts, for models that read them."""
    section: str = ""
    """Path of the settings in the YAML, for messages."""
    teacher: "Model | None" = None
    """Teacher of a student, which may start from its layers or item vectors."""
    histories: Histories | None = None
    """Some histories of users, on which layers or scores of the teacher can be compared."""
    timestamp_unit: Unit | None = None
    """Unit of the times of the data; None: they have none."""


class ItemTable(NamedTuple):
    """Table of a model with one row for each item."""

    values: Tensor
    """(V+1, width); row 0 is the padding item."""
    replace: Callable[[Tensor], None]
    """Puts a longer table in its place."""
    text: "TextMap | None" = None
    """Module that reads the table, if its rows are text vectors; None: the rows are learned or counted."""


class Model(PreTrainedModel):
    """A `SequenceEncoder` that is trained, saved and opened.

    Subclasses implement `encode` and `item_vectors`; the other methods have defaults that suit a model whose weights
    are all its own and whose item vectors are the embedding `item_embeddings`.
    """

    all_tied_weights_keys: dict[str, str] = {}  # noqa: RUF012 - read by transformers
    is_sharded = False
    """True if all processes must call each layer equally often, since each call gathers its weights."""

    @classmethod
    def build(cls, settings: Any, parts: ModelParts) -> "Model":
        """Return a model with random weights; a class that starts from a teacher or reads texts replaces this.

        Args:
            settings: Settings of the architecture.
            parts: Inputs besides the settings.
        """
        return cls(cls.config_class.of(settings, parts.num_items))

    @classmethod
    def without_weights(cls, config: Any) -> "Model":
        """Return a model of an architecture whose own weights are still to be loaded.

        Raises:
            CheckpointError: Pretrained weights that it builds on cannot be found.
        """
        return cls(config)

    @classmethod
    def skeleton(cls, config: Any) -> "Model":
        """Return a model of an architecture on the meta device, whose weights have shapes and take no memory.

        Raises:
            CheckpointError: Pretrained weights that it builds on cannot be found.
        """
        with torch.device("meta"):
            return cls(config)

    def check_values(self) -> None:
        """Check weights that have a meaning of their own, such as indices, after they are loaded.

        Raises:
            ValueError: They contradict each other.
        """

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return user vectors and hidden states, as `SequenceEncoder.encode`."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        raise NotImplementedError

    def forward(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Call `encode`, for wrappers that call the model as a function."""
        return self.encode(histories, every_position=every_position, num_blocks=num_blocks)

    def eval(self) -> Self:
        """Set eval mode."""
        super().eval()
        return self

    def age_scores(self) -> Tensor | None:
        """Return scores (A,) that are added for the items of the history by their age; None: no such term.

        Age 0 is the newest item; items older than A-1 get the last score.
        """
        return None

    @property
    def fits_repeat_score(self) -> bool:
        """True if the score of the items of the history is fitted on validation after training."""
        return False

    def set_repeat_score(self, score: float) -> None:
        """Set the score that is added for each occurrence of an item in the history.

        Raises:
            ValueError: The model has no such score.
        """
        raise ValueError(f"{type(self).__name__} has no score of repeats that is fitted")

    def history_bonus(self, histories: Histories, *, every_position: bool = False) -> ItemBonus | None:
        """Return the score term of the items of the history at each supervised position; None: there is none."""
        scores = self.age_scores()
        return None if scores is None else repeat_bonus(scores, histories, every_position)

    @property
    def num_items(self) -> int:
        """V."""
        return int(self.config.num_items)

    @property
    def max_history_items(self) -> int:
        """Number of newest items of a history that the model reads."""
        return int(self.config.max_history_items)

    @property
    def timestamp_unit(self) -> Unit | None:
        """Unit in which the model reads the times of events; None: it reads none."""
        return None

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states; by default that of the item vectors."""
        return int(self.item_vectors().shape[1])

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return int(getattr(self.config, "num_hidden_layers", 0))

    @property
    def decoder_part(self) -> "DecoderRecommender | None":
        """Decoder that the model is or contains, from whose layers a student may start; None if there is none."""
        return None

    def with_decoder(self, model: "Model") -> "Model":
        """Return this model with another one in the place of its decoder: the other one, unless this is an ensemble."""
        return model

    @property
    def has_adapters(self) -> bool:
        """True if the model has adapters on frozen layers, which are the backbone's or of the model's own folder."""
        return False

    def merged(self) -> "Model":
        """Return the model with its adapters merged into the layers, in eval mode."""
        return self.eval()

    def own_state_dict(self) -> dict[str, Tensor]:
        """Return the weights that its folder holds by name, without those of a backbone and of adapters."""
        state: dict[str, Tensor] = self.state_dict()
        return state

    def text_maps(self) -> dict[str, "TextMap"]:
        """Return the modules that read item texts, by their names as submodules."""
        return {}

    def map_decoders(self, convert: "Callable[[DecoderRecommender], nn.Module]") -> SequenceEncoder:
        """Replace every decoder by another encoder, in place, and return the result."""
        return self

    def apply_training_options(self, settings: DecoderTraining) -> None:
        """Turn on gradient checkpointing and compilation; results stay the same up to rounding.

        Raises:
            ConfigError: The model does not support an option that is on, or this machine cannot compile.
        """
        for name, default in {"gradient_checkpointing": False, "torch_compile": False, "engine": "auto"}.items():
            if (value := getattr(settings, name)) != default:
                given, needed = (str(one).lower() for one in (value, default))
                model = type(self).__name__
                raise ConfigError(f"{name} is {given}, which {model} does not support; set {name}: {needed}")

    def item_tables(self) -> list[ItemTable]:
        """Return the tables that get a row for each new item."""
        return [embedding_table(self)]

    def set_num_items(self, num_items: int) -> None:
        """Change V after the item tables have been extended."""
        self.config.num_items = num_items


def repeat_bonus(scores: Tensor, histories: Histories, every_position: bool) -> ItemBonus:
    """Return scores for the items of each history by their age.

    Args:
        scores: (A,) score of an item of age 0 (the newest), 1, ...; older items have the last score.
        histories: The histories.
        every_position: Every prefix of a history is a history of its own.

    Example:
        >>> histories = Histories(torch.tensor([[3, 7]]), torch.tensor([2]))
        >>> repeat_bonus(torch.tensor([-1.0, -2.0]), histories, every_position=False).scores
        tensor([[-2., -1.]])
    """
    columns, rows, ends = torch.arange(histories.items.shape[1], device=scores.device), slice(None), histories.lengths
    if every_position:
        rows = torch.repeat_interleave(histories.lengths)  # type: ignore[assignment]
        ends = (columns[None] + 1).expand_as(histories.items)[columns < histories.lengths[:, None]]
    ages = ends[:, None] - 1 - columns
    values = scores[ages.clamp(0, len(scores) - 1)]
    return ItemBonus(histories.items[rows].where(ages >= 0, 0), values.where(ages >= 0, 0.0))


def embedding_table(model: Any) -> ItemTable:
    """Return the item embeddings of a model as a table."""

    def replace(values: Tensor) -> None:
        model.item_embeddings = nn.Embedding(len(values), values.shape[1], padding_idx=0, _weight=values)

    return ItemTable(model.item_embeddings.weight.detach(), replace)


def register(model: type[Model], kind: str | None = None) -> None:
    """Let `AutoModel` and `load_model` open the folders of an architecture, and let settings name it.

    Args:
        model: Class of the architecture; another one of the same `model_type` is replaced, unless it is of slmrec or
            transformers.
        kind: Name under which base models and students choose it, with the `section` of its configuration class as
            settings, and `Model.build`; None: no settings name it.

    Raises:
        ValueError: It does not derive from `Model`, `model_type` or `kind` is taken, or the settings do not belong to
            the kind.
    """
    name = getattr(model, "__name__", repr(model))
    if not (isinstance(model, type) and issubclass(model, Model) and model.config_class):
        raise ValueError(f"{name} is no class with a config_class that derives from slmrec.models.Model")
    config = model.config_class
    # `CONFIG_MAPPING.get` knows only what was imported.
    known = CONFIG_MAPPING[config.model_type] if config.model_type in CONFIG_MAPPING else config  # noqa: SIM401
    is_own = known is config and model.__module__.startswith("slmrec.")  # else it would open the folders of slmrec's
    if known.__module__.startswith(("transformers.", "slmrec.")) and not is_own:
        raise ValueError(f"model_type {config.model_type!r} is taken by {known.__name__}; choose another one")
    if kind is not None:
        if kind in KINDS and isinstance(KINDS[kind].build, str):
            raise ValueError(f"kind {kind!r} is taken by an architecture of slmrec; choose another one")
        is_section = issubclass(config.section, StudentSettings)
        if not is_section or config.section.model_fields["kind"].default != kind:
            raise ValueError(
                f"{config.section.__name__}: the settings of kind {kind!r} must derive from StudentSettings and have "
                f"the field `kind: Literal[{kind!r}] = {kind!r}`"
            )
        KINDS[kind] = Kind(model.build, config.section)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)


def model_without_weights(config: Any) -> Model:
    """Return a model of any registered architecture whose own weights are still to be loaded.

    Raises:
        CheckpointError: The configuration belongs to another program, or pretrained weights cannot be found.
    """
    return _class_of(config).without_weights(config)


def skeleton_of(config: Any) -> Model:
    """Return a model of any registered architecture on the meta device, as `Model.skeleton`.

    Raises:
        CheckpointError: The configuration belongs to another program, or pretrained weights cannot be found.
    """
    return _class_of(config).skeleton(config)


def _class_of(config: Any) -> type[Model]:
    model = MODEL_MAPPING.get(type(config), PreTrainedModel)
    if not issubclass(model, Model):
        raise CheckpointError(f"a {config.model_type} model; expected a model that slmrec trained")
    known: type[Model] = model
    return known
