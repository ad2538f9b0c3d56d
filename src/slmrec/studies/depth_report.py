"""Results of the study of depth: a table on the terminal, and the numbers as JSON."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from slmrec.config import Config
from slmrec.evaluation.metrics import Floats, ranking_metrics, user_metrics
from slmrec.evaluation.statistics import CONFIDENCE, compare_means
from slmrec.files import write_json
from slmrec.studies.ablation import METRIC
from slmrec.studies.compare import numbers
from slmrec.studies.evaluated import label

_LOG = logging.getLogger(__name__)
COLUMNS = ("layers", "parameters", "training", "ms a user", label(METRIC), "of the best", "difference", "early exit")
REDUNDANT = 0.99
"""Cosine between the input and the output of a layer from which the layer is listed as redundant."""
Content = dict[str, Any]


def report(folder: Path, names: list[str], deepest: str, removed: range, config: Config) -> None:
    """Print and write the results of the study.

    Args:
        folder: `OUT/depth`, with a folder of finished steps for every model.
        names: Names of the models.
        deepest: Model whose layers were analysed.
        removed: Layers without which it was evaluated.
        config: The recipe.
    """
    protocol = config.evaluate.primary_protocol
    trained = [_trained(folder / name, name) for name in names]
    best = max(trained, key=lambda point: _quality(point, protocol))
    most = _values(folder / best["name"], protocol)
    for point in trained:
        values = _values(folder / point["name"], protocol)
        point["difference"] = None if point is best else numbers(compare_means(most, values), None)
    content: Content = {
        "split": "valid",
        "protocol": protocol,
        "num_users": len(_values(folder / deepest, protocol)),
        "num_layers": int(deepest),
        "seed": config.seed,
        "trained": trained,
        **_measurements(folder / deepest / "layers"),
        "dropped": [_without_layer(folder / deepest, layer) for layer in removed],
        "recommended": _recommended(trained, best, protocol, config.depth.quality_loss),
    }
    path = folder / "depth.json"
    write_json(path, content)
    _show(content)
    _LOG.info("depth: written to %s", path)


def _trained(point: Path, name: str) -> Content:
    """Return the size, cost and quality of a trained model."""
    metrics = json.loads((point / "finetune" / "metrics.json").read_text(encoding="utf-8"))
    costs = ("num_layers", "num_parameters", "num_trainable_parameters", "training_s", "peak_rss_mb", "best_epoch")
    return {"name": name, **{key: metrics[key] for key in costs}, **_measurements(point / "validate")}


def _measurements(folder: Path) -> Content:
    content: Content = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
    return content


def _without_layer(point: Path, layer: int) -> Content:
    """Return the metrics without a layer, and those of the whole model for the same users, the first ones."""
    measured = _measurements(point / f"without{layer}")
    ranks = pq.read_table(point / "validate" / "per_user.parquet").slice(0, measured["num_users"])
    whole = {protocol: ranking_metrics(np.asarray(ranks[protocol], np.int64)) for protocol in measured["metrics"]}
    return measured | {"whole": whole}


def _quality(point: Content, protocol: str) -> float:
    value: float = point["metrics"][protocol][METRIC]
    return value


def _values(point: Path, protocol: str) -> Floats:
    """Return the metric of each user (num_users,), in the order of the users."""
    table = pq.read_table(point / "validate" / "per_user.parquet").sort_by("user")
    return user_metrics(np.asarray(table[protocol], np.int64))[METRIC]


def _recommended(trained: list[Content], best: Content, protocol: str, quality_loss: float) -> Content:
    """Return the smallest model whose quality is close enough to the best."""
    least = (1 - quality_loss) * _quality(best, protocol)
    close = [point for point in trained if _quality(point, protocol) >= least]
    chosen = min(close, key=lambda point: point["num_layers"])
    return {
        "name": chosen["name"],
        "num_layers": chosen["num_layers"],
        "quality_loss": quality_loss,
        "best": best["name"],
        "best_num_layers": best["num_layers"],
    }


def _show(content: Content) -> None:
    recommended, protocol = content["recommended"], content["protocol"]
    best = next(point for point in content["trained"] if point["name"] == recommended["best"])
    title = (
        f"{content['num_users']:,} users of the validation split, {protocol}, seed {content['seed']}; differences "
        f"({CONFIDENCE:.0%} intervals) to {recommended['best']}; early exit: the deepest model up to this layer, with "
        "its own head"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    exits = {exit["num_layers"]: _quality(exit, protocol) for exit in content["early_exit"] if exit["head"] == "final"}
    for point in content["trained"]:
        are_first = point["layers"] == list(range(point["num_layers"]))
        table.add_row(*_cells(point, best, protocol, exits.get(point["num_layers"]) if are_first else None))
    console = Console(width=max(Console().width, 140), markup=False, highlight=False)
    console.print(table)
    cosines = enumerate(content["similarity"]["cosine"])
    redundant = ", ".join(str(layer) for layer, cosine in cosines if cosine > REDUNDANT)
    console.print(f"layers (from 0) that hardly change the states, cosine > {REDUNDANT}: {redundant or 'none'}")
    console.print(
        f"recommended depth: {recommended['num_layers']} (the smallest within {recommended['quality_loss']:.1%} of the "
        f"best, {recommended['best_num_layers']})"
    )


def _cells(point: Content, best: Content, protocol: str, early_exit: float | None) -> list[str]:
    difference, interval = point["difference"], ""
    quality, most = _quality(point, protocol), _quality(best, protocol)
    if difference:
        interval = f"{difference['difference']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
    return [
        point["name"],
        str(point["num_layers"]),
        f"{point['num_parameters'] / 1e6:,.1f} M",
        f"{point['training_s']:,.0f} s",
        f"{point['infer_s_per_1000_users']:.2f}",
        f"{quality:.4f}",
        f"{quality / most:.1%}" if most else "-",
        interval,
        "" if early_exit is None else f"{early_exit:.4f}",
    ]
