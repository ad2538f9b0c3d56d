"""What can be watched while a model trains: the losses in the terminal, and curves in experiment trackers."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slmrec.errors import ConfigError

PROJECT = "slmrec"
STEPS_BETWEEN = 10
"""Steps from one point of a training curve to the next."""


@dataclass(frozen=True)
class Trackers:
    """Where training curves go besides the log."""

    names: tuple[str, ...] = ()
    """Of accelerate: `tensorboard`, `wandb`, `mlflow`, `trackio`."""
    output: Path = Path()
    """The run's folder: TensorBoard's files go to `tensorboard` in it, the others name their runs after it."""

    def check(self) -> None:
        """Whether all are installed.

        Raises:
            ConfigError: one is not.
        """
        installed = {str(name) for name in get_available_trackers()}
        for name in self.names:
            if name not in installed:
                raise ConfigError(f"report_to names {name}, which is not installed; run: pip install {name}")

    def start(self, stage: str) -> list[GeneralTracker]:
        """Each one, with a run of its own for a stage; `check` first."""
        run = f"{self.output.name}/{stage}"
        settings: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": stage, "logging_dir": self.output / "tensorboard"},
            "wandb": {"run_name": PROJECT, "name": run},
            "mlflow": {"experiment_name": PROJECT, "run_name": run},
            "trackio": {"run_name": PROJECT, "name": run},
        }
        started = [LOGGER_TYPE_TO_CLASS[name](**settings[name]) for name in self.names]
        for tracker in started:
            tracker.start()
        return started


class Live:
    """Shows how far an epoch is, what its losses are and how the last validation went; the same to the trackers.

    Args:
        name: of the stage.
        trackers: where the curves go.
        shown: whether this process writes to the terminal.
    """

    def __init__(self, name: str, trackers: Trackers, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), transient=True, disable=not shown)
        self._name, self._trackers = name, trackers.start(name)
        self._title, self._validated = name, ""
        self._task = self._bars.add_task(name, total=None)
        self._sums: dict[str, float] = {}
        self._steps = 0

    def __enter__(self) -> "Live":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()
        for tracker in self._trackers:
            tracker.finish()

    def begin(self, epoch: int, num_steps: int) -> None:
        """A new epoch, counted from 1."""
        self._title = f"{self._name} epoch {epoch}"
        self._bars.reset(self._task, total=num_steps, description=f"{self._title}{self._validated}")
        self._sums, self._steps = {}, 0

    def step(self, step: int, parts: dict[str, float], learning_rate: float) -> None:
        """An optimiser step: its number in the whole training, its losses by term and its learning rate."""
        for key, value in parts.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._steps += 1
        self._bars.update(self._task, advance=1, description=f"{self._title}: {told(self.means)}{self._validated}")
        if step % STEPS_BETWEEN == 0:
            self._track(
                {f"train/{key}": value for key, value in parts.items()} | {"learning_rate": learning_rate}, step
            )

    @property
    def means(self) -> dict[str, float]:
        """Losses by term, over the steps of this epoch so far."""
        return {key: value / self._steps for key, value in self._sums.items()}

    def validated(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics on validation after a step."""
        self._validated = f"; valid NDCG@10 {metrics['ndcg@10']:.4f}"
        self._track({f"valid/{key}": value for key, value in metrics.items()}, step)

    def _track(self, values: dict[str, float], step: int) -> None:
        for tracker in self._trackers:  # MLflow takes no @ in a name
            tracker.log({key.replace("@", "_"): value for key, value in values.items()}, step=step)


def told(parts: dict[str, float]) -> str:
    """Losses by term, in words."""
    return ", ".join(f"{key} {value:.4f}" for key, value in parts.items())
