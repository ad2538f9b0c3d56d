"""How much the layers of a model differ: how far each turns the states, and how alike their representations are."""

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_USERS = 4
"""What the unbiased estimate takes."""


def layer_cosines(states: Tensor) -> Tensor:
    """(N,) the mean cosine between what each layer reads and what it puts out.

    A layer of cosine 1 turns nothing. Source: Men et al. 2024, ShortGPT, whose block influence is 1 minus this.

    Args:
        states: (N + 1, users, H) what the first layer reads, then what each layer puts out.

    Example:
        >>> layer_cosines(torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]])).tolist()
        [1.0, 0.0]
    """
    return F.cosine_similarity(states[:-1].float(), states[1:].float(), dim=-1).mean(dim=1)


def cka(states: Tensor) -> Tensor:
    """(K, K) linear centred kernel alignment of each pair of K representations of the same users.

    1 means alike up to rotation and scale. The estimate is the unbiased one, which does not rise where users are few
    and numbers of a state many; it can be slightly negative. Source: Kornblith et al. 2019; Nguyen et al. 2021, eq. 3.

    Args:
        states: (K, users, H).

    Raises:
        ValueError: fewer than 4 users.
    """
    num_users = states.shape[1]
    if num_users < MIN_USERS:
        raise ValueError(f"{num_users} users, expected at least {MIN_USERS}")
    grams = torch.stack([_gram(of_one) for of_one in states.double()])
    flat, rows, sums = grams.flatten(1), grams.sum(dim=2), grams.sum(dim=(1, 2))
    hsic = flat @ flat.T + sums[:, None] * sums / ((num_users - 1) * (num_users - 2))
    hsic = hsic - 2 / (num_users - 2) * rows @ rows.T
    scale = hsic.diagonal().clamp(min=torch.finfo(hsic.dtype).tiny).sqrt()
    return (hsic / scale[:, None] / scale).float()


def _gram(states: Tensor) -> Tensor:
    """(users, users) products of the states of any two users, without those of a user with itself."""
    centred = states - states.mean(dim=0)  # changes nothing but the size of the numbers that are summed
    return (centred @ centred.T).fill_diagonal_(0)
