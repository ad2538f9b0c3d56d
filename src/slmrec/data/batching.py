"""From samples to padded batches: every order that is drawn depends on seed and epoch alone."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from slmrec.data.dataset import Ints, Samples
from slmrec.types import Batch

POOL_BATCHES = 50
"""Batches whose samples are sorted by length together: long enough that a batch stays a random draw."""


def collate(samples: Samples, rows: Ints, max_history_items: int, every_position: bool = False) -> Batch:
    """The batch of some samples: the newest items of each, oldest first, padded with 0 on the right to the longest."""
    ends = samples.ends[rows]
    starts = np.maximum(samples.starts[rows], ends - max_history_items)
    lengths = ends - starts
    columns = np.arange(lengths.max())
    inside = columns < lengths[:, None]
    at = np.minimum(starts[:, None] + columns, len(samples.flat) - 1)
    items = np.where(inside, samples.flat[at], 0)
    targets = samples.flat[(at + 1)[inside]] if every_position else samples.flat[ends]
    tensor = torch.from_numpy
    return Batch(tensor(items), tensor(lengths), tensor(targets), every_position, tensor(rows))


def shuffled(lengths: Ints, batch_size: int, seed: int, epoch: int) -> list[Ints]:
    """Rows of each batch of one epoch: shuffled, then sorted by length within pools, then the batches shuffled.

    Few pads, and batches that are still nearly independent draws. The same seed and epoch give the same batches.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), batch_size * POOL_BATCHES):
        pool = order[start : start + batch_size * POOL_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[number] for number in generator.permutation(len(batches))]


def by_length(
    samples: Samples, batch_size: int, max_history_items: int, every_position: bool = False
) -> Iterator[tuple[Ints, Batch]]:
    """Rows and batches of all samples, shortest first: for inference."""
    order = np.argsort(np.minimum(samples.lengths, max_history_items), kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, collate(samples, rows, max_history_items, every_position)
