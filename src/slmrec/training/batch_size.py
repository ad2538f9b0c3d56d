"""How many samples are computed at once, and the learning rate of a step of any size."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from slmrec.data.dataset import Ints, Samples
from slmrec.errors import TrainingError
from slmrec.training.memory import can_measure_growth, free_mb, gpu_growth_mb, growth_mb

USABLE = 0.8
"""Share of the free memory that may be taken; the rest is for what else runs, and for what a measurement misses."""


def peak_learning_rate(learning_rate: float, samples_per_step: int, reference: int | None) -> float:
    """The peak learning rate of AdamW for a step of so many samples, given one that belongs to a step of `reference`.

    It goes with the square root of the batch. The rule's further part, other betas and epsilon, is left out.

    Source: Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms (NeurIPS 2022); Granziol et
    al., Learning Rates as a Function of Batch Size (JMLR 2022).

    >>> peak_learning_rate(1e-3, 64, 256)
    0.0005
    """
    return learning_rate * math.sqrt(samples_per_step / reference) if reference else learning_rate


def longest(samples: Samples, num: int, max_history_items: int) -> Ints:
    """Rows of the `num` samples of the most items: those that take the most memory."""
    order = np.argsort(samples.clipped_lengths(max_history_items), kind="stable")
    return order[::-1][:num].astype(np.int64)


def largest_that_fits(
    step: Callable[[int], None], most: int, trained_mb: float, device: torch.device, name: str
) -> int:
    """The most samples that can be computed at once: `most`, or a half of it, a quarter, and so on.

    Runs the step at growing sizes while the next one, by the line through the last two, fits into the free memory.

    Args:
        step: forward and backward of so many samples, the largest ones.
        most: samples of a batch.
        trained_mb: of the weights that learn; a step adds as much for gradients, and AdamW twice that for good.
        device: where the step runs.
        name: of the section of settings, for the message.

    Raises:
        TrainingError: not even one sample fits, or the system does not tell what a step takes.
    """
    if device.type != "cuda" and not can_measure_growth():
        raise TrainingError(
            f"{name}.train.per_device_train_batch_size is auto, but this system does not tell what a step takes; give "
            "a number"
        )
    usable = USABLE * (_free_cuda_mb(device) if device.type == "cuda" else free_mb()) - 2 * trained_mb
    known = [(0, trained_mb)]
    for size in _sizes(most):
        if _expected(known, size) > usable:
            break
        growth = _growth_mb(step, size, device)
        if growth > usable:
            break
        known.append((size, growth))
    if len(known) == 1:
        raise TrainingError(
            f"{name}: not even one sample fits: {max(0.0, usable):,.0f} MiB are free beside the optimiser's state; set "
            f"{name}.train.gradient_checkpointing=true, keep fewer layers, or free memory"
        )
    return known[-1][0]


def _sizes(most: int) -> Iterator[int]:
    """1, ..., ceil(most / 4), ceil(most / 2), most."""
    for halvings in range((most - 1).bit_length(), -1, -1):
        yield -(-most // 2**halvings)


def _expected(known: list[tuple[int, float]], size: int) -> float:
    if len(known) == 1:
        return known[0][1]
    (before, less), (last, more) = known[-2:]
    return more + max(0.0, more - less) / (last - before) * (size - last)


def _growth_mb(step: Callable[[int], None], size: int, device: torch.device) -> float:
    """MiB that a step takes at its peak; infinite if they are not there."""
    if device.type != "cuda":
        return growth_mb(lambda: step(size))
    try:
        return gpu_growth_mb(lambda: step(size))
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        torch.cuda.empty_cache()


def _free_cuda_mb(device: torch.device) -> float:
    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + own) / 2**20
