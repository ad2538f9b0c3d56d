"""`slmrec report`: one page that needs nothing else, and its figures and tables as files."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from slmrec.errors import CheckpointError, ConfigError
from slmrec.folders import folder_in_place
from slmrec.report.ablations import ablations
from slmrec.report.depth import depth
from slmrec.report.efficiency import COSTS, METRICS, efficiency
from slmrec.report.examples import examples
from slmrec.report.parts import READ_FAULTS, Chart, Finding, Grid, Section
from slmrec.report.pictures import inline_svg, svg_of, write_png
from slmrec.report.provenance import data, what_was_run
from slmrec.report.quality import findings, models, slices
from slmrec.report.states import Run, open_run
from slmrec.report.training import training
from slmrec.version import __version__

SECTIONS: tuple[Callable[[Run], Section], ...] = (
    *(what_was_run, models, efficiency, slices, examples),
    *(training, depth, ablations, data),
)
_MARK = "report.json"
"""Tells a folder of figures from one of anything else."""


def report(output: Path, file: Path | None = None) -> Path:
    """Writes the report of a run, whatever is missing of it; where the page is.

    Figures and tables go into a folder of the same name without `.html`. What is missing or broken is told in its
    place, with the command that makes it.

    Args:
        output: folder of a run or of an ablation.
        file: the page, an .html file; None: `report.html` in the folder.

    Raises:
        CheckpointError: the folder of the figures is one of something else, or the disk is full.
        ConfigError: the page cannot be of that name.
        DataError: the folder is no run.
    """
    file = file or output / "report.html"
    if file.suffix != ".html" or file.is_dir():
        raise ConfigError(f"{file}: the report is a page; give --output NAME.html")
    run = open_run(output)
    files = _folder_of(file)
    sections = [make(run) for make in SECTIONS]
    svgs = {block.numbers.name: svg_of(block) for block in _files(sections) if isinstance(block, Chart)}
    page = _rendered(run, sections, svgs, files)
    with folder_in_place(files, replaced=True) as folder:
        for block in _files(sections):
            _write(block, folder, svgs)
        (folder / _MARK).write_text(json.dumps(_mark(run, sections), indent=1) + "\n", encoding="utf-8")
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(file)
    show(sections)
    print(f"report: written to {file}, its figures and tables to {files}", flush=True)
    return file


def report_if_changed(output: Path) -> None:
    """Writes the report of a run at its end, unless the one that is there is of the same stages."""
    file = output / "report.html"
    run = open_run(output)
    try:
        before = json.loads((_folder_of(file) / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if file.is_file() and before.get("stages") == _stages(run) and before.get("version") == __version__:
        print(f"report: written before, and nothing has changed ({file})", flush=True)
        return
    report(output)


def _folder_of(file: Path) -> Path:
    folder = file.with_suffix("")
    if folder.exists() and not (folder / _MARK).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} exists and is no folder of a report's figures; choose another --output, nothing was changed"
        )
    return folder


def _files(sections: list[Section]) -> Iterator[Grid | Chart]:
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, Grid | Chart))


def _write(block: Grid | Chart, folder: Path, svgs: dict[str, str]) -> None:
    grid = block.numbers if isinstance(block, Chart) else block
    (folder / f"{grid.name}.csv").write_text(grid.csv(), encoding="utf-8")
    if isinstance(block, Chart):
        (folder / f"{grid.name}.svg").write_text(svgs[grid.name], encoding="utf-8")
        write_png(block, folder / f"{grid.name}.png")


def _mark(run: Run, sections: list[Section]) -> dict[str, Any]:
    """What the report is of, and what it lacks."""
    lacks = {
        section.name: [{"fault": notice.fault, "text": notice.text, "command": notice.command} for notice in found]
        for section in sections
        if (found := section.notices())
    }
    return {"version": __version__, "stages": _stages(run), "lacks": lacks}


def _stages(run: Run) -> dict[str, Any]:
    return {name: state.record.get("fingerprint") for name, state in run.states.items()}


def _rendered(run: Run, sections: list[Section], svgs: dict[str, str], files: Path) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["svg"] = lambda name: Markup(inline_svg(name, svgs[name]))
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    name = run.output.resolve().name
    return environment.get_template("page.html").render(
        name=name,
        lead=_lead(run),
        findings=_findings(run),
        sections=sections,
        files=str(files),
        version=__version__,
    )


def _lead(run: Run) -> str:
    done = sum(state.word == "done" for state in run.states.values())
    counts = run.states["prepare"].metrics
    known = all(f"num_{name}" in counts for name in ("users", "items", "events"))
    size = "{num_users:,} users, {num_items:,} items, {num_events:,} events; ".format_map(counts) if known else ""
    return f"{size}{done} of {len(run.states)} stages done; seed {run.settings.get('seed', 'not known')}."


def _findings(run: Run) -> list[Finding]:
    try:
        return findings(run) if run.evaluation else []
    except READ_FAULTS:
        return []  # the section of the models says what is broken


def show(sections: list[Section]) -> None:
    """Prints the efficiency table, and what the report lacks."""
    console = Console(markup=False, highlight=False)
    console = Console(width=max(console.width, 118), markup=False, highlight=False)
    for grid in _files(sections):
        if isinstance(grid, Grid) and grid.name == "efficiency":
            console.print(_table("efficiency: what the models cost", grid, range(len(COSTS))))
            for first in range(len(COSTS), len(grid.columns), len(METRICS)):
                protocol = grid.columns[first].group
                quality = range(first, first + len(METRICS))
                console.print(_table(f"efficiency: what they give, {protocol}", grid, [0, 1, *quality]))
    for notice in dict.fromkeys(notice for section in sections for notice in section.notices()):
        remedy = f"; make it with: {notice.command}" if notice.command else ""
        print(f"report: {notice.fault}: {notice.text}{remedy}", flush=True)


def _table(title: str, grid: Grid, places: Any) -> Table:
    table = Table(title=title, title_justify="left")
    for place in places:
        column = grid.columns[place]
        table.add_column(column.title, justify="right" if column.form else "left", no_wrap=place == 0)
    for row in grid.rows:
        table.add_row(*(grid.columns[place].shown(row[place]) for place in places))
    return table
