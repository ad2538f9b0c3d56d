"""Estimates of tokens, memory and time of a training step, from the sizes of model and data."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from slmrec.config import TrainConfig
from slmrec.data.dataset import Dataset, Samples
from slmrec.models.model import Model
from slmrec.training.full_softmax import MAX_CHUNK_SCORES, catalogue_cross_entropy
from slmrec.training.memory import peak_rss_mb

SHARE_OF_PRODUCTS = 0.7
"""Share of the time of a training step that its matrix products take. Source: measured, docs/engine.md."""
MEASURED_S = 0.3
"""Duration of each measurement of this machine, in seconds."""
SCORE_BYTES = 12
"""Bytes of a score of the catalogue: score, log-softmax and gradient; KL needs two more for the teacher."""
KEPT_BY_ALLOCATOR = 1.5
"""Factor for gaps that buffers of changing sizes leave in memory on a CPU."""


class Work(NamedTuple):
    """Sizes of one pass over samples."""

    samples: int
    items: int
    """Number of item tokens."""
    positions: int
    """Number of supervised positions."""
    largest: int
    """Number of item tokens of a batch of the longest samples."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    parameters: int
    trainable: int
    layers: int
    products: int
    """Multiplications per token: the number of weights of all linear maps of the layers."""
    trained_products: int
    """Multiplications per token by maps that are trained."""
    activations: int
    """Numbers per token that are kept for the backward pass, in all layers together."""
    hidden: int
    item_width: int
    frozen_layer_entries: int
    """Number of frozen weights of the layers, which may be quantised."""


class Rates(NamedTuple):
    """Speed of this machine, per second."""

    flop: float
    scores: float
    """Scores of the catalogue, with loss and gradients."""


def work_of(samples: Samples, max_history_items: int, every_position: bool, batch_size: int) -> Work:
    """Return the sizes of a pass over samples."""
    lengths = samples.clipped_lengths(max_history_items).astype(np.int64)
    items, longest = int(lengths.sum()), np.sort(lengths)[-batch_size:]
    return Work(len(lengths), items, items if every_position else len(lengths), int(longest.sum()))


def training_work(dataset: Dataset, supervision: str, max_history_items: int, batch_size: int) -> Work:
    """Return the sizes of a training epoch."""
    samples = dataset.train(supervision, max_history_items)
    return work_of(samples, max_history_items, supervision == "every_position", batch_size)


def sizes_of(model: Model) -> Sizes:
    """Return the sizes of a model, which may be on the device `meta`."""
    maps = [module for name, module in model.named_modules() if "layers." in name and isinstance(module, nn.Linear)]
    trained = [module.weight.numel() for module in maps if module.weight.requires_grad]
    products = sum(module.weight.numel() for module in maps)
    # a map keeps its input; norms, rotary positions, gates and residuals keep about as much again
    kept = sum(module.in_features + module.out_features for module in maps) + 4 * model.hidden_size * model.num_layers
    return Sizes(
        parameters=model.num_parameters(),
        trainable=sum(value.numel() for value in model.parameters() if value.requires_grad),
        layers=model.num_layers,
        products=products,
        trained_products=sum(trained),
        activations=kept,
        hidden=model.hidden_size,
        item_width=int(model.item_vectors().shape[1]),
        frozen_layer_entries=products - sum(trained),
    )


def tokens_of(work: Work, prompt: tuple[int, int], batch_size: int) -> int:
    """Return the number of tokens that the engine computes; the prefix is computed once for each batch."""
    prefix, response = prompt
    return work.items + response * work.samples + prefix * -(-work.samples // batch_size)


def padded_tokens_of(work: Work, prompt: tuple[int, int], max_history_items: int) -> int:
    """Return the number of tokens of batches that are padded to the maximum length, as in the reference."""
    return work.samples * (sum(prompt) + max_history_items)


def training_bytes(
    sizes: Sizes, tokens: int, scores: int, settings: TrainConfig, *, bits: int | None, bf16: bool, with_kl: bool
) -> int:
    """Return the peak memory of a training step in bytes.

    It consists of weights, gradients, the state of AdamW, activations and a chunk of scores; on a CPU also of the
    memory that the process has now and of gaps in the memory.

    Args:
        sizes: Sizes of the model.
        tokens: Number of tokens that are computed at once.
        scores: Number of scores that are computed at once: supervised positions times items.
        settings: Training settings.
        bits: Bits of the frozen layers; None: float32.
        bf16: True if matrix products are computed in bfloat16.
        with_kl: True if the loss compares the score distributions of student and teacher.
    """
    weights = 4 * sizes.parameters - (sizes.frozen_layer_entries * (32 - bits) // 8 if bits else 0)
    state = 3 * 4 * sizes.trainable
    per_token = sizes.activations
    if getattr(settings, "gradient_checkpointing", False):
        per_token = sizes.activations // sizes.layers + sizes.layers * sizes.hidden
    activations = tokens * per_token * (3 if bf16 else 4)  # with bf16 about half of them are bfloat16
    buffers = activations + (SCORE_BYTES + 8 * with_kl) * min(scores, MAX_CHUNK_SCORES)
    if torch.cuda.is_available():
        return weights + state + buffers
    return int(weights + state + KEPT_BY_ALLOCATOR * buffers + peak_rss_mb() * 2**20)


def training_seconds(sizes: Sizes, tokens: int, scores: int, rates: Rates) -> float:
    """Return the seconds of the forward and backward pass over a number of tokens and scores."""
    flop = 2 * tokens * (2 * sizes.products + sizes.trained_products)
    return flop / rates.flop / SHARE_OF_PRODUCTS + scores / rates.scores


def reading_seconds(sizes: Sizes, tokens: int, scores: int, rates: Rates) -> float:
    """Return the seconds of inference; ranking a score is assumed to cost as much as its loss and gradient."""
    return 2 * tokens * sizes.products / rates.flop / SHARE_OF_PRODUCTS + scores / rates.scores


def measure_rates(sizes: Sizes, num_items: int, bf16: bool) -> Rates:
    """Measure the speed of this machine on matrix products of the width of the model and on its catalogue."""
    device, dtype = ("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16 if bf16 else torch.float32
    tokens, width = 512, sizes.hidden
    left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((tokens, width), (width, 4 * width)))
    calls = _per_second(lambda: left @ right, device)
    users = torch.randn(64, sizes.item_width, device=device, requires_grad=True)
    items = torch.randn(max(2, num_items + 1), sizes.item_width, device=device, requires_grad=True)
    targets = torch.ones(len(users), dtype=torch.int64, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss: Any = catalogue_cross_entropy(users, items, targets)
        loss.backward()

    return Rates(2 * tokens * right.numel() * calls, len(users) * len(items) * _per_second(step, device))


def _per_second(call: Callable[[], Any], device: str) -> float:
    call()
    number, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < MEASURED_S:
        call()
        number += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return max(1, number) / max(seconds, 1e-9)
