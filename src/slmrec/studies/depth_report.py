"""The report of a depth study: a table in the terminal, and the numbers as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from slmrec.config import Config
from slmrec.evaluation.metrics import Floats, ranking_metrics, user_metrics
from slmrec.evaluation.statistics import CONFIDENCE, compare_means
from slmrec.studies.ablation import METRIC
from slmrec.studies.compare import numbers
from slmrec.studies.evaluated import label

PROTOCOL = "full_history_excluded"
COLUMNS = ("layers", "parameters", "training", "ms a user", label(METRIC), "of the best", "difference", "read early")
IDLE = 0.99
"""The cosine between a layer's input and output from which it is said to do little."""
Content = dict[str, Any]


def report(folder: Path, names: list[str], deepest: str, dropped: range, config: Config) -> None:
    """Prints and writes what the study found.

    Args:
        folder: `OUT/depth`, with a folder of finished stages for every model.
        names: of the models.
        deepest: the one whose layers were looked at.
        dropped: the layers that were left out of it, one at a time.
        config: the recipe.
    """
    trained = [_trained(folder / name, name) for name in names]
    best = max(trained, key=_quality)
    for point in trained:
        point["difference"] = None if point is best else _difference(folder, best["name"], point["name"])
    content: Content = {
        "split": "valid",
        "protocol": PROTOCOL,
        "num_users": len(_ndcg(folder / deepest)),
        "num_layers": int(deepest),
        "seed": config.seed,
        "trained": trained,
        **_readings(folder / deepest / "layers"),
        "dropped": [_dropped(folder / deepest, layer) for layer in dropped],
        "recommended": _recommended(trained, best, config.depth.quality_loss),
    }
    _write(folder / "depth.json", content)
    _show(content)
    print(f"depth: written to {folder / 'depth.json'}", flush=True)


def _trained(point: Path, name: str) -> Content:
    """A trained model: its size, what it took and how well it ranks."""
    facts = json.loads((point / "finetune" / "metrics.json").read_text(encoding="utf-8"))
    taken = ("num_layers", "num_parameters", "num_trainable_parameters", "training_s", "peak_rss_mb", "best_epoch")
    return {"name": name, **{key: facts[key] for key in taken}, **_readings(point / "validate")}


def _readings(stage: Path) -> Content:
    content: Content = json.loads((stage / "readings.json").read_text(encoding="utf-8"))
    return content


def _dropped(point: Path, layer: int) -> Content:
    """The model without a layer, and as a whole over the same users: the first ones of all."""
    readings = _readings(point / f"without{layer}")
    ranks = pq.read_table(point / "validate" / "per_user.parquet").slice(0, readings["num_users"])
    whole = {protocol: ranking_metrics(np.asarray(ranks[protocol], np.int64)) for protocol in readings["metrics"]}
    return readings | {"whole": whole}


def _quality(point: Content) -> float:
    value: float = point["metrics"][PROTOCOL][METRIC]
    return value


def _difference(folder: Path, best: str, other: str) -> Content:
    return numbers(compare_means(_ndcg(folder / best), _ndcg(folder / other)), None)


def _ndcg(point: Path) -> Floats:
    """(num_users,) of the metric, in the order of the users."""
    table = pq.read_table(point / "validate" / "per_user.parquet").sort_by("user")
    return user_metrics(np.asarray(table[PROTOCOL], np.int64))[METRIC]


def _recommended(trained: list[Content], best: Content, quality_loss: float) -> Content:
    enough = [point for point in trained if _quality(point) >= (1 - quality_loss) * _quality(best)]
    chosen = min(enough, key=lambda point: point["num_layers"])
    return {
        "name": chosen["name"],
        "num_layers": chosen["num_layers"],
        "quality_loss": quality_loss,
        "best": best["name"],
        "best_num_layers": best["num_layers"],
    }


def _write(path: Path, content: Content) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _show(content: Content) -> None:
    found = content["recommended"]
    best = next(point for point in content["trained"] if point["name"] == found["best"])
    title = (
        f"{content['num_users']:,} users of the validation split, {PROTOCOL}, seed {content['seed']}; differences "
        f"({CONFIDENCE:.0%} intervals) to {found['best']}; read early: the deepest model cut there, its own head"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    early = {
        reading["num_layers"]: _quality(reading) for reading in content["read_early"] if reading["head"] == "final"
    }
    for point in content["trained"]:
        cut = early.get(point["num_layers"]) if point["layers"] == list(range(point["num_layers"])) else None
        table.add_row(*_cells(point, best, cut))
    console = Console(width=max(Console().width, 140), markup=False, highlight=False)
    console.print(table)
    idle = [str(layer) for layer, cosine in enumerate(content["similarity"]["cosine"]) if cosine > IDLE]
    console.print(f"layers (from 0) that hardly turn the states, cosine > {IDLE}: {', '.join(idle) or 'none'}")
    console.print(
        f"recommended depth: {found['num_layers']} (the smallest within {found['quality_loss']:.1%} of the best, "
        f"{found['best_num_layers']})"
    )


def _cells(point: Content, best: Content, early: float | None) -> list[str]:
    found = point["difference"]
    return [
        point["name"],
        str(point["num_layers"]),
        f"{point['num_parameters'] / 1e6:,.1f} M",
        f"{point['training_s']:,.0f} s",
        f"{point['infer_s_per_1000_users']:.2f}",
        f"{_quality(point):.4f}",
        f"{_quality(point) / _quality(best):.1%}" if _quality(best) else "-",
        f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})" if found else "",
        "" if early is None else f"{early:.4f}",
    ]
