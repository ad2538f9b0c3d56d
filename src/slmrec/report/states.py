"""The run that a report describes: its settings, its models, and the state of every step."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.files import one_line
from slmrec.files import read_json as read_json_file
from slmrec.folders import partial_folder, read_record
from slmrec.models.folder import check_sums
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.stage import section_of
from slmrec.pipeline.table import PIPELINE, Step, steps
from slmrec.report.parts import Faults, Notice
from slmrec.studies.evaluated import Evaluated, Split, read_evaluated, results_file
from slmrec.version import is_outdated

_NOT_MODELS = ("prepare", "evaluate")
"""Stages whose folders hold no model."""


@dataclass(frozen=True)
class State:
    """State of a step."""

    step: Step
    word: Literal["done"] | Faults
    reason: str
    record: dict[str, Any]
    """Content of `stage.json`; empty if it cannot be read."""
    metrics: dict[str, Any]
    """Content of `metrics.json`; empty if it cannot be read."""


@dataclass(frozen=True)
class Run:
    """Folder of a run, or of an ablation."""

    output: Path
    """Folder that was given: a run, or an ablation."""
    root: Path
    """Folder with the steps: the same, or a run of the ablation."""
    shows_user_ids: bool = False
    """True if example users are named by their ids, instead of by numbers."""

    @cached_property
    def states(self) -> dict[str, State]:
        """States of all steps by their folder, in order."""
        return {step.folder: _state_of(self.root, step, self.split) for step in steps(self.config)}

    @cached_property
    def config_file(self) -> Path | None:
        """Resolved settings that the last finished stage wrote; None if no file can be read."""
        return next((path for path in _config_files(self.root) if _read_config(path)), None)

    @cached_property
    def config(self) -> Config:
        """Settings of the run; the defaults if no file can be read."""
        return (_read_config(self.config_file) if self.config_file else None) or Config()

    @property
    def trained(self) -> list[State]:
        """States of the steps that train a model: all with settings, unlike the baselines."""
        return [
            state
            for state in self.states.values()
            if state.step.stage.name not in _NOT_MODELS and section_of(state.step, self.config) is not None
        ]

    @cached_property
    def models(self) -> dict[str, Path]:
        """Folders of the models that exist, by name."""
        folders = model_folders(self.config, self.root)
        return {name: folder for name, folder in folders.items() if folder.is_dir()}

    @property
    def split(self) -> Split:
        """Split of the results that are shown: test if it was evaluated."""
        return "test" if "test" in self.config.evaluate.splits else "valid"

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Results of `evaluate` on this split; empty if there are none, or if they cannot be read."""
        return self.states["evaluate"].metrics

    @cached_property
    def primary(self) -> dict[str, Evaluated]:
        """Ranks of each model under the primary protocol."""
        models = self.evaluation["protocols"][self.evaluation["primary"]]["models"]
        return {name: read_evaluated(self.root, name, split=self.split) for name in models}

    def command(self, name: str, output: Path | None = None) -> str:
        """Return the command line of a stage or study of this run."""
        config = str(self.config_file) if self.config_file else "FILE"
        return shlex.join(["slmrec", name, "--config", config, "--output", str(output or self.root)])

    def notices(self, *states: State) -> Iterator[Notice]:
        """Yield why results of some steps may be missing or wrong."""
        for state in states:
            if state.word != "done":
                command = self.command(state.step.stage.name)
                command += f" --model {state.step.model}" if state.step.model else ""
                command += " --force" if state.word == "broken" else ""
                yield Notice(state.word, f"{state.step.folder}: {state.reason}", command)


def open_run(output: Path, shows_user_ids: bool = False) -> Run:
    """Open the folder of a run, or of an ablation.

    Raises:
        DataError: The folder is neither.
    """
    names = [stage.name for stage in PIPELINE]
    if any((output / name).exists() or partial_folder(output / name).exists() for name in names):
        return Run(output, output, shows_user_ids)
    if (output / "ablation.json").is_file() or (output / "base" / "prepare").is_dir():
        return Run(output, _cell(output), shows_user_ids)
    raise DataError(
        f"{output}: no run (none of {', '.join(names)} exists); give the folder that was the --output of "
        "`slmrec run`, `slmrec demo` or `slmrec ablate`"
    )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the finished epochs from the training log of a model.

    Raises:
        CheckpointError: The log is missing or damaged.
    """
    path = folder / "training" / "log.jsonl"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the training curves cannot be drawn")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path}: line {number} is damaged ({error}); train the model again") from None
        if not isinstance(row, dict) or "epoch" not in row:
            raise CheckpointError(f"{path}: line {number} is not an epoch of a training; train the model again")
        rows.append(row)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        content = read_json_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; run the stage again with --force") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged ({one_line(error)}); run the stage again with --force") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is damaged (not a JSON object); run the stage again with --force")
    return content


def _cell(output: Path) -> Path:
    """Return the run of the baseline with the first seed; the shared steps while it does not exist."""
    try:
        content = read_json(output / "ablation.json")
        baseline = content["baseline"]
        by_metric = content["variants"][baseline]["by_seed"]
        seed = next(iter(next(iter(by_metric.values()))))
        cell = output / baseline / f"seed{seed}"
    except (CheckpointError, LookupError, TypeError, AttributeError, StopIteration):
        return output / "base"  # the section about the ablation reports the fault
    return cell if cell.is_dir() else output / "base"


def _config_files(root: Path) -> Iterator[Path]:
    """Yield the files with resolved settings, those of the last stage first."""
    for stage in PIPELINE[::-1]:
        yield root / stage.name / "config.yaml"
        if stage.models is not None:
            yield from sorted((root / stage.name).glob("*/config.yaml"))


def _read_config(path: Path) -> Config | None:
    try:
        return load_config(path, [])
    except (ConfigError, OSError, yaml.YAMLError):
        return None


def _state_of(root: Path, step: Step, split: Split) -> State:
    folder, partial = root / step.folder, partial_folder(root / step.folder)
    metrics: dict[str, Any] = {}
    record: dict[str, Any] = {}
    try:
        record = read_record(folder)
        version = record.get("version") or read_record(root / step.stage.name).get("version")
        if is_outdated(version):
            return State(step, "out of date", f"made by an earlier version ({version})", record, {})
        if not record.get("done"):
            if folder.exists() or partial.exists():
                epochs = _epochs(folder if folder.exists() else partial)
                return State(step, "interrupted", f"not finished: stopped, or still running{epochs}", record, {})
            return State(step, "missing", "not run", {}, {})
        metrics = _read_metrics(folder, step, split)
        if step.stage.name not in _NOT_MODELS:
            check_sums(folder)
    except CheckpointError as error:
        return State(step, "broken", str(error), record, metrics)
    if stale := _stale(root, record):
        return State(step, "out of date", f"made from an earlier {stale}", record, metrics)
    return State(step, "done", "", record, metrics)


def _read_metrics(folder: Path, step: Step, split: Split) -> dict[str, Any]:
    if step.stage.name != "evaluate":
        return read_json(folder / "metrics.json")
    path = results_file(folder, "metrics.json", split)
    content = read_json(path)
    if not content.get("protocols"):
        raise CheckpointError(f"{path}: has no protocols; evaluate again with --force")
    return content


def _stale(root: Path, record: dict[str, Any]) -> str | None:
    """Return the folder of an earlier step that was redone since."""
    for name, fingerprint in record.get("upstream", {}).items():
        if (root / name).exists() and _fingerprint(root / name) != fingerprint:
            return str(name)
    return None


def _epochs(folder: Path) -> str:
    try:
        return f"; {len(read_log(folder))} epochs are done"
    except CheckpointError:
        return ""


def _fingerprint(folder: Path) -> Any:
    try:
        return read_record(folder).get("fingerprint")
    except CheckpointError:
        return None
