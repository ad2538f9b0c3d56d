"""Similarity of the layers of a model: cosine of input and output, and centred kernel alignment (CKA)."""

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_USERS = 4
"""Minimum number of users of the unbiased estimate."""


def layer_cosines(states: Tensor) -> Tensor:
    """Return the mean cosine (N,) between the input and the output of each layer.

    A layer with cosine 1 does not change the direction of the states. Source: Men et al. 2024, ShortGPT, whose block
    influence is 1 minus this cosine.

    Args:
        states: (N + 1, users, H) input of the first layer, then the output of each layer.

    Example:
        >>> layer_cosines(torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]])).tolist()
        [1.0, 0.0]
    """
    return F.cosine_similarity(states[:-1].float(), states[1:].float(), dim=-1).mean(dim=1)


def cka(states: Tensor) -> Tensor:
    """Return the linear centred kernel alignment (K, K) of each pair of K representations of the same users.

    1 means equal up to rotation and scale. The estimate is unbiased: it does not grow when H is large compared to the
    number of users, and it can be slightly negative. Source: Kornblith et al. 2019; Nguyen et al. 2021, eq. 3.

    Args:
        states: (K, users, H) representations.

    Raises:
        ValueError: There are fewer than 4 users.

    Example:
        >>> one = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -2.0], [3.0, 1.0]])
        >>> cka(torch.stack([one, 2 * one])).round(decimals=2).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    num_users = states.shape[1]
    if num_users < MIN_USERS:
        raise ValueError(f"{num_users} users, expected at least {MIN_USERS}")
    grams = torch.stack([_gram(representation) for representation in states.double()])
    flat, rows, sums = grams.flatten(1), grams.sum(dim=2), grams.sum(dim=(1, 2))
    hsic = flat @ flat.T + sums[:, None] * sums / ((num_users - 1) * (num_users - 2))
    hsic = hsic - 2 / (num_users - 2) * rows @ rows.T
    scale = hsic.diagonal().clamp(min=torch.finfo(hsic.dtype).tiny).sqrt()
    return (hsic / scale[:, None] / scale).float()


def _gram(states: Tensor) -> Tensor:
    """Return the products (users, users) of the states of each two users, with a zero diagonal."""
    centred = states - states.mean(dim=0)  # the result is the same; smaller numbers are summed
    return (centred @ centred.T).fill_diagonal_(0)
