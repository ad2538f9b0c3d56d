"""Ranks of the held-out items and ranking metrics, as pure functions.

Each user has one relevant item. Ties are ordered at random, with draws that are spread evenly over the users, so that a
model with equal scores for all C candidates gets hit@k = k/C. (The reference ranks the target first among its ties, and
such a model gets hit@1 = 1.)
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slmrec.errors import TrainingError

HIT_CUTOFFS = (1, 5, 10, 20)
NDCG_CUTOFFS = (5, 10, 20)
MAX_NAMED_USERS = 5
"""Maximum number of users that an error message names; further ones are counted."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def tie_draws(num_users: int, seed: int) -> Floats:
    """Draw numbers (num_users,) in [0, 1): the centres of num_users equal strata, in random order.

    Args:
        num_users: Number of draws.
        seed: Seed of the order.

    Example:
        >>> sorted(tie_draws(4, seed=0).tolist())
        [0.125, 0.375, 0.625, 0.875]
    """
    return (np.random.default_rng(seed).permutation(num_users) + 0.5) / num_users


def ranks_of_targets(scores: Tensor, target_columns: Tensor, tie_draws: Floats, users: Ints | None = None) -> Ints:
    """Return the rank (B,) of the target of each user among the candidates; 0 is the best.

    The rank is the number of candidates with a higher score, plus floor(draw * (1 + number of other tied candidates)).

    Args:
        scores: (B, C) scores; -inf excludes a candidate.
        target_columns: (B,) int64 column of the target of each user.
        tie_draws: (B,) numbers in [0, 1), see `tie_draws`.
        users: (B,) numbers of the users for error messages; None: their rows.

    Raises:
        TrainingError: A score of a user is NaN, or the score of the target is infinite.

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
    # a draw close to 1 can be rounded up to 1 + tied
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
    """Return the metrics of each user (num_users,) by name.

    `hit@k` is 1 if rank < k, else 0. `ndcg@k` is 1 / log2(rank + 2) if rank < k, else 0: with one relevant item the
    ideal DCG is 1. `mrr` is 1 / (rank + 1), without a cut-off.

    Args:
        ranks: (num_users,) 0-based ranks.

    Source: NDCG, Järvelin and Kekäläinen (TOIS 2002), with the discount of Burges et al. (ICML 2005); MRR, Voorhees
    (TREC-8, 1999).

    Example:
        >>> user_metrics(np.array([0, 2, 30]))["ndcg@10"].tolist()
        [1.0, 0.5, 0.0]
    """
    gains = 1 / np.log2(ranks + 2)
    return {
        **{f"hit@{k}": (ranks < k).astype(np.float64) for k in HIT_CUTOFFS},
        **{f"ndcg@{k}": np.where(ranks < k, gains, 0.0) for k in NDCG_CUTOFFS},
        "mrr": 1 / (ranks + 1.0),
    }


def ranking_metrics(ranks: Ints) -> dict[str, float]:
    """Return the means of `user_metrics` over the users: hit@{1,5,10,20}, ndcg@{5,10,20} and mrr.

    Args:
        ranks: (num_users,) 0-based ranks.

    Raises:
        ValueError: There are no ranks.

    Example:
        >>> metrics = ranking_metrics(np.array([0, 2, 30]))
        >>> metrics["hit@1"], metrics["ndcg@10"]  # (1 + 1/2 + 0) / 3
        (0.3333333333333333, 0.5)
    """
    if len(ranks) == 0:
        raise ValueError("no ranks: a metric needs at least one user")
    return {name: float(values.mean()) for name, values in user_metrics(ranks).items()}
