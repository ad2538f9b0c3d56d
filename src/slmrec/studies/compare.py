"""Paired comparison of two evaluated models: differences with intervals and tests, for all users and for groups."""

import logging
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slmrec.errors import ConfigError
from slmrec.evaluation.statistics import CONFIDENCE, NUM_RESAMPLES, NUM_SIGN_FLIPS, Comparison, compare_means, holm
from slmrec.files import write_json
from slmrec.studies.evaluated import SPLIT_NAMES, Evaluated, Split, in_order_of, label, read_evaluated
from slmrec.studies.slices import slices_of

_LOG = logging.getLogger(__name__)
METRICS = ("ndcg@10", "hit@10", "mrr")
"""Metrics that are compared by default."""
Row = tuple[str, Comparison, float]
"""Name of a metric or group, comparison, and corrected p-value."""


@dataclass(frozen=True)
class Report:
    """Comparison of two models."""

    a: Evaluated
    b: Evaluated
    metrics: list[Row]
    group_metric: str
    """Metric by which groups of users are compared."""
    groups: dict[str, list[Row]]
    """Comparisons by grouping; the p-values of all groups are corrected as one family."""


def compare(
    run_a: Path,
    run_b: Path,
    *,
    model: str = "student",
    model_b: str | None = None,
    protocol: str | None = None,
    split: Split = "valid",
    metrics: tuple[str, ...] = METRICS,
    output: Path | None = None,
) -> None:
    """Compare a model of one run with a model of another run, or of the same run, and print the result.

    Args:
        run_a: Folder of an evaluated run; differences are B - A.
        run_b: Folder of another evaluated run, or the same.
        model: Model of the first run.
        model_b: Model of the second run; None: the same name.
        protocol: Ranking protocol; None: the primary protocol of the first run.
        split: Split whose held-out items were ranked.
        metrics: Metrics to compare; groups of users are compared by the first.
        output: JSON file for the numbers.

    Raises:
        CheckpointError: A run is not evaluated on this split, or the runs have different data.
        ConfigError: A model, protocol or metric is unknown, or both models are the same.
    """
    if output and (output.suffix != ".json" or output.is_dir()):
        raise ConfigError(f"{output}: numbers are written as JSON; give --output NAME.json")
    model_b = model_b or model
    if model == model_b and run_a.resolve() == run_b.resolve():
        raise ConfigError(f"{run_a}: {model} is compared with itself; give --model-b another model, or another run")
    a = read_evaluated(run_a, model, protocol, split)
    b = in_order_of(a, read_evaluated(run_b, model_b, a.protocol, split))
    report = contrast(a, b, metrics)
    _show(report)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, _content(report))
        _LOG.info("compare: written to %s", output)


def contrast(a: Evaluated, b: Evaluated, metrics: tuple[str, ...] = METRICS) -> Report:
    """Compare two models over all users and over groups of users.

    Args:
        a: First model.
        b: Second model, with the users in the same order.
        metrics: Metrics to compare; groups are compared by the first.

    Raises:
        ConfigError: A metric is unknown.
    """
    unknown = [name for name in metrics if name not in a.metrics]
    if unknown:
        raise ConfigError(f"--metric {unknown[0]}: unknown metric; choose from {', '.join(a.metrics)}")
    rows = _corrected([(name, compare_means(a.metrics[name], b.metrics[name])) for name in dict.fromkeys(metrics)])
    groups = slices_of(a)
    values_a, values_b = a.metrics[metrics[0]], b.metrics[metrics[0]]
    compared = iter(
        _corrected(
            [(name, compare_means(values_a[users], values_b[users])) for own in groups.values() for name, users in own]
        )
    )
    return Report(a, b, rows, metrics[0], {by: list(islice(compared, len(own))) for by, own in groups.items()})


def _corrected(rows: list[tuple[str, Comparison]]) -> list[Row]:
    """Add corrected p-values to comparisons, as one family of tests."""
    corrected = holm([comparison.p_value for _, comparison in rows])
    return [(name, comparison, p_value) for (name, comparison), p_value in zip(rows, corrected, strict=True)]


def _show(report: Report) -> None:
    console = Console(width=max(Console().width, 118), markup=False, highlight=False)
    a, b = report.a, report.b
    console.print(f"A: {a.model} of {a.run}\nB: {b.model} of {b.run}")
    console.print(f"{len(a):,} users, {a.protocol}; {SPLIT_NAMES[a.split]}; differences are B - A")
    console.print(_table("all users", "metric", [(label(name), *row) for name, *row in report.metrics]))
    titles = {
        "history_length": ("by number of items in the history", "items"),
        "target_count": ("by train events of the target item", "train events"),
    }
    for name, rows in report.groups.items():
        title, first = titles[name]
        console.print(_table(f"{label(report.group_metric)} {title}", first, rows))
    console.print(
        f"{NUM_RESAMPLES:,} bootstrap resamples of the users; p: {NUM_SIGN_FLIPS:,} sign flips, two-sided; p (Holm): "
        "corrected for the rows of the first table, and for those of the other tables together"
    )


def _table(title: str, first: str, rows: list[Any]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in ("users", "A", "B", "B - A", f"{CONFIDENCE:.0%} interval", "relative", "p", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result, corrected in rows:
        means = f"{result.mean_a:.4f}", f"{result.mean_b:.4f}"
        p_values = f"{result.p_value:.4f}", f"{corrected:.4f}"
        table.add_row(name, f"{result.num_users:,}", *means, *difference_cells(result), *p_values)
    return table


def difference_cells(result: Comparison) -> tuple[str, str, str]:
    """Return the difference, its interval and the relative difference as text."""
    relative = "-" if result.relative is None else f"{result.relative:+.1%}"
    return f"{result.difference:+.4f}", f"{result.low:+.4f} to {result.high:+.4f}", relative


def _content(report: Report) -> dict[str, Any]:
    """Return the content of the JSON file."""
    sides = {side: {"run": str(one.run), "model": one.model} for side, one in (("a", report.a), ("b", report.b))}
    return {
        **sides,
        "protocol": report.a.protocol,
        "split": report.a.split,
        "settings": report.a.settings,
        "num_users": len(report.a),
        "confidence": CONFIDENCE,
        "metrics": {name: numbers(result, corrected) for name, result, corrected in report.metrics},
        "sliced_metric": report.group_metric,
        "slices": {
            by: {name: numbers(result, corrected) for name, result, corrected in rows}
            for by, rows in report.groups.items()
        },
    }


def numbers(result: Comparison, corrected: float | None) -> dict[str, float | None]:
    """Return a comparison as a JSON object."""
    return asdict(result) | {"relative": result.relative, "p_holm": corrected}
