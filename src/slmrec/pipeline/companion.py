"""A small decoder, trained from scratch on items and titles, whose scores the teacher can mix in."""

from slmrec.config import CompanionConfig, Config
from slmrec.errors import ConfigError
from slmrec.pipeline.decoder import backbone_files, train_decoder
from slmrec.pipeline.learning import forget_training_state
from slmrec.pipeline.stage import Stage, Task


def build(task: Task) -> dict[str, float]:
    """Builds and trains the companion."""
    _, metrics = train_decoder(task, "companion", _settings(task.config))
    forget_training_state(task)
    return metrics


def _settings(config: Config) -> CompanionConfig:
    """The section.

    Raises:
        ConfigError: there is none.
    """
    if config.companion is None:
        raise ConfigError("companion is null; give its section, `companion: {}` or companion.num_layers=2")
    return config.companion


def _needs(config: Config) -> tuple[str, ...]:
    _settings(config)  # told before anything that is missing
    return "prepare", "pretrain"


STAGE = Stage("companion", _needs, build, lambda config: backbone_files(_settings(config)))
