"""Search space of `slmrec tune`: the settings of a section that are varied, each with a range around its value."""

from dataclasses import dataclass
from typing import Any

from slmrec.config import Config, DistillConfig
from slmrec.config.load import vary
from slmrec.errors import ConfigError

_FACTOR = 4.0
"""Learning rates, loss weights and temperatures are searched from a fourth to four times their value."""
_MAX_DROPOUT = 0.7
_DROPOUTS = ("dropout", "text_dropout", "item_dropout", "layer_dropout", "lora.lora_dropout")


@dataclass(frozen=True)
class Range:
    """Values of a setting that are tried."""

    key: str
    """The setting, as `key.path`."""
    value: float
    """The value of the recipe, which the first trial takes."""
    low: float
    high: float
    log: bool = False
    """True if values are drawn from a logarithmic scale."""

    @property
    def is_integer(self) -> bool:
        """True if values are whole numbers."""
        return isinstance(self.value, int)


def search_space(config: Config, stage: str, model: str | None = None) -> tuple[Range, ...]:
    """Return the settings of a stage that `slmrec tune` varies; those without effect in this recipe are left out.

    Args:
        config: The recipe.
        stage: `pretrain`, `finetune` or `distill`.
        model: Name of the base model, for `pretrain`.

    Example:
        >>> from slmrec.config.load import load_config
        >>> [one.key for one in search_space(load_config("words", []), "distill")][:2]
        ['distill.train.learning_rate', 'distill.student.dropout']
    """
    section = config.pretrain[str(model)] if stage == "pretrain" else getattr(config, stage)
    path = f"pretrain.{model}" if stage == "pretrain" else stage
    rate = section.train.learning_rate
    ranges = [_around(f"{path}.train.learning_rate", rate)]
    architecture, place = (config.distill.student, f"{path}.student") if stage == "distill" else (section, path)
    for name in _DROPOUTS:
        value: Any = architecture
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            ranges.append(Range(f"{place}.{name}", float(value), 0.0, max(_MAX_DROPOUT, float(value))))
    layers = getattr(architecture, "num_hidden_layers", None)
    if layers is not None:
        ranges.append(Range(f"{place}.num_hidden_layers", layers, 1, max(3, layers)))
    if stage == "distill":
        ranges += _loss_ranges(config.distill)
    return tuple(one for one in ranges if _has_effect(config, one))


def _loss_ranges(distill: DistillConfig) -> list[Range]:
    """Return the weights of the loss terms, where there are several, and the temperature of KL."""
    weights = {name: weight for name, weight in distill.weights.model_dump().items() if weight}
    ranges = [_around(f"distill.weights.{name}", weight) for name, weight in weights.items()]
    ranges = ranges[1:]  # only the proportions count
    if weights.keys() & {"kl", "stratified_kl"}:
        ranges.append(_around("distill.kl_temperature", distill.kl_temperature))
    return ranges


def _around(key: str, value: float) -> Range:
    return Range(key, float(value), value / _FACTOR, value * _FACTOR, log=True)


def _has_effect(config: Config, one: Range) -> bool:
    """Return whether the recipe accepts both ends of a range; settings without effect are refused."""
    try:
        for value in (one.low, one.high):
            vary(config, {one.key: value}, "tune")
    except ConfigError:
        return False
    return True
