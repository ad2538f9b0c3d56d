"""Two evaluated models side by side, user by user: differences with intervals and tests, and where they come from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slmrec.errors import ConfigError
from slmrec.evaluation.metrics import Ints
from slmrec.evaluation.statistics import CONFIDENCE, NUM_RESAMPLES, NUM_SIGN_FLIPS, Comparison, compare_means, holm
from slmrec.studies.evaluated import Evaluated, in_order_of, label, read_evaluated

METRICS = ("ndcg@10", "hit@10", "mrr")
NUM_BINS = 4
FEW_EVENTS = 5
"""A target with fewer train events than this is cold."""
Bools = NDArray[np.bool_]
Row = tuple[str, Comparison, float]
"""What is compared, how it came out, and its p-value after correction."""


@dataclass(frozen=True)
class Report:
    """What `compare` found."""

    a: Evaluated
    b: Evaluated
    metrics: list[Row]
    sliced: str
    """The metric of the slices: the first one."""
    slices: dict[str, list[Row]]
    """By what the users are grouped by; the p-values of all slices are one family."""


def compare(
    run_a: Path,
    run_b: Path,
    *,
    model: str = "student",
    model_b: str | None = None,
    protocol: str | None = None,
    metrics: tuple[str, ...] = METRICS,
    output: Path | None = None,
) -> None:
    """Compares a model of one run with a model of another run, or of the same, and prints what it found.

    Args:
        run_a: folder of an evaluated run; the differences are those to it.
        run_b: folder of another one, or the same.
        model: the model of the first run.
        model_b: the model of the second; None: the same.
        protocol: what the targets were ranked against; None: the primary protocol of the first run.
        metrics: which ones; the first is looked at more closely.
        output: a .json file to write the same numbers to.

    Raises:
        CheckpointError: a run is not evaluated, or the two are of other data.
        ConfigError: a model, protocol or metric is unknown, or there is nothing to compare.
    """
    if output and (output.suffix != ".json" or output.is_dir()):
        raise ConfigError(f"{output}: the numbers are written as JSON; give --output NAME.json")
    model_b = model_b or model
    if model == model_b and run_a.resolve() == run_b.resolve():
        raise ConfigError(f"{run_a}: {model} against itself; give --model-b another model, or another run")
    a = read_evaluated(run_a, model, protocol)
    b = in_order_of(a, read_evaluated(run_b, model_b, a.protocol))
    report = contrast(a, b, metrics)
    _show(report)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(_content(report), indent=1) + "\n", encoding="utf-8")
        print(f"compare: written to {output}", flush=True)


def contrast(a: Evaluated, b: Evaluated, metrics: tuple[str, ...] = METRICS) -> Report:
    """How two models differ over all users and over groups of them.

    Args:
        a: one of them.
        b: the other one, with the users in the same order.
        metrics: which ones; groups are compared by the first.

    Raises:
        ConfigError: a metric is unknown.
    """
    unknown = [name for name in metrics if name not in a.metrics]
    if unknown:
        raise ConfigError(f"--metric {unknown[0]}: unknown; choose of: {', '.join(a.metrics)}")
    rows = _corrected([(name, compare_means(a.metrics[name], b.metrics[name])) for name in dict.fromkeys(metrics)])
    groups = groups_of(a)
    ours, theirs = a.metrics[metrics[0]], b.metrics[metrics[0]]
    slices = _corrected(
        [(name, compare_means(ours[own], theirs[own])) for bins in groups.values() for name, own in bins]
    )
    first = len(groups["history_length"])
    return Report(a, b, rows, metrics[0], {"history_length": slices[:first], "target_count": slices[first:]})


def groups_of(evaluated: Evaluated) -> dict[str, list[tuple[str, Bools]]]:
    """Groups of users by name: by the length of their history, and by how often their target was trained on."""
    lengths = evaluated.column("history_length")
    return {"history_length": _quantile_bins(lengths), "target_count": _by_count(evaluated)}


def _corrected(rows: list[tuple[str, Comparison]]) -> list[Row]:
    """The rows as one family of tests."""
    corrected = holm([found.p_value for _, found in rows])
    return [(name, found, p_value) for (name, found), p_value in zip(rows, corrected, strict=True)]


def _quantile_bins(values: Ints) -> list[tuple[str, Bools]]:
    """Up to `NUM_BINS` groups of about as many users, by name; equal values stay together."""
    shares = np.arange(1, NUM_BINS) / NUM_BINS
    upper = np.unique(np.quantile(values, [*shares, 1.0], method="inverted_cdf"))
    number = np.searchsorted(upper, values)
    bins = [number == place for place in range(len(upper))]
    return [(_bounds(values[own]), own) for own in bins]


def _by_count(a: Evaluated) -> list[tuple[str, Bools]]:
    """Cold targets, never seen in training or seldom, and the others in quantile bins; no group is empty."""
    counts = a.column("target_count")
    often = counts >= FEW_EVENTS
    groups = [("0 (never trained on)", counts == 0), (f"1-{FEW_EVENTS - 1} (cold)", (counts > 0) & ~often)]
    if often.any():
        for name, own in _quantile_bins(counts[often]):
            mask = np.zeros_like(often)
            mask[np.flatnonzero(often)[own]] = True
            groups.append((name, mask))
    return [(name, own) for name, own in groups if own.any()]


def _bounds(values: Ints) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _show(report: Report) -> None:
    console = Console(width=max(Console().width, 118), markup=False, highlight=False)
    a, b = report.a, report.b
    console.print(f"A: {a.model} of {a.run}\nB: {b.model} of {b.run}")
    console.print(f"{len(a):,} users, {a.protocol}; test split; differences are B - A")
    console.print(
        _table("all users", "metric", [(label(name), found, corrected) for name, found, corrected in report.metrics])
    )
    titles = {
        "history_length": ("by items in the history", "items"),
        "target_count": ("by train events of the target item", "train events"),
    }
    for name, rows in report.slices.items():
        title, first = titles[name]
        console.print(_table(f"{label(report.sliced)} {title}", first, rows))
    console.print(
        f"{NUM_RESAMPLES:,} bootstrap resamples of the users; p: {NUM_SIGN_FLIPS:,} sign flips, two-sided; p (Holm): "
        "corrected for the rows of the first table, and for those of the others together"
    )


def _table(title: str, first: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in ("users", "A", "B", "B - A", f"{CONFIDENCE:.0%} interval", "relative", "p", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found, corrected in rows:
        means = f"{found.mean_a:.4f}", f"{found.mean_b:.4f}", f"{found.difference:+.4f}"
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
        table.add_row(
            name, f"{found.num_users:,}", *means, interval, percent(found), f"{found.p_value:.4f}", f"{corrected:.4f}"
        )
    return table


def percent(found: Comparison) -> str:
    """The relative difference, as tables show it."""
    return "-" if found.relative is None else f"{found.relative:+.1%}"


def _content(report: Report) -> dict[str, Any]:
    """The numbers of the tables."""
    sides = {side: {"run": str(one.run), "model": one.model} for side, one in (("a", report.a), ("b", report.b))}
    return {
        **sides,
        "protocol": report.a.protocol,
        "settings": report.a.settings,
        "num_users": len(report.a),
        "confidence": CONFIDENCE,
        "metrics": {name: numbers(found, corrected) for name, found, corrected in report.metrics},
        "sliced_metric": report.sliced,
        "slices": {
            by: {name: numbers(found, corrected) for name, found, corrected in rows}
            for by, rows in report.slices.items()
        },
    }


def numbers(found: Comparison, corrected: float | None) -> dict[str, float | None]:
    """A comparison as JSON."""
    return asdict(found) | {"relative": found.relative, "p_holm": corrected}
