"""Training loop of all models: AdamW with warm-up and clipping; keeps the best epoch and resumes exactly."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from slmrec.config import TrainConfig
from slmrec.data.dataset import Ints
from slmrec.errors import TrainingError
from slmrec.training.batch_size import largest_that_fits, memory_remedies
from slmrec.training.optimization import peak_learning_rate, schedule
from slmrec.training.samples import Steps, TrainingSamples
from slmrec.training.trackers import Live, Trackers, format_losses
from slmrec.training.training_state import TrainingProgress, TrainingState
from slmrec.types import Batch, LossTerms

_LOG = logging.getLogger(__name__)
MONITORED = "ndcg@10"
"""Validation metric that chooses the best epoch."""
NO_TRACKERS = Trackers()

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
) -> TrainingProgress:
    """Train the parameters of a loss that require gradients, and leave the best epoch's values in them.

    The state is saved in `folder` after every epoch. Another call with the same arguments resumes from there and ends
    with the same weights, bit for bit on a CPU, because all random numbers depend only on the seed and the step.

    Args:
        loss: Module that returns `LossTerms` for a batch and owns the trained parameters.
        data: Training samples.
        settings: Training settings.
        validate: Function that returns validation metrics; the best epoch has the highest NDCG@10.
        folder: Folder for the state and `log.jsonl`.
        seed: Seed of the sample order, dropout and item sampling.
        name: Section of the settings, such as `pretrain.sasrec`, for the progress bar and messages.
        trackers: Experiment trackers.

    Raises:
        ConfigError: A tracker is not installed.
        TrainingError: A loss, gradient or score is not finite, or memory is short.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> from slmrec.training.losses import NextItemLoss
        >>> loss = NextItemLoss(SasRec(SasRecConfig(num_items=dataset.num_items, hidden_size=8)))
        >>> data = TrainingSamples(dataset.train("every_prefix", 5), max_history_items=5, every_position=False)
        >>> with TemporaryDirectory() as folder:
        ...     result = fit(loss, data, TrainConfig(num_train_epochs=1, warmup_steps=0), folder=Path(folder), seed=1,
        ...                  name="example", validate=lambda: {"ndcg@10": 0.1})
        >>> result.epoch
        1
    """
    trackers.check()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    prepared = accelerator.prepare_model(loss)  # moves the parameters to the device
    state = TrainingState(loss, settings, folder)
    steps = Steps(data, settings, seed, name, accelerator.process_index, int(accelerator.num_processes))
    return _Trainer(accelerator, prepared, state, steps, validate, trackers).run()


class _Trainer:
    def __init__(
        self,
        accelerator: Accelerator,
        loss: nn.Module,
        state: TrainingState,
        steps: Steps,
        validate: Validate,
        trackers: Trackers,
    ) -> None:
        self.accelerator, self.loss, self.state, self.steps = accelerator, loss, state, steps
        self.validate, self.trackers = validate, trackers
        self.data, self.settings, self.seed, self.name = steps.data, steps.settings, steps.seed, steps.name
        self.bf16 = use_bf16(self.settings.bf16)

    @property
    def progress(self) -> TrainingProgress:
        return self.state.progress

    def run(self) -> TrainingProgress:
        if self.state.resume():
            self._info(f"resumed after epoch {self.progress.epoch}")
        self._plan_steps()
        if not self.progress.best:
            self.state.keep_best(self._validated())  # the initial model is best if training does not improve it
        with Live(self.name, self.trackers, self.accelerator.is_main_process) as live:
            while not self._finished():
                self._epoch(live)
        self.state.load_best()
        return self.progress

    def _plan_steps(self) -> None:
        """Set the sizes of steps and micro-batches; a resumed training keeps its micro-batches."""
        progress, settings = self.progress, self.settings
        progress.samples_per_step = self.steps.samples_per_step
        progress.peak_learning_rate = peak_learning_rate(
            settings.learning_rate, progress.samples_per_step, settings.reference_batch_size
        )
        if not progress.samples_at_once:
            is_auto = settings.per_device_train_batch_size == "auto"
            progress.samples_at_once = self._largest_that_fits() if is_auto else self.steps.batch_size
        if settings.reference_batch_size:
            self._info(
                f"{progress.samples_per_step} samples per step, {progress.samples_at_once} at once; learning rate "
                f"{progress.peak_learning_rate:.2e} ({settings.learning_rate:.2e} for "
                f"{settings.reference_batch_size} samples)"
            )

    def _largest_that_fits(self) -> int:
        max_samples = min(self.steps.batch_size, len(self.data))
        rows = self.data.longest(max_samples)
        trained_mb = sum(value.numel() * value.element_size() for value in self.state.parameters.values()) / 2**20

        def step(size: int) -> None:
            self._accumulate([rows[:size]], self.settings.learning_rate)
            self.state.optimizer.zero_grad(set_to_none=True)

        self.loss.train()
        device, remedies = self.accelerator.device, memory_remedies(self.name, self.settings)
        size = largest_that_fits(step, max_samples, trained_mb, device, self.name, remedies)
        # All processes use the smallest size: with unequal numbers of micro-batches they would wait for each other.
        return int(self.accelerator.gather(torch.tensor([size], device=device)).min())

    def _finished(self) -> bool:
        progress = self.progress
        return (
            progress.epoch >= self.settings.num_train_epochs
            or self._reached_max_steps()
            or progress.epoch - progress.best_epoch >= self.settings.early_stopping_patience
        )

    def _reached_max_steps(self) -> bool:
        return 0 <= self.settings.max_steps <= self.progress.step

    def _epoch(self, live: Live) -> None:
        start, progress = time.perf_counter(), self.progress
        live.begin(progress.epoch + 1, self.steps.num_steps())
        self.loss.train()
        for micro_batches in self.steps.of_epoch(progress.epoch, progress.samples_at_once):
            if self._reached_max_steps():
                break
            learning_rate = self._learning_rate(progress.step)
            losses = self._step(micro_batches, learning_rate)
            live.step(progress.step, losses, learning_rate)
        progress.epoch += 1
        metrics = self._validated()
        progress.seconds += time.perf_counter() - start
        self._record(live.means, metrics)
        live.validated(progress.step, metrics)
        if metrics[MONITORED] > progress.best[MONITORED]:
            self.state.keep_best(metrics)
        self.state.save()

    def _learning_rate(self, step: int) -> float:
        settings, total = self.settings, self.steps.num_steps() * self.settings.num_train_epochs
        if settings.max_steps >= 0:
            total = min(total, settings.max_steps)
        factor = schedule(step, settings.warmup_steps, total, settings.lr_scheduler_type)
        return self.progress.peak_learning_rate * factor

    def _step(self, micro_batches: list[Ints], learning_rate: float) -> dict[str, float]:
        state, progress = self.state, self.progress
        torch.manual_seed(hash((self.seed, progress.step, self.accelerator.process_index)))
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        losses = self._accumulate(micro_batches, learning_rate)
        for parameters in state.clipping_groups:
            norm = nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
            if not torch.isfinite(norm):
                raise self._non_finite(norm, learning_rate)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        state.update_average()
        return losses

    def _accumulate(self, micro_batches: list[Ints], learning_rate: float) -> dict[str, float]:
        """Accumulate the gradients of the mean loss over all supervised positions of the micro-batches."""
        batches = [self.data.collate(rows) for rows in micro_batches]
        num_targets, losses = sum(len(batch.targets) for batch in batches), dict[str, float]()
        for batch in batches:
            share = len(batch.targets) / num_targets
            terms = self._backward(batch.to(self.accelerator.device), share, learning_rate)
            for key, value in ({"loss": terms.total.detach()} | terms.parts).items():
                losses[key] = losses.get(key, 0.0) + float(value) * share
        return losses

    def _backward(self, batch: Batch, share: float, learning_rate: float) -> LossTerms:
        try:
            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
                terms: LossTerms = self.loss(batch)
            if not torch.isfinite(terms.total):
                raise self._non_finite(terms.total.detach(), learning_rate)
            self.accelerator.backward(terms.total * share)
        except torch.OutOfMemoryError:
            if not self.progress.samples_at_once:
                raise  # the search for the largest size handles it
            raise TrainingError(
                f"{self.name}: out of memory at step {self.progress.step} with {len(batch.histories.items)} samples "
                f"at once; {memory_remedies(self.name, self.settings)}"
            ) from None
        return terms

    def _validated(self) -> dict[str, float]:
        """Return the validation metrics of the weights that are kept: the averaged ones, if there are any."""
        progress = self.progress
        try:
            with self.state.averaged():
                return self.validate()
        except TrainingError as error:
            if progress.step == 0:
                raise TrainingError(
                    f"{self.name}: validation before the first step: {error}; nothing has been trained yet, so check "
                    f"the inputs of {self.name}: its backbone, item vectors and item texts, as far as it has them"
                ) from None
            raise TrainingError(
                f"{self.name}: validation at step {progress.step} with learning rate "
                f"{self._learning_rate(progress.step - 1):.2e}: {error}; {self._remedy()}"
            ) from None

    def _non_finite(self, value: Tensor, learning_rate: float) -> TrainingError:
        return TrainingError(
            f"{self.name}: loss or gradient is {float(value)} at step {self.progress.step} with learning rate "
            f"{learning_rate:.2e}; {self._remedy()}"
        )

    def _remedy(self) -> str:
        return (
            f"the state before this epoch is kept; lower {self.name}.train.learning_rate or raise "
            f"{self.name}.train.warmup_steps"
        )

    def _record(self, losses: dict[str, float], metrics: dict[str, float]) -> None:
        progress = self.progress
        position = {"epoch": progress.epoch, "step": progress.step, "seconds": round(progress.seconds, 1)}
        train_losses = {f"train/{key}": value for key, value in losses.items()}
        self.state.log(position | train_losses | {f"valid/{key}": value for key, value in metrics.items()})
        self._info(
            f"epoch {progress.epoch}: {format_losses(losses)}; valid NDCG@10 {metrics[MONITORED]:.4f} "
            f"({progress.seconds:.0f} s)"
        )

    def _info(self, message: str) -> None:
        if self.accelerator.is_main_process:
            _LOG.info("%s: %s", self.name, message)


def use_bf16(setting: bool | str) -> bool:
    """Return whether matrix products use bfloat16; `auto` uses it where the hardware supports it."""
    if setting != "auto":
        return bool(setting)
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
