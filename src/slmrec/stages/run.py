"""All stages, one after the other."""

from pathlib import Path

from slmrec.config import Config
from slmrec.stages import distill, evaluate, finetune, prepare, pretrain
from slmrec.stages.folders import Stage, run_stage

STAGES = {stage.name: stage for stage in (prepare.STAGE, pretrain.STAGE, finetune.STAGE, distill.STAGE, evaluate.STAGE)}


def run(config: Config, output: Path, force: bool = False, evaluate_stage: Stage = evaluate.STAGE) -> None:
    """Runs what is not yet done, and shows the models side by side."""
    wanted = evaluate.needs(config)
    for name, stage in STAGES.items():
        if name in wanted:
            run_stage(stage, config, output, force)
    evaluate.show(run_stage(evaluate_stage, config, output, force))
