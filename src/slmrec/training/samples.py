"""Training samples, and their division into optimiser steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slmrec import processes
from slmrec.config import TrainConfig
from slmrec.config.distill import AugmentSettings
from slmrec.data.batching import collate, shuffled
from slmrec.data.dataset import Ints, Samples
from slmrec.training.augmentation import augmented
from slmrec.types import Batch, Unit


@dataclass(frozen=True)
class TrainingSamples:
    """Samples of a data set, and how a model reads them."""

    samples: Samples
    max_history_items: int
    """Number of newest items of a history that are read."""
    every_position: bool
    """True: every item position is supervised. False: only the newest one."""
    timestamp_unit: Unit | None = None
    """Unit in which the model reads the times of events; None: it reads none."""
    augment: AugmentSettings | None = None
    """Random changes of the histories of a batch; None: they stay as they are."""

    def __len__(self) -> int:
        return len(self.samples)

    def collate(self, rows: Ints) -> Batch:
        """Return the batch of some samples."""
        return self.changed(self.unchanged(rows))

    def unchanged(self, rows: Ints) -> Batch:
        """Return the batch of some samples, with their histories as they are."""
        return collate(self.samples, rows, self.max_history_items, self.every_position, self.timestamp_unit)

    def changed(self, batch: Batch) -> Batch:
        """Return a batch with the random changes of histories, drawn from `torch.manual_seed`."""
        return batch if self.augment is None else augmented(batch, self.augment)

    def longest(self, num: int) -> Ints:
        """Return the numbers of the `num` samples with the most items, which need the most memory."""
        order = np.argsort(self.samples.clipped_lengths(self.max_history_items), kind="stable")
        return order[::-1][:num].astype(np.int64)


class Step(NamedTuple):
    """Part of one process in an optimiser step."""

    micro_batches: list[Ints]
    """Sample numbers of each forward and backward pass; all processes have the same number of passes."""
    num_counted: int
    """Number of the first micro-batches that count; further ones only let this process take part, and must not change
    the gradient."""


class Steps:
    """Division of an epoch into optimiser steps, and of each step among the processes.

    The samples of a step depend on their number and the seed alone. The processes take turns in picking them, so that
    their histories are about equally long, and each divides its own into micro-batches.

    Args:
        data: Training samples.
        settings: Training settings.
        seed: Seed of the order of the samples.
    """

    def __init__(self, data: TrainingSamples, settings: TrainConfig, seed: int) -> None:
        self.data, self.seed = data, seed
        size, num_processes = settings.per_device_train_batch_size, processes.num_processes()
        if size == "auto":
            self.samples_per_step = settings.reference_batch_size or 0
            self.batch_size = math.ceil(self.samples_per_step / num_processes)
        else:
            self.samples_per_step = size * settings.gradient_accumulation_steps * num_processes
            """Number of samples in an optimiser step of all processes together."""
            self.batch_size = size
            """Maximum number of samples in a micro-batch of one process, as far as the settings say."""

    def num_steps(self) -> int:
        """Return the number of optimiser steps in an epoch."""
        return math.ceil(len(self.data) / self.samples_per_step)

    def of_epoch(self, epoch: int, samples_at_once: int) -> Iterator[Step]:
        """Yield the part of this process in each step, in micro-batches of nearly equal size.

        Args:
            epoch: Number of the epoch, which determines the order together with the seed.
            samples_at_once: Maximum number of samples in a micro-batch.
        """
        data = self.data
        for rows in shuffled(data.samples, self.samples_per_step, data.max_history_items, self.seed, epoch):
            own = rows[processes.rank() :: processes.num_processes()]
            num_passes = math.ceil(len(rows) / processes.num_processes() / samples_at_once)
            parts = [part for part in np.array_split(own, num_passes) if len(part)]
            yield Step([*parts, *[rows[:1]] * (num_passes - len(parts))], len(parts))
