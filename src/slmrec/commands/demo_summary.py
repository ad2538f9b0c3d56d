"""Closing tables of the demo: all models beside SASRec, and the items that are new or rare."""

import json
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from slmrec.evaluation.metrics import Ints, user_metrics
from slmrec.evaluation.rank import TOP_K
from slmrec.evaluation.statistics import CONFIDENCE, Comparison, compare_means
from slmrec.studies.compare import contrast, difference_cells
from slmrec.studies.evaluated import Evaluated, in_order_of, read_evaluated

BASELINE = "sasrec"
METRIC = "ndcg@10"
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


def read_standings(run: Path) -> list[Standing]:
    """Read the models of an evaluated run on the test split, under its primary protocol."""
    content = json.loads((run / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    base = read_evaluated(run, BASELINE, split="test")
    standings = []
    for name, values in content["protocols"][content["primary"]]["models"].items():
        own = in_order_of(base, read_evaluated(run, name, split="test"))
        comparison = compare_means(base.metrics[METRIC], own.metrics[METRIC])
        standings.append(Standing(name, comparison, values["users_per_second"], values["num_parameters"]))
    return standings


def show_summary(run: Path, chosen: str, best_ranks: Ints) -> None:
    """Print all models on the test split and by training events.

    Args:
        run: Folder of the run, evaluated on test.
        chosen: Model to ship.
        best_ranks: Ranks of the test items in the order of the true probabilities.
    """
    console = Console(width=max(Console().width, 118), markup=False, highlight=False)
    test = read_standings(run)
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
