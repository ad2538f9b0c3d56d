"""The page of a report: one HTML file without external parts, and its plots and tables as files."""

import base64
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import read_json, sha256, write_json, write_text
from slmrec.folders import folder_in_place, is_empty_folder
from slmrec.locks import WAIT_S, target_locked
from slmrec.pipeline.verdict import VERDICT, Verdict, read_verdict
from slmrec.progress import tables_printed
from slmrec.report.ablations import ablations
from slmrec.report.depth import depth
from slmrec.report.efficiency import COSTS, METRICS, efficiency
from slmrec.report.examples import examples
from slmrec.report.groups import groups
from slmrec.report.language import language
from slmrec.report.parts import READ_FAULTS, Chart, Finding, Grid, Section
from slmrec.report.pictures import inline_svg, svg_of, write_png
from slmrec.report.provenance import data, steps_and_settings
from slmrec.report.quality import findings, models
from slmrec.report.states import Run, open_run
from slmrec.report.training import training
from slmrec.storage.cache import named
from slmrec.version import __version__

_LOG = logging.getLogger(__name__)
SECTIONS: tuple[Callable[[Run], Section], ...] = (
    *(steps_and_settings, models, efficiency, groups, examples),
    *(training, depth, ablations, language, data),
)
_MARK = "report.json"
"""File that identifies a folder of plots and tables of a report."""


def report(output: Path, file: Path | None = None, show_user_ids: bool = False) -> Path:
    """Write the report of a run, show the efficiency table, and return the path of the page.

    Plots and tables are written into a folder of the same name without `.html`. A missing or broken part of the run is
    replaced by a notice with the command that makes it.

    Args:
        output: Folder of a run or of an ablation.
        file: The page, an .html file; None: `report.html` in the folder.
        show_user_ids: Name the example users by their ids, instead of by numbers.

    Raises:
        CheckpointError: The folder of the plots exists and belongs to something else, or the disk is full.
        ConfigError: The name of the page does not end in .html.
        DataError: The folder is not a run.
    """
    file = file or output / "report.html"
    if file.suffix != ".html" or file.is_dir():
        raise ConfigError(f"{file}: the report is an HTML page; give --output NAME.html")
    run = open_run(output, show_user_ids)
    folder = _folder_of(file)
    sections = [section for make in SECTIONS if (section := make(run)).blocks]
    svgs = {block.numbers.name: svg_of(block) for block in _files(sections) if isinstance(block, Chart)}
    page = _rendered(run, sections, svgs, folder)
    with target_locked(folder, WAIT_S):
        with folder_in_place(folder, replaced=True) as partial:
            for block in _files(sections):
                _write(block, partial, svgs)
            write_json(partial / _MARK, _mark(run, sections))
        write_text(file, page)
    show(sections)
    _LOG.info("report: written to %s, its plots and tables to %s", file, folder)
    return file


def report_if_changed(output: Path) -> None:
    """Write the report of a run, unless the existing one belongs to the same steps."""
    file = output / "report.html"
    run = open_run(output)
    try:
        mark = read_json(_folder_of(file) / _MARK)
    except (OSError, ValueError):
        mark = {}
    is_current = mark.get("steps") == _fingerprints(run) and mark.get("version") == __version__
    if file.is_file() and is_current and mark.get("verdict") == _hash_of_verdict(run):
        _LOG.info("report: unchanged, nothing to do (%s)", file)
        return
    report(output)


def _folder_of(file: Path) -> Path:
    folder = file.with_suffix("")
    if folder.exists() and not (folder / _MARK).is_file() and not is_empty_folder(folder):
        raise CheckpointError(
            f"{folder} exists and does not belong to a report; choose another --output, nothing was changed"
        )
    return folder


def _files(sections: list[Section]) -> Iterator[Grid | Chart]:
    """Yield the blocks that are written as files."""
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, Grid | Chart))


def _write(block: Grid | Chart, folder: Path, svgs: dict[str, str]) -> None:
    grid = block.numbers if isinstance(block, Chart) else block
    (folder / f"{grid.name}.csv").write_text(grid.csv(), encoding="utf-8")
    if isinstance(block, Chart):
        (folder / f"{grid.name}.svg").write_text(svgs[grid.name], encoding="utf-8")
        write_png(block, folder / f"{grid.name}.png")


def _mark(run: Run, sections: list[Section]) -> dict[str, Any]:
    """Return the steps that the report describes, and the parts that are missing."""
    lacks = {
        section.name: [{"fault": notice.fault, "text": notice.text, "command": notice.command} for notice in notices]
        for section in sections
        if (notices := section.notices())
    }
    return {
        "version": __version__,
        "steps": _fingerprints(run),
        "verdict": _hash_of_verdict(run),
        "lacks": named(lacks),
    }


def _hash_of_verdict(run: Run) -> str | None:
    path = run.root / VERDICT
    return sha256(path) if path.is_file() else None


def _fingerprints(run: Run) -> dict[str, Any]:
    return {name: state.record.get("fingerprint") for name, state in run.states.items()}


def _rendered(run: Run, sections: list[Section], svgs: dict[str, str], folder: Path) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["svg"] = lambda name: Markup(inline_svg(name, svgs[name]))
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    name, verdict = run.output.resolve().name, _verdict(run)
    page = environment.get_template("page.html").render(
        name=name,
        lead=_lead(run),
        verdict=verdict,
        findings=_findings(run, verdict),
        sections=sections,
        files=str(folder),
        version=__version__,
    )
    return str(named(page))  # the folder of a remote run


def _lead(run: Run) -> str:
    done = sum(state.word == "done" for state in run.states.values())
    counts = run.states["prepare"].metrics
    known = all(f"num_{name}" in counts for name in ("users", "items", "events"))
    size = "{num_users:,} users, {num_items:,} items, {num_events:,} events; ".format_map(counts) if known else ""
    seed = run.config.seed if run.config_file else "unknown"
    return f"{size}{done} of {len(run.states)} steps done; seed {seed}."


def _verdict(run: Run) -> Verdict | None:
    """Return the verdict of the run, if it belongs to the evaluation."""
    try:
        return read_verdict(run.root) if run.evaluation else None
    except READ_FAULTS as error:
        _LOG.warning("report: %s", error)
        return None


def _findings(run: Run, verdict: Verdict | None) -> list[Finding]:
    try:
        return findings(run, verdict) if run.evaluation else []
    except READ_FAULTS:
        return []  # the section about the models has a notice


def show(sections: list[Section]) -> None:
    """Print the efficiency table, and log the missing parts of the report."""
    console = Console(width=max(Console().width, 118), markup=False, highlight=False)
    for grid in _files(sections):
        if tables_printed.get() and isinstance(grid, Grid) and grid.name == "efficiency":
            console.print(_table("efficiency: cost", grid, range(len(COSTS))))
            for first in range(len(COSTS), len(grid.columns), len(METRICS)):
                protocol = grid.columns[first].group
                quality = range(first, first + len(METRICS))
                console.print(_table(f"efficiency: quality, {protocol}", grid, [0, 1, *quality]))
    notices = dict.fromkeys(notice for section in sections for notice in section.notices())
    for notice in (notice for notice in notices if notice.fault != "optional"):
        remedy = f"; make it with: {notice.command}" if notice.command else ""
        _LOG.info("report: %s: %s%s", notice.fault, notice.text, remedy)


def _table(title: str, grid: Grid, places: Any) -> Table:
    table = Table(title=title, title_justify="left")
    for place in places:
        column = grid.columns[place]
        table.add_column(column.title, justify="right" if column.form else "left", no_wrap=place == 0)
    for row in grid.rows:
        table.add_row(*(grid.columns[place].shown(row[place]) for place in places))
    return table
