"""Sections of the report about the steps of the run, its settings and versions, and the data set."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slmrec.data.statistics.describe import Bin, Description, describe
from slmrec.pipeline.stage import dump
from slmrec.plots import PALETTE
from slmrec.report.describe import draw_powers, draw_times, leakage, rows_of
from slmrec.report.parts import Block, Chart, Column, Facts, Grid, Section, Text, blocks_or_notice
from slmrec.report.states import Run, State

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy", "pyarrow", "duckdb")
STEPS = (Column("step"), Column("state"), Column("wall time [s]", ",.1f"), Column("peak memory [MB]", ",.0f"))


def steps_and_settings(run: Run) -> Section:
    """Return the section about steps, settings, seed, versions and commands."""
    blocks = blocks_or_notice("the steps", lambda: _run_blocks(run))
    return Section("run", "The run", "The steps of the run, and everything that is needed to repeat it.", blocks)


def data(run: Run) -> Section:
    """Return the section with the statistics of the data set, as `slmrec data describe` shows them."""
    blocks: list[Block] = list(run.notices(run.states["prepare"]))
    if (run.root / "prepare").is_dir():
        blocks += blocks_or_notice("the data set", lambda: _data_blocks(describe(run.root)))
    return Section("data", "The data", "The data set on which the models were trained, and its split.", blocks)


def _run_blocks(run: Run) -> Iterator[Block]:
    yield from run.notices(*run.states.values())
    yield Grid("steps", "Steps", STEPS, [_step_row(state) for state in run.states.values()])
    yield Facts("Settings and versions", list(_facts(run)))
    if run.config_file:
        yield Text(f"All settings ({run.config_file})", dump(run.config))


def _step_row(state: State) -> tuple[Any, ...]:
    facts = state.record | state.metrics
    return state.step.folder, state.word, facts.get("wall_s"), facts.get("peak_rss_mb")


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    yield "folder", str(run.output.resolve())
    if run.root != run.output:
        yield "run of the ablation that is shown", str(run.root.relative_to(run.output))
    yield "seed", str(run.config.seed) if run.config_file else "unknown"
    if run.config_file:
        yield "command for the same run", run.command("run", Path("ANOTHER"))
    versions = sorted({str(state.record["version"]) for state in run.states.values() if "version" in state.record})
    yield "version of slmrec in the run", ", ".join(versions) or "unknown"
    yield "versions of this report", "; ".join(_versions())


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for name in LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    yield platform.platform(terse=True)


def _data_blocks(description: Description) -> Iterator[Block]:
    yield Facts("Statistics of the data set", [row for row in rows_of(description) if row[0]], leakage(description))
    yield _powers(
        "data-users", "Users by their number of events", "events of a user", "users", description.histories.bins
    )
    yield _powers(
        "data-items", "Items by their number of events", "events of an item", "items", description.popularity.bins
    )
    times = description.times
    if times is None:
        return
    columns = Column(f"from [{times.unit} since 1970]"), Column("to"), Column("events")
    grid = Grid("data-times", "Events over time", columns, [tuple(part) for part in times.bins])

    def draw(axes: Any) -> None:
        draw_times(axes, times)
        axes.set_title("")

    yield Chart(grid, "All bars cover periods of the same length.", draw)


def _powers(name: str, title: str, what: str, counted: str, bins: tuple[Bin, ...]) -> Chart:
    columns = Column(f"{what}, from"), Column("to"), Column(counted)
    colour = PALETTE["blue" if counted == "users" else "orange"]
    grid = Grid(name, title, columns, [tuple(part) for part in bins])

    def draw(axes: Any) -> None:
        draw_powers(axes, bins, what, counted, colour)
        axes.set_title("")

    return Chart(grid, "Both axes are logarithmic.", draw)
