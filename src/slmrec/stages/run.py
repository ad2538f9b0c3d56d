"""All stages, one after the other."""

from pathlib import Path

from slmrec.config import Config
from slmrec.models.backbone import check_backbone
from slmrec.stages import companion, distill, evaluate, finetune, prepare, pretrain
from slmrec.stages.folders import Stage, run_stage
from slmrec.stages.plan import pending_stages, show_plan

_MODULES = (prepare, pretrain, companion, finetune, distill, evaluate)
STAGES = {module.STAGE.name: module.STAGE for module in _MODULES}


def run(config: Config, output: Path, force: bool = False, evaluate_stage: Stage = evaluate.STAGE) -> None:
    """Runs what is not yet done, and shows the models side by side.

    Raises:
        CheckpointError: the backbone cannot be found; told before the first stage begins.
    """
    stages = [*_before_evaluate(config), evaluate_stage]
    settings = config.finetune
    if "finetune" in pending_stages(stages, config, output, force) and settings.backbone != "random":
        check_backbone(settings.backbone, settings.quantization_config)
    for stage in stages[:-1]:
        run_stage(stage, config, output, force)
    evaluate.show(run_stage(evaluate_stage, config, output, force))


def plan(config: Config, output: Path, force: bool = False) -> None:
    """Shows what `run` would do, and what it would take; writes nothing."""
    show_plan([*_before_evaluate(config), evaluate.STAGE], config, output, force)


def _before_evaluate(config: Config) -> list[Stage]:
    return [STAGES[name] for name in evaluate.needs(config)]
