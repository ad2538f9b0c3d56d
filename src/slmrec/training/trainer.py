"""One training loop for every model: AdamW, warm-up, clipping, the best epoch kept, exact resumption."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slmrec.config import TrainConfig
from slmrec.data.batching import collate, shuffled
from slmrec.data.dataset import Ints, Samples
from slmrec.errors import TrainingError
from slmrec.training.batch_size import largest_that_fits, longest, peak_learning_rate
from slmrec.training.trackers import Live, Trackers, told
from slmrec.types import Batch, LossTerms

MONITORED = "ndcg@10"
NO_TRACKERS = Trackers()
_STATE, _BEST, _LOG = "state.safetensors", "best.safetensors", "log.jsonl"


@dataclass(frozen=True)
class TrainingSamples:
    """What to train on."""

    samples: Samples
    max_history_items: int
    every_position: bool


@dataclass
class Progressed:
    """Where training stands; all that has to be known to go on, besides weights and optimiser."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimiser steps done."""
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the best epoch."""
    seconds: float = 0.0
    samples_at_once: int = 0
    """Computed together, of each process; 0: not yet known."""
    samples_per_step: int = 0
    """Of all processes together."""
    peak_learning_rate: float = 0.0


Validate = Callable[[], dict[str, float]]


def fit(
    loss: nn.Module,
    data: TrainingSamples,
    settings: TrainConfig,
    *,
    validate: Validate,
    folder: Path,
    seed: int,
    name: str,
    trackers: Trackers = NO_TRACKERS,
) -> Progressed:
    """Trains the parameters of a loss that require gradients, and leaves those of the best epoch in it.

    After every epoch the state is saved in `folder`; called again with the same arguments, training goes on from
    there and ends with the same weights, to the last bit on a CPU: whatever is drawn depends on seed and step alone.

    Args:
        loss: returns `LossTerms` for a batch and owns what is trained.
        data: the training samples.
        settings: how to train.
        validate: metrics on the validation split; the best epoch is that of the highest NDCG@10.
        folder: for the state and `log.jsonl`.
        seed: of batches and dropout.
        name: shown beside the progress bar.
        trackers: where the curves go besides `log.jsonl`.

    Raises:
        ConfigError: a tracker is not installed.
        TrainingError: a loss, a gradient or a score is not finite, or memory is short.
    """
    return _Trainer(loss, data, settings, validate, folder, seed, name, trackers).run()


class _Trainer:
    def __init__(
        self,
        loss: nn.Module,
        data: TrainingSamples,
        settings: TrainConfig,
        validate: Validate,
        folder: Path,
        seed: int,
        name: str,
        trackers: Trackers,
    ) -> None:
        trackers.check()
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.bf16 = use_bf16(settings.bf16)
        self.parameters = {key: value for key, value in loss.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            _groups(self.parameters, settings.weight_decay), lr=settings.learning_rate, fused=True
        )
        self.loss = self.accelerator.prepare_model(loss)  # on the device from here on
        averaged = self.parameters if settings.ema_decay else {}
        self.averages = {key: value.detach().clone() for key, value in averaged.items()}
        self.data, self.settings, self.validate = data, settings, partial(self._numbers_of, validate)
        self.folder, self.seed, self.name, self.trackers = folder, seed, name, trackers
        self.progressed = Progressed()
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> Progressed:
        self._resume()
        self._plan_steps()
        if not self.progressed.best:
            self._keep_best(self._validated())  # as initialised: training may make it no better
        with Live(self.name, self.trackers, self.accelerator.is_main_process) as live:
            while not self._finished():
                self._epoch(live)
        self._load(load_file(self.folder / _BEST))
        return self.progressed

    def _finished(self) -> bool:
        done = self.progressed
        return (
            done.epoch >= self.settings.num_train_epochs
            or 0 <= self.settings.max_steps <= done.step
            or done.epoch - done.best_epoch >= self.settings.early_stopping_patience
        )

    def _epoch(self, live: Live) -> None:
        start, done = time.perf_counter(), self.progressed
        live.begin(done.epoch + 1, self._steps_per_epoch())
        self.loss.train()
        for batches in self._steps(done.epoch):
            if 0 <= self.settings.max_steps <= done.step:
                break
            rate = self._rate()
            live.step(done.step + 1, self._step(batches, rate), rate)
        done.epoch += 1
        metrics = self._validated()
        done.seconds += time.perf_counter() - start
        self._record(live.means, metrics)
        live.validated(done.step, metrics)
        if metrics[MONITORED] > done.best[MONITORED]:
            self._keep_best(metrics)
        self._save()

    def _validated(self) -> dict[str, float]:
        """The metrics of the weights that are kept: the averages, if there are any."""
        own = {key: self.parameters[key].detach().clone() for key in self.averages}
        self._load(self.averages)
        try:
            return self.validate()
        finally:
            self._load(own)

    def _load(self, weights: dict[str, Tensor]) -> None:
        for key, value in weights.items():
            self.parameters[key].data.copy_(value)

    def _plan_steps(self) -> None:
        """How many samples a step takes and how many at once; a resumed training keeps what it began with."""
        done, settings = self.progressed, self.settings
        done.samples_per_step = (
            self._batch_size() * settings.gradient_accumulation_steps * int(self.accelerator.num_processes)
        )
        done.peak_learning_rate = peak_learning_rate(
            settings.learning_rate, done.samples_per_step, settings.reference_batch_size
        )
        auto = settings.per_device_train_batch_size == "auto"
        done.samples_at_once = done.samples_at_once or (self._largest_that_fits() if auto else self._batch_size())
        if settings.reference_batch_size:
            self.accelerator.print(
                f"{self.name}: {done.samples_per_step} samples a step, {done.samples_at_once} at once; learning rate "
                f"{done.peak_learning_rate:.2e} ({settings.learning_rate:.2e} for {settings.reference_batch_size})",
                flush=True,
            )

    def _batch_size(self) -> int:
        """Samples of a batch of one process."""
        size, num_processes = self.settings.per_device_train_batch_size, int(self.accelerator.num_processes)
        if size != "auto":
            return size
        together = self.settings.reference_batch_size or 0
        if together % num_processes:
            raise TrainingError(
                f"{self.name}.train.reference_batch_size is {together}, which {num_processes} processes cannot share; "
                f"choose a multiple of {num_processes}"
            )
        return together // num_processes

    def _largest_that_fits(self) -> int:
        samples, most = self.data.samples, min(self._batch_size(), len(self.data.samples))
        rows = longest(samples, most, self.data.max_history_items)
        trained_mb = sum(value.numel() * value.element_size() for value in self.parameters.values()) / 2**20

        def step(size: int) -> None:
            self._accumulate([rows[:size]], self.settings.learning_rate)
            self.optimizer.zero_grad(set_to_none=True)

        self.loss.train()
        found = largest_that_fits(step, most, trained_mb, self.accelerator.device, self.name)
        least = self.accelerator.gather(torch.tensor([found], device=self.accelerator.device)).min()
        return int(least)  # processes that compute in unequal pieces would wait for each other for ever

    def _steps(self, epoch: int) -> Iterator[list[Ints]]:
        """This process's batches of an epoch, in pieces, those of one optimiser step together."""
        batches = shuffled(self.data.samples, self._batch_size(), self.data.max_history_items, self.seed, epoch)
        own = islice(batches, self.accelerator.process_index, None, self.accelerator.num_processes)
        own = islice(own, self._batches_per_epoch())
        while together := list(islice(own, self.settings.gradient_accumulation_steps)):
            yield [piece for rows in together for piece in self._pieces(rows)]

    def _pieces(self, rows: Ints) -> list[Ints]:
        """A batch in parts of nearly equal size that can each be computed at once."""
        return list(np.array_split(rows, math.ceil(len(rows) / self.progressed.samples_at_once)))

    def _batches_per_epoch(self) -> int:
        """Of one process; all take equally many."""
        num_batches = math.ceil(len(self.data.samples) / self._batch_size())
        num_processes: int = self.accelerator.num_processes
        return max(1, num_batches // num_processes)

    def _steps_per_epoch(self) -> int:
        return math.ceil(self._batches_per_epoch() / self.settings.gradient_accumulation_steps)

    def _rate(self) -> float:
        return self.progressed.peak_learning_rate * self._schedule(self.progressed.step)

    def _step(self, pieces: list[Ints], rate: float) -> dict[str, float]:
        done = self.progressed
        torch.manual_seed(hash((self.seed, done.step, self.accelerator.process_index)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = self._accumulate(pieces, rate)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            self._refuse_non_finite(norm, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        done.step += 1
        self._average()
        return parts

    def _average(self) -> None:
        """Moves the averages towards the weights; the first steps count for little."""
        decay = min(self.settings.ema_decay, (1 + self.progressed.step) / (10 + self.progressed.step))
        for key, value in self.averages.items():
            value.lerp_(self.parameters[key].detach(), 1 - decay)

    def _accumulate(self, pieces: list[Ints], rate: float) -> dict[str, float]:
        """Adds up the gradients of the mean loss over all pieces, each read-out position weighing alike."""
        collate_piece = partial(
            collate, max_history_items=self.data.max_history_items, every_position=self.data.every_position
        )
        batches = [collate_piece(self.data.samples, rows) for rows in pieces]
        num_targets, parts = sum(len(batch.targets) for batch in batches), dict[str, float]()
        for batch in batches:
            share = len(batch.targets) / num_targets
            terms = self._differentiate(batch.to(self.accelerator.device), share, rate)
            for key, value in ({"loss": terms.total.detach()} | terms.parts).items():
                parts[key] = parts.get(key, 0.0) + float(value) * share
        return parts

    def _differentiate(self, batch: Batch, share: float, rate: float) -> LossTerms:
        try:
            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
                terms: LossTerms = self.loss(batch)
            if not torch.isfinite(terms.total):
                self._refuse_non_finite(terms.total.detach(), rate)
            self.accelerator.backward(terms.total * share)
        except torch.OutOfMemoryError:
            if not self.progressed.samples_at_once:
                raise  # of a size that is tried out
            raise TrainingError(
                f"{self.name}: out of memory at step {self.progressed.step} with {len(batch.histories.items)} samples "
                f"at once; set {self.name}.train.per_device_train_batch_size=auto with reference_batch_size, or "
                "gradient_checkpointing=true; if it is auto, --force measures anew"
            ) from None
        return terms

    def _numbers_of(self, validate: Validate) -> dict[str, float]:
        try:
            return validate()
        except TrainingError as error:
            done = self.progressed
            if done.step == 0:
                raise TrainingError(
                    f"{self.name}: validation before the first step: {error}; nothing was trained yet, so look at the "
                    "item vectors of pretrain and at finetune.backbone"
                ) from None
            rate = done.peak_learning_rate * self._schedule(done.step - 1)
            raise TrainingError(
                f"{self.name}: validation at step {done.step} with learning rate {rate:.2e}: {error}; {self._remedy()}"
            ) from None

    def _refuse_non_finite(self, value: Tensor, rate: float) -> None:
        raise TrainingError(
            f"{self.name}: loss or gradient is {float(value)} at step {self.progressed.step} with learning rate "
            f"{rate:.2e}; {self._remedy()}"
        )

    def _remedy(self) -> str:
        return (
            f"the state before this epoch is kept; lower {self.name}.train.learning_rate or raise "
            f"{self.name}.train.warmup_steps"
        )

    def _schedule(self, step: int) -> float:
        total = self._steps_per_epoch() * self.settings.num_train_epochs
        if self.settings.max_steps >= 0:
            total = min(total, self.settings.max_steps)
        return schedule(step, self.settings.warmup_steps, total, self.settings.lr_scheduler_type)

    def _record(self, totals: dict[str, float], metrics: dict[str, float]) -> None:
        done = self.progressed
        line = {"epoch": done.epoch, "step": done.step, "seconds": round(done.seconds, 1)}
        line |= {f"train/{key}": value for key, value in totals.items()}
        line |= {f"valid/{key}": value for key, value in metrics.items()}
        with (self.folder / _LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.accelerator.print(
            f"{self.name}: epoch {done.epoch}: {told(totals)}; "
            f"valid NDCG@10 {metrics[MONITORED]:.4f} ({done.seconds:.0f} s)",
            flush=True,
        )

    def _keep_best(self, metrics: dict[str, float]) -> None:
        self.progressed.best, self.progressed.best_epoch = metrics, self.progressed.epoch
        kept = self.averages or self.parameters
        _save_whole({key: value.detach() for key, value in kept.items()}, self.folder / _BEST, {})

    def _save(self) -> None:
        tensors = {f"parameter.{key}": value.detach() for key, value in self.parameters.items()}
        tensors |= {f"average.{key}": value for key, value in self.averages.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        _save_whole(tensors, self.folder / _STATE, {"progressed": json.dumps(vars(self.progressed))})

    def _resume(self) -> None:
        path = self.folder / _STATE
        if not path.is_file():
            (self.folder / _LOG).unlink(missing_ok=True)
            return
        with safe_open(path, framework="pt") as stream:
            self.progressed = Progressed(**json.loads(stream.metadata()["progressed"]))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(path).items():
            kind, rest = key.split(".", 1)
            if kind == "parameter":
                self.parameters[rest].data.copy_(value)
            elif kind == "average":
                self.averages[rest].copy_(value)
            else:
                index, entry = rest.split(".", 1)
                state.setdefault(int(index), {})[entry] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._forget_unsaved_epochs()
        self.accelerator.print(f"{self.name}: going on after epoch {self.progressed.epoch}", flush=True)

    def _forget_unsaved_epochs(self) -> None:
        lines = (self.folder / _LOG).read_text(encoding="utf-8").splitlines(keepends=True)
        (self.folder / _LOG).write_text("".join(lines[: self.progressed.epoch]), encoding="utf-8")


def schedule(step: int, warmup_steps: int, total_steps: int, kind: str) -> float:
    """The share of the peak learning rate at a step (from 0).

    >>> [round(schedule(step, 2, 6, "linear"), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[kind]


def use_bf16(setting: bool | str) -> bool:
    """Whether matrix products are done in bfloat16; `auto`: where the hardware has them."""
    if setting != "auto":
        return bool(setting)
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def _groups(parameters: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [value for value in parameters.values() if value.dim() > 1]
    others = [value for value in parameters.values() if value.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, partial, metadata)
    partial.replace(path)
