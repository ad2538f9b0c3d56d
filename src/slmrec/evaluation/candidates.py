"""Candidates of the ranking protocols: sampled negatives, and metrics that the number of candidates decides."""

import numpy as np
from numpy.typing import NDArray

from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.errors import DataError
from slmrec.evaluation.metrics import HIT_CUTOFFS, ranking_metrics


def is_sampled(protocol: str) -> bool:
    """Return whether a protocol ranks the target among sampled negatives.

    Example:
        >>> is_sampled("sampled_999"), is_sampled("full")
        (True, False)
    """
    return protocol.startswith("sampled_")


def draw_negatives(dataset: Dataset, num_negatives: int, seed: int, users: Ints | None = None) -> NDArray[np.int32]:
    """Draw negatives (U, K) of each user uniformly and without replacement.

    Negatives are items that occur nowhere in the sequence of the user, held-out events included. The same data and seed
    give the same negatives.

    Args:
        dataset: The data set.
        num_negatives: K.
        seed: Seed of the draws.
        users: Users to draw for; None: all. The rows of other users are 0.

    Raises:
        DataError: A user has fewer than `num_negatives` such items.

    Example:
        >>> negatives = draw_negatives(dataset, 20, seed=1)
        >>> negatives.shape == (dataset.num_users, 20)
        True
    """
    generator = np.random.default_rng(seed)
    negatives = np.zeros((dataset.num_users, num_negatives), dtype=np.int32)
    for user in range(dataset.num_users) if users is None else users:
        seen = np.unique(dataset.flat[dataset.offsets[user] : dataset.offsets[user + 1]])
        num_free = dataset.num_items - len(seen)
        if num_free < num_negatives:
            raise _too_few_items(dataset, user, num_free, num_negatives)
        nth = generator.choice(num_free, num_negatives, replace=False, shuffle=False)
        # seen[j] - 1 - j free items precede seen[j]; the n-th free item follows all seen items that at most n precede.
        negatives[user] = nth + 1 + np.searchsorted(seen - 1 - np.arange(len(seen)), nth, side="right")
    return negatives


def check_negatives(dataset: Dataset, num_negatives: int, users: Ints) -> None:
    """Check that negatives are a sample, not nearly the whole catalogue, and that all of some users have enough items.

    Raises:
        DataError: The data set has fewer than 2 x `num_negatives` + 2 items, or a user has too few.
    """
    if dataset.num_items < 2 * num_negatives + 2:
        most = dataset.num_items // 2 - 1
        smaller = f"name a protocol of fewer, such as sampled_{most}, or " if most > 0 else ""
        raise DataError(
            f"evaluate.num_negatives is {num_negatives} (evaluate.protocols has sampled_{num_negatives}), but the data "
            f"set has {dataset.num_items} items, and a sampled protocol needs 2 x num_negatives + 2; {smaller}leave it "
            "out: evaluate.protocols=[full_history_excluded,full]"
        )
    if dataset.num_items - np.diff(dataset.offsets).max(initial=0) >= num_negatives:
        return
    for user in users:
        num_free = dataset.num_items - len(np.unique(dataset.flat[dataset.offsets[user] : dataset.offsets[user + 1]]))
        if num_free < num_negatives:
            raise _too_few_items(dataset, user, num_free, num_negatives)


def _too_few_items(dataset: Dataset, user: int, num_free: int, num_negatives: int) -> DataError:
    return DataError(
        f"evaluate.protocols has sampled_{num_negatives}, but user {dataset.user_ids[user].as_py()!r} has only "
        f"{num_free} of the {dataset.num_items} items left outside the history; choose sampled_N with a smaller N, or "
        "leave it out: evaluate.protocols=[full_history_excluded,full]"
    )


def constant_metrics(protocol: str, samples: Samples, num_items: int) -> list[str]:
    """Return the metrics that are 1 for every model: no user has a candidate beyond their cut-off.

    Args:
        protocol: The ranking protocol.
        samples: One sample for each user.
        num_items: V.

    Example:
        >>> samples = Samples.of(np.array([1, 2, 3]), np.array([0]), np.array([2]), np.array([0]))
        >>> constant_metrics("full", samples, 8), len(constant_metrics("full_history_excluded", samples, 3))
        (['hit@10', 'hit@20'], 8)
    """
    worst_rank = np.array([_most_candidates(protocol, samples, num_items) - 1])
    return [name for name, value in ranking_metrics(worst_rank).items() if value == 1]


def _most_candidates(protocol: str, samples: Samples, num_items: int) -> int:
    """Return the largest number of candidates of a user; more than the largest cut-off are not counted."""
    if is_sampled(protocol):
        return int(protocol.removeprefix("sampled_")) + 1
    if protocol == "full":
        return num_items
    most = 1
    for rows in samples.chunks():
        for start, end in zip(*samples.spans(rows)[:2], strict=True):
            excluded = np.setdiff1d(samples.flat[start:end], samples.flat[end : end + 1])
            most = max(most, num_items - len(excluded))
            if most > max(HIT_CUTOFFS):
                return most
    return most
