"""Settings that have an effect only together with others; where they have none, a value other than the default is
refused, so that nothing is silently ignored."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from slmrec.config.section import Section, check

if TYPE_CHECKING:
    from slmrec.config import Config

Condition = Callable[["Config", Any], bool]


class Requirement(NamedTuple):
    """A group of settings of one section and the condition under which they have an effect."""

    section: str
    """Path of the section; `*` stands for each name of a dictionary."""
    settings: tuple[str, ...]
    has_effect: Condition
    """Called with the configuration and the section."""
    needs: str
    """Condition in words."""


def _reads_tokens(_: "Config", decoder: Any) -> bool:
    return decoder.prompt == "none" or decoder.backbone not in (None, "random")


def _uses_cross_entropy(config: "Config", _: Any) -> bool:
    weights = config.distill.weights
    return bool(weights.ce or weights.multiple) or config.distill.mode == "online"


DECODER_ONLY = (
    *("backbone_config", "num_layers", "layer_step", "layers", "lora", "quantization_config", "prompt", "positions"),
    *("item_dropout", "layer_dropout", "item_text", "item_text_width", "item_text_side", "item_embeddings"),
)
_HAS_ITEM_TEXT: Condition = lambda _, section: getattr(section, "item_text", None) is not None  # noqa: E731
_HAS_NO_LAYER_LIST: Condition = lambda _, section: getattr(section, "layers", None) is None  # noqa: E731

REQUIREMENTS = (
    *(
        requirement
        for section in ("pretrain.*", "finetune")
        for requirement in (
            Requirement(section, ("prompt",), _reads_tokens, "a backbone with a tokenizer, which `random` has not"),
            Requirement(section, ("layer_step",), _HAS_NO_LAYER_LIST, "layers: null, since a list names every layer"),
            Requirement(section, ("item_text_width", "item_text_side"), _HAS_ITEM_TEXT, "item_text"),
        )
    ),
    Requirement("finetune", DECODER_ONLY, lambda _, finetune: finetune.backbone is not None, "a backbone"),
    Requirement("finetune", ("item_dim",), lambda _, finetune: finetune.item_vectors is None, "item_vectors: null"),
    Requirement(
        "distill.train",
        ("label_smoothing_factor", "loss", "num_sampled"),
        _uses_cross_entropy,
        "a term that uses cross-entropy: distill.weights.ce or multiple above 0, or distill.mode: online",
    ),
    Requirement(
        "distill",
        ("num_blocks",),
        lambda config, _: config.distill.weights.needs_states,
        "a term that reads hidden states: distill.weights.cosine, norm or multiple above 0",
    ),
    Requirement(
        "distill", ("kl_temperature",), lambda config, _: config.distill.weights.kl > 0, "distill.weights.kl above 0"
    ),
    Requirement(
        "evaluate",
        ("num_negatives",),
        lambda _, evaluate: bool(evaluate.sampled),
        "a sampled protocol in evaluate.protocols",
    ),
    Requirement(
        "prepare",
        ("valid_share", "test_share"),
        lambda _, prepare: prepare.split == "temporal",
        "prepare.split: temporal",
    ),
    Requirement("prepare", ("rating_col",), lambda _, prepare: prepare.min_rating is not None, "prepare.min_rating"),
    Requirement("prepare", ("tie_col",), lambda _, prepare: prepare.order == "time", "prepare.order: time"),
    Requirement("prepare", ("memory_limit",), lambda _, prepare: prepare.engine == "duckdb", "prepare.engine: duckdb"),
)


def refuse_settings_without_effect(config: "Config") -> None:
    """Refuse settings that differ from their default although they have no effect.

    Raises:
        ValueError: Such a setting is given; the message names it, its value and what it needs.
    """
    for requirement in REQUIREMENTS:
        for where, section in _sections(config, requirement.section):
            for name in requirement.settings:
                if name not in type(section).model_fields or requirement.has_effect(config, section):
                    continue
                value, default = getattr(section, name), type(section).model_fields[name].default
                check(
                    value == default,
                    f"{where}.{name} is {_shown(value)}, which has no effect: it needs {requirement.needs}; leave it out",
                )
    used = {getattr(section, "item_text", None) for section in (*config.pretrain.values(), config.finetune)}
    for name in config.item_text:
        check(name in used, f"item_text.{name} has no effect: no model names it; give a model item_text: {name}")


def _sections(config: "Config", path: str) -> Iterator[tuple[str, Section]]:
    """Yield the path and the section, or one of each for every name of a dictionary."""
    first, _, rest = path.partition(".")
    part = getattr(config, first)
    if rest == "*":
        yield from ((f"{first}.{name}", section) for name, section in part.items())
    else:
        yield path, getattr(part, rest) if rest else part


def _shown(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Section) else value
