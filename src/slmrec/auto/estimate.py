"""What a stage of training will take, from sizes alone: tokens, parameters, memory and time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from slmrec.config import DecoderTraining, TrainConfig
from slmrec.data.dataset import Dataset, Samples
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.model import Model
from slmrec.training.full_softmax import MAX_CHUNK_SCORES, catalogue_cross_entropy
from slmrec.training.memory import peak_rss_mb

SHARE_OF_PRODUCTS = 0.7
"""Of a training step, what its bare matrix products would take. Source: measured, docs/engine.md."""
MEASURED_S = 0.3
"""Seconds that each rate of this machine is measured for."""
SCORE_BYTES = 12
"""A score of the catalogue's losses, its log-softmax, and its gradient; the teacher's two more for KL."""
KEPT_BY_ALLOCATOR = 1.5
"""On a CPU: buffers of changing sizes leave gaps."""


class Work(NamedTuple):
    """One pass over some samples."""

    samples: int
    items: int
    """Tokens that are items."""
    read_outs: int
    largest: int
    """Item tokens of a batch of the longest samples."""


@dataclass(frozen=True)
class Sizes:
    """A model without weights, counted."""

    parameters: int
    trainable: int
    layers: int
    products: int
    """Multiplications a token: the entries of all linear maps of the layers."""
    trained_products: int
    """Those whose maps learn."""
    activations: int
    """Numbers kept for a token for the backward pass, in all layers together."""
    hidden: int
    item_width: int
    frozen_layer_entries: int
    """Entries of the maps that may be kept in fewer bits."""


class Rates(NamedTuple):
    """What this machine does in a second."""

    flop: float
    scores: float
    """Scores of the catalogue, with their loss and gradients."""


def work_of(samples: Samples, max_history_items: int, every_position: bool, batch_size: int) -> Work:
    """The tokens of a pass over samples."""
    lengths = samples.clipped_lengths(max_history_items).astype(np.int64)
    items, longest = int(lengths.sum()), np.sort(lengths)[-batch_size:]
    return Work(len(lengths), items, items if every_position else len(lengths), int(longest.sum()))


def training_work(dataset: Dataset, supervision: str, max_history_items: int, batch_size: int) -> Work:
    """The tokens of an epoch."""
    samples = dataset.train(supervision, max_history_items)
    return work_of(samples, max_history_items, supervision == "every_position", batch_size)


def sizes_of(model: Model) -> Sizes:
    """The counts of a model, which may be on the device `meta`."""
    body = model.decoder if isinstance(model, DecoderRecommender) else model
    maps = [module for module in body.layers.modules() if isinstance(module, nn.Linear)]
    width = body.config.hidden_size
    learns = [module.weight.numel() for module in maps if module.weight.requires_grad]
    # A map keeps its input; norms, rotary positions, gates and residuals about as much again.
    kept = sum(module.in_features + module.out_features for module in maps) + 4 * width * len(body.layers)
    return Sizes(
        parameters=model.num_parameters(),
        trainable=sum(value.numel() for value in model.parameters() if value.requires_grad),
        layers=len(body.layers),
        products=sum(module.weight.numel() for module in maps),
        trained_products=sum(learns),
        activations=kept,
        hidden=width,
        item_width=int(model.item_vectors().shape[1]),
        frozen_layer_entries=sum(module.weight.numel() for module in maps) - sum(learns),
    )


def tokens_of(work: Work, prompt: tuple[int, int], batch_size: int) -> int:
    """Tokens that the engine computes: the prefix once a batch."""
    prefix, response = prompt
    return work.items + response * work.samples + prefix * -(-work.samples // batch_size)


def padded_tokens_of(work: Work, prompt: tuple[int, int], max_history_items: int) -> int:
    """Tokens of the same in rows that are all as long as the longest may be, as the reference computes them."""
    return work.samples * (sum(prompt) + max_history_items)


def training_bytes(
    sizes: Sizes, tokens: int, scores: int, settings: TrainConfig, *, bits: int | None, bf16: bool, with_kl: bool
) -> int:
    """Bytes at the peak of a training step: weights, gradients, AdamW's state, activations, the catalogue's chunk.

    On a CPU also the program itself, as it is now, and what the allocator keeps.

    Args:
        sizes: of the model.
        tokens: of the largest piece that is computed at once.
        scores: its read-out positions times the items.
        settings: how it is trained.
        bits: of the frozen layers; None: float32.
        bf16: whether products are done in bfloat16.
        with_kl: the loss compares whole distributions of student and teacher.
    """
    weights = 4 * sizes.parameters - (sizes.frozen_layer_entries * (32 - bits) // 8 if bits else 0)
    state = 3 * 4 * sizes.trainable
    per_token = sizes.activations
    if isinstance(settings, DecoderTraining) and settings.gradient_checkpointing:
        per_token = sizes.activations // sizes.layers + sizes.layers * sizes.hidden
    activations = tokens * per_token * (3 if bf16 else 4)  # of bfloat16 and float32 about half each
    buffers = activations + (SCORE_BYTES + 8 * with_kl) * min(scores, MAX_CHUNK_SCORES)
    if torch.cuda.is_available():
        return weights + state + buffers
    return int(weights + state + KEPT_BY_ALLOCATOR * buffers + peak_rss_mb() * 2**20)


def training_seconds(sizes: Sizes, tokens: int, scores: int, rates: Rates) -> float:
    """Seconds of forward and backward over so many tokens and scores."""
    flop = 2 * tokens * (2 * sizes.products + sizes.trained_products)
    return flop / rates.flop / SHARE_OF_PRODUCTS + scores / rates.scores


def reading_seconds(sizes: Sizes, tokens: int, scores: int, rates: Rates) -> float:
    """Seconds of inference; a score that is ranked is taken to cost what one that is learned from does."""
    return 2 * tokens * sizes.products / rates.flop / SHARE_OF_PRODUCTS + scores / rates.scores


def measure_rates(sizes: Sizes, num_items: int, bf16: bool) -> Rates:
    """What this machine reaches on products of the model's width and on its catalogue, in about a second."""
    device, dtype = ("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16 if bf16 else torch.float32
    tokens, width = 512, sizes.hidden
    left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((tokens, width), (width, 4 * width)))
    calls = _per_second(lambda: left @ right, device)
    users = torch.randn(64, sizes.item_width, device=device, requires_grad=True)
    items = torch.randn(max(2, num_items + 1), sizes.item_width, device=device, requires_grad=True)
    targets = torch.ones(len(users), dtype=torch.int64, device=device)

    def learn() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss: Any = catalogue_cross_entropy(users, items, targets)
        loss.backward()

    return Rates(2 * tokens * right.numel() * calls, len(users) * len(items) * _per_second(learn, device))


def _per_second(call: Callable[[], Any], device: str) -> float:
    call()
    number, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < MEASURED_S:
        call()
        number += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return max(1, number) / max(seconds, 1e-9)
