"""The teacher: some layers of a pretrained decoder, tuned to recommend over the item vectors of pretrain."""

from slmrec.config import Config
from slmrec.pipeline.decoder import backbone_files, train_decoder
from slmrec.pipeline.ensemble import FOLDERS, join
from slmrec.pipeline.learning import forget_training_state
from slmrec.pipeline.stage import Stage, Task


def build(task: Task) -> dict[str, float]:
    """Builds and trains the teacher."""
    settings = task.config.finetune
    decoder, metrics = train_decoder(task, "finetune", settings)
    if settings.ensemble:
        metrics |= join(task, decoder, settings.ensemble, settings.train)
    forget_training_state(task)
    return metrics


def _needs(config: Config) -> tuple[str, ...]:
    others = {FOLDERS[name] for name in config.finetune.ensemble}
    return ("prepare", "pretrain", *sorted(others - {"pretrain"}))


STAGE = Stage("finetune", _needs, build, lambda config: backbone_files(config.finetune))
