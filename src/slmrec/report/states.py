"""How far a run is: which of its stages are done, which are not, and why."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from slmrec.errors import CheckpointError, DataError
from slmrec.models.folder import check_sums
from slmrec.config import BASELINES, Config
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.stage import read_record
from slmrec.pipeline.table import PIPELINE, steps
from slmrec.report.parts import Faults, Notice
from slmrec.studies.evaluated import Evaluated, read_evaluated

TRAINED = ("pretrain", "companion", "finetune", "distill")
MODELS = {"sasrec": "pretrain", "companion": "companion", "teacher": "finetune", "student": "distill"}
"""The stage that trains each model."""


@dataclass(frozen=True)
class State:
    """Of a stage."""

    stage: str
    word: Literal["done"] | Faults
    reason: str
    record: dict[str, Any]
    """Of `stage.json`; empty if it cannot be read."""
    metrics: dict[str, Any]
    """Of `metrics.json`; empty if it cannot be read."""


@dataclass(frozen=True)
class Run:
    """A folder of stages, and what else is there to report."""

    output: Path
    """What was asked for: a run, or an ablation."""
    root: Path
    """The folder of the stages; of an ablation, one of its runs."""

    @cached_property
    def states(self) -> dict[str, State]:
        """Of the stages that the run has, or shall have."""
        left_out = {"companion": self.settings.get("companion") is None, "finetune": self.brought_teacher is not None}
        names = [name for name in ORDER if (self.root / name).exists() or not left_out.get(name)]
        return {name: _state_of(self.root, name) for name in names}

    @cached_property
    def settings_file(self) -> Path | None:
        """The resolved settings that the newest stage left."""
        return next((path for name in ORDER[::-1] if _settings_of(path := self.root / name / "config.yaml")), None)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What is in it; empty if no stage is done."""
        return _settings_of(self.settings_file) if self.settings_file else {}

    @property
    def brought_teacher(self) -> str | None:
        """The folder of a teacher that was trained elsewhere."""
        brought: str | None = (self.settings.get("distill") or {}).get("teacher")
        return brought

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `evaluate` found; empty if it did not, or if it cannot be read."""
        return self.states["evaluate"].metrics

    @cached_property
    def primary(self) -> dict[str, Evaluated]:
        """Each model under the primary protocol, user by user."""
        models = self.evaluation["protocols"][self.evaluation["primary"]]["models"]
        return {name: read_evaluated(self.root, name) for name in models}

    def model_folder(self, model: str) -> Path:
        """Where a trained model is."""
        return teacher_folder(self.root, self.brought_teacher) if model == "teacher" else self.root / MODELS[model]

    def command(self, stage: str, output: Path | None = None) -> str:
        """What makes a stage."""
        config = str(self.settings_file) if self.settings_file else "FILE"
        return shlex.join(["slmrec", stage, "--config", config, "--output", str(output or self.root)])

    def notices(self, *stages: str) -> Iterator[Notice]:
        """Why figures of these stages may be missing or wrong."""
        for stage in stages:
            state = self.states.get(stage)
            if state is not None and state.word != "done":
                again = " --force" if state.word == "broken" else ""
                yield Notice(state.word, f"{stage}: {state.reason}", self.command(stage) + again)


def open_run(output: Path) -> Run:
    """The run of a folder, or of the folder of an ablation.

    Raises:
        DataError: it is neither.
    """
    if any((output / name).exists() or (output / f".{name}.partial").exists() for name in ORDER):
        return Run(output, output)
    if (output / "ablation.json").is_file() or (output / "base" / "prepare").is_dir():
        return Run(output, _cell(output))
    raise DataError(
        f"{output}: no run (none of {', '.join(ORDER)} is there); give the folder that was the --output of "
        "`slmrec run`, `slmrec demo` or `slmrec ablate`"
    )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a stage's training, as its log has them; of an interrupted one those that were finished.

    Raises:
        CheckpointError: there is no log, or it is damaged.
    """
    path = folder / "training" / "log.jsonl"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; there is nothing to draw of this training")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path}: line {number} is damaged ({error}); train the stage anew") from None
        if not isinstance(row, dict) or "epoch" not in row:
            raise CheckpointError(f"{path}: line {number} is no epoch of a training; train the stage anew")
        found.append(row)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of a run holds.

    Raises:
        CheckpointError: there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; run the stage again with --force") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged ({error}); run the stage again with --force") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is damaged (no JSON object); run the stage again with --force")
    return content


def partial_of(folder: Path) -> Path:
    """Where a stage is built until it is done."""
    return folder.parent / f".{folder.name}.partial"


def _cell(output: Path) -> Path:
    """The run of the baseline with the first seed; while there is none, what all variants share."""
    try:
        content = read_json(output / "ablation.json")
        baseline = content["baseline"]
        by_metric = content["variants"][baseline]["by_seed"]
        seed = next(iter(next(iter(by_metric.values()))))
        cell = output / baseline / f"seed{seed}"
    except (CheckpointError, LookupError, TypeError, AttributeError, StopIteration):
        return output / "base"  # the section of the ablation says what is wrong with it
    return cell if cell.is_dir() else output / "base"


def _state_of(root: Path, stage: str) -> State:
    folder = root / stage
    if not folder.exists():
        started = partial_of(folder).exists()
        word: Faults = "interrupted" if started else "missing"
        reason = f"not finished: stopped, or still running{_epochs(partial_of(folder))}" if started else "not run"
        return State(stage, word, reason, {}, {})
    try:
        record = read_record(folder)
    except CheckpointError as error:
        return State(stage, "broken", str(error), {}, {})
    if not record.get("done"):
        return State(stage, "interrupted", f"not finished{_epochs(folder)}", record, {})
    metrics: dict[str, Any] = {}
    try:
        metrics = read_json(folder / "metrics.json")
        if stage in TRAINED:
            check_sums(folder)
        if stage == "evaluate" and not metrics.get("protocols"):
            raise CheckpointError(f"{folder / 'metrics.json'}: has no protocols; evaluate again with --force")
    except CheckpointError as error:
        return State(stage, "broken", str(error), record, metrics)
    stale = _stale(root, record)
    return State(stage, *(("out of date", f"made from an earlier {stale}") if stale else ("done", "")), record, metrics)


def _stale(root: Path, record: dict[str, Any]) -> str | None:
    """A stage before it that was made anew since."""
    for name, made_from in record.get("upstream", {}).items():
        if (root / name).exists() and _fingerprint(root, name) != made_from:
            return str(name)
    return None


def _epochs(folder: Path) -> str:
    try:
        return f"; {len(read_log(folder))} epochs are done"
    except CheckpointError:
        return ""


def _fingerprint(root: Path, stage: str) -> Any:
    try:
        return read_record(root / stage).get("fingerprint")
    except CheckpointError:
        return None


def _settings_of(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
