"""Section of the report about language: controls of item texts, and items that no model has trained on."""

from collections.abc import Iterator
from pathlib import Path

from slmrec.evaluation.statistics import CONFIDENCE
from slmrec.report.parts import Block, Column, Facts, Grid, Section, Value, blocks_or_notice
from slmrec.report.states import Run, read_json
from slmrec.studies.cold_report import FLOOR, METRIC, TRAINED, WITHHELD, title_of
from slmrec.studies.evaluated import SPLIT_NAMES, label
from slmrec.studies.language.report import ALL


def language(run: Run) -> Section:
    """Return the section; it is empty where neither `slmrec cold` nor `slmrec ablate --what language` was run."""
    blocks: list[Block] = []
    for name, make in (("language", _answers), ("cold", _cold)):
        paths = run.output / f"{name}.json", run.output / name / f"{name}.json"
        for path in filter(Path.is_file, paths):
            blocks += blocks_or_notice(str(path), lambda path=path, make=make: make(path))  # type: ignore[misc]
    lead = "What item texts, pretraining and distillation add on these data, and how items without any event rank."
    return Section("language", "Language and cold items", lead, blocks)


def _answers(path: Path) -> Iterator[Block]:
    content = read_json(path)
    yield Facts("Answers", [(one["title"], one["sentence"]) for one in content["questions"]])
    rows: list[tuple[Value, ...]] = [
        (one["title"], name, part["num_users"], part["mean_b"], part["mean_a"], *_difference(part))
        for one in content["questions"]
        for name, part in one["slices"].items()
    ]
    columns = (
        *(Column("question"), Column("users"), Column("number", ",d"), Column("with", ".4f"), Column("without", ".4f")),
        *_difference_columns(),
    )
    note = (
        f"{content['num_users']:,} users, {content['protocol']}, "
        f"{SPLIT_NAMES[content['split']]}, {label(content['compared_metric'])}, seeds "
        f"{', '.join(map(str, content['seeds']))}; {CONFIDENCE:.0%} intervals. A question is decided by {ALL}."
    )
    yield Grid("language", "Controls", columns, rows, note)


def _cold(path: Path) -> Iterator[Block]:
    content = read_json(path)
    rows: list[tuple[Value, ...]] = []
    for name, model in content["models"].items():
        means = (model["means"][row][METRIC] for row in (TRAINED, WITHHELD, FLOOR))
        ratios = (model[key][end] for key in ("share_kept", "times_floor") for end in ("value", "low", "high"))
        rows.append((name, *means, *ratios, *_difference(model["to_floor"]), model["origin"]))
    kept, times = ("share kept", "times the floor")
    columns = (
        *(Column("model"), Column("trained on everything", ".4f"), Column("withheld", ".4f"), Column("floor", ".4f")),
        *(Column("share", ".0%", kept), Column("from", ".0%", kept), Column("to", ".0%", kept)),
        *(Column("factor", ".1f", times), Column("from", ".1f", times), Column("to", ".1f", times)),
        *_difference_columns("over the floor"),
        Column("known by"),
    )
    yield Grid("cold", "Items that no model has trained on", columns, rows, f"{title_of(content)}.")


def _difference_columns(group: str = "") -> tuple[Column, ...]:
    return tuple(Column(name, "+.4f", group) for name in ("difference", "from", "to"))


def _difference(part: dict[str, float]) -> tuple[float, float, float]:
    return part["difference"], part["low"], part["high"]
