"""Batches of samples; all random orders depend only on the seed and the epoch."""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from slmrec.data.dataset import Ints, Samples
from slmrec.data.permutation import NUM_ROUNDS, permuted
from slmrec.types import Batch, Histories, Unit

POOL_BATCHES = 50
"""Batches per pool of samples that are sorted by length; large enough for batches to remain random draws."""


def collate(
    samples: Samples,
    rows: Ints,
    max_history_items: int,
    every_position: bool = False,
    timestamp_unit: Unit | None = None,
) -> Batch:
    """Build a batch from the newest items of some samples.

    Args:
        samples: all samples.
        rows: (B,) the samples of the batch.
        max_history_items: the maximum number of items per history.
        every_position: whether each position of a history has a target, or only the last one.
        timestamp_unit: unit of the times of the histories; None: without times.

    Returns:
        Histories of shape (B, L), oldest item first, padded with 0 on the right, and their targets.

    Raises:
        DataError: times are requested, but the data have none.
    """
    starts, ends, _ = samples.spans(rows)
    starts = np.maximum(starts, ends - max_history_items)
    lengths = ends - starts
    columns = np.arange(lengths.max())
    inside = columns < lengths[:, None]
    indices = np.minimum(starts[:, None] + columns, len(samples.flat) - 1)
    items = np.where(inside, samples.flat[indices], 0).astype(np.int64)
    targets = samples.flat[(indices + 1)[inside] if every_position else ends].astype(np.int64)
    tensor = torch.from_numpy
    times = None if timestamp_unit is None else tensor(np.where(inside, samples.times_at(indices, timestamp_unit), 0))
    return Batch(Histories(tensor(items), tensor(lengths), times), tensor(targets), every_position, tensor(rows))


def pad_histories(
    histories: Sequence[Sequence[int]], max_history_items: int, times: Sequence[Sequence[int]] | None = None
) -> Histories:
    """Pad lists of items on the right to the longest one; only the newest `max_history_items` of each are kept.

    Args:
        histories: items of each history, oldest first.
        max_history_items: the maximum number of items per history.
        times: times of the items; None: without times.

    Example:
        >>> pad_histories([[1, 2, 3], [4]], 2).items.tolist()
        [[2, 3], [4, 0]]
    """
    newest = [history[-max_history_items:] for history in histories]
    padded = None if times is None else pad_items([own[-max_history_items:] for own in times])
    return Histories(pad_items(newest), torch.tensor([len(items) for items in newest]), padded)


def pad_items(lists: Sequence[Sequence[int]]) -> Tensor:
    """Return lists of items as (B, longest) int64, padded with 0 on the right.

    Example:
        >>> pad_items([[1, 2, 3], [4]]).tolist()
        [[1, 2, 3], [4, 0, 0]]
    """
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    padded = np.zeros((len(lists), lengths.max(initial=0)), np.int64)
    flat = np.fromiter(chain.from_iterable(lists), np.int64, lengths.sum())
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return torch.from_numpy(padded)


def shuffled(samples: Samples, batch_size: int, max_history_items: int, seed: int, epoch: int) -> Iterator[Ints]:
    """Yield the rows of each batch of one epoch: shuffled, sorted by length within pools, batches shuffled per pool.

    Sorting reduces padding, while batches remain nearly independent draws. The same seed and epoch give the same
    batches. At most one pool is in memory. There are ceil(samples / batch_size) batches; one of the last pool may be
    shorter.
    """
    generator = np.random.default_rng((seed, epoch))
    keys = generator.integers(0, 2**64, NUM_ROUNDS, np.uint64)
    size = batch_size * POOL_BATCHES
    for start in range(0, len(samples), size):
        pool = permuted(np.arange(start, min(start + size, len(samples))), len(samples), keys)
        lengths = np.minimum(samples.lengths(pool), max_history_items)
        pool = pool[np.argsort(lengths, kind="stable")]
        for first in batch_size * generator.permutation(-(-len(pool) // batch_size)):
            yield pool[first : first + batch_size]


def by_length(
    samples: Samples,
    batch_size: int,
    max_history_items: int,
    every_position: bool = False,
    timestamp_unit: Unit | None = None,
) -> Iterator[tuple[Ints, Batch]]:
    """Yield rows and batches of all samples for inference, shortest first; the arguments are those of `collate`."""
    order = np.argsort(samples.clipped_lengths(max_history_items), kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, collate(samples, rows, max_history_items, every_position, timestamp_unit)
