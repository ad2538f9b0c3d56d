"""Settings that have an effect only together with others.

A value other than the default is refused where it has no effect, so that no setting is silently ignored.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from slmrec.config.item_text import WORDS
from slmrec.config.section import Section, check
from slmrec.config.training import DecoderTraining

if TYPE_CHECKING:
    from slmrec.config import Config

Condition = Callable[["Config", Any], bool]


class Requirement(NamedTuple):
    """A group of settings of one section and the condition under which they have an effect."""

    section: str
    """Path of the section; `*` stands for each name of a dictionary."""
    settings: tuple[str, ...]
    """Names of the settings; a section without one of them, such as a base model of another kind, is skipped."""
    has_effect: Condition
    """Condition, called with the configuration and the section."""
    needs: str
    """Condition in words."""


def _reads_tokens(_: "Config", decoder: Any) -> bool:
    return decoder.prompt == "none" or decoder.backbone not in (None, "random")


def _uses_cross_entropy(config: "Config", _: Any) -> bool:
    weights = config.distill.weights
    return bool(weights.ce or weights.multiple) or config.distill.mode == "online"


def _is_table(_: "Config", prepare: Any) -> bool:
    return bool(prepare.format != "sequences")


def _uses_duckdb(_: "Config", prepare: Any) -> bool:
    return bool(prepare.engine == "duckdb" or prepare.engine.startswith("postgres"))


_OF_DECODERS = (
    *("num_layers", "layer_step", "layers", "lora", "quantization_config", "prompt", "positions"),
    *("item_dropout", "layer_dropout", "item_text", "item_text_width", "item_text_side", "item_embeddings", "item_dim"),
    "weights",
)
_OF_TRAINING = tuple(name for name in DecoderTraining.model_fields if name != "eval_max_users")
"""Training settings without `eval_max_users`, by which the weights of an ensemble are validated too."""
_HAS_ITEM_TEXT: Condition = lambda _, section: getattr(section, "item_text", None) is not None  # noqa: E731
_HAS_NO_LAYER_LIST: Condition = lambda _, section: getattr(section, "layers", None) is None  # noqa: E731
_HAS_ADAPTERS: Condition = lambda _, section: getattr(section, "lora", None) is not None  # noqa: E731
_HAS_BACKBONE: Condition = lambda config, _: config.finetune.backbone is not None  # noqa: E731

_HAS_TIMES: Condition = lambda config, _: config.prepare.order == "time" and _is_table(config, config.prepare)  # noqa: E731
_READS_TEXT: Condition = lambda _, model: model.item_side != "ids"  # noqa: E731

_OF_TEXTS: dict[tuple[str, ...], tuple[Condition, str]] = {
    ("template", "required"): (lambda _, text: not text.reads_file, "a source that reads texts, not a file of vectors"),
    ("layer",): (lambda _, text: text.reads_decoder, "a source that is a decoder"),
    ("max_tokens", "random_weights"): (lambda _, text: text.reads_language_model, "a source that is a language model"),
    ("seed",): (lambda _, text: text.random_weights or text.shuffled, "random_weights or shuffled: true"),
    ("num_hashes", "ngram_weight"): (lambda _, text: text.source == WORDS, f"source: {WORDS}"),
    ("power", "eps"): (lambda _, text: text.whitening != "none", "whitening: zca or pca"),
}
"""Settings of item texts, the condition under which they have an effect, and the condition in words."""

REQUIREMENTS = (
    *(Requirement("item_text.*", settings, condition, needs) for settings, (condition, needs) in _OF_TEXTS.items()),
    Requirement("finetune", _OF_DECODERS, _HAS_BACKBONE, "a backbone"),
    Requirement("finetune.train", _OF_TRAINING, _HAS_BACKBONE, "finetune.backbone"),
    *(
        requirement
        for section in ("pretrain.*", "finetune")
        for requirement in (
            Requirement(section, ("prompt",), _reads_tokens, "a backbone with a tokenizer; `random` has none"),
            Requirement(section, ("layer_step",), _HAS_NO_LAYER_LIST, "layers: null, since a list names every layer"),
            Requirement(section, ("item_text_width", "item_text_side"), _HAS_ITEM_TEXT, "item_text"),
            Requirement(section, ("quantization_config",), _HAS_ADAPTERS, "lora, since it applies to frozen layers"),
        )
    ),
    *(
        requirement
        for section in ("pretrain.*", "distill.student")
        for requirement in (
            Requirement(section, ("adaptor_size", "text_dropout"), _READS_TEXT, "item_side: text or both"),
            Requirement(section, ("id_dropout",), lambda _, model: model.item_side == "both", "item_side: both"),
            Requirement(section, ("score_temperature",), lambda _, model: model.scores == "cosine", "scores: cosine"),
            Requirement(section, ("time_gaps",), _HAS_TIMES, "times: prepare.order: time, and no format: sequences"),
        )
    ),
    Requirement(
        "finetune",
        ("num_blocks",),
        lambda _, finetune: finetune.weights.multiple > 0,
        "finetune.weights.multiple above 0",
    ),
    Requirement("finetune", ("item_dim",), lambda _, finetune: finetune.item_vectors is None, "item_vectors: null"),
    *(
        Requirement(
            section,
            ("label_smoothing_factor", "unseen_items"),
            lambda _, train: train.loss == "ce",
            "loss: ce, which compares the target with the whole catalogue",
        )
        for section in ("pretrain.*.train", "finetune.train", "distill.train")
    ),
    Requirement(
        "distill.train",
        ("label_smoothing_factor", "loss", "num_sampled", "unseen_items"),
        _uses_cross_entropy,
        "a term that uses cross-entropy: distill.weights.ce or multiple above 0, or distill.mode: online",
    ),
    Requirement(
        "distill.train",
        ("gradient_checkpointing", "torch_compile", "engine"),
        lambda config, _: config.distill.student.kind == "decoder",
        "distill.student.kind: decoder",
    ),
    Requirement(
        "distill",
        ("num_blocks",),
        lambda config, distill: (
            distill.weights.needs_states or (distill.mode == "online" and config.finetune.weights.multiple > 0)
        ),
        "a term that reads hidden states: distill.weights.cosine, norm, multiple or block_kl above 0, or "
        "finetune.weights.multiple with distill.mode: online",
    ),
    Requirement(
        "distill",
        ("teacher_device_map",),
        lambda config, _: config.distill.mode == "offline" and config.distill.augment is None,
        "outputs of the teacher that are computed before: distill.mode: offline, and augment: null",
    ),
    Requirement(
        "distill",
        ("kl_temperature",),
        lambda _, distill: distill.weights.kl + distill.weights.stratified_kl + distill.weights.block_kl > 0,
        "distill.weights.kl or stratified_kl or block_kl above 0",
    ),
    Requirement(
        "distill", ("kl_top_k",), lambda config, _: config.distill.weights.kl > 0, "distill.weights.kl above 0"
    ),
    Requirement(
        "distill",
        ("num_popularity_groups",),
        lambda config, _: config.distill.weights.stratified_kl > 0,
        "distill.weights.stratified_kl above 0",
    ),
    Requirement(
        "distill",
        ("lists", "list_weights"),
        lambda config, _: config.distill.weights.lists > 0,
        "distill.weights.lists above 0",
    ),
    Requirement(
        "evaluate",
        ("num_negatives",),
        lambda _, evaluate: bool(evaluate.sampled),
        "a sampled protocol in evaluate.protocols",
    ),
    Requirement(
        "prepare",
        ("columns", "user_col", "item_col", "time_col", "rating_col", "quantity_col", "tie_col"),
        _is_table,
        "a table with columns, which format: sequences is not",
    ),
    Requirement(
        "prepare",
        ("valid_share", "test_share"),
        lambda _, prepare: prepare.split == "temporal",
        "prepare.split: temporal",
    ),
    Requirement("prepare", ("rating_col",), lambda _, prepare: prepare.min_rating is not None, "prepare.min_rating"),
    Requirement("prepare", ("tie_col",), lambda _, prepare: prepare.order == "time", "prepare.order: time"),
    Requirement("prepare", ("memory_limit",), _uses_duckdb, "prepare.engine: duckdb, or a PostgreSQL"),
    Requirement(
        "prepare",
        ("engine_password_file",),
        lambda _, prepare: "@" in prepare.engine,
        "prepare.engine: the URL of a database with a user, such as postgres://USER@HOST/DATABASE",
    ),
)


def refuse_settings_without_effect(config: "Config") -> None:
    """Refuse settings that differ from their default although they have no effect.

    Raises:
        ValueError: Such a setting is given; the message names it, its value and what it needs.
    """
    for requirement in REQUIREMENTS:
        for where, section in sections_at(config, requirement.section):
            for name in requirement.settings:
                field = type(section).model_fields.get(name)
                if field is None or requirement.has_effect(config, section):
                    continue
                value = getattr(section, name)
                check(
                    value == field.get_default(call_default_factory=True),
                    f"{where}.{name} is {_shown(value)}, which has no effect: it needs {requirement.needs}; "
                    "leave it out",
                )
    readers = (*config.pretrain.values(), config.finetune, config.distill)
    used = {getattr(section, "item_text", None) for section in readers}
    for name in config.item_text:
        check(name in used, f"item_text.{name} has no effect: no model names it; give a model item_text: {name}")


def sections_at(section: Any, path: str, where: str = "") -> Iterator[tuple[str, Section]]:
    """Yield path and section for all sections at a path, in which `*` stands for each name of a dictionary.

    Args:
        section: Section or dictionary in which the path begins.
        path: Names separated by dots, such as `pretrain.*.train`.
        where: Path of `section` itself.
    """
    name, _, rest = path.partition(".")
    below = section.items() if name == "*" else [(name, getattr(section, name))]
    for key, part in below:
        here = f"{where}.{key}" if where else key
        if rest:
            yield from sections_at(part, rest, here)
        else:
            yield here, part


def _shown(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Section) else value
