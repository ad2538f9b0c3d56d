"""Versions of a run's model: the first one, and one of each update; `best` leads to the one that is shipped."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import one_line, read_json, write_json
from slmrec.folders import link_in_place, read_record
from slmrec.locks import run_locked
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.stage import finished
from slmrec.pipeline.verdict import BEST, read_verdict

_LOG = logging.getLogger(__name__)
UPDATES, RECORD = "updates", "update.json"
"""Names in the folder of a run: the folder of the updates, and the file in each of them that is written last."""


class Version(NamedTuple):
    """State of a run: as it was first trained (number 0), or after an update."""

    number: int
    folder: Path
    """Folder that is laid out as that of a run."""
    ship: str
    """Name of the shipped model."""
    model: Path
    """Its folder."""
    record: dict[str, Any]
    """Content of `update.json`; empty for the first version."""

    def __str__(self) -> str:
        """Return the version in words."""
        return f"update {self.number:04d}" if self.number else "the model of the first training"


def config_of(output: Path) -> Config:
    """Return the settings of a finished run.

    Raises:
        CheckpointError: The folder holds no finished run.
    """
    return load_config(finished(output / "evaluate", "evaluate") / "config.yaml", [])


def versions(output: Path) -> list[Version]:
    """Return the finished versions of a run, oldest first.

    Raises:
        CheckpointError: The folder holds no finished run with a model to ship, or a file of an update is damaged.
    """
    config = config_of(output)
    verdict, best = read_verdict(output), output / BEST
    if verdict is None or not best.exists():
        raise CheckpointError(
            f"{output}: has no model to ship ({best}); run `slmrec run` with validation items and a baseline first"
        )
    found = [_first(output, config, verdict.ship)]
    for path in sorted((output / UPDATES).glob("[0-9][0-9][0-9][0-9]")):
        if (path / RECORD).is_file():
            record = _record(path)
            found.append(Version(int(path.name), path, record["ship"], path / record["folder"], record))
    return found


def _first(output: Path, config: Config, ship: str) -> Version:
    """Return the first version; its model is that to which `best` was led by hand, if it is one of the run."""
    folders, best = model_folders(config, output), output / BEST
    chosen = next((name for name, folder in folders.items() if folder.resolve() == best.resolve()), ship)
    return Version(0, output, chosen, folders[chosen], {})


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = read_json(path)
        if not isinstance(record, dict) or not isinstance(record["folder"], str) or not isinstance(record["ship"], str):
            raise ValueError("it names no model")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is damaged ({one_line(error)}); remove {folder} and update again") from None
    return record


def best_version(output: Path, known: list[Version]) -> Version:
    """Return the version to which `best` leads; the first one if it leads elsewhere."""
    best = output / BEST
    if best.is_symlink():
        return next((one for one in reversed(known) if one.model.resolve() == best.resolve()), known[0])
    fingerprint = read_record(best).get("fingerprint")  # a copy, where the file system has no links
    return next((one for one in known if read_record(one.model).get("fingerprint") == fingerprint), known[0])


def move_best(output: Path, version: Version) -> None:
    """Let `best` lead to the model of a version."""
    link_in_place(output / BEST, version.model)


def finish_move(output: Path, known: list[Version]) -> None:
    """Let `best` lead to the newest update if that was decided, but the process was killed before."""
    newest = known[-1]
    is_due = newest.record.get("moved") and not newest.record.get("rolled_back")
    if is_due and best_version(output, known).number == newest.record.get("previous"):
        move_best(output, newest)


def rollback(output: Path) -> Version:
    """Let `best` lead to the model that was shipped before the current one.

    Args:
        output: Folder of a run.

    Returns:
        The version that is shipped now.

    Raises:
        ConfigError: The first model is shipped.
        CheckpointError: The folder holds no finished run, or another process writes into it.

    Example:
        >>> from slmrec.run import run
        >>> run(config, output / "run")  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        full_history_excluded: ...
        >>> rollback(output / "run")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        slmrec.errors.ConfigError: ...: best is the model of the first training, and there is no earlier one
    """
    with run_locked(output):
        known = versions(output)
        current = best_version(output, known)
        if not current.number:
            raise ConfigError(f"{output}: best is {current}, and there is no earlier one")
        earlier = next((one for one in known if one.number == current.record.get("previous")), known[0])
        earlier = earlier._replace(model=output / str(current.record.get("previous_folder", earlier.model)))
        write_json(current.folder / RECORD, current.record | {"rolled_back": True})
        move_best(output, earlier)
    place = earlier.model.relative_to(output) if earlier.model.is_relative_to(output) else earlier.model
    _LOG.info("rollback: %s is %s again (%s), no longer %s", output / BEST, earlier, place, current)
    return earlier
