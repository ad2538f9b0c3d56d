"""How the models were trained: loss terms and the validation metric by epoch."""

from collections.abc import Iterator
from typing import Any

from slmrec.errors import CheckpointError
from slmrec.report.parts import Block, Chart, Column, Grid, Section, tried
from slmrec.report.pictures import INK, colours, whole_ticks
from slmrec.report.states import TRAINED, Run, partial_of, read_log

MONITORED = "valid/ndcg@10"
MARKERS = "osD^vPX"
WIDE = 20
"""Losses that far apart are drawn on a logarithmic scale."""


def training(run: Run) -> Section:
    """The curves of every training, also of one that was interrupted."""
    blocks: list[Block] = []
    for stage in TRAINED:
        if stage in run.states:
            blocks += run.notices(stage)
            if run.states[stage].word != "missing":
                blocks += tried(stage, lambda stage=stage: _curves(run, stage))  # type: ignore[misc]
    lead = (
        "Above the mean of each loss term over an epoch, before its weight; below NDCG@10 on the validation split. "
        "The epoch that was kept has a ring."
    )
    return Section("training", "Training", lead, blocks)


def _curves(run: Run, stage: str) -> Iterator[Chart]:
    folder = run.root / stage
    log = read_log(folder if folder.exists() else partial_of(folder))
    if not log:
        raise CheckpointError(f"{folder}: no epoch was finished")
    best = run.states[stage].metrics.get("best_epoch")
    names = list(dict.fromkeys(name for row in log for name in row))
    grid = Grid(
        f"training-{stage}",
        f"Training: {stage}",
        tuple(Column(name) for name in names),
        [tuple(row.get(name) for name in names) for row in log],
    )
    caption = f"{len(log)} epochs in {log[-1].get('seconds', 0):,.0f} s"
    caption += f"; epoch {best} was kept." if best else "; not finished."
    yield Chart(grid, caption, lambda axes: _draw(axes, log, best), 4.0, (3, 2))


def _draw(axes: Any, log: list[dict[str, Any]], best: int | None) -> None:
    epochs = [row["epoch"] for row in log]
    above, below = axes
    terms = _terms(log)
    styles = zip(terms, colours(len(terms)), MARKERS, strict=False)
    for name, colour, marker in styles:
        values = [row.get(name) for row in log]
        label = name.removeprefix("train/").replace("loss", "total loss")
        above.plot(epochs, values, color=colour, marker=marker, markersize=4, label=label)
    wide = _is_wide(log, terms)
    if wide:
        above.set_yscale("log")
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter("")
    above.set_ylabel("training loss" + (" (log scale)" if wide else ""))
    values = [row.get(MONITORED) for row in log]
    below.plot(epochs, values, color=INK, marker="o", markersize=4)
    if best in epochs:
        below.plot(best, values[epochs.index(best)], "o", color=INK, markersize=11, fillstyle="none")
    below.margins(y=0.25)
    below.set_ylabel("NDCG@10")
    below.set_xlabel("epoch")
    whole_ticks(below, epochs)


def _terms(log: list[dict[str, Any]]) -> list[str]:
    """The total first; it is left out where it is the only term's."""
    names = list(dict.fromkeys(name for row in log for name in row if name.startswith("train/")))
    return [name for name in names if name != "train/loss"] if len(names) == 2 else names


def _is_wide(log: list[dict[str, Any]], terms: list[str]) -> bool:
    values = [row[name] for row in log for name in terms if name in row]
    return bool(values) and min(values) > 0 and max(values) > WIDE * min(values)
