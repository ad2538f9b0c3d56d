"""Section of the report about the quality of the models: intervals, differences, and quality against latency."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from slmrec.evaluation.statistics import CONFIDENCE, NUM_RESAMPLES, Comparison, bootstrap_interval, compare_means, holm
from slmrec.pipeline.evaluation_tables import SHOWN, SHOWN_OF_LISTS, constant_note
from slmrec.pipeline.verdict import Verdict
from slmrec.report.looks import Looks, looks_of
from slmrec.report.parts import Block, Chart, Column, Finding, Grid, Section, Value, blocks_or_notice
from slmrec.report.pictures import INK
from slmrec.report.states import Run
from slmrec.studies.evaluated import SPLIT_NAMES, label

METRIC = "ndcg@10"


def models(run: Run) -> Section:
    """Return the section with all evaluated models side by side."""
    selection = "which no training uses" if run.split == "test" else "on which training selects the best epoch"
    lead = (
        f"Results on the {SPLIT_NAMES[run.split]}, {selection}. Intervals contain {CONFIDENCE:.0%} of "
        f"{NUM_RESAMPLES:,} bootstrap resamples of the users; differences are paired by user."
    )
    blocks: list[Block] = list(run.notices(run.states["evaluate"]))
    if run.evaluation:
        blocks += blocks_or_notice("the models", lambda: _blocks(run))
    return Section("models", "The models", lead, blocks)


def findings(run: Run, verdict: Verdict | None) -> list[Finding]:
    """Return four key figures of the model to ship; without a verdict, of the student.

    Its quality is compared with that of the baseline of the verdict, and its cost with that of the teacher, if there is
    one. There are no figures without a verdict, a student and a teacher.
    """
    results = _primary(run)["models"]
    ship, against = (verdict.ship, verdict.against) if verdict else ("student", "teacher")
    if not {ship, against} <= results.keys():
        return []
    slower = "teacher" if "teacher" in results and ship != "teacher" else against
    own, other, costly = results[ship], results[against], results[slower]
    compared = _compared(run, against, ship)
    relative = "" if compared.relative is None else f"{compared.relative:+.1%} against {against}; "
    interval = (
        f"difference {compared.difference:+.4f}, {CONFIDENCE:.0%} interval {compared.low:+.4f} to {compared.high:+.4f}"
    )
    return [
        Finding(f"NDCG@10 of {ship}", f"{own[METRIC]:.4f}", f"{relative}{interval}"),
        Finding("users whose next item is in the top ten", f"{own['hit@10']:.1%}", f"{against}: {other['hit@10']:.1%}"),
        Finding(
            f"time of {ship}",
            f"{_milliseconds(own):.3g} ms",
            f"per user, in batches; {slower}: {_milliseconds(costly):.3g} ms",
        ),
        Finding(f"parameters of {ship}", f"{own['num_parameters']:,}", f"{slower}: {costly['num_parameters']:,}"),
    ]


def _primary(run: Run) -> dict[str, Any]:
    """Return the results under the primary protocol."""
    results: dict[str, Any] = run.evaluation["protocols"][run.evaluation["primary"]]
    return results


def _blocks(run: Run) -> Iterator[Block]:
    looks = looks_of(run.primary)
    intervals = {name: bootstrap_interval(evaluated.metrics[METRIC]) for name, evaluated in run.primary.items()}
    yield _table_with_intervals(run, intervals)
    columns = Column("model"), Column(label(METRIC), ".4f"), Column("from", ".4f"), Column("to", ".4f")
    values = {name: result[METRIC] for name, result in _primary(run)["models"].items()}
    rows: list[tuple[Value, ...]] = [(name, values[name], *intervals[name]) for name in intervals]
    numbers = Grid("models-interval", f"{label(METRIC)} with intervals", columns, rows)
    caption = "Intervals of single models; the paired differences in the table are more precise."
    yield Chart(numbers, caption, partial(_draw_intervals, rows, looks), 3.6)
    yield _quality_against_latency(run, looks)
    for name, protocol in run.evaluation["protocols"].items():
        yield _all_metrics(name, protocol)


def _table_with_intervals(run: Run, intervals: dict[str, tuple[float, float]]) -> Grid:
    """Return the main table; models are compared with the student, or with the last one if there is no student."""
    reference = "student" if "student" in run.primary else list(run.primary)[-1]
    compared = {name: _compared(run, name, reference) for name in run.primary if name != reference}
    corrected = dict(zip(compared, holm([one.p_value for one in compared.values()]), strict=True))
    rows = []
    for name, result in _primary(run)["models"].items():
        difference: tuple[Value, ...] = (None,) * 5
        if name in compared:
            one = compared[name]
            difference = one.difference, one.low, one.high, one.relative, corrected[name]
        rows.append((name, result["hit@10"], result[METRIC], *intervals[name], result["mrr"], *difference))
    columns = (
        *(Column("model"), Column("HR@10", ".4f"), Column("NDCG@10", ".4f"), Column("NDCG@10 low", ".4f")),
        *(Column("NDCG@10 high", ".4f"), Column("MRR", ".4f"), Column(f"{reference} − model", "+.4f")),
        *(Column("difference low", "+.4f"), Column("difference high", "+.4f")),
        *(Column("relative", "+.1%"), Column("p (Holm)", ".4f")),
    )
    note = (
        f"{len(run.primary[reference]):,} users; {_settings(_primary(run)['settings'])}. Low and high are the ends of "
        f"the {CONFIDENCE:.0%} intervals of NDCG@10 and of the difference between {reference} and the model of the row."
    )
    return Grid("models", f"All models, {run.evaluation['primary']}", columns, rows, note)


def _all_metrics(name: str, protocol: dict[str, Any]) -> Grid:
    results = protocol["models"]
    metrics = [metric for metric in (*SHOWN, *SHOWN_OF_LISTS) if any(metric in result for result in results.values())]
    columns = Column("model"), *(Column(label(metric).replace("_", " "), ".4f") for metric in metrics)
    rows: list[tuple[Value, ...]] = [
        (model, *(result.get(metric) for metric in metrics)) for model, result in results.items()
    ]
    note = ". ".join(filter(None, (_settings(protocol["settings"]), constant_note(name, protocol)))) + "."
    return Grid(f"metrics-{name}", f"All metrics, {name}", columns, rows, note)


def _settings(settings: dict[str, Any]) -> str:
    """Return the settings of a protocol as text."""
    negatives = settings.get("num_negatives")
    candidates = f"{negatives:,} sampled negatives" if negatives else "all items"
    history = "excluded" if settings["exclude_history"] else "not excluded"
    return f"{settings['split']} split, against {candidates}, history {history}"


def _compared(run: Run, a: str, b: str) -> Comparison:
    return compare_means(run.primary[a].metrics[METRIC], run.primary[b].metrics[METRIC])


def _milliseconds(result: dict[str, Any]) -> float:
    return float(1_000 / result["users_per_second"])


def _draw_intervals(rows: list[tuple[Any, ...]], looks: Looks, axes: Any) -> None:
    for place, (name, value, low, high) in enumerate(rows[::-1]):
        axes.plot([low, high], [place, place], color=looks[name]["color"], linewidth=2)
        axes.plot(value, place, linestyle="none", **looks[name])
    axes.set_yticks(range(len(rows)), [row[0] for row in rows[::-1]])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label(METRIC))


def _quality_against_latency(run: Run, looks: Looks) -> Chart:
    columns = Column("model"), Column("ms per user", ".3f"), Column(label(METRIC), ".4f"), Column("on the line")
    points = {name: (_milliseconds(result), result[METRIC]) for name, result in _primary(run)["models"].items()}
    front = _pareto_front(points)
    rows: list[tuple[Value, ...]] = [(name, *point, "yes" if name in front else "no") for name, point in points.items()]
    grid = Grid("latency", "Quality against latency", columns, rows)
    caption = (
        "Higher is better, left is faster; no model is both better and faster than one on the line. Latency includes "
        "encoding the history, scoring all items and finding the ten best, in batches, on one machine."
    )
    draw = partial(_draw_latency, points, front, looks, f"{label(METRIC)}, {SPLIT_NAMES[run.split]}")
    return Chart(grid, caption, draw, 3.6)


def _pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the models that are better than all faster ones, the fastest first."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def _draw_latency(
    points: dict[str, tuple[float, float]], front: list[str], looks: Looks, ylabel: str, axes: Any
) -> None:
    for name, point in points.items():
        axes.plot(*point, linestyle="none", markersize=9, label=name, **looks[name])
    axes.step(*zip(*(points[name] for name in front), strict=True), where="post", color=INK, linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.margins(0.1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("milliseconds per user (log scale)")
    axes.set_ylabel(ylabel)
