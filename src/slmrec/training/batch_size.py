"""Search for the largest number of samples that fit into memory at once.

`accelerate.utils.find_executable_batch_size` is not used, because it waits for an out-of-memory error: on a CPU, Linux
raises none and ends the process instead.
"""

import math
from collections.abc import Callable, Iterator

import torch

from slmrec.config import TrainConfig
from slmrec.errors import TrainingError
from slmrec.processes import num_local
from slmrec.training.memory import can_measure_growth, free_mb, gpu_growth_mb, growth_mb

USABLE = 0.8
"""Share of the free memory that may be used; the rest is left to other programs and to measurement errors."""


def largest_that_fits(
    step: Callable[[int], None], max_samples: int, trained_mb: float, device: torch.device, name: str, remedies: str
) -> int:
    """Return the largest number of samples that fit: `max_samples`, or a half of it, a quarter, and so on.

    The step runs at growing sizes. The memory of the next size is extrapolated from the last two sizes, and a size
    that is not expected to fit is not tried. The processes of a run share the memory of a machine, but not of a GPU.

    Args:
        step: Runs forward and backward passes of a number of samples, those that need the most memory.
        max_samples: Number of samples in a batch.
        trained_mb: Size of the trained parameters in MiB. A step adds as much for gradients, and AdamW twice as much
            for its state.
        device: Device on which the step runs.
        name: Section of the settings, for messages.
        remedies: Settings that save memory, for messages.

    Raises:
        TrainingError: Not even one sample fits, or the operating system does not measure the memory of a step.
    """
    if device.type != "cuda" and not can_measure_growth():
        raise TrainingError(
            f"{name}.train.per_device_train_batch_size is auto, but this operating system does not measure the memory "
            "of a step; give a number"
        )
    free = _free_cuda_mb(device) if device.type == "cuda" else free_mb() / num_local()
    usable = USABLE * free - 2 * trained_mb
    measured = [(0, trained_mb)]
    for size in _sizes(max_samples):
        if _extrapolate(measured, size) > usable:
            break
        growth = _growth_mb(step, size, device)
        if growth > usable:
            break
        measured.append((size, growth))
    if len(measured) == 1:
        raise TrainingError(
            f"{name}: not even one sample fits into memory: {max(0.0, usable):,.0f} MiB are free beside the state of "
            f"the optimiser; {remedies}, keep fewer layers, or free memory"
        )
    return measured[-1][0]


def memory_remedies(name: str, settings: TrainConfig) -> str:
    """Return the settings of a section that save memory, as part of a message."""
    remedies = f"set {name}.train.per_device_train_batch_size=auto with reference_batch_size"
    if settings.per_device_train_batch_size == "auto":
        remedies = f"lower {name}.train.reference_batch_size, repeat with --force to measure the memory again"
    return ", ".join([remedies, *(f"set {name}.train.{setting}" for setting in settings.memory_savers)])


def _sizes(max_samples: int) -> Iterator[int]:
    """Yield 1, ..., ceil(max_samples / 4), ceil(max_samples / 2), max_samples."""
    for halvings in range((max_samples - 1).bit_length(), -1, -1):
        yield -(-max_samples // 2**halvings)


def _extrapolate(measured: list[tuple[int, float]], size: int) -> float:
    if len(measured) == 1:
        return measured[0][1]
    (previous_size, previous_mb), (last_size, last_mb) = measured[-2:]
    return last_mb + max(0.0, last_mb - previous_mb) / (last_size - previous_size) * (size - last_size)


def _growth_mb(step: Callable[[int], None], size: int, device: torch.device) -> float:
    """Return the peak memory of a step in MiB; infinity if it is more than there is."""
    if device.type != "cuda":
        return growth_mb(lambda: step(size))
    try:
        return gpu_growth_mb(lambda: step(size))
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        torch.cuda.empty_cache()


def _free_cuda_mb(device: torch.device) -> float:
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + reserved) / 2**20
