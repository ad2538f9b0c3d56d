"""Rules that choose a recipe and its settings from the facts of the data, before any measurement."""

from typing import Any, NamedTuple

from slmrec.auto.facts import Facts
from slmrec.config import Config
from slmrec.config.load import load_config, vary

WHERE = "settings chosen for the data"
SMALL = 50_000
"""Training samples below which the settings of the recipe `demo` are taken, which were tuned on 14,000."""
FEWEST = 100
"""Training samples below which no model is trained."""
MANY_REPEATS = 0.1
"""Share of repeated items from which the items of the history stay among the candidates."""
MAX_FULL_SOFTMAX = 200_000
"""Number of items up to which training compares a target with the whole catalogue."""
STEPS_OF_SMALL_LOGS = {"sasrec": (750, 12), "text": (440, 7), "cosine": (440, 7), "student": (500, 8)}
"""Optimiser steps that the models of `demo` take, and their epochs there, which are the fewest."""
MAX_EPOCHS = 60
WINDOWS = (50, 100, 200)
"""Numbers of items that models may read; recipes have the first."""
ALONE: dict[str, Any] = {"finetune": {}, "distill": {"teacher": None}}
"""Changes that leave teacher and student out."""


class Chosen(NamedTuple):
    """A setting that was chosen, and why."""

    setting: str
    value: Any
    reason: str


class Draft(NamedTuple):
    """Settings that are being chosen."""

    config: Config
    chosen: tuple[Chosen, ...] = ()
    given: frozenset[str] = frozenset()
    """Settings of the user, which stay as they are."""
    is_cut: bool = False
    """True if the time allows fewer models or epochs than the data would."""

    def set(self, reason: str, changes: dict[str, Any], shown: tuple[str, Any] | None = None) -> "Draft":
        """Return the draft with changed settings.

        Args:
            reason: Reason of the choice, for the user.
            changes: Values by `key.path`.
            shown: Name and value that are shown for all changes; None: the changes themselves.
        """
        changes = {key: value for key, value in changes.items() if key not in self.given}
        entries = [shown] if shown else list(changes.items())
        kept = tuple(one for one in self.chosen if one.setting not in {setting for setting, _ in entries})
        added = tuple(Chosen(setting, value, reason) for setting, value in entries)
        config = vary(self.config, changes, WHERE) if changes else self.config
        return self._replace(config=config, chosen=(*kept, *added))

    def without_student(self, reason: str, models: dict[str, Any]) -> "Draft":
        """Return the draft of a run of some base models alone, given by their settings."""
        shown = ("models", ", ".join(["popularity", "cooccurrence", *models]))
        texts = self.config.model_dump(mode="json", exclude_unset=True).get("item_text", {})
        read = {model.get("item_text") for model in models.values()}
        kept = {"item_text": {name: text for name, text in texts.items() if name in read}}
        dropped = tuple(f"pretrain.{name}." for name in self.config.pretrain if name not in models)
        chosen = tuple(one for one in self.chosen if not one.setting.startswith(dropped))
        return self._replace(chosen=chosen).set(reason, {"pretrain": models} | kept | ALONE, shown)


def draft(facts: Facts, overrides: list[str]) -> Draft:
    """Return the recipe that suits the data, with the settings that depend on the data alone.

    Args:
        facts: Facts of the data.
        overrides: Settings of the user as `key.path=value`.
    """
    is_small = facts.num_samples < SMALL
    recipe = ("demo" if is_small else "words") if facts.has_words else "sequences"
    given = frozenset(override.partition("=")[0] for override in overrides)
    made = Draft(load_config(recipe, overrides), given=given)
    if facts.num_samples < FEWEST:
        few = f"{facts.num_samples:,} training samples; a model that is trained needs {FEWEST} at least"
        return _evaluation(made.without_student(few, {}), facts)
    if facts.num_items > MAX_FULL_SOFTMAX:
        return _evaluation(_large_catalogue(made, facts), facts)
    made = made.set(_about_titles(facts), {}, ("models", _models_of(made.config)))
    if is_small:
        made = _small_log(made, facts)
    return _evaluation(_repeats(_window(made, facts), facts), facts)


def _models_of(config: Config) -> str:
    return ", ".join(["popularity", "cooccurrence", *config.pretrain, "teacher", "student"])


def _about_titles(facts: Facts) -> str:
    titles = (
        f"{facts.title_share:.0%} of the items have a title, {facts.distinct_share:.0%} of the titles are distinct and "
        f"share {facts.shared_words:.1f} words with others"
    )
    if facts.has_words:
        return f"{titles}: a text model reads them"
    return f"{titles}: too few to read" if facts.title_share else "the items have no titles; --items FILE gives them"


def _large_catalogue(made: Draft, facts: Facts) -> Draft:
    model = model_values(made.config)["sasrec"] | {"repeat_score": "fitted"}
    model["train"] |= {"loss": "sampled_softmax", "num_sampled": 8192}
    reason = f"{facts.num_items:,} items are too many to compare each target with all; the teacher's lists need that"
    return made.without_student(reason, {"sasrec": model})


def _small_log(made: Draft, facts: Facts) -> Draft:
    """Take the settings of `demo`: small batches, and as many epochs as give enough steps."""
    demo = load_config("demo", [])
    reason = f"{facts.num_samples:,} training samples: small batches, and epochs enough for convergence"
    steps = max(1, facts.num_users // 32)
    epochs = {
        name: min(MAX_EPOCHS, max(fewest, round(number / steps)))
        for name, (number, fewest) in STEPS_OF_SMALL_LOGS.items()
    }
    own, models = model_values(made.config), model_values(demo)
    if not facts.has_words:
        models = {"sasrec": models["sasrec"], "cosine": own["cosine"] | {"train": models["text"]["train"]}}
    for name, model in models.items():
        model["max_history_items"] = WINDOWS[0]
        model["train"] |= {"num_train_epochs": epochs[name], "early_stopping_patience": 8}
    distill = demo.model_dump(mode="json", exclude_unset=True)["distill"]
    distill["train"]["num_train_epochs"] = epochs["student"]
    shown = ("epochs", ", ".join(f"{name} {epochs[name]}" for name in (*models, "student")))
    changes = {"pretrain": models, "finetune.max_history_items": WINDOWS[0], "distill": distill}
    if facts.has_words:
        changes["item_text.words.num_components"] = None  # `demo` has that of its own titles
    return made.set(reason, changes, shown)


def _window(made: Draft, facts: Facts) -> Draft:
    window = next((size for size in WINDOWS if facts.typical_length <= size), WINDOWS[-1])
    names = [f"pretrain.{name}.max_history_items" for name in made.config.pretrain]
    reason = f"95 % of the users have {facts.typical_length} events at most"
    changes = dict.fromkeys([*names, "finetune.max_history_items"], window)
    return made.set(reason, changes, ("max_history_items", window))


def _repeats(made: Draft, facts: Facts) -> Draft:
    reason = f"{facts.repeat_share:.1%} of the events repeat an item of their user"
    names = [f"pretrain.{name}.repeat_score" for name in made.config.pretrain]
    if facts.repeat_share >= MANY_REPEATS:
        changes = dict.fromkeys([*names, "distill.student.repeat_score"], "by_age")
        return made.set(reason, changes, ("repeat_score", "by_age"))
    without = [name for name, model in made.config.pretrain.items() if getattr(model, "repeat_score", "") == "none"]
    changes = {f"pretrain.{name}.repeat_score": "fitted" for name in without}
    shown = ("repeat_score", "fitted" if without else "that of the recipe")
    return made.set(reason, changes | {"distill.student.repeat_score": "scalar"}, shown)


def _evaluation(made: Draft, facts: Facts) -> Draft:
    protocols = ["full_history_excluded", "full"]
    if facts.repeat_share >= MANY_REPEATS:
        protocols.reverse()
    reason = f"{facts.repeat_share:.1%} of the events repeat an item of their user, so its history is "
    reason += "recommended too" if protocols[0] == "full" else "left out of the lists"
    changes = {"evaluate.primary_protocol": protocols[0], "evaluate.protocols": protocols}
    if not made.given & changes.keys():
        made = made.set(reason, changes, ("evaluate.primary_protocol", protocols[0]))
    return made.set("the model to ship is chosen on validation", {"evaluate.splits": ["test", "valid"]})


def model_values(config: Config) -> dict[str, Any]:
    """Return the settings of the base models that the recipe gives, by name."""
    models: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)["pretrain"]
    return models
