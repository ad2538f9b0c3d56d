"""The largest plan that fits into the time: full recipe, fewer models or epochs, one model alone, baselines."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from slmrec.auto.facts import Facts
from slmrec.auto.measure import STUDENT, Costs
from slmrec.auto.rules import Draft, model_values
from slmrec.config import Config, TrainConfig

Measure = Callable[[Config], Costs]
OVERHEAD = 1.25
"""Time of a training step in relation to that of the measured ones: averages, progress, reading of cached outputs."""
PLANNED_SHARE = 0.95
"""Share of the time that a plan may need by its estimate."""
MAX_SLACK = 4.0
"""Time that a training may take, in relation to its estimate, where there is time enough."""
RESERVE_S = 11.0
"""Seconds for the report and for reading and writing model folders."""
VERDICT = 3e-5
"""Seconds of the verdict for each model and user: 4.1 s for 7 models and 19,412 users."""
SHORT_STUDENT, SHORTEST_STUDENT = 0.5, 0.3
"""Shares of the student's epochs: those that hardly cost quality, and the fewest; epoch 3 of 14 reaches 98 %."""
RANKING = 1.5
"""Time of ranking a user for the evaluation, in relation to validation: more protocols, and metrics of the lists."""


_NO_STUDENT = "the time is too short for teacher and student; the better of the models is shipped"
_TEXT_ALONE = "the time is enough for one model; trained nearly to the end, one of titles is ahead of one of item ids"
_SASREC_ALONE = "the time is enough for one model, and this one needs least"
LEAST_OF_TEXT = 0.8
"""Share of its epochs from which a text model goes before SASRec: on the simulated shop all 7 epochs gave an NDCG@10 of
0.1990 and 3 of them 0.1666, on validation; SASRec had 0.1868 in half of the time, and 0.1491 with 5 of 12 epochs."""


class Variant(NamedTuple):
    """A draft with some of the models, and the share of their epochs that they need at least."""

    draft: Draft
    least: float


class Plan(NamedTuple):
    """Time of a run with some numbers of epochs."""

    epochs: dict[str, int]
    training: dict[str, float]
    """Seconds of the training of each model, with validation."""
    other: float
    """Seconds of everything else."""

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return sum(self.training.values()) + self.other


def planned(made: Draft, facts: Facts, measure: Measure, seconds: float | None) -> Draft:
    """Return the largest draft that fits into the time that is left, with a limit of time for each training.

    Args:
        made: Settings for the data.
        facts: Facts of the data.
        measure: Function that measures the time of the parts of a run.
        seconds: Time that is left; None: no limit.
    """
    if not made.config.pretrain:
        return made
    if seconds is None:
        whole = plan(made.config, facts, measure(made.config), 1.0, 1.0)
        return made.set("measured on a few steps of each model; --time-budget TIME limits it", {}, _time(whole.seconds))
    for number, (variant, least) in enumerate(variants(made)):
        costs = measure(variant.config)
        for base, student in shares(least, variant.config.trains_student):
            found = plan(variant.config, facts, costs, base, student)
            if found.seconds <= PLANNED_SHARE * seconds:
                is_whole = number == 0 and base == student == 1
                return _limited(variant._replace(is_cut=not is_whole), found, seconds, is_whole)
    reason = f"the {_duration(seconds)} that are left are too short for a model that is trained"
    return made._replace(is_cut=True).without_student(reason, {})


def variants(made: Draft) -> Iterator[Variant]:
    """Yield drafts with ever cheaper models, the draft itself first."""
    yield Variant(made, 0.8)
    models = model_values(made.config)
    reason = "chosen by the time budget"
    if "text_2" in models:
        models.pop("text_2")
        shown = ("models", ", ".join(["popularity", "cooccurrence", *models, "teacher", "student"]))
        changes = {"pretrain": models, "finetune.ensemble": list(models)}
        made = made.set("the time is too short for a second text model", changes, shown)
        yield Variant(made, 0.8)
    sasrec = made.config.pretrain["sasrec"]
    if sasrec.supervision == "every_prefix" and sasrec.train.loss == "ce":
        models["sasrec"] = _one_pass(models["sasrec"])
        made = made.set(reason, {"pretrain": models}, ("pretrain.sasrec.supervision", "every_position"))
    if made.config.trains_student:
        yield Variant(made, 0.4)
        if "text" in models:
            both: dict[str, Any] = {name: models[name] for name in ("sasrec", "text")}
            yield Variant(made.without_student(_NO_STUDENT, both), LEAST_OF_TEXT)
            yield Variant(made.without_student(_TEXT_ALONE, {"text": models["text"]}), LEAST_OF_TEXT)
        made = made.without_student(_SASREC_ALONE, {"sasrec": models["sasrec"]})
    yield Variant(made, 0.3)


def _one_pass(model: dict[str, Any]) -> dict[str, Any]:
    """Return SASRec trained in one pass over each history, which costs a sixth."""
    train = {"learning_rate": 1e-3, "num_train_epochs": 20, "lr_scheduler_type": "cosine"}
    train |= {"per_device_train_batch_size": 128, "early_stopping_patience": 8}
    model = {**model, "train": model["train"] | train}
    return model | {"positions": "from_oldest", "supervision": "every_position"}


def shares(least: float, with_student: bool) -> Iterator[tuple[float, float]]:
    """Yield shares of the epochs of the base models and of the student, which is shortened first."""
    yield 1.0, 1.0
    if with_student:
        yield 1.0, SHORT_STUDENT
    for percent in range(95, round(100 * least) - 1, -5):
        share = percent / 100
        yield share, max(SHORTEST_STUDENT, SHORT_STUDENT * share) if with_student else 1.0


def plan(config: Config, facts: Facts, costs: Costs, base: float, student: float) -> Plan:
    """Return the time of a run in which base models and student train for shares of their epochs."""
    trains: dict[str, tuple[TrainConfig, float]] = {name: (one.train, base) for name, one in config.pretrain.items()}
    if config.trains_student:
        trains[STUDENT] = config.distill.train, student
    epochs = {name: max(1, round(share * train.num_train_epochs)) for name, (train, share) in trains.items()}
    training = {}
    for name, number in epochs.items():
        cost, validated = costs.models[name], min(trains[name][0].eval_max_users or facts.num_users, facts.num_users)
        training[name] = number * OVERHEAD * cost.epoch + (number + 1) * validated * cost.user
    users = {name: cost.user for name, cost in costs.models.items()}
    ranked = sum(users.values()) + min(users.values())  # the baselines cost less than the cheapest model
    if config.trains_student:
        ranked += sum(users[name] for name in config.finetune.ensemble)
    splits = len(config.evaluate.splits) * RANKING * facts.num_users
    other = ranked * (splits + 3 * min(config.evaluate.timing_users, facts.num_users))
    other += VERDICT * (len(epochs) + 3) * facts.num_users  # and of teacher and baselines
    return Plan(epochs, training, other + costs.mix + costs.teacher_outputs + RESERVE_S)


def _limited(made: Draft, found: Plan, seconds: float, is_whole: bool) -> Draft:
    """Return the draft with a limit of time for each training, which ends earlier where it needs less.

    The epochs stay those of the recipe: where the machine is faster than measured, more of them fit.
    """
    left = seconds - OVERHEAD * found.other
    slack = min(MAX_SLACK, max(1.0, left / sum(found.training.values())))
    changes: dict[str, Any] = {}
    for name, expected in found.training.items():
        train = "distill.train" if name == STUDENT else f"pretrain.{name}.train"
        changes[f"{train}.max_minutes"] = round(slack * expected / 60, 3)
    shown = ", ".join(f"{name} {number} ({_duration(found.training[name])})" for name, number in found.epochs.items())
    how = "all of the recipe fit" if is_whole else "about as many as fit"
    reason = f"{how} into the {_duration(seconds)} that are left, by a few steps of each model"
    made = made.set(reason, changes, ("epochs", shown))
    text = f"each training ends after {slack:.1f} times its estimate at the latest, so a busier machine keeps the time"
    made = made.set(text, {}, ("max_minutes", f"{slack * sum(found.training.values()) / 60:.1f} in all"))
    return made.set("training, teacher, evaluation and report", {}, _time(found.seconds))


def _time(seconds: float) -> tuple[str, str]:
    return "time", f"about {_duration(seconds)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
