"""How good the models are: with intervals, against their latency, and for groups of users."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from slmrec.evaluation.statistics import CONFIDENCE, NUM_RESAMPLES, Comparison, bootstrap_interval, compare_means, holm
from slmrec.pipeline.evaluate import SHOWN, SHOWN_OF_LISTS
from slmrec.report.parts import Block, Chart, Column, Finding, Grid, Section, Value, tried
from slmrec.report.pictures import INK, PALETTE
from slmrec.report.states import Run
from slmrec.studies.compare import contrast, groups_of
from slmrec.studies.evaluated import Evaluated, label

METRIC = "ndcg@10"
UNTRAINED = ("popularity", "cooccurrence")
LOOKS = {
    "popularity": ("grey", "X"),
    "cooccurrence": ("green", "P"),
    "sasrec": ("orange", "s"),
    "companion": ("purple", "D"),
    "teacher": ("blue", "^"),
    "student": ("vermilion", "o"),
    "oracle": ("sky", "*"),
}
"""Colour and marker of each model."""
GROUPS = {"history_length": "items in the history", "target_count": "train events of the target item"}


def look(model: str) -> dict[str, str]:
    """How a model is drawn, in every picture alike."""
    colour, marker = LOOKS.get(model, ("grey", "v"))
    return {"color": PALETTE[colour], "marker": marker}


def models(run: Run) -> Section:
    """All evaluated models side by side."""
    lead = (
        f"All on the test split, by which no stage chooses. Intervals hold {CONFIDENCE:.0%} of {NUM_RESAMPLES:,} "
        "bootstrap resamples of the users; differences are paired, user by user."
    )
    return _section(run, "models", "The models", lead, _model_blocks)


def slices(run: Run) -> Section:
    """For whom the models are good."""
    lead = (
        "Groups of users, by how much was known of them and by how often their target item was trained on: items with "
        "fewer than 5 train events are cold."
    )
    return _section(run, "slices", "For whom", lead, _slice_blocks)


def findings(run: Run) -> list[Finding]:
    """The student in four figures; none without a student and a teacher."""
    found = _protocol(run)["models"]
    if not {"student", "teacher"} <= found.keys():
        return []
    student, teacher = found["student"], found["teacher"]
    compared = _compared(run, "teacher", "student")
    relative = "" if compared.relative is None else f"{compared.relative:+.1%} against the teacher; "
    interval = (
        f"difference {compared.difference:+.4f}, {CONFIDENCE:.0%} interval {compared.low:+.4f} to {compared.high:+.4f}"
    )
    faster = student["users_per_second"] / teacher["users_per_second"]
    sizes = student["num_parameters"], teacher["num_parameters"]
    return [
        Finding("NDCG@10 of the student", f"{student[METRIC]:.4f}", f"{relative}{interval}"),
        Finding(
            "users whose next item is among its ten", f"{student['hit@10']:.1%}", f"teacher: {teacher['hit@10']:.1%}"
        ),
        Finding(
            "its speed", f"{faster:.2f} ×", f"that of the teacher: {_milliseconds(student):.3g} ms a user, in batches"
        ),
        Finding("its parameters", f"{sizes[0] / sizes[1]:.0%}", "of the teacher's: {:,} of {:,}".format(*sizes)),
    ]


def _section(run: Run, name: str, title: str, lead: str, make: Any) -> Section:
    blocks: list[Block] = list(run.notices("evaluate"))
    if run.evaluation:
        blocks += tried(title.lower(), lambda: make(run))
    return Section(name, title, lead, blocks)


def _protocol(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.evaluation["protocols"][run.evaluation["primary"]]
    return found


def _reference(run: Run) -> str:
    """What the others are compared with: the student, or the last one."""
    names = list(run.primary)
    return "student" if "student" in names else names[-1]


def _model_blocks(run: Run) -> Iterator[Block]:
    intervals = {name: bootstrap_interval(one.metrics[METRIC]) for name, one in run.primary.items()}
    grid = _with_intervals(run, intervals)
    yield grid
    columns = Column("model"), Column(label(METRIC), ".4f"), Column("from", ".4f"), Column("to", ".4f")
    values = {name: found[METRIC] for name, found in _protocol(run)["models"].items()}
    rows: list[tuple[Value, ...]] = [(name, values[name], *intervals[name]) for name in intervals]
    drawn = Grid("models-interval", f"{label(METRIC)} with its interval", columns, rows)
    caption = "Intervals of single models; pairs differ more surely than these may look."
    yield Chart(drawn, caption, partial(_dots, rows), 3.6)
    yield _against_latency(run)
    for name, protocol in run.evaluation["protocols"].items():
        yield _all_metrics(name, protocol)


def _with_intervals(run: Run, intervals: dict[str, tuple[float, float]]) -> Grid:
    reference = _reference(run)
    others = [name for name in run.primary if name != reference]
    compared = {name: _compared(run, name, reference) for name in others}
    corrected = dict(zip(others, holm([compared[name].p_value for name in others]), strict=True))
    rows = []
    for name, found in _protocol(run)["models"].items():
        told: tuple[Value, ...] = (None,) * 5
        if name in compared:
            one = compared[name]
            told = one.difference, one.low, one.high, one.relative, corrected[name]
        rows.append((name, found["hit@10"], found[METRIC], *intervals[name], found["mrr"], *told))
    columns = (
        *(Column("model"), Column("HR@10", ".4f"), Column("NDCG@10", ".4f"), Column("NDCG@10 low", ".4f")),
        *(Column("NDCG@10 high", ".4f"), Column("MRR", ".4f"), Column(f"{reference} − model", "+.4f")),
        *(Column("difference low", "+.4f"), Column("difference high", "+.4f")),
        *(Column("relative", "+.1%"), Column("p (Holm)", ".4f")),
    )
    note = (
        f"{len(run.primary[reference]):,} users; {_told(_protocol(run)['settings'])}. Low and high are the ends of the "
        f"{CONFIDENCE:.0%} intervals of NDCG@10, and of its difference between {reference} and the model of the row."
    )
    return Grid("models", f"All models, {run.evaluation['primary']}", columns, rows, note)


def _all_metrics(name: str, protocol: dict[str, Any]) -> Grid:
    metrics = [
        metric for metric in (*SHOWN, *SHOWN_OF_LISTS) if any(metric in found for found in protocol["models"].values())
    ]
    columns = Column("model"), *(Column(label(metric).replace("_", " "), ".4f") for metric in metrics)
    rows: list[tuple[Value, ...]] = [
        (model, *(found.get(metric) for metric in metrics)) for model, found in protocol["models"].items()
    ]
    return Grid(f"metrics-{name}", f"All metrics, {name}", columns, rows, f"{_told(protocol['settings'])}.")


def _told(settings: dict[str, Any]) -> str:
    negatives = settings.get("num_negatives")
    against = f"{negatives:,} sampled negatives" if negatives else "all items"
    history = "excluded" if settings["exclude_history"] else "not excluded"
    return f"{settings['split']} split, against {against}, history {history}"


def _compared(run: Run, a: str, b: str) -> Comparison:
    return compare_means(run.primary[a].metrics[METRIC], run.primary[b].metrics[METRIC])


def _milliseconds(found: dict[str, Any]) -> float:
    return float(1_000 / found["users_per_second"])


def _dots(rows: list[tuple[Any, ...]], axes: Any) -> None:
    for place, (name, value, low, high) in enumerate(rows[::-1]):
        _dot(axes, place, value, low, high, name)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows[::-1]])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label(METRIC))


def _dot(axes: Any, place: float, value: float, low: float, high: float, name: str) -> None:
    axes.plot([low, high], [place, place], color=look(name)["color"], linewidth=2)
    axes.plot(value, place, linestyle="none", **look(name))


def _against_latency(run: Run) -> Chart:
    columns = Column("model"), Column("ms per user", ".3f"), Column(label(METRIC), ".4f"), Column("on the line")
    points = {name: (_milliseconds(found), found[METRIC]) for name, found in _protocol(run)["models"].items()}
    front = _front(points)
    rows: list[tuple[Value, ...]] = [(name, *point, "yes" if name in front else "no") for name, point in points.items()]
    grid = Grid("latency", "Quality against latency", columns, rows)
    caption = (
        "Up is better, left is faster; none is both better and faster than a model on the line. Time of reading the "
        "history, scoring all items and finding the ten best, in batches, on one machine."
    )
    return Chart(grid, caption, partial(_draw_front, points, front), 3.6)


def _front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The models that no faster one reaches, from the fastest on."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def _draw_front(points: dict[str, tuple[float, float]], front: list[str], axes: Any) -> None:
    for name, point in points.items():
        axes.plot(*point, linestyle="none", markersize=9, label=name, **look(name))
    axes.step(*zip(*(points[name] for name in front), strict=True), where="post", color=INK, linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.margins(0.1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("milliseconds per user (log scale)")
    axes.set_ylabel(f"{label(METRIC)}, test split")


def _slice_blocks(run: Run) -> Iterator[Block]:
    shown = {name: one for name, one in run.primary.items() if name not in UNTRAINED}
    if not shown:
        return
    for by, groups in groups_of(next(iter(shown.values()))).items():
        rows: list[tuple[Value, ...]] = [
            (group, int(own.sum()), name, float(values.mean()), *bootstrap_interval(values))
            for group, own in groups
            for name, one in shown.items()
            for values in [one.metrics[METRIC][own]]
        ]
        columns = Column(GROUPS[by]), Column("users", ",d"), Column("model"), Column(label(METRIC), ".4f")
        grid = Grid(f"slices-{by}", f"By {GROUPS[by]}", (*columns, Column("from", ".4f"), Column("to", ".4f")), rows)
        yield Chart(grid, f"{label(METRIC)} with {CONFIDENCE:.0%} intervals.", partial(_draw_slices, rows, by), 3.7)
    if {"teacher", "student"} <= shown.keys():
        yield _contrasted(shown["teacher"], shown["student"])


def _draw_slices(rows: list[tuple[Any, ...]], by: str, axes: Any) -> None:
    groups, names = (list(dict.fromkeys(row[place] for row in rows)) for place in (0, 2))
    for number, name in enumerate(names):
        own = [row for row in rows if row[2] == name]
        places = np.arange(len(own)) + 0.7 * ((number + 0.5) / len(names) - 0.5)
        values = np.array([row[3:] for row in own])
        axes.vlines(places, values[:, 1], values[:, 2], color=look(name)["color"], linewidth=1.6)
        axes.plot(places, values[:, 0], linestyle="none", label=name, **look(name))
    axes.set_xticks(range(len(groups)), [group.replace(" (", "\n(").replace("never ", "never\n") for group in groups])
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_xlabel(GROUPS[by])
    axes.set_ylabel(label(METRIC))


def _contrasted(teacher: Evaluated, student: Evaluated) -> Grid:
    found = contrast(teacher, student, (METRIC,))
    rows: list[tuple[Value, ...]] = [
        (GROUPS[by], name, one.num_users, one.mean_a, one.mean_b, one.difference, one.low, one.high, corrected)
        for by, own in found.slices.items()
        for name, one, corrected in own
    ]
    columns = (
        *(Column("users by"), Column("group"), Column("users", ",d"), Column("teacher", ".4f")),
        *(
            Column("student", ".4f"),
            Column("student − teacher", "+.4f"),
            Column("from", "+.4f"),
            Column("to", "+.4f"),
            Column("p (Holm)", ".4f"),
        ),
    )
    note = "As `slmrec compare` gives it; p is corrected for the rows of all groups together."
    return Grid("slices", f"Student and teacher, {label(found.sliced)}", columns, rows, note)
