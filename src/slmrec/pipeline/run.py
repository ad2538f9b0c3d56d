"""All stages of a run, one after the other."""

from pathlib import Path

from slmrec import processes
from slmrec.config import Config
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError
from slmrec.models.backbone import check_backbone
from slmrec.models.text.sources import check_source
from slmrec.pipeline import evaluate
from slmrec.pipeline.item_text import check_item_texts
from slmrec.pipeline.sources import check_sources
from slmrec.pipeline.stage import pending_steps, run_step, section_of
from slmrec.pipeline.table import Step, stage_named, steps
from slmrec.pipeline.validation import check_sampled_protocols
from slmrec.pipeline.verdict import refuse_foreign_best, write_verdict


def run_stage(name: str, config: Config, output: Path, force: bool = False, model: str | None = None) -> list[Path]:
    """Execute the steps of one stage.

    Args:
        name: Name of the stage.
        config: All settings.
        output: Output folder of the run.
        force: Redo finished steps.
        model: Execute the step of this model alone, where the stage trains several.

    Returns:
        The folders of the steps.

    Raises:
        ConfigError: The stage trains no model of that name, or the settings name another log than that of `prepare`.
        CheckpointError: An earlier step is missing or out of date, or, for `evaluate`, `best` is a folder of something
            else.
    """
    if name != "prepare":
        processes.on_main(lambda: check_sources(config, output))
    chosen = [step for step in stage_named(name).steps(config) if model in (None, step.model)]
    if not chosen:
        known = ", ".join(step.model or "no model" for step in stage_named(name).steps(config))
        raise ConfigError(f"--model is {model!r}, which {name} does not train; choose from {known}")
    if name == "evaluate":
        processes.on_main(lambda: refuse_foreign_best(output))
    folders = [run_step(step, config, output, force) for step in chosen]
    if name == "evaluate":
        processes.on_main(lambda: write_verdict(config, output))
    return folders


def run_steps(config: Config, output: Path, force: bool = False) -> None:
    """Execute all steps that are not done, show the results of the evaluation, and decide which model to ship.

    Args:
        config: All settings.
        output: Output folder of the run.
        force: Redo finished steps.

    Raises:
        CheckpointError: A backbone cannot be found, or `best` is a folder of something else; this is checked before
            the first step begins.
        ConfigError: The file of lists does not exist; this is checked then, too.
        DataError: The items lack texts that a model must read, or are too few for a sampled protocol; this is checked
            before the first training.
    """
    planned = list(steps(config))
    processes.on_main(lambda: refuse_foreign_best(output))
    processes.on_main(lambda: _check_sources_of_steps(pending_steps(planned, config, output, force), config))
    for step in planned:
        run_step(step, config, output, force)
        if step.folder == "prepare":
            processes.on_main(lambda: _check_dataset(config, output / "prepare"))
    processes.on_main(lambda: evaluate.show(output / "evaluate"))
    processes.on_main(lambda: write_verdict(config, output))


def _check_dataset(config: Config, folder: Path) -> None:
    """Check that the data set has what the settings need, before anything is trained."""
    dataset = Dataset.load(folder)
    check_item_texts(config, dataset)
    check_sampled_protocols(config, dataset)


def _check_sources_of_steps(pending: list[Step], config: Config) -> None:
    """Check that the language models and the lists of some steps can be opened."""
    for step in pending:
        _check_language_models(step, config)
        _check_lists(step, config)


def _check_lists(step: Step, config: Config) -> None:
    """Check that the lists of a teacher outside are there, which the last training step alone reads."""
    lists = getattr(section_of(step, config), "lists", None)
    if lists is not None and not Path(lists).exists():
        raise ConfigError(f"distill.lists is {lists!r}: no such file; give a table with user_id, item_id and rank")


def _check_language_models(step: Step, config: Config) -> None:
    """Check that the language models of a step can be opened."""
    section = section_of(step, config)
    backbone = getattr(section, "backbone", None)
    if backbone not in (None, "random"):
        check_backbone(backbone, section.quantization_config, f"{step.folder.replace('/', '.')}.backbone")
    text = getattr(section, "item_text", None)
    if text is not None:
        check_source(config.item_text[text], f"item_text.{text}")
