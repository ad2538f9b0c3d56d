"""All stages, one after the other."""

from pathlib import Path

from slmrec.auto.dry_run import pending_stages, show_plan
from slmrec.config import Config, DecoderConfig
from slmrec.models.backbone import check_backbone
from slmrec.pipeline import companion, distill, evaluate, finetune, prepare, pretrain
from slmrec.pipeline.stage import Stage, run_stage
from slmrec.report import INSTALL, missing_libraries

_MODULES = (prepare, pretrain, companion, finetune, distill, evaluate)
STAGES = {module.STAGE.name: module.STAGE for module in _MODULES}


def run(config: Config, output: Path, force: bool = False) -> None:
    """Runs what is not yet done, shows the models side by side, and writes the report.

    Raises:
        CheckpointError: the backbone cannot be found; told before the first stage begins.
    """
    run_stages(config, output, force)
    end_with_report(output)


def run_stages(config: Config, output: Path, force: bool = False, evaluate_stage: Stage = evaluate.STAGE) -> None:
    """Runs what is not yet done, and shows the models side by side.

    Raises:
        CheckpointError: the backbone cannot be found; told before the first stage begins.
    """
    stages = [*_before_evaluate(config), evaluate_stage]
    pending = pending_stages(stages, config, output, force)
    for name, settings in (("companion", config.companion), ("finetune", config.finetune)):
        if settings is not None and name in pending:
            _check_sources(settings)
    for stage in stages[:-1]:
        run_stage(stage, config, output, force)
    evaluate.show(run_stage(evaluate_stage, config, output, force))


def end_with_report(output: Path, anew: bool = False) -> None:
    """Writes the report, if what it is drawn with is installed; else says how to get it.

    Args:
        output: folder of the run.
        anew: write it even if it is of the same stages.
    """
    if missing := missing_libraries():
        print(f"report: needs {', '.join(missing)}; {INSTALL}, then `slmrec report {output}`", flush=True)
        return
    from slmrec.report.page import report, report_if_changed

    (report if anew else report_if_changed)(output)


def _check_sources(settings: DecoderConfig) -> None:
    """Told before the first stage begins: whether there are the language models that a decoder is made of."""
    if settings.backbone != "random":
        check_backbone(settings.backbone, settings.quantization_config)
    if settings.titles is not None and settings.titles.source is not None:
        check_backbone(settings.titles.source, None)


def plan(config: Config, output: Path, force: bool = False) -> None:
    """Shows what `run` would do, and what it would take; writes nothing."""
    show_plan([*_before_evaluate(config), evaluate.STAGE], config, output, force)


def _before_evaluate(config: Config) -> list[Stage]:
    return [STAGES[name] for name in evaluate.needs(config)]
