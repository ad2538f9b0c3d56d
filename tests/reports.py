"""A tiny finished run, an invented study of depth, and readers of reports, for the tests of reports."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from slmrec.commands.main import main

NUM_LAYERS = 6


def write_run(folder: Path, tiny_recipe: str, items: Path | None = None) -> Path:
    """Run the tiny recipe with all protocols, a study of depth and the report at the end."""
    add_depth_study(folder / "run")
    content = yaml.safe_load(tiny_recipe)
    content["finetune"]["backbone_config"]["hidden_size"] = 16
    protocols = ["full_history_excluded", "full", "sampled_19"]
    content["evaluate"] = {"protocols": protocols, "splits": ["test", "valid"], "timing_users": 20}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    table = ["--items", str(items)] if items else []
    assert main(["run", "--config", str(recipe), "--output", str(folder / "run"), *table]) == 0
    return folder / "run"


def metrics(value: float) -> dict[str, dict[str, float]]:
    own = {"hit@1": value / 2, "hit@5": value, "hit@10": 2 * value, "ndcg@5": value, "ndcg@10": value, "mrr": value}
    return {"full_history_excluded": own, "full": {name: one / 3 for name, one in own.items()}}


def depth_study() -> dict[str, Any]:
    """Content of a depth.json."""
    trained = [
        {
            "name": name,
            "layers": layers,
            "num_layers": len(layers),
            "num_parameters": 1000 + 100 * len(layers),
            "num_trainable_parameters": 100 * len(layers),
            "training_s": 12.5,
            "infer_s_per_1000_users": 0.125 * len(layers),
            "peak_rss_mb": 300.5,
            "metrics": metrics(0.01 * len(layers) + 0.001),
        }
        for name, layers in {"1": [0], "6": list(range(6)), "step 2": [0, 2, 4], "without 3": [0, 1, 2, 4, 5]}.items()
    ]
    return {
        "split": "valid",
        "protocol": "full_history_excluded",
        "num_users": 80,
        "num_layers": NUM_LAYERS,
        "seed": 42,
        "trained": trained,
        "early_exit": [
            {"num_layers": k, "head": head, "metrics": metrics(0.009 * k)}
            for head in ("final", "fitted")
            for k in range(1, NUM_LAYERS + 1)
        ],
        "similarity": {
            "cosine": [0.7 + 0.04 * k for k in range(NUM_LAYERS)],
            "cka": [[1 - abs(a - b) / 8 for a in range(NUM_LAYERS + 1)] for b in range(NUM_LAYERS + 1)],
            "num_users": 50,
        },
        "dropped": [
            {"without": k, "num_users": 300, "metrics": metrics(0.05 - 0.001 * k), "whole": metrics(0.06)}
            for k in range(NUM_LAYERS)
        ],
        "recommended": {"num_layers": 1, "quality_loss": 0.01, "best_num_layers": 6},
    }


def add_depth_study(run: Path) -> None:
    (run / "depth").mkdir(parents=True)
    (run / "depth" / "depth.json").write_text(json.dumps(depth_study()), encoding="utf-8")


class _Tables(HTMLParser):
    """The tables of a page: by the name of the card or figure they are in, rows of text or exact numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self._name, self._rows, self._cell, self._value, self._is_head = "", [[""]], False, "", False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if re.match("(table|figure)-", found.get("id") or ""):
            self._name = str(found["id"]).split("-", 1)[1]
        if tag == "table":
            self._rows = self.tables.setdefault(self._name, [])
        elif tag == "tr":
            self._rows.append([])
            self._is_head = found.get("class") == "groups"
        elif tag in {"td", "th"}:
            self._cell, self._value = True, ""
            self._rows[-1].append("")
        elif tag == "data":
            self._value = str(found["value"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._is_head:
            self._rows.pop()  # names of groups of columns
        if tag in {"td", "th"}:
            self._cell = False
            self._rows[-1][-1] = self._value or self._rows[-1][-1]

    def handle_data(self, data: str) -> None:
        if self._cell:
            self._rows[-1][-1] += data


def tables_of(page: Path) -> dict[str, list[list[str]]]:
    parser = _Tables()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.tables


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file of a report."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
