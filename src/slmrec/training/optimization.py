"""Learning rate, precision, parameter groups and moving average of the weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def peak_learning_rate(learning_rate: float, samples_per_step: int, reference: int | None) -> float:
    """Return the peak learning rate of AdamW for a number of samples per step.

    The learning rate is proportional to the square root of the batch size. The rest of the rule, other betas and
    epsilon, is left out.

    Args:
        learning_rate: Learning rate that was chosen for `reference` samples per step.
        samples_per_step: Number of samples per step.
        reference: Number of samples per step that `learning_rate` belongs to; None: no scaling.

    Example:
        >>> peak_learning_rate(1e-3, 64, 256)
        0.0005

    Source: Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms (NeurIPS 2022); Granziol et
    al., Learning Rates as a Function of Batch Size (JMLR 2022).
    """
    return learning_rate * math.sqrt(samples_per_step / reference) if reference else learning_rate


def schedule(step: int, warmup_steps: int, total_steps: int, kind: str) -> float:
    """Return the factor of the peak learning rate at a step.

    Args:
        step: Number of the step, from 0.
        warmup_steps: Number of steps of the warm-up.
        total_steps: Number of steps of the whole training.
        kind: `constant`, `linear` or `cosine`.

    Example:
        >>> [round(schedule(step, 2, 6, "linear"), 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:  # transformers.get_scheduler starts at 0 instead, so its first step would change nothing
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[kind]


def parameter_groups(parameters: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups of an optimiser in which only matrices have weight decay, not norms and biases."""
    matrices = [value for value in parameters.values() if value.dim() > 1]
    vectors = [value for value in parameters.values() if value.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def use_bf16(setting: bool | str) -> bool:
    """Return whether matrix products use bfloat16; `auto` uses it where the hardware supports it."""
    if setting != "auto":
        return bool(setting)
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


class WeightAverage:
    """Exponential moving average of parameters, with a decay that rises to its final value in the first steps.

    Args:
        parameters: Parameters to average, by name. Their values are the start of the average.
        decay: Final decay; the decay after n steps is at most (1 + n) / (10 + n).

    Attributes:
        values: The averaged parameters, by name.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = nn.ParameterList(list(parameters.values())), decay
        self._average = AveragedModel(self._parameters, multi_avg_fn=self._update)
        self._average.requires_grad_(False)
        self.values: dict[str, Tensor] = dict(zip(parameters, self._average.parameters(), strict=True))
        self.set_step(0)

    def set_step(self, step: int) -> None:
        """Set the number of steps that have been averaged."""
        self._average.n_averaged.fill_(step + 1)  # AveragedModel replaces the start values where n_averaged is 0

    def update(self) -> None:
        """Add the current values of the parameters to the average."""
        self._average.update_parameters(self._parameters)

    def _update(self, averages: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
        step = int(self._average.n_averaged)
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, 1 - decay)
