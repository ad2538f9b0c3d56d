"""Results of the study of the paper: the table of all rows under every protocol, and the claims with intervals."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from slmrec.evaluation.metrics import Floats
from slmrec.evaluation.statistics import CONFIDENCE, compare_means
from slmrec.files import write_json, write_text
from slmrec.pipeline.evaluate import model_folders
from slmrec.studies.ablation import METRIC
from slmrec.studies.compare import numbers
from slmrec.studies.evaluated import (
    SPLIT_NAMES,
    Evaluated,
    Split,
    common_users,
    in_order_of,
    label,
    read_evaluated,
    results_file,
)
from slmrec.studies.paper.rows import CLAIMS, FILE_ORDER, TIES, Claim, Row
from slmrec.studies.tables import markdown_table, show_table, signed

_LOG = logging.getLogger(__name__)
SHOWN = ("hit@1", "hit@5", "ndcg@5", "mrr", "hit@10", METRIC)
"""Metrics of the table: those of the paper, and two of ours."""
Content = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Evaluation of one row with one seed, and the cost of its training."""

    by_protocol: dict[str, Evaluated]
    minutes: float
    """Time of the training of the model itself."""
    num_parameters: int
    num_trained: int


Results = dict[str, dict[int, Result]]
"""Results by row and seed."""


def result_of(folder: Path, row: Row, split: Split) -> Result:
    """Read the result of a finished row.

    Args:
        folder: Folder of its run.
        row: The row.
        split: Split whose ranks are read.
    """
    content = json.loads(results_file(folder / "evaluate", "metrics.json", split).read_text(encoding="utf-8"))
    own = model_folders(row.config, folder)[row.model]
    facts = json.loads((own / "metrics.json").read_text(encoding="utf-8"))
    by_protocol = {name: read_evaluated(folder, row.model, name, split) for name in content["protocols"]}
    minutes = round(facts.get("training_s", 0) / 60, 1)
    return Result(by_protocol, minutes, int(facts["num_parameters"]), int(facts["num_trainable_parameters"]))


def report(
    folder: Path,
    rows: list[Row],
    results: Results,
    rates: dict[str, dict[float, float]],
    split: Split,
    num_missing: int = 0,
) -> None:
    """Write `paper.json` and `paper.md`, and print the table once all rows are finished.

    Args:
        folder: Folder of the study.
        rows: All rows, in the order of the table.
        results: Results of the finished ones.
        rates: Validation quality by model and learning rate.
        split: Split on which the rows are compared.
        num_missing: Number of rows with a seed that are not finished.
    """
    finished = [row for row in rows if row.name in results]
    first = next(iter(results[finished[0].name].values())).by_protocol
    content: Content = {
        "split": split,
        "num_users": len(next(iter(first.values()))),
        "num_missing": num_missing,
        "compared_metric": METRIC,
        "confidence": CONFIDENCE,
        "learning_rates": {model: {f"{rate:g}": value for rate, value in own.items()} for model, own in rates.items()},
        "rows": {row.name: _row(row, results[row.name]) for row in finished},
        "claims": [
            _claim(claim, results, protocol)
            for protocol in first
            for claim in CLAIMS
            if claim.row in results and claim.baseline in results
        ],
    }
    write_json(folder / "paper.json", content)
    write_text(folder / "paper.md", _markdown(content))
    if num_missing:
        return
    for protocol in first:
        show_table(_title(content, protocol), ["model", *_columns()], _table(content, protocol))
    _LOG.info("ablate: written to %s and %s", folder / "paper.md", folder / "paper.json")


def _row(row: Row, own: dict[int, Result]) -> Content:
    one = next(iter(own.values()))
    return {
        "about": row.about,
        "seeds": list(own),
        "minutes": mean(result.minutes for result in own.values()),
        "num_parameters": one.num_parameters,
        "num_trained": one.num_trained,
        "by_seed": {
            protocol: {
                metric: {
                    seed: float(result.by_protocol[protocol].metrics[metric].mean()) for seed, result in own.items()
                }
                for metric in SHOWN
            }
            for protocol in one.by_protocol
        },
    }


def _claim(claim: Claim, results: Results, protocol: str) -> Content:
    """Return the comparison of two rows over the seeds that both have."""
    seeds = [seed for seed in results[claim.baseline] if seed in results[claim.row]]
    own, base = ([results[name][seed].by_protocol[protocol] for seed in seeds] for name in (claim.row, claim.baseline))
    if claim.row == FILE_ORDER:  # other histories and targets of the same users
        own, base = map(list, zip(*(common_users(*pair) for pair in zip(own, base, strict=True)), strict=True))
    else:
        own, base = ([_in_order_of(base[0], one, claim) for one in evaluated] for evaluated in (own, base))
    compared = numbers(compare_means(_means(base), _means(own)), None)
    question = {"question": claim.question, "row": claim.row, "baseline": claim.baseline}
    return {**question, "protocol": protocol, "seeds": seeds, **compared}


def _means(evaluated: list[Evaluated]) -> Floats:
    """Return the compared metric of each user, as the mean over the seeds."""
    means: Floats = np.mean([one.metrics[METRIC] for one in evaluated], axis=0)
    return means


def _in_order_of(first: Evaluated, other: Evaluated, claim: Claim) -> Evaluated:
    """Return an evaluation in the order of the first; seeds draw other negatives, which are no other protocol."""
    seed = {"seed": first.settings["seed"]}
    settings = first.settings if TIES in (claim.row, claim.baseline) else {**other.settings, **seed}
    return in_order_of(first, replace(other, settings=settings))


def _columns() -> list[str]:
    return ["seeds", *map(label, SHOWN), f"sd of {label(METRIC)}", "minutes", "trained"]


def _table(content: Content, protocol: str) -> list[list[str]]:
    rows = []
    for row in content["rows"].values():
        by_seed = row["by_seed"][protocol]
        values = list(by_seed[METRIC].values())
        spread = f"{stdev(values):.4f}" if len(values) > 1 else "-"
        means = [f"{mean(by_seed[metric].values()):.4f}" for metric in SHOWN]
        trained = f"{row['num_trained'] / row['num_parameters']:.1%}"
        rows.append([row["about"], str(len(values)), *means, spread, f"{row['minutes']:.0f}", trained])
    return rows


def _title(content: Content, protocol: str) -> str:
    return f"{protocol}: {content['num_users']:,} users, {SPLIT_NAMES[content['split']]}; means over the seeds"


def _markdown(content: Content) -> str:
    missing = content["num_missing"]
    parts = ["# The paper's experiment\n"]
    if missing:
        parts.append(f"{missing} rows are not finished; the same command goes on.\n")
    for model, rates in content["learning_rates"].items():
        tried = ", ".join(f"{rate} gives {value:.4f}" for rate, value in rates.items())
        parts.append(f"Learning rate of the {model}, {label(METRIC)} on validation: {tried}.\n")
    protocols = next(iter(content["rows"].values()))["by_seed"]
    for protocol in protocols:
        parts.append(f"## {_title(content, protocol)}\n")
        parts.append(markdown_table(["model", *_columns()], _table(content, protocol)) + "\n")
        claims = [claim for claim in content["claims"] if claim["protocol"] == protocol]
        if claims:
            names = ["claim", "rows", "seeds", f"difference of {label(METRIC)} ({CONFIDENCE:.0%} interval)"]
            cells = [
                [claim["question"], f"{claim['row']} - {claim['baseline']}", str(len(claim["seeds"])), signed(claim)]
                for claim in claims
            ]
            parts.append(markdown_table(names, cells) + "\n")
    parts.append(
        "Minutes are those of the training of the model itself; `trained` is the share of its parameters that train. "
        "Intervals are a bootstrap over users, whose values are means over the seeds.\n"
    )
    return "\n".join(parts)
