"""Raw logs to the data-set folder."""

from pathlib import Path

import yaml

from slmrec.config import Config
from slmrec.data.prepare import prepare_dataset
from slmrec.errors import ConfigError
from slmrec.stages.folders import Stage, Task


def build(task: Task) -> dict[str, float]:
    """Writes the data set; its counts."""
    settings = task.config.prepare
    if settings.input is None:
        raise ConfigError(f"prepare.input is not set; give --input FILE{_before(task.output)}, or prepare.input=FILE")
    return prepare_dataset(
        Path(settings.input),
        task.folder,
        format=settings.format,
        user_col=settings.user_col,
        item_col=settings.item_col,
        time_col=settings.time_col,
        items=Path(settings.items) if settings.items else None,
        items_id_col=settings.items_id_col,
        title_col=settings.title_col,
        short_users=settings.short_users,
    )


def _before(output: Path) -> str:
    path = output / "prepare" / "config.yaml"
    if not path.is_file():
        return ""
    return f" (the same as before: {yaml.safe_load(path.read_text(encoding='utf-8'))['prepare']['input']})"


def _sources(config: Config) -> tuple[str | None, ...]:
    return config.prepare.input, config.prepare.items


STAGE = Stage("prepare", lambda config: (), build, _sources)
