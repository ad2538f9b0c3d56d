"""Results of an evaluation as tables on the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slmrec.evaluation.rank import TOP_K
from slmrec.progress import tables_printed

SHOWN = ("hit@1", "hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr")
SHOWN_OF_LISTS = ("coverage@10", "novelty@10", "gini@10", "ild@10", "popularity_lift@10")
MIN_WIDTH = 118


def show(folder: Path) -> None:
    """Print the results in the folder of an evaluation, one table a protocol."""
    if not tables_printed.get():
        return
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if "protocols" not in content:  # the test split was not evaluated
        content = json.loads((folder / "metrics_valid.json").read_text(encoding="utf-8"))
    console = Console(width=max(Console().width, MIN_WIDTH))
    for name, protocol in content["protocols"].items():
        console.print(_table(name, protocol))
    of_lists = _table_of_lists(content["protocols"])
    if of_lists.row_count:
        console.print(of_lists)


def constant_note(name: str, protocol: dict[str, Any]) -> str:
    """Return a sentence about the metrics of a protocol that are 1 for every model; empty if there are none."""
    metrics = ", ".join(protocol.get("constant_metrics", ()))
    return metrics and (
        f"{name}: {metrics} can only be 1, whatever the model, since no user has more candidates than that; use a log "
        "with more items, or metrics with a smaller cut-off"
    )


def _table(name: str, protocol: dict[str, Any]) -> Table:
    settings = protocol["settings"]
    candidates = f"{settings['num_negatives']} sampled negatives" if settings["num_negatives"] else "all items"
    history = "excluded" if settings["exclude_history"] else "not excluded"
    table = Table(
        title=f"{name}: {settings['split']} split, ranked among {candidates}, history {history}",
        caption=constant_note(name, protocol) or None,
    )
    table.add_column("model")
    for metric in SHOWN:
        table.add_column(metric.replace("hit", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR"), justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("users/s", justify="right")
    for model, values in protocol["models"].items():
        cells = [f"{values[metric]:.4f}" for metric in SHOWN]
        table.add_row(model, *cells, f"{values['num_parameters']:,}", f"{values['users_per_second']:,.0f}")
    return table


def _table_of_lists(protocols: dict[str, Any]) -> Table:
    """Return the metrics beyond accuracy of every protocol that gives top lists."""
    table = Table(title=f"top {TOP_K} of each user, beyond accuracy")
    table.add_column("protocol")
    table.add_column("model")
    for metric in SHOWN_OF_LISTS:
        table.add_column(metric.replace("popularity_lift", "popularity lift"), justify="right")
    for name, protocol in protocols.items():
        for model, values in protocol["models"].items():
            if "coverage@10" in values:
                cells = [f"{values[metric]:.4f}" if metric in values else "-" for metric in SHOWN_OF_LISTS]
                table.add_row(name, model, *cells)
    return table
