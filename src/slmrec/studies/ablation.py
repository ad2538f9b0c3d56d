"""Results of an ablation: a table on the terminal and in Markdown, the numbers as JSON, and a plot."""

import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from slmrec.evaluation.metrics import Floats
from slmrec.evaluation.statistics import CONFIDENCE, Comparison, compare_means, holm
from slmrec.files import write_json, write_text
from slmrec.plots import PALETTE
from slmrec.studies.compare import difference_cells, numbers
from slmrec.studies.evaluated import SPLIT_NAMES, Evaluated, in_order_of, label
from slmrec.studies.tables import markdown_table, show_table

_LOG = logging.getLogger(__name__)
METRIC = "ndcg@10"
"""Metric by which variants are compared."""
SHOWN = (METRIC, "hit@10", "mrr")
"""Metrics of the table."""
Cells = dict[str, dict[int, Evaluated]]
"""Evaluations of the students, by variant and seed."""


@dataclass(frozen=True)
class Row:
    """Results of one variant."""

    name: str
    changes: dict[str, Any]
    """Settings that differ from the recipe."""
    by_seed: dict[str, dict[int, float]]
    """Values by metric and seed."""
    compared: Comparison | None
    """Comparison with the baseline, of users whose values are means over the seeds; None for the baseline."""
    p_holm: float | None
    """P-value, corrected for the number of variants."""


def report(output: Path, variants: dict[str, dict[str, Any]], cells: Cells, baseline: str) -> None:
    """Print and write the comparison of all variants with the baseline.

    Args:
        output: Folder for `ablation.json`, `ablation.md` and, with matplotlib, `ablation.png`.
        variants: Settings that differ, by the name of the variant.
        cells: Evaluations of the students, with the same seeds for all variants.
        baseline: Variant with which the others are compared.

    Raises:
        CheckpointError: The users or targets of the cells differ.
    """
    first = next(iter(cells[baseline].values()))
    cells = {
        name: {seed: in_order_of(cells[baseline][seed], cell) for seed, cell in own.items()}
        for name, own in cells.items()
    }
    rows = _rows(variants, cells, baseline)
    title = (
        f"{len(first):,} users, {first.protocol}, {SPLIT_NAMES[first.split]}; means over the seeds "
        f"{', '.join(map(str, cells[baseline]))}; differences to {baseline}"
    )
    show_table(title, ["variant", *_names()], [[row.name, *_cells_of(row)] for row in rows])
    write_json(output / "ablation.json", _content(first, rows, baseline))
    write_text(output / "ablation.md", _markdown(title, rows))
    _draw(title, rows, output / "ablation.png")
    _LOG.info("ablate: written to %s and %s", output / "ablation.md", output / "ablation.json")


def rows_of(content: dict[str, Any]) -> list[Row]:
    """Return the variants of the content of an `ablation.json`."""
    names = [field.name for field in fields(Comparison)]
    return [
        Row(
            name,
            variant["changes"],
            {metric: {int(seed): value for seed, value in by.items()} for metric, by in variant["by_seed"].items()},
            Comparison(**{key: compared[key] for key in names}) if (compared := variant["difference"]) else None,
            compared["p_holm"] if compared else None,
        )
        for name, variant in content["variants"].items()
    ]


def _rows(variants: dict[str, dict[str, Any]], cells: Cells, baseline: str) -> list[Row]:
    base = _mean_over_seeds(cells[baseline])
    compared = {name: compare_means(base, _mean_over_seeds(own)) for name, own in cells.items() if name != baseline}
    corrected = dict(zip(compared, holm([result.p_value for result in compared.values()]), strict=True))
    return [
        Row(name, changes, _by_seed(cells[name]), compared.get(name), corrected.get(name))
        for name, changes in variants.items()
    ]


def _mean_over_seeds(cells: dict[int, Evaluated]) -> Floats:
    """Return the value of each user (num_users,), averaged over the seeds."""
    means: Floats = np.mean([cell.metrics[METRIC] for cell in cells.values()], axis=0)
    return means


def _by_seed(cells: dict[int, Evaluated]) -> dict[str, dict[int, float]]:
    return {metric: {seed: float(cell.metrics[metric].mean()) for seed, cell in cells.items()} for metric in SHOWN}


def _cells_of(row: Row) -> list[str]:
    """Return the cells of a row of the table, without its name."""
    values = list(row.by_seed[METRIC].values())
    spread = f"{stdev(values):.4f}" if len(values) > 1 else "-"
    means = [f"{mean(row.by_seed[metric].values()):.4f}" for metric in SHOWN]
    if row.compared is None:
        return [means[0], spread, *means[1:], "", "", "", "", ""]
    p_values = f"{row.compared.p_value:.4f}", f"{row.p_holm:.4f}"
    return [means[0], spread, *means[1:], *difference_cells(row.compared), *p_values]


def _names() -> list[str]:
    metric, *others = map(label, SHOWN)
    return [metric, "sd of seeds", *others, "difference", f"{CONFIDENCE:.0%} interval", "relative", "p", "p (Holm)"]


def _markdown(title: str, rows: list[Row]) -> str:
    table = markdown_table(["variant", *_names()], [[row.name, *_cells_of(row)] for row in rows])
    changed = "\n".join(f"- `{row.name}`: {_settings(row)}" for row in rows)
    return (
        f"# Ablation\n\n{title[0].upper()}{title[1:]}.\n\n{table}\n\n"
        f"Difference, interval and p refer to {label(METRIC)} of users whose values are means over the seeds. The "
        "interval is a bootstrap over users, p is from random sign flips, and p (Holm) is corrected for the number of "
        f"variants.\n\n{changed}\n"
    )


def _settings(row: Row) -> str:
    return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in row.changes.items()) or "the recipe as it is"


def _content(first: Evaluated, rows: list[Row], baseline: str) -> dict[str, Any]:
    """Return the content of `ablation.json`."""
    return {
        "protocol": first.protocol,
        "split": first.split,
        "num_users": len(first),
        "baseline": baseline,
        "compared_metric": METRIC,
        "confidence": CONFIDENCE,
        "variants": {row.name: _numbers(row) for row in rows},
    }


def _numbers(row: Row) -> dict[str, Any]:
    return {
        "changes": row.changes,
        "means": {metric: mean(values.values()) for metric, values in row.by_seed.items()},
        "by_seed": row.by_seed,
        "difference": None if row.compared is None else numbers(row.compared, row.p_holm),
    }


def _draw(title: str, rows: list[Row], path: Path) -> None:
    num_compared = sum(row.compared is not None for row in rows)
    if not num_compared:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        _LOG.info("ablate: the plot needs matplotlib; pip install 'slmrec[plots]'")
        return
    figure = Figure(figsize=(9, 1.8 + 0.45 * num_compared), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    draw_rows(figure.add_subplot(), rows)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, format="png")
    _LOG.info("ablate: plot written to %s", path)


def draw_rows(axes: Any, rows: list[Row]) -> None:
    """Draw the difference of each variant to the baseline, with its interval and the differences of single seeds."""
    compared = [row for row in rows if row.compared][::-1]
    [base] = [row for row in rows if row.compared is None]
    for place, row in enumerate(compared):
        _draw_row(axes, place, row, base)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(compared)), [row.name for row in compared])
    axes.set_ylim(-0.6, len(compared) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"difference of {label(METRIC)} to {base.name} ({mean(base.by_seed[METRIC].values()):.4f})")


def _draw_row(axes: Any, place: int, row: Row, base: Row) -> None:
    result, values, base_values = row.compared, row.by_seed[METRIC], base.by_seed[METRIC]
    if result is None:
        return
    blue, orange = PALETTE["blue"], PALETTE["vermilion"]
    names = ("one seed", f"mean, {CONFIDENCE:.0%} interval") if place == 0 else (None, None)
    single = [values[seed] - base_values[seed] for seed in values]
    axes.plot(single, [place - 0.18] * len(single), ".", color=orange, markersize=5, label=names[0])
    axes.plot([result.low, result.high], [place, place], color=blue, linewidth=2)
    axes.plot(result.difference, place, "o", color=blue, markersize=6, label=names[1])
