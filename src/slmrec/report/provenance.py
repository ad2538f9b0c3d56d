"""What was run, and on which data."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from slmrec.data.describe import Bin, Description, describe
from slmrec.report.describe import draw_powers, draw_times, leakage, rows_of
from slmrec.report.parts import Block, Chart, Column, Facts, Grid, Section, Text, tried
from slmrec.report.pictures import PALETTE
from slmrec.report.states import Run

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy", "pyarrow", "duckdb")
STAGES = (Column("stage"), Column("state"), Column("wall time [s]", ",.1f"), Column("peak memory [MB]", ",.0f"))


def what_was_run(run: Run) -> Section:
    """The stages, the settings, the seed, the versions and the command."""
    blocks = tried("what was run", lambda: _run_blocks(run))
    return Section("run", "What was run", "The stages of the run, and all that it takes to run it again.", blocks)


def data(run: Run) -> Section:
    """The figures of the data set, as `slmrec data describe` gives them."""
    blocks: list[Block] = list(run.notices("prepare"))
    if (run.root / "prepare").is_dir():
        blocks += tried("the data set", lambda: _data_blocks(describe(run.root)))
    return Section("data", "The data", "What the models learnt from, and how it was split.", blocks)


def _run_blocks(run: Run) -> Iterator[Block]:
    yield from run.notices(*run.states)
    yield Grid("stages", "Stages", STAGES, [_stage_row(run, name) for name in run.states])
    yield Facts("Settings and versions", list(_facts(run)))
    if run.settings_file:
        yield Text(f"All settings ({run.settings_file})", yaml.safe_dump(run.settings, sort_keys=False))


def _stage_row(run: Run, name: str) -> tuple[Any, ...]:
    state = run.states[name]
    facts = state.record | state.metrics
    return name, state.word, facts.get("wall_s"), facts.get("peak_rss_mb")


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    yield "folder", str(run.output.resolve())
    if run.root != run.output:
        yield "run of the ablation that is shown", str(run.root.relative_to(run.output))
    yield "seed", str(run.settings.get("seed", "not known"))
    if run.settings_file:
        yield "the same again", run.command("run", Path("ANOTHER"))
    made = sorted({str(state.record["version"]) for state in run.states.values() if "version" in state.record})
    yield "made with slmrec", ", ".join(made) or "not known"
    yield "this page was written with", "; ".join(_versions())


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for name in LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    yield platform.platform(terse=True)


def _data_blocks(found: Description) -> Iterator[Block]:
    yield Facts("The data set in figures", [row for row in rows_of(found) if row[0]], leakage(found))
    yield _powers("data-users", "Users by their number of events", "events of a user", "users", found.histories.bins)
    yield _powers("data-items", "Items by their number of events", "events of an item", "items", found.popularity.bins)
    times = found.times
    if times is None:
        return
    columns = Column(f"from [{times.unit} since 1970]"), Column("to"), Column("events")
    grid = Grid("data-times", "Events over time", columns, [tuple(part) for part in times.bins])

    def draw(axes: Any) -> None:
        draw_times(axes, times)
        axes.set_title("")

    yield Chart(grid, "Every bar stands for an equally long time.", draw)


def _powers(name: str, title: str, what: str, counted: str, bins: tuple[Bin, ...]) -> Chart:
    columns = Column(f"{what}, from"), Column("to"), Column(counted)
    colour = PALETTE["blue" if counted == "users" else "orange"]
    grid = Grid(name, title, columns, [tuple(part) for part in bins])

    def draw(axes: Any) -> None:
        draw_powers(axes, bins, what, counted, colour)
        axes.set_title("")

    return Chart(grid, "Both axes are logarithmic.", draw)
