"""Section of the report about ablations."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from slmrec.evaluation.statistics import CONFIDENCE
from slmrec.report.parts import Block, Chart, Column, Grid, Notice, Section, Value, blocks_or_notice
from slmrec.report.states import Run, read_json
from slmrec.studies.ablation import METRIC, SHOWN, draw_rows, rows_of
from slmrec.studies.evaluated import SPLIT_NAMES, label


def ablations(run: Run) -> Section:
    """Return the section about all ablations in the folder: its own, and those in folders below it."""
    places = run.output / "ablation.json", *sorted(run.output.glob("*/ablation.json"))
    paths = [path for path in places if path.is_file()]
    blocks: list[Block] = []
    for number, path in enumerate(paths, 1):
        name = "ablation" if number == 1 else f"ablation-{number}"
        blocks += blocks_or_notice(str(path), lambda path=path, name=name: _blocks(path, name))  # type: ignore[misc]
    if not paths:
        blocks.append(Notice("optional", "no ablation was run", _command(run)))
    lead = "The effect of each part of the distillation: variants of the student, each with several seeds."
    return Section("ablation", "Ablation", lead, blocks)


def _command(run: Run) -> str:
    output = run.output if run.output != run.root else run.output / "ablation"
    return run.command("ablate", output)


def _blocks(path: Path, name: str) -> Iterator[Block]:
    content = read_json(path)
    rows = rows_of(content)
    variants = content["variants"]
    seeds = list(variants[content["baseline"]]["by_seed"][METRIC])
    cells: list[tuple[Value, ...]] = []
    for row in rows:
        result = row.compared
        differences = (result.difference, result.low, result.high, result.relative) if result else (None,) * 4
        means = (mean(row.by_seed[metric].values()) for metric in SHOWN)
        by_seed = (variants[row.name]["by_seed"][METRIC][seed] for seed in seeds)
        cells.append((row.name, *means, *differences, row.p_holm, *by_seed))
    columns = (
        Column("variant"),
        *(Column(label(metric), ".4f") for metric in SHOWN),
        *(Column("difference", "+.4f"), Column("from", "+.4f"), Column("to", "+.4f"), Column("relative", "+.1%")),
        *(Column("p (Holm)", ".4f"), *(Column(f"{label(METRIC)}, seed {seed}", ".4f") for seed in seeds)),
    )
    note = (
        f"{content['num_users']:,} users, {content['protocol']}, {SPLIT_NAMES[content['split']]}; differences of "
        f"{label(METRIC)} to {content['baseline']}, of users whose values are means over the seeds, with "
        f"{CONFIDENCE:.0%} intervals."
    )
    grid = Grid(name, f"Ablation ({path.parent.name})", columns, cells, note)
    yield grid
    num_compared = sum(row.compared is not None for row in rows)
    if num_compared:
        numbers = Grid(f"{name}-picture", grid.title, columns, cells)
        caption, height = "A variant on the left of the line is worse than the baseline.", 1.6 + 0.4 * num_compared
        yield Chart(numbers, caption, lambda axes: draw_rows(axes, rows), height)
