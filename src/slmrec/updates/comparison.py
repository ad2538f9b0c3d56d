"""The newest events, which an update holds out from training, ranked by the model before it and by the new one."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch

from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.data.event_times import EventTimes
from slmrec.evaluation.metrics import user_metrics
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.models.folder import load_recommender
from slmrec.pipeline.decision import METRIC, METRIC_NAME, Difference
from slmrec.updates.merge import Changes

SHARE, FEW, MAX_USERS = 0.1, 50, 5_000
"""Share of the users with a newer event whose last one is held out for the comparison, and as many to choose the best
epoch: at least `FEW` users, but half of them at most, and at most `MAX_USERS`."""


class Comparison(NamedTuple):
    """NDCG@10 of two models on the newest events of the same users."""

    num_users: int
    old: float
    new: float
    difference: Difference
    """How far the new model is ahead."""

    @property
    def is_no_worse(self) -> bool:
        """True if the upper end of the interval is above zero, or if the models do not differ for any user."""
        return self.difference.high > 0 or self.difference.low == self.difference.high == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `update.json`."""
        return {
            "metric": METRIC,
            "num_users": self.num_users,
            "old": self.old,
            "new": self.new,
            "difference": self.difference.value,
            "interval": [self.difference.low, self.difference.high],
        }

    def __str__(self) -> str:
        """Return the figures as text."""
        where = f"{METRIC_NAME} on the newest events of {self.num_users:,} users"
        return f"{where} {self.old:.4f} -> {self.new:.4f} ({self.difference})"


def cuts_of(changes: Changes, seed: int) -> Ints:
    """Return (U, 2) the numbers of events of each user before validation and before test.

    The last events of some users are the test events, which decide whether the new model is shipped; those of others
    are the validation events, by which the best epoch is chosen. Users whose last event is new come first; all other
    events are training events.

    Args:
        changes: The data of the update.
        seed: Seed by which users are drawn.
    """
    users, num = changes.events.users, len(changes.user_ids)
    lengths = np.bincount(users, minlength=num)
    ends = np.cumsum(lengths) - 1
    is_new = changes.events.is_new[ends] & (lengths > 1)
    random = np.random.default_rng(seed)
    newer, older = (random.permutation(np.flatnonzero(chosen)) for chosen in (is_new, ~is_new & (lengths > 1)))
    size = min(MAX_USERS, max(round(SHARE * len(newer)), min(FEW, len(newer) // 2)))
    order = np.concatenate([newer, older]) if size else np.concatenate([newer, older[: 2 * FEW]])
    size = size or max(1, len(order) // 2)
    cuts = np.stack([lengths, lengths], axis=1)
    cuts[order[:size]] -= 1
    cuts[order[size : 2 * size], 0] -= 1
    return cuts


def compare(old: Path, new: Path, dataset: Dataset, protocol: str, batch_size: int) -> Comparison:
    """Rank the test events of an update by the model before it and by the new one, among the same items.

    Items that the old model lacks are missing in the histories that it reads, and rank behind all that it knows.

    Args:
        old: Folder of the model before the update.
        new: Folder of the new model.
        dataset: Data set of the update.
        protocol: Ranking protocol.
        batch_size: Number of users encoded at once.
    """
    samples = dataset.held_out("test")
    ranks = [_ranks(folder, samples, dataset, protocol, batch_size) for folder in (old, new)]
    before, after = (user_metrics(values)[METRIC] for values in ranks)
    difference = Difference.of(after, before)
    return Comparison(len(samples), float(before.mean()), float(after.mean()), difference)


def _ranks(folder: Path, samples: Samples, dataset: Dataset, protocol: str, batch_size: int) -> Ints:
    model, vocabulary = load_recommender(folder)
    places = pc.fill_null(pc.index_in(dataset.item_ids, value_set=vocabulary.item_ids), -1)
    numbers = np.append(0, np.asarray(places.to_numpy(zero_copy_only=False), np.int64) + 1)
    own, rows = _known_part(samples, numbers)
    ranks = np.full(len(samples), dataset.num_items - 1, np.int64)
    if len(own):
        scorer = EncoderScorer(model.to("cuda" if torch.cuda.is_available() else "cpu"))
        ranks[rows] = evaluate_scorer(scorer, own, batch_size=batch_size, protocols=(protocol,))[protocol]
    return ranks


def _known_part(samples: Samples, numbers: Ints) -> tuple[Samples, Ints]:
    """Return the samples in the items of a model, without those whose target or whole history it lacks, and their rows.

    Args:
        samples: Samples.
        numbers: (V+1,) the number of each item in the model; 0 for those that it lacks.
    """
    starts, ends, users = samples.spans(np.arange(len(samples)))
    spans = [np.arange(start, end + 1) for start, end in zip(starts, ends, strict=True)]
    events = np.concatenate([np.empty(0, np.int64), *spans])
    owners = np.repeat(np.arange(len(spans)), ends + 1 - starts)
    flat = numbers[np.asarray(samples.flat[events], np.int64)]
    is_target = np.append(np.diff(owners) > 0, True)[: len(owners)]
    is_kept = (flat > 0) & (flat[is_target] > 0)[owners]
    lengths = np.bincount(owners[is_kept], minlength=len(spans))
    rows = np.flatnonzero(lengths > 1)
    is_kept &= (lengths > 1)[owners]
    last = np.cumsum(lengths[rows])
    own = Samples.of(flat[is_kept], last - lengths[rows], last - 1, users[rows])
    if samples.times is not None:
        unit = samples.times.unit
        own = replace(own, times=EventTimes(unit, samples.times.at(events[is_kept], unit)))
    return own, rows
