"""The report of an ablation: a table in the terminal and as Markdown, its numbers as JSON, and a picture."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from slmrec.evaluation.metrics import Floats
from slmrec.evaluation.statistics import CONFIDENCE, Comparison, compare_means, holm
from slmrec.report.describe import BLUE, ORANGE
from slmrec.studies.compare import numbers, percent
from slmrec.studies.evaluated import Evaluated, in_order_of, label

METRIC = "ndcg@10"
"""What the variants are compared by."""
SHOWN = (METRIC, "hit@10", "mrr")
Cells = dict[str, dict[int, Evaluated]]
"""By variant and seed."""


@dataclass(frozen=True)
class Row:
    """One variant."""

    name: str
    changes: dict[str, Any]
    by_seed: dict[str, dict[int, float]]
    """Metric by name and seed."""
    compared: Comparison | None
    """Its users' means over the seeds with those of the baseline; None of the baseline itself."""
    p_holm: float | None
    """The p-value, corrected for the number of variants."""


def report(output: Path, variants: dict[str, dict[str, Any]], cells: Cells, baseline: str) -> None:
    """Prints and writes how the variants compare with the baseline.

    Args:
        output: folder of `ablation.json`, `ablation.md` and, with matplotlib, `ablation.png`.
        variants: by name, the settings that differ.
        cells: their students' ranks, with the same seeds for all.
        baseline: the variant that the others are compared with.

    Raises:
        CheckpointError: cells are of other data.
    """
    first = next(iter(cells[baseline].values()))
    cells = {
        name: {seed: in_order_of(cells[baseline][seed], cell) for seed, cell in own.items()}
        for name, own in cells.items()
    }
    rows = _rows(variants, cells, baseline)
    title = (
        f"{len(first):,} users, {first.protocol}, test split; means over the seeds "
        f"{', '.join(map(str, cells[baseline]))}; differences to {baseline}"
    )
    _show(title, rows)
    _write(output, "json", json.dumps(_content(first, rows, baseline), indent=1) + "\n")
    _write(output, "md", _markdown(title, rows))
    _draw(title, rows, output / "ablation.png")
    print(f"ablate: written to {output / 'ablation.md'} and {output / 'ablation.json'}", flush=True)


def rows_of(content: dict[str, Any]) -> list[Row]:
    """The variants of an `ablation.json`."""
    names = [field.name for field in fields(Comparison)]
    return [
        Row(
            name,
            found["changes"],
            {metric: {int(seed): value for seed, value in by.items()} for metric, by in found["by_seed"].items()},
            Comparison(**{key: told[key] for key in names}) if (told := found["difference"]) else None,
            told["p_holm"] if told else None,
        )
        for name, found in content["variants"].items()
    ]


def _rows(variants: dict[str, dict[str, Any]], cells: Cells, baseline: str) -> list[Row]:
    base = _mean_over_seeds(cells[baseline])
    compared = {name: compare_means(base, _mean_over_seeds(own)) for name, own in cells.items() if name != baseline}
    corrected = dict(zip(compared, holm([found.p_value for found in compared.values()]), strict=True))
    return [
        Row(name, changes, _by_seed(cells[name]), compared.get(name), corrected.get(name))
        for name, changes in variants.items()
    ]


def _mean_over_seeds(cells: dict[int, Evaluated]) -> Floats:
    """(num_users,) what a user can expect of a variant."""
    means: Floats = np.mean([cell.metrics[METRIC] for cell in cells.values()], axis=0)
    return means


def _by_seed(cells: dict[int, Evaluated]) -> dict[str, dict[int, float]]:
    return {metric: {seed: float(cell.metrics[metric].mean()) for seed, cell in cells.items()} for metric in SHOWN}


def _cells_of(row: Row) -> list[str]:
    """A row of the table, after its name."""
    values = list(row.by_seed[METRIC].values())
    spread = f"{stdev(values):.4f}" if len(values) > 1 else "-"
    means = [f"{mean(row.by_seed[metric].values()):.4f}" for metric in SHOWN]
    found = row.compared
    if found is None:
        return [means[0], spread, *means[1:], "", "", "", "", ""]
    interval = f"{found.low:+.4f} to {found.high:+.4f}"
    p_values = f"{found.p_value:.4f}", f"{row.p_holm:.4f}"
    return [means[0], spread, *means[1:], f"{found.difference:+.4f}", interval, percent(found), *p_values]


def _names() -> list[str]:
    metric, *others = map(label, SHOWN)
    return [metric, "sd of seeds", *others, "difference", f"{CONFIDENCE:.0%} interval", "relative", "p", "p (Holm)"]


def _show(title: str, rows: list[Row]) -> None:
    console = Console(width=max(Console().width, 130), markup=False, highlight=False)
    table = Table(title=title, title_justify="left")
    table.add_column("variant")
    for name in _names():
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, *_cells_of(row))
    console.print(table)


def _markdown(title: str, rows: list[Row]) -> str:
    names = ["variant", *_names()]
    lines = [names, ["---"] * len(names), *([row.name, *_cells_of(row)] for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    changed = "\n".join(f"- `{row.name}`: {_settings(row)}" for row in rows)
    return (
        f"# Ablation\n\n{title[0].upper()}{title[1:]}.\n\n{table}\n\n"
        f"Difference, interval and p are of {label(METRIC)}, over users whose values are means over the seeds; "
        "the interval is by bootstrap of the users, p by random sign flips, and p (Holm) corrected for the number of "
        f"variants.\n\n{changed}\n"
    )


def _settings(row: Row) -> str:
    return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in row.changes.items()) or "the recipe as it is"


def _content(first: Evaluated, rows: list[Row], baseline: str) -> dict[str, Any]:
    return {
        "protocol": first.protocol,
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


def _write(output: Path, suffix: str, text: str) -> None:
    partial = output / f".ablation.{suffix}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(output / f"ablation.{suffix}")


def _draw(title: str, rows: list[Row], path: Path) -> None:
    num_compared = sum(row.compared is not None for row in rows)
    if not num_compared:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no picture: it needs matplotlib; pip install 'slmrec[plots]'", flush=True)
        return
    figure = Figure(figsize=(9, 1.8 + 0.45 * num_compared), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    draw_rows(figure.add_subplot(), rows)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, format="png")
    print(f"picture: {path}", flush=True)


def draw_rows(axes: Any, rows: list[Row]) -> None:
    """The variants' differences to the baseline, each with its interval and its seeds."""
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
    found, own, theirs = row.compared, row.by_seed[METRIC], base.by_seed[METRIC]
    if found is None:
        return
    names = ("one seed", f"mean, {CONFIDENCE:.0%} interval") if place == 0 else (None, None)
    single = [own[seed] - theirs[seed] for seed in own]
    axes.plot(single, [place - 0.18] * len(single), ".", color=ORANGE, markersize=5, label=names[0])
    axes.plot([found.low, found.high], [place, place], color=BLUE, linewidth=2)
    axes.plot(found.difference, place, "o", color=BLUE, markersize=6, label=names[1])
