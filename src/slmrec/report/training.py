"""Section of the report with the training curves of all models."""

from collections.abc import Iterator
from typing import Any

from slmrec.errors import CheckpointError
from slmrec.folders import partial_folder
from slmrec.report.parts import Block, Chart, Column, Grid, Section, blocks_or_notice
from slmrec.report.pictures import INK, colours, whole_ticks
from slmrec.report.states import Run, State, read_log

MONITORED = "valid/ndcg@10"
MARKERS = "osD^vPX"
LOG_SCALE_RATIO = 20
"""Ratio of the largest to the smallest loss from which the scale is logarithmic."""


def training(run: Run) -> Section:
    """Return the section, with the curves of interrupted trainings too."""
    blocks: list[Block] = []
    for state in run.trained:
        blocks += run.notices(state)
        is_untrained = state.word == "done" and "best_epoch" not in state.metrics  # a weighted sum of base models
        if state.word != "missing" and not is_untrained:
            blocks += blocks_or_notice(state.step.folder, lambda state=state: _curves(run, state))  # type: ignore[misc]
    lead = (
        "Above: mean of each loss term over an epoch, before its weight. Below: NDCG@10 on the validation split. The "
        "epoch whose weights were kept has a ring."
    )
    return Section("training", "Training", lead, blocks)


def _curves(run: Run, state: State) -> Iterator[Chart]:
    folder = run.root / state.step.folder
    log = read_log(folder if folder.exists() else partial_folder(folder))
    if not log:
        raise CheckpointError(f"{folder}: no epoch was finished")
    best = state.metrics.get("best_epoch")
    names = list(dict.fromkeys(name for row in log for name in row))
    grid = Grid(
        f"training-{state.step.folder.replace('/', '-')}",
        f"Training: {state.step.folder}",
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
    is_logarithmic = _needs_log_scale(log, terms)
    if is_logarithmic:
        above.set_yscale("log")
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter("")
    above.set_ylabel("training loss" + (" (log scale)" if is_logarithmic else ""))
    values = [row.get(MONITORED) for row in log]
    below.plot(epochs, values, color=INK, marker="o", markersize=4)
    if best in epochs:
        below.plot(best, values[epochs.index(best)], "o", color=INK, markersize=11, fillstyle="none")
    below.margins(y=0.25)
    below.set_ylabel("NDCG@10")
    below.set_xlabel("epoch")
    whole_ticks(below, epochs)


def _terms(log: list[dict[str, Any]]) -> list[str]:
    """Return the loss terms, the total first; the total is left out if there is a single term."""
    names = list(dict.fromkeys(name for row in log for name in row if name.startswith("train/")))
    return [name for name in names if name != "train/loss"] if len(names) == 2 else names


def _needs_log_scale(log: list[dict[str, Any]], terms: list[str]) -> bool:
    values = [row[name] for row in log for name in terms if name in row]
    return bool(values) and min(values) > 0 and max(values) > LOG_SCALE_RATIO * min(values)
