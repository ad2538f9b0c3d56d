"""Study of language: the recipe and its controls on one log, in slices, and on items that no model has trained on."""

import logging
from dataclasses import replace
from pathlib import Path

from slmrec.config import Config
from slmrec.config.load import vary
from slmrec.data.dataset import Dataset
from slmrec.errors import DataError
from slmrec.pipeline.item_text import read_item_text
from slmrec.pipeline.stage import run_step
from slmrec.pipeline.table import Step, stage_named
from slmrec.studies.cold import FOLDER as COLD
from slmrec.studies.cold import cold, training_steps, uses_prepared
from slmrec.studies.cold_report import Values, user_values
from slmrec.studies.evaluated import Evaluated, Split, read_evaluated
from slmrec.studies.language.report import Results, report
from slmrec.studies.language.variants import Row, language_rows
from slmrec.studies.shared_steps import SharedSteps

_LOG = logging.getLogger(__name__)
FOLDER = "language"


def study_language(config: Config, output: Path, force: bool = False, split: Split = "valid") -> None:
    """Train and evaluate the recipe and its controls, and say whether text, pretraining and distillation pay.

    A row with a seed is a run like any other, in `OUT/language/ROW/seedN`. Its steps are links to
    `OUT/language/steps`, where each step is executed once for all rows, or to finished steps of a run in `OUT` itself.

    Args:
        config: The recipe, with its sections `ablate` and `cold`.
        output: Folder of the study.
        force: Redo finished steps.
        split: Split on which the rows are compared; `test` ranks the items of both splits.

    Raises:
        ConfigError: No model of the teacher reads item text, or a control contradicts the recipe.
        DataError: The items have no texts.
    """
    rows = language_rows(config)
    folder = output / FOLDER
    seeds = config.ablate.seeds or (config.seed,)
    shared = SharedSteps(folder / "steps", output)
    cells = [(row, seed) for row in rows.rows for seed in seeds]
    for number, (row, seed) in enumerate(cells, 1):
        _LOG.info("ablate: %s with seed %d (%d of %d): %s", row.name, seed, number, len(cells), row.about)
        cell = folder / row.name / f"seed{seed}"
        if uses_prepared(config, output):
            shared.take(stage_named("prepare").steps(config)[0], cell)
        _run_cell(_cell_config(row, seed, split), cell, shared, force)
    teachers, students = (
        {row.name: _evaluated(folder / row.name, model, seeds, split) for row in rows.rows if model in row.models}
        for model in ("teacher", "student")
    )
    cold_values: dict[str, Values] = {}
    if config.ablate.cold:
        ranked = [row for row in rows.rows if row.is_cold]
        for number, row in enumerate(ranked, 1):
            _LOG.info("ablate: cold items of %s with seed %d (%d of %d)", row.name, seeds[0], number, len(ranked))
            cell = folder / row.name / f"seed{seeds[0]}"
            cold(_cell_config(row, seeds[0], split), cell, force, split, shared.run, shown=False)
            cold_values[row.name] = user_values(cell / COLD / split)
    report(folder, rows, Results(teachers, students, cold_values), split)


def _cell_config(row: Row, seed: int, split: Split) -> Config:
    splits = ["valid"] if split == "valid" else ["test", "valid"]
    return vary(row.config, {"seed": seed, "evaluate.splits": splits}, "ablate")


def _run_cell(config: Config, cell: Path, shared: SharedSteps, force: bool) -> None:
    """Execute the steps of one row with one seed, as far as they are not done."""
    planned = training_steps(config)
    if not uses_prepared(config, cell):
        shared.run(planned[0], config, cell, force)
    _check_texts(config, cell)
    for step in planned[1:]:
        shared.run(step, config, cell, force)
    read = tuple(step.folder for step in planned)
    ranking = replace(stage_named("evaluate"), reads=lambda config: read)
    run_step(Step(ranking), config, cell, force)


def _check_texts(config: Config, cell: Path) -> None:
    """Refuse items without texts, which a recipe may allow: all rows would be the same.

    Raises:
        DataError: A text of the recipe is absent.
    """
    dataset = Dataset.load(cell / "prepare")
    for name in config.item_text:
        if read_item_text(config, "ablate", name, dataset) is None:
            raise DataError(
                f"{cell / 'prepare'}: the items have no texts for item_text.{name}, so the study has nothing to "
                "compare; give a table of items with --items FILE"
            )


def _evaluated(folder: Path, model: str, seeds: tuple[int, ...], split: Split) -> dict[int, Evaluated]:
    return {seed: read_evaluated(folder / f"seed{seed}", model, split=split) for seed in seeds}
