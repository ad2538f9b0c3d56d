"""Section of the report about groups of users."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from slmrec.config import BASELINES
from slmrec.evaluation.statistics import CONFIDENCE
from slmrec.report.looks import Looks, looks_of
from slmrec.report.parts import Block, Chart, Column, Grid, Section, Value, blocks_or_notice
from slmrec.report.states import Run
from slmrec.studies.compare import contrast
from slmrec.studies.evaluated import Evaluated, label
from slmrec.studies.slices import slice_means

METRIC = "ndcg@10"
GROUPS = {"target_count": "train events of the target item", "history_length": "items in the history"}


def groups(run: Run) -> Section:
    """Return the section: quality by length of the history and by popularity of the target."""
    lead = (
        "Groups of users, by the number of train events of their target item and by the length of their history. The "
        "bounds are the same for every data set."
    )
    blocks: list[Block] = list(run.notices(run.states["evaluate"]))
    if run.evaluation:
        blocks += blocks_or_notice("groups of users", lambda: _blocks(run))
    return Section("slices", "Groups of users", lead, blocks)


def _blocks(run: Run) -> Iterator[Block]:
    looks = looks_of(run.primary)
    shown = {name: evaluated for name, evaluated in run.primary.items() if name not in BASELINES}
    if not shown:
        return
    means = {name: slice_means(evaluated, evaluated.metrics[METRIC]) for name, evaluated in shown.items()}
    for by, title in GROUPS.items():
        rows: list[tuple[Value, ...]] = [
            (own.name, own.num_users, name, own.mean, own.low, own.high)
            for slices in zip(*(means[name][by] for name in shown), strict=True)
            for name, own in zip(shown, slices, strict=True)
        ]
        columns = Column(title), Column("users", ",d"), Column("model"), Column(label(METRIC), ".4f")
        grid = Grid(f"slices-{by}", f"By {title}", (*columns, Column("from", ".4f"), Column("to", ".4f")), rows)
        draw = partial(_draw, rows, looks, title)
        yield Chart(grid, f"{label(METRIC)} with {CONFIDENCE:.0%} intervals.", draw, 3.7)
    if {"teacher", "student"} <= shown.keys():
        yield _comparison(shown["teacher"], shown["student"])


def _draw(rows: list[tuple[Any, ...]], looks: Looks, title: str, axes: Any) -> None:
    bins, names = (list(dict.fromkeys(row[place] for row in rows)) for place in (0, 2))
    for number, name in enumerate(names):
        own = [row for row in rows if row[2] == name]
        places = np.arange(len(own)) + 0.7 * ((number + 0.5) / len(names) - 0.5)
        values = np.array([row[3:] for row in own])
        axes.vlines(places, values[:, 1], values[:, 2], color=looks[name]["color"], linewidth=1.6)
        axes.plot(places, values[:, 0], linestyle="none", label=name, **looks[name])
    axes.set_xticks(range(len(bins)), [group.replace(" (", "\n(").replace("never ", "never\n") for group in bins])
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_xlabel(title)
    axes.set_ylabel(label(METRIC))


def _comparison(teacher: Evaluated, student: Evaluated) -> Grid:
    """Return the paired comparison of student and teacher in each group."""
    comparison = contrast(teacher, student, (METRIC,))
    rows: list[tuple[Value, ...]] = [
        (GROUPS[by], name, one.num_users, one.mean_a, one.mean_b, one.difference, one.low, one.high, corrected)
        for by, own in comparison.groups.items()
        for name, one, corrected in own
    ]
    columns = (
        *(Column("users by"), Column("group"), Column("users", ",d"), Column("teacher", ".4f")),
        *(Column("student", ".4f"), Column("student − teacher", "+.4f"), Column("from", "+.4f"), Column("to", "+.4f")),
        Column("p (Holm)", ".4f"),
    )
    note = "The same numbers as `slmrec compare`; p is corrected for the rows of all groups together."
    return Grid("slices", f"Student and teacher, {label(METRIC)}", columns, rows, note)
