"""Training loop of all models: AdamW with warm-up and clipping; keeps the best epoch and resumes exactly."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from slmrec import processes
from slmrec.callbacks import epoch_ended
from slmrec.config import TrainConfig
from slmrec.errors import TrainingError
from slmrec.training.batch_size import largest_that_fits, memory_remedies
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.optimization import peak_learning_rate, schedule, use_bf16
from slmrec.training.prefetch import with_batches
from slmrec.training.samples import Step, Steps, TrainingSamples
from slmrec.training.sharding import ShardedCopy, whole
from slmrec.training.trackers import Live, Trackers, format_losses, mean_losses
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

    All processes of a run call this function with the same arguments and take their part of every step, by DDP or, with
    `settings.fsdp`, FSDP2. Samples and gradient of a step do not depend on the number of processes, and a training is
    resumed on any number of them.

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
    sharded = None
    if settings.fsdp and processes.num_processes() > 1:
        sharded = ShardedCopy(loss)
        parallel = trained = sharded.module
        validate = sharded.on_whole(validate)
    else:
        if settings.fsdp:
            _LOG.info("%s: one process, so fsdp shards nothing", name)
        trained = loss.to(processes.device())
        parallel = processes.parallel(trained, getattr(loss, "may_skip_parameters", False))
    state = TrainingState(trained, settings, folder)
    catalogue_loss: CatalogueLoss | None = getattr(trained, "catalogue_loss", None)
    steps = Steps(data, settings, seed)
    progress = _Trainer(parallel, catalogue_loss, state, steps, settings, name, validate, trackers).run()
    if sharded is not None:
        sharded.gather()
    return progress


class _Trainer:
    def __init__(
        self,
        loss: nn.Module,
        catalogue_loss: CatalogueLoss | None,
        state: TrainingState,
        steps: Steps,
        settings: TrainConfig,
        name: str,
        validate: Validate,
        trackers: Trackers,
    ) -> None:
        self.loss, self.state, self.steps, self.settings, self.name = loss, state, steps, settings, name
        self.catalogue_loss, self.validate, self.trackers = catalogue_loss, validate, trackers
        self.device = processes.device()
        self.data, self.seed = steps.data, steps.seed
        self.bf16 = use_bf16(self.settings.bf16)
        self.time_left = 1.0
        """Share of `max_minutes` that is left."""

    @property
    def progress(self) -> TrainingProgress:
        return self.state.progress

    def run(self) -> TrainingProgress:
        if self.state.resume():
            _LOG.info("%s: resumed after epoch %d", self.name, self.progress.epoch)
        self._plan_steps()
        if not self.progress.best:
            self.state.keep_best(self._validated())  # the initial model is best if training does not improve it
        with Live(self.name, self.trackers, processes.is_main()) as live:
            while not self._finished():
                self._epoch(live)
        processes.barrier()  # the main process has written the best weights
        self.state.load_best()
        return self.progress

    def _plan_steps(self) -> None:
        """Set the sizes of steps and micro-batches; a resumed training keeps both, on any number of processes."""
        progress, settings = self.progress, self.settings
        if progress.samples_per_step not in (0, self.steps.samples_per_step):
            _LOG.info(
                "%s: steps keep the %d samples that they had before; other numbers of processes would give %d",
                *(self.name, progress.samples_per_step, self.steps.samples_per_step),
            )
            self.steps.samples_per_step = progress.samples_per_step
        progress.samples_per_step = self.steps.samples_per_step
        progress.peak_learning_rate = peak_learning_rate(
            settings.learning_rate, progress.samples_per_step, settings.reference_batch_size
        )
        if not progress.samples_at_once:
            is_auto = settings.per_device_train_batch_size == "auto"
            progress.samples_at_once = self._largest_that_fits() if is_auto else self.steps.batch_size
        if settings.reference_batch_size:
            _LOG.info(
                "%s: %d samples per step, %d at once; learning rate %.2e (%.2e for %d samples)",
                *(self.name, progress.samples_per_step, progress.samples_at_once, progress.peak_learning_rate),
                *(settings.learning_rate, settings.reference_batch_size),
            )

    def _largest_that_fits(self) -> int:
        max_samples = min(self.steps.batch_size, len(self.data))
        rows = self.data.longest(max_samples)
        trained_mb = sum(value.numel() * value.element_size() for value in self.state.parameters.values()) / 2**20

        def step(size: int) -> None:
            self._accumulate([self.data.collate(rows[:size])], [1.0])
            self.state.optimizer.zero_grad(set_to_none=True)

        self.loss.train()
        remedies = memory_remedies(self.name, self.settings)
        with processes.not_reduced(self.loss):  # the processes try different sizes
            size = largest_that_fits(step, max_samples, trained_mb, self.device, self.name, remedies)
        return processes.smallest(size)

    def _finished(self) -> bool:
        progress = self.progress
        return (
            progress.epoch >= self.settings.num_train_epochs
            or self._reached_max_steps()
            or progress.reached_max_minutes
            or progress.epoch - progress.best_epoch >= self.settings.early_stopping_patience
        )

    def _reached_max_steps(self) -> bool:
        return 0 <= self.settings.max_steps <= self.progress.step

    def _epoch(self, live: Live) -> None:
        start, progress = time.perf_counter(), self.progress
        live.begin(progress.epoch + 1, self.steps.num_steps())
        self.loss.train()
        steps = self.steps.of_epoch(progress.epoch, progress.samples_at_once)
        for step, batches in with_batches(steps, self.data.unchanged, self.device):
            if self._reached_max_steps() or self._is_over(start):
                break
            learning_rate = self._learning_rate(progress.step)
            losses = self._step(step, batches, learning_rate)
            live.step(progress.step, losses, learning_rate)
        progress.epoch += 1
        metrics = self._validated()
        if not self._finished():
            self._is_over(start)  # with the time of the validation
        progress.seconds += time.perf_counter() - start
        entries = self._record(live.means, metrics)
        live.validated(progress.step, metrics)
        if metrics[MONITORED] > progress.best[MONITORED]:
            self.state.keep_best(metrics)
        self.state.save()
        epoch_ended(progress.epoch, entries)

    def _is_over(self, start: float) -> bool:
        """Return whether the time is over, but for another validation; of several processes, for any of them.

        Args:
            start: Time at which the epoch began.
        """
        progress, limit = self.progress, self.settings.max_minutes
        if limit is None or progress.reached_max_minutes:
            return progress.reached_max_minutes
        used = progress.seconds + time.perf_counter() - start
        share = used / max(1e-9, 60 * limit - progress.validation_seconds)
        self.time_left = processes.smallest(round(1e6 * max(0.0, 1 - share))) / 1e6
        if self.time_left == 0:
            progress.reached_max_minutes = True
            _LOG.info(
                "%s: max_minutes (%.2f) are over in epoch %d of %d; the best epoch so far is kept",
                *(self.name, limit, min(progress.epoch + 1, self.settings.num_train_epochs)),
                self.settings.num_train_epochs,
            )
        return progress.reached_max_minutes

    def _learning_rate(self, step: int) -> float:
        settings, total = self.settings, self.steps.num_steps() * self.settings.num_train_epochs
        if settings.max_steps >= 0:
            total = min(total, settings.max_steps)
        if step >= settings.warmup_steps:  # the schedule ends with the steps or with the time, whichever is earlier
            step = max(step, int((1 - self.time_left) * total))
        factor = schedule(step, settings.warmup_steps, total, settings.lr_scheduler_type)
        return self.progress.peak_learning_rate * factor

    def _step(self, step: Step, batches: list[Batch], learning_rate: float) -> dict[str, float]:
        state, progress = self.state, self.progress
        torch.manual_seed(hash((self.seed, progress.step, processes.rank())))  # of changed histories and dropout
        if self.catalogue_loss is not None:
            self.catalogue_loss.begin_step(hash((self.seed, progress.step)))
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        batches = [self.data.changed(batch) for batch in batches]
        weights = self._weights(step, batches)
        terms = self._accumulate(batches, weights)
        norms = [nn.utils.clip_grad_norm_(values, self.settings.max_grad_norm) for values in state.clipping_groups]
        losses = self._losses(terms, weights, learning_rate)
        for norm in map(whole, norms):
            if not torch.isfinite(norm):
                raise self._non_finite(float(norm), learning_rate)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        state.update_average()
        return losses

    def _weights(self, step: Step, batches: list[Batch]) -> list[float]:
        """Return the share of each micro-batch in the supervised positions of the step, of all processes together."""
        counts = [len(batch.targets) * (number < step.num_counted) for number, batch in enumerate(batches)]
        total = int(processes.total(torch.tensor(sum(counts)))) if processes.num_processes() > 1 else sum(counts)
        return [count / total for count in counts]

    def _accumulate(self, batches: list[Batch], weights: list[float]) -> list[dict[str, Tensor]]:
        """Accumulate the gradient of the mean loss over all supervised positions of the step.

        The gradients of the processes are reduced once, in the last backward pass.

        Returns:
            The losses of each micro-batch, on the device.
        """
        losses = []
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
            with nullcontext() if number == len(batches) else processes.not_reduced(self.loss):
                terms = self._backward(batch.to(self.device), weight)
            losses.append({"loss": terms.total.detach()} | terms.parts)
        return losses

    def _backward(self, batch: Batch, weight: float) -> LossTerms:
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                terms: LossTerms = self.loss(batch)
            torch.autograd.backward(terms.total * (weight * processes.num_processes()))  # DDP divides by their number
        except torch.OutOfMemoryError:
            if not self.progress.samples_at_once:
                raise  # the search for the largest size handles it
            raise TrainingError(
                f"{self.name}: out of memory at step {self.progress.step} with {len(batch.histories.items)} samples "
                f"at once; {memory_remedies(self.name, self.settings)}"
            ) from None
        return terms

    def _losses(self, terms: list[dict[str, Tensor]], weights: list[float], learning_rate: float) -> dict[str, float]:
        """Return the mean losses of the step over all processes, read from the device at once."""
        losses = mean_losses(terms, weights)
        if not math.isfinite(losses["loss"]):
            raise self._non_finite(losses["loss"], learning_rate)
        if processes.num_processes() > 1:
            summed = processes.total(torch.tensor(list(losses.values()), dtype=torch.float64)).tolist()
            losses = dict(zip(losses, summed, strict=True))
        return losses

    def _validated(self) -> dict[str, float]:
        """Return the validation metrics of the weights that are kept: the averaged ones, if there are any."""
        progress, start = self.progress, time.perf_counter()
        try:
            with self.state.averaged():
                metrics = self.validate()
            progress.validation_seconds = time.perf_counter() - start
            return metrics
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

    def _non_finite(self, value: float, learning_rate: float) -> TrainingError:
        return TrainingError(
            f"{self.name}: loss or gradient is {value} at step {self.progress.step} with learning rate "
            f"{learning_rate:.2e}; {self._remedy()}"
        )

    def _remedy(self) -> str:
        return (
            f"the state before this epoch is kept; lower {self.name}.train.learning_rate or raise "
            f"{self.name}.train.warmup_steps"
        )

    def _record(self, losses: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """Write and return the entries of an epoch."""
        progress = self.progress
        position = {"epoch": progress.epoch, "step": progress.step, "seconds": round(progress.seconds, 1)}
        train_losses = {f"train/{key}": value for key, value in losses.items()}
        entries = position | train_losses | {f"valid/{key}": value for key, value in metrics.items()}
        self.state.log(entries)
        _LOG.info(
            "%s: epoch %d: %s; valid NDCG@10 %.4f (%.0f s)",
            *(self.name, progress.epoch, format_losses(losses), metrics[MONITORED], progress.seconds),
        )
        return entries
