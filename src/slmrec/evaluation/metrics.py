"""Ranks of the held-out items, and the metrics made of them; knows neither data nor models.

Each user has one relevant item. Ties are broken by chance, and the chances are spread evenly over the users, so that a
model that scores all C candidates alike gets hit@k = k/C (the reference ranks the target first among its ties, and such
a model gets hit@1 = 1).
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slmrec.errors import TrainingError

HIT_CUTOFFS = (1, 5, 10, 20)
NDCG_CUTOFFS = (5, 10, 20)
MAX_NAMED_USERS = 5
"""Users that an error message names before it only counts them."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def tie_draws(num_users: int, seed: int) -> Floats:
    """(num_users,) numbers in [0, 1), one from the middle of each of num_users equal strata, in random order.

    Example:
        >>> sorted(tie_draws(4, seed=0).tolist())
        [0.125, 0.375, 0.625, 0.875]
    """
    return (np.random.default_rng(seed).permutation(num_users) + 0.5) / num_users


def ranks_of_targets(scores: Tensor, target_columns: Tensor, tie_draws: Floats, users: Ints | None = None) -> Ints:
    """The rank of each user's target among the candidates, 0 for the best.

    It is the number of candidates with a higher score, plus floor(draw * (1 + number of other candidates tied)).

    Args:
        scores: (B, C); -inf takes a candidate out.
        target_columns: (B,) int64, the column of each user's target.
        tie_draws: (B,) in [0, 1), see `tie_draws`.
        users: (B,) what an error calls the users; by default their rows.

    Returns:
        (B,) ranks.

    Raises:
        TrainingError: a user has a NaN among the scores, or the target's score is infinite.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
        >>> ranks_of_targets(scores, torch.tensor([2, 0]), np.array([0.5, 0.5])).tolist()
        [1, 1]
    """
    targets = scores.gather(1, target_columns[:, None])
    _check_finite(scores, targets, np.arange(len(scores)) if users is None else users)
    better = (scores > targets).sum(dim=1).cpu().numpy()
    tied = (scores == targets).sum(dim=1).cpu().numpy() - 1
    # A draw next to 1 can round up to 1 + tied.
    below = np.minimum(np.floor(tie_draws * (1 + tied)), tied)
    return np.asarray(better + below, dtype=np.int64)


def _check_finite(scores: Tensor, targets: Tensor, users: Ints) -> None:
    broken = (scores.isnan().any(dim=1) | ~targets[:, 0].isfinite()).cpu().numpy()
    if not broken.any():
        return
    names = [str(user) for user in users[broken]]
    more = f" and {len(names) - MAX_NAMED_USERS} more" if len(names) > MAX_NAMED_USERS else ""
    raise TrainingError(
        f"scores of users (counted from 0) {', '.join(names[:MAX_NAMED_USERS])}{more}: "
        "got NaN, or an infinite score of the target, expected finite numbers; "
        "the model has diverged, train it again with a lower learning_rate"
    )


def user_metrics(ranks: Ints) -> dict[str, Floats]:
    """Each metric of each user, (num_users,), from 0-based ranks.

    `hit@k` is 1 if rank < k. `ndcg@k` is 1 / log2(rank + 2) if rank < k: with one relevant item the ideal DCG is 1.
    `mrr` is 1 / (rank + 1), without a cut-off.

    Source: NDCG, Järvelin and Kekäläinen (TOIS 2002), with the discount of Burges et al. (ICML 2005); MRR, Voorhees
    (TREC-8, 1999).
    """
    gains = 1 / np.log2(ranks + 2)
    return {
        **{f"hit@{k}": (ranks < k).astype(np.float64) for k in HIT_CUTOFFS},
        **{f"ndcg@{k}": np.where(ranks < k, gains, 0.0) for k in NDCG_CUTOFFS},
        "mrr": 1 / (ranks + 1.0),
    }


def ranking_metrics(ranks: Ints) -> dict[str, float]:
    """The means over the users of `user_metrics`: hit@{1,5,10,20}, ndcg@{5,10,20} and mrr.

    Raises:
        ValueError: there are no ranks.

    Example:
        >>> metrics = ranking_metrics(np.array([0, 2, 30]))
        >>> metrics["hit@1"], metrics["ndcg@10"]  # (1 + 1/2 + 0) / 3
        (0.3333333333333333, 0.5)
    """
    if len(ranks) == 0:
        raise ValueError("no ranks: a metric needs at least one user")
    return {name: float(values.mean()) for name, values in user_metrics(ranks).items()}
