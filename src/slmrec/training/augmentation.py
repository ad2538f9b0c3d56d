"""Augmented histories: crops, dropped items and reordered parts, which a teacher labels on the fly.

Source: Xie et al., Contrastive Learning for Sequential Recommendation (ICDE 2022; CL4SRec), whose masks are dropped
items here.
"""

from collections.abc import Callable

import numpy as np
import torch

from slmrec.config.distill import AugmentSettings
from slmrec.data.batching import pad_items
from slmrec.data.dataset import Ints
from slmrec.types import Batch, Histories

Change = Callable[[int, np.random.Generator], Ints]
"""Function of the number of items of a history and of the item after it (n + 1) that returns their new order."""
UNCACHED = -1
"""Sample number of a history that was changed, so that nothing which is stored for the sample belongs to it."""


def augmented(batch: Batch, settings: AugmentSettings) -> Batch:
    """Return a batch in which some histories are changed; the targets are the items that then follow.

    The changes are drawn from `torch.manual_seed`. A history keeps at least one item, and one item follows it.
    Items keep their times, except that items that change places take those of their new places.

    Args:
        batch: Batch on the CPU.
        settings: Share of the histories that are changed, and the changes.

    Example:
        >>> batch = Batch(Histories(torch.tensor([[3, 7, 5, 9]]), torch.tensor([4])), torch.tensor([8]), False)
        >>> changed = augmented(batch, AugmentSettings(share=1, crop=0.5, drop=None, reorder=None))
        >>> changed.histories.lengths.tolist()
        [2]
    """
    generator = np.random.default_rng(int(torch.randint(2**62, (1,))))
    changes = _changes(settings)
    lengths = batch.histories.lengths.numpy()
    nexts = batch.targets.numpy()[np.cumsum(lengths) - 1] if batch.every_position else batch.targets.numpy()
    rows = np.full(len(lengths), UNCACHED) if batch.rows is None else batch.rows.numpy().copy()
    sequences, times = [], None if batch.histories.times is None else batch.histories.times.numpy()
    own_times = []
    for row, (items, length) in enumerate(zip(batch.histories.items.numpy(), lengths, strict=True)):
        sequence, kept = np.append(items[:length], nexts[row]), np.arange(length)
        if length > 1 and generator.random() < settings.share:
            order = changes[generator.integers(len(changes))](len(sequence), generator)
            sequence, kept, rows[row] = sequence[order], np.sort(order)[:-1], UNCACHED
        sequences.append(sequence)
        if times is not None:
            own_times.append(times[row][kept].tolist())
    histories = Histories(
        pad_items([sequence[:-1].tolist() for sequence in sequences]),
        torch.tensor([len(sequence) - 1 for sequence in sequences]),
        None if times is None else pad_items(own_times),
    )
    targets = [sequence[1 if batch.every_position else -1 :] for sequence in sequences]
    return Batch(histories, torch.from_numpy(np.concatenate(targets)), batch.every_position, torch.from_numpy(rows))


def _changes(settings: AugmentSettings) -> list[Change]:
    changes: list[Change] = []
    if settings.crop is not None:
        changes.append(_cropped(settings.crop))
    if settings.drop is not None:
        changes.append(_thinned(settings.drop))
    if settings.reorder is not None:
        changes.append(_reordered(settings.reorder))
    return changes


def _cropped(kept: float) -> Change:
    def change(num: int, generator: np.random.Generator) -> Ints:
        length = max(1, round(kept * (num - 1))) + 1
        return generator.integers(num - length + 1) + np.arange(length)

    return change


def _thinned(dropped: float) -> Change:
    def change(num: int, generator: np.random.Generator) -> Ints:
        places = np.flatnonzero(generator.random(num) >= dropped)
        return places if len(places) > 1 else np.sort(generator.choice(num, 2, replace=False))

    return change


def _reordered(share: float) -> Change:
    def change(num: int, generator: np.random.Generator) -> Ints:
        places, length = np.arange(num), max(2, round(share * (num - 1)))
        start = generator.integers(num - length)  # the item after the history stays where it is
        places[start : start + length] = generator.permutation(places[start : start + length])
        return places

    return change
