"""Rows of the study of language: the recipe and its controls, each a configuration that changes one thing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from slmrec.config import Config, DistillWeights, FinetuneConfig, ItemTextConfig
from slmrec.config.item_text import WORDS
from slmrec.config.load import vary
from slmrec.errors import ConfigError
from slmrec.models.backbone import read_architecture
from slmrec.pipeline.table import teacher_base_models

FULL = "full"
NO_STUDENT = {"student": {"kind": "sasrec"}, "weights": {"ce": 1, "cosine": 0, "norm": 0, "multiple": 0}}
"""Section `distill` that is valid for every teacher, for rows that train no student."""
CROSS_ENTROPY = {"ce": 1, "cosine": 0, "norm": 0, "multiple": 0}
_OF_OTHER_TERMS = ["mode", "kl_temperature", "kl_top_k", "num_popularity_groups", "lists", "list_weights", "num_blocks"]
"""Settings of `distill` that have no effect on a student by cross-entropy alone."""
_OF_TEXT = ("item_text_width", "item_text_side", "item_side", "adaptor_size", "text_dropout", "id_dropout")
"""Settings of a model that have an effect only together with its item text."""
Values = dict[str, Any]
"""Sections `pretrain`, `item_text` and `finetune`, as in the YAML."""


@dataclass(frozen=True)
class Row:
    """The recipe, or a control that differs from it in one thing."""

    name: str
    about: str
    """Description, such as `without item text`."""
    config: Config
    models: tuple[str, ...] = ("teacher",)
    """Models that are trained and evaluated."""
    is_cold: bool = False
    """True if the row tells something about items of which only the text is known."""


@dataclass(frozen=True)
class Rows:
    """Rows of a study."""

    rows: tuple[Row, ...]
    """The recipe, and its controls."""
    texts: dict[str, ItemTextConfig]
    """Item texts that are compared, by name."""
    aliases: dict[str, str]
    """Row with the same settings, by the name of a control that would repeat it."""

    def find(self, name: str) -> Row | None:
        """Return the row of a name, or of the row with the same settings; None if the recipe has no such control."""
        name = self.aliases.get(name, name)
        return next((row for row in self.rows if row.name == name), None)


def language_rows(config: Config) -> Rows:
    """Return the recipe and its controls.

    Raises:
        ConfigError: No model of the teacher reads item text, the teacher is not trained in the run, or two texts have
            one name.
    """
    if not config.trains_teacher:
        raise ConfigError(
            f"distill.teacher is {config.distill.teacher!r}; the study compares teachers that it trains, so leave "
            "distill.teacher out"
        )
    values = _values(config)
    names = list(dict.fromkeys(section["item_text"] for section in _readers(values)))
    if not names:
        raise ConfigError(
            "no model of the teacher reads item text, so there is nothing to compare; give a model item_text: NAME, "
            "and describe the text in item_text.NAME"
        )
    twice = sorted(config.item_text.keys() & config.ablate.item_text.keys())
    if twice:
        raise ConfigError(f"ablate.item_text has {twice[0]!r}, which item_text has too; give it another name")
    texts = {name: config.item_text[name] for name in names} | config.ablate.item_text
    plain = next((name for name, text in texts.items() if text.source == WORDS and not text.shuffled), None)
    recipe = vary(config, {**_with_student(config, values), "evaluate.models": ["teacher", "student"]}, "ablate")
    full = Row(FULL, "the recipe as it is", recipe, ("teacher", "student"), True)
    rows, aliases = {_key(values): full}, {} if plain is None else {"words": f"text_{plain}"}
    for name, about, changed, is_cold in _controls(config, values, texts):
        if name in aliases:
            continue
        key = _key(changed)
        if key in rows:
            aliases[name] = rows[key].name
        else:
            rows[key] = Row(name, about, _teacher_alone(config, changed, name), is_cold=is_cold)
    aliases = {name: aliases.get(other, other) for name, other in aliases.items()}
    return Rows((*rows.values(), *_students(config, values)), texts, aliases)


def _values(config: Config) -> Values:
    """Return the sections that the teacher depends on, with the item text of each model stated."""
    pretrain = {name: _dumped(config.pretrain[name]) for name in teacher_base_models(config)}
    finetune = _dumped(config.finetune)
    if config.finetune.backbone is None:
        finetune.pop("item_text", None)
    texts = {section["item_text"] for section in (*pretrain.values(), finetune) if section.get("item_text")}
    item_text = {name: _dumped(config.item_text[name]) for name in config.item_text if name in texts}
    return {"pretrain": pretrain, "item_text": item_text, "finetune": finetune}


def _dumped(section: Any) -> Values:
    values: Values = section.model_dump(mode="json", exclude_unset=True)
    stated = ("kind", "item_text", "item_side")
    return values | {name: getattr(section, name) for name in stated if hasattr(section, name)}


def _copy(values: Values) -> Values:
    copied: Values = json.loads(json.dumps(values))
    return copied


def _readers(values: Values) -> Iterator[Values]:
    """Yield the sections of the models that read item text."""
    for section in (*values["pretrain"].values(), values["finetune"]):
        if section.get("item_text"):
            yield section


def _controls(
    config: Config, values: Values, texts: dict[str, ItemTextConfig]
) -> Iterator[tuple[str, str, Values, bool]]:
    """Yield name, description, sections, and whether cold items are ranked."""
    for name, text in texts.items():
        yield f"text_{name}", f"all text from {name} ({text.source})", _with_text(values, name, _dumped(text)), True
    first = next(iter(texts.values()))
    words = {key: value for key, value in _dumped(first).items() if key in ("template", "required")}
    if first.reads_file:
        words = {}
    yield "words", "all text from plain words", _with_text(values, "words", {**words, "source": WORDS}), True
    for name, text in texts.items():
        if text.reads_language_model and not text.random_weights:
            control = _with_text(values, name, {**_dumped(text), "random_weights": True})
            yield f"random_{name}", f"all text from {name} ({text.source}) with random weights", control, True
    yield "shuffled", "the texts given to other items", _shuffled(values), True
    without = _changed_readers(values, _without_text, remove_text_models=True)
    if without["finetune"].get("ensemble") or config.finetune.backbone is not None:
        yield "no_text", "without item text", without, True
    yield (
        "id_model",
        "ID models of the same form in place of text models",
        _changed_readers(values, _without_text),
        False,
    )
    yield from _decoder_controls(config, values)


def _decoder_controls(config: Config, values: Values) -> Iterator[tuple[str, str, Values, bool]]:
    finetune = config.finetune
    if finetune.backbone is None:
        return
    if finetune.ensemble:
        kept = {key: value for key, value in values["finetune"].items() if key in ("max_history_items", "supervision")}
        kept["train"] = {"eval_max_users": finetune.train.eval_max_users}
        alone = _pruned({**_copy(values), "finetune": {**kept, "backbone": None, "ensemble": list(finetune.ensemble)}})
        yield "no_decoder", "the base models without the decoder", alone, False
    if finetune.backbone != "random":
        random = _copy(values)
        for key in ("quantization_config", "lora", "prompt"):
            random["finetune"].pop(key, None)
        random["finetune"] |= {"backbone": "random", "lora": None, "prompt": "none"}
        layers = finetune.num_layers * finetune.layer_step if finetune.layers is None else max(finetune.layers) + 1
        architecture = read_architecture(finetune.backbone, "finetune.backbone")
        random["finetune"]["backbone_config"] = architecture | {"num_hidden_layers": layers}
        yield "random_decoder", "a decoder of the same form with random weights", random, False


def _with_text(values: Values, name: str, text: Values) -> Values:
    """Return the sections with one text for all models that read text."""
    changed = _changed_readers(values, lambda section: section | {"item_text": name})
    return {**changed, "item_text": {name: text}}


def _shuffled(values: Values) -> Values:
    changed = _copy(values)
    changed["item_text"] = {name: {**text, "shuffled": True} for name, text in changed["item_text"].items()}
    return changed


def _changed_readers(values: Values, change: Callable[[Values], Values], remove_text_models: bool = False) -> Values:
    """Return the sections with changed models that read text.

    Args:
        values: The sections.
        change: Function of the section of a model that reads text.
        remove_text_models: Remove base models that would have no item vectors without text.
    """
    changed = _copy(values)
    pretrain, finetune = changed["pretrain"], changed["finetune"]
    removed = {name for name, section in pretrain.items() if remove_text_models and section.get("item_side") == "text"}
    for name in removed:
        del pretrain[name]
    if removed and "ensemble" in finetune:
        finetune["ensemble"] = [name for name in finetune["ensemble"] if name not in removed]
    if finetune.get("item_vectors") in removed:
        finetune["item_vectors"] = None
    for name, section in pretrain.items():
        if section.get("item_text"):
            pretrain[name] = change(section)
    if finetune.get("item_text"):
        changed["finetune"] = change(finetune)
    return _pruned(changed)


def _without_text(section: Values) -> Values:
    ids = {"item_side": "ids"} if "item_side" in section else {}
    return {key: value for key, value in section.items() if key not in _OF_TEXT} | {"item_text": None} | ids


def _pruned(values: Values) -> Values:
    """Return the sections without base models that the teacher does not use, and item texts that no model reads."""
    finetune = values["finetune"]
    used = set(finetune.get("ensemble", ()))
    if finetune.get("backbone", "") is not None:
        used.add(finetune.get("item_vectors", FinetuneConfig.model_fields["item_vectors"].default))
    values = {**values, "pretrain": {name: own for name, own in values["pretrain"].items() if name in used}}
    texts = {section["item_text"] for section in _readers(values)}
    return {**values, "item_text": {name: text for name, text in values["item_text"].items() if name in texts}}


def _key(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _with_student(config: Config, values: Values) -> Values:
    """Return the sections before `finetune` that teacher and student depend on."""
    text = getattr(config.distill.student, "item_text", None)
    texts = values["item_text"] | ({text: _dumped(config.item_text[text])} if text else {})
    return {"pretrain": values["pretrain"], "item_text": texts}


def _teacher_alone(config: Config, values: Values, name: str) -> Config:
    changes = {**values, "distill": NO_STUDENT, "evaluate.models": ["teacher"]}
    return vary(config, changes, f"ablate --what language, row {name}")


def _students(config: Config, values: Values) -> Iterator[Row]:
    """Yield the student by cross-entropy alone, with the same start, unless the recipe has just that."""
    weights: DistillWeights = config.distill.weights
    if not any(value for term, value in weights.model_dump().items() if term != "ce"):
        return
    distill = config.distill.model_dump(mode="json", exclude_unset=True)
    distill = {key: value for key, value in distill.items() if key not in _OF_OTHER_TERMS}
    changes = {**_with_student(config, values), "distill": {**distill, "weights": CROSS_ENTROPY}}
    changed = vary(config, {**changes, "evaluate.models": ["student"]}, "ablate --what language, row cross_entropy")
    yield Row("cross_entropy", "the student by cross-entropy alone, from the same start", changed, ("student",))


def differences(base: Config, other: Config) -> dict[str, Any]:
    """Return the settings of the teacher that differ from another configuration, by path; null where one is absent."""
    return dict(_differences(_values(base), _values(other)))


def _differences(base: Values, other: Values, path: str = "") -> Iterator[tuple[str, Any]]:
    for name in dict.fromkeys([*base, *other]):
        own, theirs = base.get(name), other.get(name)
        if isinstance(own, dict) and isinstance(theirs, dict):
            yield from _differences(own, theirs, f"{path}{name}.")
        elif own != theirs:
            yield f"{path}{name}", theirs
