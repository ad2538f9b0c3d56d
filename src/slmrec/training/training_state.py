"""State of a training: what is saved after every epoch, and how a training is resumed from it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from slmrec.config import TrainConfig
from slmrec.files import write_atomically
from slmrec.processes import is_main
from slmrec.storage.runs import upload_training
from slmrec.training.optimization import WeightAverage, parameter_groups
from slmrec.training.sharding import placed_like, whole

_STATE_FILE, _BEST_FILE, _LOG_FILE = "state.safetensors", "best.safetensors", "log.jsonl"


@dataclass
class TrainingProgress:
    """Position of a training; with weights and optimiser state, all that is needed to resume."""

    epoch: int = 0
    """Number of finished epochs."""
    step: int = 0
    """Number of finished optimiser steps."""
    best_epoch: int = 0
    """Epoch with the best validation metric; 0 is the initial model."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the best epoch."""
    seconds: float = 0.0
    """Duration of all epochs, with validation."""
    validation_seconds: float = 0.0
    """Duration of the last validation."""
    reached_max_minutes: bool = False
    """True if the time was over before all epochs."""
    samples_at_once: int = 0
    """Maximum number of samples in a micro-batch of one process; 0: not yet determined."""
    samples_per_step: int = 0
    """Number of samples in an optimiser step of all processes together."""
    peak_learning_rate: float = 0.0
    """Learning rate after the warm-up."""


def _clipping_groups(parameters: dict[str, nn.Parameter], apart: tuple[str, ...]) -> list[list[nn.Parameter]]:
    """Return the parameters below each prefix, and all others; the gradients of a group are clipped as one vector."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        prefix = next((prefix for prefix in apart if name.startswith(prefix)), "")
        groups.setdefault(prefix, []).append(parameter)
    return list(groups.values())


class TrainingState:
    """Trainable parameters, their optimiser and moving average, and the files they are saved in.

    Of several processes, the main process alone writes; all of them read.

    The files are safetensors and JSON lines; `Accelerator.save_state` would write pickles.

    Args:
        loss: Module that owns the parameters; those that require gradients are trained.
        settings: Training settings.
        folder: Folder of the files; it is made if it is absent.
    """

    def __init__(self, loss: nn.Module, settings: TrainConfig, folder: Path) -> None:
        self.parameters = {key: value for key, value in loss.named_parameters() if value.requires_grad}
        apart: tuple[str, ...] = getattr(loss, "clipped_apart", ())
        self.clipping_groups = _clipping_groups(self.parameters, apart)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.parameters, settings.weight_decay), lr=settings.learning_rate, fused=True
        )
        self.average = WeightAverage(self.parameters, settings.ema_decay) if settings.ema_decay else None
        self.progress = TrainingProgress()
        self._folder = folder
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)

    def update_average(self) -> None:
        """Add the current weights to the moving average, if there is one."""
        if self.average is not None:
            self.average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights in place of the current ones; without an average, the current ones stay."""
        averages = {} if self.average is None else self.average.values
        current = {key: self.parameters[key].detach().clone() for key in averages}
        self._load(averages)
        try:
            yield
        finally:
            self._load(current)

    def keep_best(self, metrics: dict[str, float]) -> None:
        """Save the weights that were validated as the best ones."""
        self.progress.best, self.progress.best_epoch = metrics, self.progress.epoch
        values = self.parameters if self.average is None else self.average.values
        _save(values, self._folder / _BEST_FILE, {})

    def load_best(self) -> None:
        """Load the best weights into the model."""
        self._load(load_file(self._folder / _BEST_FILE))

    def log(self, values: dict[str, float]) -> None:
        """Append a line to `log.jsonl`."""
        if not is_main():
            return
        with (self._folder / _LOG_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")

    def save(self) -> None:
        """Save weights, average, optimiser and progress; those of a remote run are uploaded."""
        tensors: dict[str, Tensor] = {f"parameter.{key}": value for key, value in self.parameters.items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.values.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        _save(tensors, self._folder / _STATE_FILE, {"progress": json.dumps(vars(self.progress))})
        upload_training(self._folder)

    def resume(self) -> bool:
        """Load the saved state, and return whether there was one; log lines of unsaved epochs are removed."""
        path, log = self._folder / _STATE_FILE, self._folder / _LOG_FILE
        if not path.is_file():
            if is_main():
                log.unlink(missing_ok=True)
            return False
        with safe_open(path, framework="pt") as stream:
            self.progress = TrainingProgress(**json.loads(stream.metadata()["progress"]))
        self._load_state(load_file(path))
        if is_main():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            log.write_text("".join(lines[: self.progress.epoch]), encoding="utf-8")
        return True

    def _load_state(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        ordered = [value for group in self.optimizer.param_groups for value in group["params"]]
        for key, value in tensors.items():
            kind, rest = key.split(".", 1)
            if kind == "parameter":
                self._load({rest: value})
            elif kind == "average" and self.average is not None:
                self.average.values[rest].copy_(placed_like(value, self.average.values[rest]))
            elif kind == "optimizer":
                index, entry = rest.split(".", 1)
                state.setdefault(int(index), {})[entry] = placed_like(value, ordered[int(index)])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.average is not None:
            self.average.set_step(self.progress.step)

    def _load(self, weights: dict[str, Tensor]) -> None:
        for key, value in weights.items():
            self.parameters[key].data.copy_(placed_like(value, self.parameters[key]))


def _save(tensors: dict[str, Tensor] | dict[str, nn.Parameter], path: Path, metadata: dict[str, str]) -> None:
    on_cpu = {key: own.contiguous() for key, value in tensors.items() if (own := _to_write(value)) is not None}
    if not is_main():
        return
    with write_atomically(path) as temporary:
        save_file(on_cpu, temporary, metadata)


def _to_write(value: Tensor) -> Tensor | None:
    """Return a tensor on the CPU, on the main process alone; sharded ones are gathered by all."""
    own = whole(value) if is_main() or isinstance(value, DTensor) else None
    return own if is_main() else None
