"""The variants of an ablation, if there is one."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from slmrec.evaluation.statistics import CONFIDENCE
from slmrec.report.parts import Block, Chart, Column, Grid, Notice, Section, Value, tried
from slmrec.report.states import Run, read_json
from slmrec.studies.ablation import METRIC, SHOWN, draw_rows, rows_of
from slmrec.studies.evaluated import label


def ablations(run: Run) -> Section:
    """Every ablation of the folder: its own, or those that lie in it."""
    places = run.output / "ablation.json", *sorted(run.output.glob("*/ablation.json"))
    paths = [path for path in places if path.is_file()]
    blocks: list[Block] = []
    for number, path in enumerate(paths, 1):
        name = "ablation" if number == 1 else f"ablation-{number}"
        blocks += tried(str(path), lambda path=path, name=name: _blocks(path, name))  # type: ignore[misc]
    if not paths:
        blocks.append(Notice("missing", "no ablation was made", _command(run)))
    lead = "What each part of the recipe is worth: variants, each with several seeds."
    return Section("ablation", "Ablation", lead, blocks)


def _command(run: Run) -> str:
    output = run.output if run.output != run.root else run.output / "ablation"
    return run.command("ablate", output)


def _blocks(path: Path, name: str) -> Iterator[Block]:
    content = read_json(path)
    rows = rows_of(content)
    told = content["variants"]
    seeds = list(told[content["baseline"]]["by_seed"][METRIC])
    lines: list[tuple[Value, ...]] = []
    for row in rows:
        found = row.compared
        differing = (found.difference, found.low, found.high, found.relative) if found else (None,) * 4
        means = (mean(row.by_seed[metric].values()) for metric in SHOWN)
        by_seed = (told[row.name]["by_seed"][METRIC][seed] for seed in seeds)
        lines.append((row.name, *means, *differing, row.p_holm, *by_seed))
    columns = (
        Column("variant"),
        *(Column(label(metric), ".4f") for metric in SHOWN),
        *(Column("difference", "+.4f"), Column("from", "+.4f"), Column("to", "+.4f"), Column("relative", "+.1%")),
        *(Column("p (Holm)", ".4f"), *(Column(f"{label(METRIC)}, seed {seed}", ".4f") for seed in seeds)),
    )
    note = (
        f"{content['num_users']:,} users, {content['protocol']}, test split; differences of {label(METRIC)} to "
        f"{content['baseline']}, over users whose values are means over the seeds, with {CONFIDENCE:.0%} intervals."
    )
    grid = Grid(name, f"Ablation ({path.parent.name})", columns, lines, note)
    yield grid
    num_compared = sum(row.compared is not None for row in rows)
    if num_compared:
        picture = Grid(f"{name}-picture", grid.title, columns, lines)
        caption, height = "Left of the line a variant is worse.", 1.6 + 0.4 * num_compared
        yield Chart(picture, caption, lambda axes: draw_rows(axes, rows), height)
