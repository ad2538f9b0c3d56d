"""The rule by which the model to ship is chosen, from the ranks and the costs of all models, and its reasons.

A choice that reads no file: `decide` chooses, `reasons` and `doubts` say why, and how sure that is, in sentences.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slmrec.config import BASELINES
from slmrec.evaluation.statistics import CONFIDENCE, bootstrap_interval

METRIC, METRIC_NAME = "ndcg@10", "NDCG@10"
CHEAPER = 3.0
"""Factor by which a model that is no worse than another must be faster to be shipped instead."""
KEPT, FASTER = 0.95, 2.0
"""Share of the teacher's NDCG@10 that the student must keep, and its speed, to be shipped instead."""
FEW_USERS, WIDE = 100, 0.1
"""Number of users below which an interval says little, and half a wide interval as a share of the metric."""
FAR = 8.0
"""Standard errors of the difference to a model that is far behind; its interval lies above zero."""
MAX_SHOWN = 10.0
"""Relative difference from which it is not shown: the baseline is next to zero."""
COOCCURRENCE, TEACHER, STUDENT = "cooccurrence", "teacher", "student"

Floats = NDArray[np.float64]


class Candidate(NamedTuple):
    """Quality of a model on validation, and its cost."""

    values: Floats
    """(num_users,) NDCG@10 of each user; all models have the same users."""
    seconds: float
    """Seconds for 1,000 users."""

    @property
    def mean(self) -> float:
        """NDCG@10."""
        return float(self.values.mean())


Candidates = Mapping[str, Candidate]


class Difference(NamedTuple):
    """Difference of two means over the same users, with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats, others: Floats) -> "Difference":
        """Return how far values are ahead of others."""
        return cls(float((values - others).mean()), *bootstrap_interval(values - others))

    def __str__(self) -> str:
        """Return the difference and its interval as text."""
        return f"{self.value:+.4f}, {self.interval}"

    @property
    def interval(self) -> str:
        """The interval as text."""
        return f"{CONFIDENCE:.0%} interval {self.low:+.4f} to {self.high:+.4f}"


class Exchange(NamedTuple):
    """A model that is shipped instead of a better or equally good one."""

    model: str
    instead_of: str
    reason: str


class Decision(NamedTuple):
    """The model to ship, and what it is compared with."""

    best: str
    """The best model on validation."""
    exchanges: tuple[Exchange, ...]
    """Steps from the best model to the one that is shipped; mostly none."""
    against: str
    """The best baseline other than the shipped model."""
    difference: Difference
    """How far the shipped model is ahead of it."""

    @property
    def ship(self) -> str:
        """The model to ship."""
        return self.exchanges[-1].model if self.exchanges else self.best


def decide(models: Candidates, baselines: Sequence[str]) -> Decision | None:
    """Choose the model to ship.

    It is the best one, unless the interval of the difference to a model that is at least three times as fast contains
    0: then it is the best of those. A teacher gives way to a student that keeps 95 % of its NDCG@10 at twice its speed.

    Args:
        models: All models by name.
        baselines: Names of the models with which the shipped one is compared: popularity, co-occurrence, and SASRec
            without text; names that were not evaluated are left out.

    Returns:
        The decision; None if there is no baseline beside the shipped model.

    Example:
        >>> slow, fast = Candidate(np.array([0.9, 0.1, 0.8]), 4.0), Candidate(np.array([0.1, 0.9, 0.7]), 1.0)
        >>> decide({"popularity": fast, "sasrec": slow}, ["popularity", "sasrec"]).ship
        'popularity'
    """
    best = max(models, key=lambda name: models[name].mean)
    exchanges = list(_to_cheaper(models, best))
    ship = exchanges[-1].model if exchanges else best
    if ship == TEACHER and STUDENT in models and (reason := _student_instead(models[TEACHER], models[STUDENT])):
        exchanges += [Exchange(STUDENT, TEACHER, reason), *_to_cheaper(models, STUDENT)]
        ship = exchanges[-1].model
    others = [name for name in baselines if name in models and name != ship]
    if not others:
        return None
    against = max(others, key=lambda name: models[name].mean)
    difference = Difference.of(models[ship].values, models[against].values)
    return Decision(best, tuple(exchanges), against, difference)


def _to_cheaper(models: Candidates, name: str) -> Iterator[Exchange]:
    """Yield the exchange of a model for the best of those that are much faster and no worse; nothing if none is."""
    own, no_worse = models[name], dict[str, Difference]()
    for other, model in models.items():
        if model.seconds * CHEAPER <= own.seconds and not _is_far_behind(model, own):
            difference = Difference.of(own.values, model.values)
            if difference.low <= 0:
                no_worse[other] = difference
    if no_worse:
        chosen = max(no_worse, key=lambda other: models[other].mean)
        speed = own.seconds / models[chosen].seconds
        chance = f"the interval of their difference does not lie above zero ({no_worse[chosen]})"
        yield Exchange(chosen, name, f"{chance}, and it is {speed:.1f} times as fast")


def _is_far_behind(model: Candidate, other: Candidate) -> bool:
    """Return whether a model is so far behind that the interval need not be computed, which takes a second.

    By Cantelli's inequality at most 1/65 of the resampled means are below zero, less than the tail of the interval.
    """
    differences = other.values - model.values
    return bool(differences.mean() > FAR * differences.std() / np.sqrt(len(differences)) > 0)


def _student_instead(teacher: Candidate, student: Candidate) -> str:
    """Return why the student is shipped instead of the teacher; empty if it is not."""
    kept = student.mean / teacher.mean if teacher.mean else 1.0
    speed = teacher.seconds / student.seconds
    if kept < KEPT or speed < FASTER:
        return ""
    return f"it keeps {kept:.1%} of its {METRIC_NAME} and is {speed:.1f} times as fast"


def reasons(models: Candidates, decision: Decision, baselines: Sequence[str], protocol: str) -> list[str]:
    """Return why the model is shipped, and how far it is ahead of which baseline, in sentences."""
    best, ship, against = decision.best, decision.ship, decision.against
    where = f"On validation ({protocol}, {len(models[best].values):,} users)"
    lines = [f"{where}, {best} has the highest {METRIC_NAME} of {len(models)} models: {models[best].mean:.4f}."]
    lines += [
        f"{one.model} ({models[one.model].mean:.4f}) is shipped instead of {one.instead_of}: {one.reason}."
        for one in decision.exchanges
    ]
    others = [name for name in baselines if name in models and name != ship]
    among = f", the best of {_listed(others)}," if len(others) > 1 else ""
    share = decision.difference.value / models[against].mean if models[against].mean else np.inf
    relative = f"{share:+.1%}, " if share < MAX_SHOWN else ""
    side = "ahead of" if decision.difference.value >= 0 else "behind"
    lines.append(
        f"It is {side} {against}{among} by {abs(decision.difference.value):.4f} ({relative}"
        f"{decision.difference.interval})."
    )
    own, other = models[ship].seconds, models[against].seconds
    lines.append(f"It takes {own:.3g} s for 1,000 users, {against} takes {other:.3g} s.")
    return lines


def doubts(models: Candidates, decision: Decision, test: Difference | None) -> Iterator[str]:
    """Yield warnings about the quality of the shipped model, and about the number of users who decide, in sentences.

    Args:
        models: All models by name, on validation.
        decision: The decision.
        test: How far the shipped model is ahead of the baseline on test; None: test was not evaluated.
    """
    ship = decision.ship
    if test is not None and test.high < 0:
        yield f"On test, {ship} is worse than {decision.against} ({test}); validation alone decides."
    if ship != COOCCURRENCE and COOCCURRENCE in models:
        is_known = decision.against == COOCCURRENCE
        difference = (
            decision.difference if is_known else Difference.of(models[ship].values, models[COOCCURRENCE].values)
        )
        if difference.low <= 0:
            yield f"{ship} is {_no_better(difference)} {COOCCURRENCE} ({difference})."
    trained = [name for name in models if name not in BASELINES]
    if ship in BASELINES and trained:
        name = max(trained, key=lambda name: models[name].mean)
        difference = Difference.of(models[name].values, models[ship].values)
        if difference.low <= 0:
            yield (
                f"No model that was trained is better than {ship}, which needs no training; the best of them, {name}, "
                f"is {_no_better(difference)} it ({difference})."
            )
    num_users, mean = len(models[ship].values), models[ship].mean
    half = (decision.difference.high - decision.difference.low) / 2
    if num_users < FEW_USERS or (mean and half >= WIDE * mean):
        yield (
            f"{num_users:,} users decide, and the interval is wide: ±{half:.4f} around an {METRIC_NAME} of {mean:.4f}; "
            "another sample of users could give another order of the models."
        )


def _no_better(difference: Difference) -> str:
    return "worse than" if difference.high < 0 else "no better than"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
