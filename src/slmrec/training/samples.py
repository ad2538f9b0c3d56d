"""Training samples, and their division into optimiser steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from slmrec.config import TrainConfig
from slmrec.config.distill import AugmentSettings
from slmrec.data.batching import collate, shuffled
from slmrec.data.dataset import Ints, Samples
from slmrec.errors import TrainingError
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
        batch = collate(self.samples, rows, self.max_history_items, self.every_position, self.timestamp_unit)
        return batch if self.augment is None else augmented(batch, self.augment)

    def longest(self, num: int) -> Ints:
        """Return the numbers of the `num` samples with the most items, which need the most memory."""
        order = np.argsort(self.samples.clipped_lengths(self.max_history_items), kind="stable")
        return order[::-1][:num].astype(np.int64)


class Steps:
    """Division of an epoch into the optimiser steps of one process; every process takes the same number of batches.

    Args:
        data: Training samples.
        settings: Training settings.
        seed: Seed of the order of the samples.
        name: Section of the settings, for messages.
        process: Index of this process.
        num_processes: Number of processes.

    Raises:
        TrainingError: The samples of a step cannot be divided among the processes.
    """

    def __init__(
        self, data: TrainingSamples, settings: TrainConfig, seed: int, name: str, process: int, num_processes: int
    ) -> None:
        self.data, self.settings, self.seed, self.name = data, settings, seed, name
        self.process, self.num_processes = process, num_processes
        self.batch_size = _batch_size(settings, name, num_processes)
        """Number of samples in a batch of one process."""
        self.num_accumulated = settings.gradient_accumulation_steps
        self.samples_per_step = self.batch_size * self.num_accumulated * num_processes
        """Number of samples in an optimiser step of all processes together."""

    def num_batches(self) -> int:
        """Return the number of batches of this process in an epoch."""
        return max(1, math.ceil(len(self.data) / self.batch_size) // self.num_processes)

    def num_steps(self) -> int:
        """Return the number of optimiser steps in an epoch."""
        return math.ceil(self.num_batches() / self.num_accumulated)

    def of_epoch(self, epoch: int, samples_at_once: int) -> Iterator[list[Ints]]:
        """Yield the sample numbers of each step, in micro-batches of nearly equal size.

        Args:
            epoch: Number of the epoch, which determines the order together with the seed.
            samples_at_once: Maximum number of samples in a micro-batch.
        """
        batches = shuffled(self.data.samples, self.batch_size, self.data.max_history_items, self.seed, epoch)
        own_batches = islice(batches, self.process, None, self.num_processes)
        own_batches = islice(own_batches, self.num_batches())
        while step := list(islice(own_batches, self.num_accumulated)):
            yield [part for rows in step for part in np.array_split(rows, math.ceil(len(rows) / samples_at_once))]


def _batch_size(settings: TrainConfig, name: str, num_processes: int) -> int:
    size = settings.per_device_train_batch_size
    if size != "auto":
        return size
    samples_per_step = settings.reference_batch_size or 0
    if samples_per_step % num_processes:
        raise TrainingError(
            f"{name}.train.reference_batch_size is {samples_per_step}, which cannot be divided among {num_processes} "
            f"processes; choose a multiple of {num_processes}"
        )
    return samples_per_step // num_processes
