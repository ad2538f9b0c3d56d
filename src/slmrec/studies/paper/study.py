"""Study of the paper: every row trained and evaluated once, the table written anew after each."""

import logging
from dataclasses import replace
from pathlib import Path

from slmrec.config import Config
from slmrec.config.load import vary
from slmrec.data.dataset import Dataset
from slmrec.pipeline.stage import run_step
from slmrec.pipeline.table import Step, stage_named
from slmrec.pipeline.validation import check_sampled_protocols
from slmrec.studies.ablation import METRIC
from slmrec.studies.cold import training_steps, uses_prepared
from slmrec.studies.evaluated import Split, read_evaluated
from slmrec.studies.paper.report import Result, report, result_of
from slmrec.studies.paper.rows import FILE_ORDER, STUDENT, TEACHER, Row, check_recipe, paper_rows, rate_rows
from slmrec.studies.shared_steps import SharedSteps

_LOG = logging.getLogger(__name__)
FOLDER = "paper"
SEEDS = (1, 2, 3)
"""Seeds of the main table where none are given."""
Rates = dict[str, dict[float, float]]
"""Validation quality by model and learning rate."""


def study_paper(config: Config, output: Path, force: bool = False, split: Split = "valid") -> None:
    """Train and evaluate the models of the paper's tables, and answer its claims with intervals.

    A row with a seed is a run like any other, in `OUT/paper/ROW/seedN`, and finished rows are kept: a study that was
    stopped goes on. Steps that several rows share are executed once, in `OUT/paper/steps`, or taken from a run in `OUT`
    itself. `OUT/paper/paper.json` and `paper.md` hold all rows that are finished.

    Args:
        config: The recipe, with its section `ablate`.
        output: Folder of the study.
        force: Redo finished steps.
        split: Split on which the rows are compared; `test` ranks the items of both splits.

    Raises:
        ConfigError: The recipe is not the paper's experiment, or a row contradicts it.
        DataError: The data set has too few items for the sampled protocol.
    """
    check_recipe(config)
    seeds = config.ablate.seeds or SEEDS
    paper_rows(config, config.ablate.full_depth_steps)  # contradictions are found before anything is trained
    cells = _Cells(output, force, split)
    rates: Rates = {}
    for model, setting in ((TEACHER, "finetune"), (STUDENT, "distill")):
        rates[model] = cells.quality_by_rate(rate_rows(config, model, config.ablate.learning_rates), seeds[0])
        best = max(rates[model], key=lambda rate: rates[model][rate])
        _LOG.info("ablate: the learning rate of the %s is %g, the best on validation", model, best)
        config = vary(config, {f"{setting}.train.learning_rate": best}, "ablate")
    rows = cells.possible(paper_rows(config, config.ablate.full_depth_steps), seeds[0])
    planned = [(row, seed) for seed in seeds for row in rows if row.of_all_seeds]
    planned += [(row, seeds[0]) for row in rows if not row.of_all_seeds]
    results: dict[str, dict[int, Result]] = {}
    for number, (row, seed) in enumerate(planned, 1):
        _LOG.info("ablate: %s with seed %d (%d of %d): %s", row.name, seed, number, len(planned), row.about)
        folder = cells.run(row, seed)
        results.setdefault(row.name, {})[seed] = result_of(folder, row, split)
        report(output / FOLDER, rows, results, rates, split, num_missing=len(planned) - number)


class _Cells:
    """Runs of the rows, each with one seed."""

    def __init__(self, output: Path, force: bool, split: Split) -> None:
        self.output, self.force, self.split = output, force, split
        self.shared = SharedSteps(output / FOLDER / "steps", output)

    def quality_by_rate(self, rows: dict[float, Row], seed: int) -> dict[float, float]:
        """Run a row for each learning rate, and return its quality on validation."""
        quality = {}
        for rate, row in rows.items():
            _LOG.info("ablate: %s with seed %d, to choose the rate", row.about, seed)
            evaluated = read_evaluated(self.run(row, seed), row.model, split="valid")
            quality[rate] = float(evaluated.metrics[METRIC].mean())
        return quality

    def possible(self, rows: list[Row], seed: int) -> list[Row]:
        """Return the rows without that of the order of the file, where the log has no other order or is not at hand."""
        config, folder = self._config_and_folder(rows[0], seed)
        if uses_prepared(config, self.output):
            reason = "the data set is taken as it is; name the log with --input"
        elif self._prepare(config, folder).times is None:
            reason = "the log has no times"
        else:
            return rows
        kept = [row for row in rows if row.name != FILE_ORDER]
        if len(kept) < len(rows):
            _LOG.info("ablate: there is no row %s, since %s", FILE_ORDER, reason)
        return kept

    def run(self, row: Row, seed: int) -> Path:
        """Execute the steps of a row as far as they are not done, and return its folder."""
        config, folder = self._config_and_folder(row, seed)
        check_sampled_protocols(config, self._prepare(config, folder))
        planned = training_steps(config)
        for step in planned[1:]:
            self.shared.run(step, config, folder, self.force)
        read = tuple(step.folder for step in planned)
        ranking = replace(stage_named("evaluate"), reads=lambda config: read)
        run_step(Step(ranking), config, folder, self.force)
        return folder

    def _config_and_folder(self, row: Row, seed: int) -> tuple[Config, Path]:
        splits = ["valid"] if self.split == "valid" else ["test", "valid"]
        config = vary(row.config, {"seed": seed, "evaluate.splits": splits}, "ablate")
        return config, self.output / FOLDER / row.name / f"seed{seed}"

    def _prepare(self, config: Config, folder: Path) -> Dataset:
        step = training_steps(config)[0]
        if uses_prepared(config, self.output):
            self.shared.take(step, folder)
        else:
            self.shared.run(step, config, folder, self.force)
        return Dataset.load(folder / "prepare")
