"""Section of the report about the study of depth."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slmrec.plots import PALETTE
from slmrec.report.parts import Block, Chart, Column, Grid, Notice, Section, Value, blocks_or_notice
from slmrec.report.pictures import INK, whole_ticks
from slmrec.report.states import Run, read_json
from slmrec.studies.evaluated import SPLIT_NAMES, label

METRIC = "ndcg@10"
SERIES = {
    "trained": ("blue", "o", "-"),
    "trained, other layers": ("purple", "s", ""),
    "early exit, final head": ("vermilion", "^", "-"),
    "early exit, fitted head": ("green", "v", "-"),
}
"""Colour, marker and line style of each kind of model."""
Point = tuple[str, str, int, dict[str, float]]
"""Kind, name, number of layers, and metrics."""


def depth(run: Run) -> Section:
    """Return the section: quality by depth, and similarity of the layers."""
    path = run.output / "depth" / "depth.json"
    lead = (
        "Quality by number of layers, of models trained with this depth and of early exits of the deepest one. All "
        "results are on the validation split."
    )
    if path.is_file():
        blocks = blocks_or_notice("the depth study", lambda: _blocks(path))
    else:
        blocks = [Notice("optional", "the study of depth was not run", run.command("depth", run.output))]
    return Section("depth", "Depth", lead, blocks)


def _blocks(path: Path) -> Iterator[Block]:
    study = read_json(path)
    if recommendation := _recommendation(study):
        yield recommendation
    points = list(_points(study))
    if points:
        yield _curves(study, points)
    if study.get("dropped"):
        yield _dropped(study)
    similarity = study.get("similarity") or {}
    if similarity.get("cosine"):
        yield _cosines(similarity)
    if similarity.get("cka"):
        yield _similarity_map(similarity)


def _recommendation(study: dict[str, Any]) -> Grid | None:
    chosen = study.get("recommended")
    if not chosen:
        return None
    columns = Column("recommended layers", "d"), Column("accepted quality loss", ".1%"), Column("best layers", "d")
    row = chosen["num_layers"], chosen["quality_loss"], chosen["best_num_layers"]
    note = (
        f"{chosen['num_layers']} of {study['num_layers']} layers lose no more than {chosen['quality_loss']:.1%} of the "
        f"quality of the best depth ({chosen['best_num_layers']} layers), for {study['num_users']:,} users of the "
        f"{SPLIT_NAMES[study['split']]}."
    )
    return Grid("depth-recommended", "Recommended depth", columns, [row], note)


def _metrics(study: dict[str, Any], one: dict[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = one["metrics"][study["protocol"]]
    return metrics


def _points(study: dict[str, Any]) -> Iterator[Point]:
    for one in study.get("trained") or ():
        are_first = one["name"] == str(one["num_layers"])
        kind = "trained" if are_first else "trained, other layers"
        yield kind, one["name"], one["num_layers"], _metrics(study, one)
    for one in study.get("early_exit") or ():
        kind = f"early exit, {one['head']} head"
        yield kind, f"{one['num_layers']}, {one['head']}", one["num_layers"], _metrics(study, one)


def _curves(study: dict[str, Any], points: list[Point]) -> Chart:
    metrics = list(dict.fromkeys(metric for *_, values in points for metric in values))
    rows: list[tuple[Value, ...]] = [
        (kind, name, number, *(values.get(metric) for metric in metrics)) for kind, name, number, values in points
    ]
    columns = Column("kind"), Column("name"), Column("layers"), *(Column(label(metric), ".4f") for metric in metrics)
    grid = Grid("depth-curves", "Quality by depth", columns, rows)
    at = (study.get("recommended") or {}).get("num_layers")
    caption = f"{study['protocol']}, {study['num_users']:,} users of the {SPLIT_NAMES[study['split']]}"
    caption += "; the dashed line is the recommended depth." if at else "."
    return Chart(grid, caption, partial(_draw_curves, points, at), 3.9)


def _draw_curves(points: list[Point], recommended: int | None, axes: Any) -> None:
    for kind, (colour, marker, line) in SERIES.items():
        own = sorted((number, values[METRIC]) for name, _, number, values in points if name == kind)
        if own:
            style = {"color": PALETTE[colour], "marker": marker, "markersize": 5, "linestyle": line or "none"}
            axes.plot(*zip(*own, strict=True), label=kind, **style)
    if recommended:
        axes.axvline(recommended, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    whole_ticks(axes, [0, *(number for _, _, number, _ in points)])
    axes.set_xlabel("layers")
    axes.set_ylabel(f"{label(METRIC)}, validation split")
    axes.set_ylim(bottom=0)


def _dropped(study: dict[str, Any]) -> Chart:
    first = study["dropped"][0]
    full = _metrics(study, {"metrics": first["whole"]})[METRIC]
    values = [(one["without"], _metrics(study, one)[METRIC]) for one in study["dropped"]]
    rows: list[tuple[Value, ...]] = [(layer, value, value - full) for layer, value in values]
    columns = Column("removed layer (from 0)"), Column(label(METRIC), ".4f"), Column("difference", "+.4f")
    grid = Grid("depth-dropped", "Quality without one layer", columns, rows)
    caption = (
        "The deepest model without one of its layers, without further training. The dashed line is the whole model. "
        f"{first['num_users']:,} users."
    )
    return Chart(grid, caption, partial(_draw_dropped, values, full))


def _draw_dropped(values: list[tuple[int, float]], full: float, axes: Any) -> None:
    layers = [layer for layer, _ in values]
    axes.plot(layers, [value for _, value in values], "s", color=PALETTE["purple"], markersize=5)
    axes.axhline(full, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    whole_ticks(axes, layers)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("removed layer (from 0)")
    axes.set_ylabel(f"{label(METRIC)}, validation split")


def _cosines(similarity: dict[str, Any]) -> Chart:
    values = similarity["cosine"]
    columns = Column("layer (from 0)"), Column("cosine", ".4f")
    grid = Grid("depth-cosine", "Change by each layer", columns, list(enumerate(values)))
    caption = (
        "Mean cosine between the input and the output of each layer at the newest position; a layer near 1 hardly "
        "changes the direction of the state. "
        f"{similarity['num_users']:,} users."
    )
    return Chart(grid, caption, partial(_draw_cosines, values))


def _draw_cosines(values: list[float], axes: Any) -> None:
    axes.plot(range(len(values)), values, color=PALETTE["blue"], marker="o", markersize=5)
    whole_ticks(axes, range(len(values)))
    axes.set_ylim(top=1 + 0.05 * (1 - min(values)))
    axes.set_xlabel("layer (from 0)")
    axes.set_ylabel("cosine of input and output")


def _similarity_map(similarity: dict[str, Any]) -> Chart:
    matrix = np.asarray(similarity["cka"], float)
    with_input = len(matrix) == len(similarity.get("cosine") or ()) + 1
    names = [str(place) for place in range(len(matrix))] if with_input else [str(1 + p) for p in range(len(matrix))]
    columns = Column("after layer"), *(Column(name, ".3f") for name in names)
    rows: list[tuple[Value, ...]] = [(name, *map(float, row)) for name, row in zip(names, matrix, strict=True)]
    grid = Grid("depth-cka", "Similarity of layers", columns, rows)
    caption = (
        "Similarity (linear CKA) of the states after each two layers; a block near 1 consists of redundant layers."
    )
    caption += " Layer 0 is the input." if with_input else ""
    return Chart(grid, caption, partial(_draw_map, matrix, int(names[0])), 3.8)


def _draw_map(matrix: Any, first: int, axes: Any) -> None:
    ends = first - 0.5, first + len(matrix) - 0.5
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", origin="lower", extent=(*ends, *ends))
    axes.grid(visible=False)
    whole_ticks(axes, [first, first + len(matrix) - 1])
    axes.set_yticks(axes.get_xticks())
    axes.set_xlabel("state after layer")
    axes.set_ylabel("state after layer")
    axes.figure.colorbar(image, ax=axes, label="CKA", shrink=0.85)
