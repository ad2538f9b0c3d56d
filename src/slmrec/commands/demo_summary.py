"""Closing tables of the demo: all models beside SASRec, the model to ship, and the items that are new or rare."""

import json
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from slmrec.evaluation.metrics import Ints, user_metrics
from slmrec.evaluation.rank import TOP_K
from slmrec.evaluation.statistics import CONFIDENCE, Comparison, compare_means
from slmrec.studies.compare import contrast, difference_cells
from slmrec.studies.evaluated import Evaluated, Split, in_order_of, read_evaluated, results_file

BASELINE = "sasrec"
METRIC = "ndcg@10"
MIN_SPEED = 0.5
"""Smallest speed of a model to ship, as a share of SASRec's."""
RARE = 5
"""Number of training events below which an item is new or rare, as in the slices of `slmrec compare`."""
SLICED = ("text", "teacher", "student")
"""Models whose slices are shown beside those of SASRec."""


class Standing(NamedTuple):
    """Quality of a model beside SASRec, and its cost."""

    model: str
    comparison: Comparison
    """SASRec (a) and the model (b), over the same users."""
    users_per_second: float
    num_parameters: int


def read_standings(run: Path, split: Split) -> list[Standing]:
    """Read the models of an evaluated run, under its primary protocol."""
    content = json.loads(results_file(run / "evaluate", "metrics.json", split).read_text(encoding="utf-8"))
    base = read_evaluated(run, BASELINE, split=split)
    standings = []
    for name, values in content["protocols"][content["primary"]]["models"].items():
        own = in_order_of(base, read_evaluated(run, name, split=split))
        comparison = compare_means(base.metrics[METRIC], own.metrics[METRIC])
        standings.append(Standing(name, comparison, values["users_per_second"], values["num_parameters"]))
    return standings


def choose(standings: list[Standing]) -> str:
    """Return the model to ship: the best one that costs about what SASRec costs, or SASRec.

    The model is at least half as fast as SASRec, and ahead of it by an interval above zero.

    Args:
        standings: Models on validation; SASRec is among them.
    """
    (speed,) = (one.users_per_second for one in standings if one.model == BASELINE)
    affordable = [one for one in standings if one.users_per_second >= MIN_SPEED * speed]
    best = max(affordable, key=lambda one: one.comparison.mean_b)
    return best.model if best.comparison.low > 0 else BASELINE


def show_summary(run: Path, best_ranks: Ints) -> str:
    """Print all models on the test split and by training events, and the model to ship, whose name is returned.

    Args:
        run: Folder of the run, evaluated on both splits.
        best_ranks: Ranks of the test items in the order of the true probabilities.
    """
    console = Console(width=max(Console().width, 118), markup=False, highlight=False)
    valid, test = read_standings(run, "valid"), read_standings(run, "test")
    chosen = choose(valid)
    console.print(_models(test, chosen))
    print(
        f"The best possible ranking, by the probabilities from which the purchases were drawn, has an NDCG@{TOP_K} of "
        f"{user_metrics(best_ranks)[METRIC].mean():.4f}."
    )
    base = read_evaluated(run, BASELINE, split="test")
    others = {
        one.model: in_order_of(base, read_evaluated(run, one.model, split="test"))
        for one in test
        if one.model in SLICED
    }
    console.print(_slices(base, others))
    print("\n".join(_reasons(valid, test, chosen)))
    return chosen


def _models(standings: list[Standing], chosen: str) -> Table:
    num_users = standings[0].comparison.num_users
    title = f"{num_users:,} users, test split, all items ranked, history excluded; differences are to {BASELINE}"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in ("NDCG@10", "difference", f"{CONFIDENCE:.0%} interval", "relative", "users/s", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for model, result, users_per_second, num_parameters in standings:
        cells = ("", "", "") if model == BASELINE else difference_cells(result)
        costs = f"{users_per_second:,.0f}", f"{num_parameters:,}"
        table.add_row(model, f"{result.mean_b:.4f}", *cells, *costs, "ship this" if model == chosen else "")
    return table


def _slices(base: Evaluated, others: dict[str, Evaluated]) -> Table:
    title = f"NDCG@10 by training events of the item that was bought next; differences are to {BASELINE}"
    table = Table(title=title, title_justify="left")
    table.add_column("training events", no_wrap=True)
    table.add_column("users", justify="right")
    table.add_column("model")
    for name in ("NDCG@10", "difference", f"{CONFIDENCE:.0%} interval", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    groups = [contrast(base, other).groups["target_count"] for other in others.values()]
    for rows in zip(*groups, strict=True):
        name, first, _ = rows[0]
        table.add_row(name, f"{first.num_users:,}", BASELINE, f"{first.mean_a:.4f}")
        for model, (_, result, _) in zip(others, rows, strict=True):
            table.add_row("", "", model, f"{result.mean_b:.4f}", *difference_cells(result))
        table.add_section()
    return table


def _reasons(valid: list[Standing], test: list[Standing], chosen: str) -> list[str]:
    """Return the choice and its reasons, in sentences."""
    on_valid, on_test = ({one.model: one for one in standings} for standings in (valid, test))
    rule = f"models at least {MIN_SPEED:g} times as fast as {BASELINE}"
    if chosen == BASELINE:
        return [f"Ship {BASELINE}: on validation, none of the {rule} is ahead of it by an interval above zero."]
    lines = [f"Ship the {chosen}: on validation it is the best of the {rule}."]
    for split, own in (("validation", on_valid[chosen]), ("test", on_test[chosen])):
        difference, interval, relative = difference_cells(own.comparison)
        lines.append(
            f"  {split}: {own.comparison.mean_b:.4f} against {own.comparison.mean_a:.4f} of {BASELINE}: {difference} "
            f"({relative}, interval {interval})"
        )
    own, teacher, base = (on_test[name] for name in (chosen, "teacher", BASELINE))
    lines.append(
        f"  It answers {own.users_per_second / base.users_per_second:.2f} times as many users per second as {BASELINE} "
        f"and {own.users_per_second / teacher.users_per_second:.1f} times as many as the teacher, and has "
        f"{own.comparison.mean_b / teacher.comparison.mean_b:.0%} of the teacher's NDCG@10."
    )
    return lines


def rare_targets(run: Path, models: list[str]) -> tuple[Ints, dict[str, Ints]]:
    """Return the users of the test split whose item is new or rare, and whether each model found it.

    Returns:
        Rows of the users, and for each model the rows whose item is in its top list.
    """
    base = read_evaluated(run, models[0], split="test")
    is_rare = base.column("target_count") < RARE
    found = {}
    for name in models:
        ranks = in_order_of(base, read_evaluated(run, name, split="test")).column("rank")
        found[name] = (is_rare & (ranks < TOP_K)).nonzero()[0]
    return is_rare.nonzero()[0], found
