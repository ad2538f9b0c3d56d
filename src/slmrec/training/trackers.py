"""Progress of a training: losses in the terminal, and curves in experiment trackers."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from slmrec.errors import ConfigError
from slmrec.processes import is_main

_LOG = logging.getLogger(__name__)
PROJECT = "slmrec"
STEPS_BETWEEN = 10
"""Number of steps between two points of a training curve."""
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Trackers:
    """Experiment trackers that receive the training curves, besides `log.jsonl`."""

    names: tuple[str, ...] = ()
    """Names of trackers of accelerate: `tensorboard`, `wandb`, `mlflow`, `trackio`."""
    output: Path = Path()
    """Folder of the run: TensorBoard writes to its subfolder `tensorboard`, other trackers name their runs after it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All settings of the run, without credentials; trackers get them as parameters."""

    def check(self) -> None:
        """Check that all trackers are installed.

        Raises:
            ConfigError: A tracker is not installed.
        """
        installed = {str(name) for name in get_available_trackers()}
        for name in self.names:
            if name not in installed:
                raise ConfigError(f"report_to names {name}, which is not installed; run: pip install {name}")

    def start(self, section: str) -> list[GeneralTracker]:
        """Start all trackers, each with a run of its own for a section of the settings."""
        run = f"{self.output.name}/{section}"
        settings: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": section, "logging_dir": self.output / "tensorboard"},
            "wandb": {"run_name": PROJECT, "name": run},
            "mlflow": {"experiment_name": PROJECT, "run_name": run},
            "trackio": {"run_name": PROJECT, "name": run},
        }
        trackers = [LOGGER_TYPE_TO_CLASS[name](**settings[name]) for name in self.names]
        parameters = flattened(self.settings)
        for tracker in trackers:
            tracker.start()
            if parameters:
                tracker.store_init_configuration(dict(parameters))
        return trackers


class Live:
    """Display of the current epoch, its losses and the last validation, which trackers receive as well.

    A terminal shows a progress bar. A notebook or a file gets a log line at most every 30 seconds, since the bars of
    rich need ipywidgets in notebooks.

    Args:
        name: Section of the settings that is trained.
        trackers: Experiment trackers.
        shown: True if this process writes to the terminal.
    """

    def __init__(self, name: str, trackers: Trackers, shown: bool) -> None:
        console = get_console()
        shown = shown and _LOG.isEnabledFor(logging.INFO)
        shows_bar = shown and console.is_terminal and not console.is_jupyter
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shows_bar)
        self._task = self._bar.add_task(name, total=None)
        self._writes_lines, self._last_line = shown and not shows_bar, time.monotonic()
        self._name, self._trackers = name, trackers.start(name) if is_main() else []
        self._title, self._validation = name, ""
        self._num_steps, self._steps = 0, 0
        self._sums: dict[str, float] = {}

    def __enter__(self) -> "Live":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        for tracker in self._trackers:
            tracker.finish()

    def begin(self, epoch: int, num_steps: int) -> None:
        """Begin an epoch.

        Args:
            epoch: Number of the epoch, from 1.
            num_steps: Number of steps in the epoch.
        """
        self._title = f"{self._name} epoch {epoch}"
        self._bar.reset(self._task, total=num_steps, description=f"{self._title}{self._validation}")
        self._sums, self._steps, self._num_steps = {}, 0, num_steps

    def step(self, step: int, parts: dict[str, float], learning_rate: float) -> None:
        """Add an optimiser step.

        Args:
            step: Number of the step in the whole training, from 1.
            parts: Losses by name.
            learning_rate: Learning rate of the step.
        """
        for key, value in parts.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._steps += 1
        description = f"{self._title}: {format_losses(self.means)}{self._validation}"
        self._bar.update(self._task, advance=1, description=description)
        if self._writes_lines and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            _LOG.info("%s (%d of %d steps)", description, self._steps, self._num_steps)
        if step % STEPS_BETWEEN == 0:
            losses = {f"train/{key}": value for key, value in parts.items()}
            self._track(losses | {"learning_rate": learning_rate}, step)

    @property
    def means(self) -> dict[str, float]:
        """Mean losses by name, over the steps of this epoch so far."""
        return {key: value / self._steps for key, value in self._sums.items()}

    def validated(self, step: int, metrics: dict[str, float]) -> None:
        """Add the validation metrics after a step."""
        self._validation = f"; valid NDCG@10 {metrics['ndcg@10']:.4f}"
        self._track({f"valid/{key}": value for key, value in metrics.items()}, step)

    def _track(self, values: dict[str, float], step: int) -> None:
        for tracker in self._trackers:  # MLflow refuses @ in names
            tracker.log({key.replace("@", "_"): value for key, value in values.items()}, step=step)


def mean_losses(losses: list[dict[str, Tensor]], weights: list[float]) -> dict[str, float]:
    """Return the weighted mean of the losses of some batches, which are read from the device at once."""
    values = torch.stack([value.double() for own in losses for value in own.values()]).view(len(losses), -1).tolist()
    means = dict.fromkeys(losses[0], 0.0)
    for own, weight in zip(values, weights, strict=True):
        means = {key: means[key] + value * weight for key, value in zip(means, own, strict=True)}
    return means


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Return settings as parameters by `key.path`; lists are JSON.

    Example:
        >>> flattened({"seed": 7, "distill": {"student": {"dropout": 0.1}, "teacher": None}, "report_to": ["mlflow"]})
        {'seed': 7, 'distill.student.dropout': 0.1, 'distill.teacher': 'null', 'report_to': '["mlflow"]'}
    """
    flat: dict[str, bool | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if plain else json.dumps(value, default=str, ensure_ascii=False)
    return flat


def format_losses(losses: dict[str, float]) -> str:
    """Return losses by name as text, for example `loss 3.0000, ce 2.0000`."""
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
