"""What top lists are like, whether they are right or not: how much of the catalogue, how known, how varied.

A list is a row of (U, k): items 1..V, filled up with 0 where fewer than k could be recommended. The order within a list
does not matter here. What is measured list by list is averaged over the lists that have an item (for pairs of items:
two); the others are left out. Knows neither data nor models.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lists = NDArray[np.integer[Any]]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MAX_VALUES = 2**20
"""Values of items, or coordinates of their vectors (float64), looked at together: 8 MiB."""


def list_metrics(
    lists: Lists, train_counts: Ints, history_popularity: float, item_vectors: NDArray[np.floating[Any]] | None
) -> dict[str, float]:
    """All metrics of this module: coverage@k, novelty@k, gini@k, ild@k and popularity_lift@k.

    A metric that is not defined is absent: all but coverage if nothing is recommended at all, `ild` without item
    vectors or a list of two items, `popularity_lift` if no history holds an item of the train split.

    Args:
        lists: (U, k) of one model.
        train_counts: (V+1,) how often each item occurs in the train split.
        history_popularity: the mean of `list_means(histories, train_counts)` over the users.
        item_vectors: (V+1, D), the same for all models that are compared.

    Raises:
        ValueError: no item occurs in the train split.
    """
    counts = recommendation_counts(lists, len(train_counts) - 1)
    found = {"coverage": coverage(counts)}
    if counts.any():
        found["novelty"] = float(list_means(lists, self_information(train_counts)).mean())
        found["gini"] = gini(counts)
        distances = np.empty(0) if item_vectors is None else intra_list_distances(lists, item_vectors)
        if len(distances):
            found["ild"] = float(distances.mean())
        if history_popularity > 0:
            found["popularity_lift"] = popularity_lift(list_means(lists, train_counts), history_popularity)
    return {f"{name}@{lists.shape[1]}": value for name, value in found.items()}


def recommendation_counts(lists: Lists, num_items: int) -> Ints:
    """(V+1,) the number of lists with each item; that of the padding item is 0.

    Example:
        >>> recommendation_counts(np.array([[3, 1], [3, 0]]), num_items=4).tolist()
        [0, 1, 0, 2, 0]
    """
    counts = np.bincount(lists.ravel(), minlength=num_items + 1).astype(np.int64)
    counts[0] = 0
    return counts


def coverage(counts: Ints) -> float:
    """The share of the catalogue that is recommended to anyone.

    Args:
        counts: (V+1,) of `recommendation_counts`.

    Example:
        >>> coverage(np.array([0, 1, 0, 2, 0]))
        0.5

    Source: aggregate diversity, Adomavicius and Kwon (TKDE 2012); catalogue coverage, Ge et al. (RecSys 2010).
    """
    return float((counts[1:] > 0).mean())


def gini(counts: Ints) -> float:
    """How unequally recommendations fall on the catalogue: 0 if all items get as many, 1 - 1/V if one gets all.

    With the counts c in ascending order it is the sum over j = 1..V of (2j - V - 1) c_j, divided by V times their sum.
    Lists of k different items cannot be more unequal than 1 - k/V.

    Args:
        counts: (V+1,) of `recommendation_counts`.

    Raises:
        ValueError: nothing was recommended.

    Example:
        >>> gini(np.array([0, 1, 0, 3, 0]))  # (1 * 1 + 3 * 3) / (4 * 4)
        0.625

    Source: Gini (1912); for recommendations Fleder and Hosanagar (Management Science 2009). Castells, Hurley and Vargas
    (Recommender Systems Handbook 2015) divide by V - 1 in place of V.
    """
    if not counts.any():
        raise ValueError("no recommendations: their inequality is not defined")
    ascending = np.sort(counts[1:])
    num_items = len(ascending)
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ ascending) / (num_items * float(ascending.sum()))


def self_information(train_counts: Ints) -> Floats:
    """(V+1,) -log2 of each item's share of the train events, in bits: how little known it is; that of padding is 0.

    An item without a train event would have infinite self-information; it gets that of an item with one event.

    Args:
        train_counts: (V+1,) how often each item occurs in the train split.

    Raises:
        ValueError: no item occurs there.

    Example:
        >>> self_information(np.array([0, 4, 2, 1, 1, 0])).tolist()
        [0.0, 1.0, 2.0, 3.0, 3.0, 3.0]

    Source: novelty as mean self-information, Zhou et al. (PNAS 2010), Vargas and Castells (RecSys 2011), who take the
    share of users in place of events.
    """
    if not train_counts[1:].any():
        raise ValueError("no train events: an item has no share of them")
    total = train_counts[1:].sum()
    information = np.log2(total) - np.log2(np.maximum(train_counts, 1))
    information[0] = 0
    return np.asarray(information, dtype=np.float64)


def list_means(lists: Lists, values: Ints | Floats) -> Floats:
    """The mean value of the items of each list, for the lists that have one.

    Args:
        lists: (U, k).
        values: (V+1,) of each item; that of the padding item is not read.

    Example:
        >>> list_means(np.array([[2, 1], [3, 0], [0, 0]]), np.array([9, 1, 3, 7])).tolist()
        [2.0, 7.0]
    """
    means = [_means(part, values) for part in _split(lists[(lists > 0).any(axis=1)])]
    return np.concatenate([np.empty(0), *means])


def _means(lists: Lists, values: Ints | Floats) -> Floats:
    inside = lists > 0
    return np.asarray(np.where(inside, values[lists], 0).sum(axis=1) / inside.sum(axis=1), dtype=np.float64)


def _split(lists: Lists, width: int = 1) -> Iterator[Lists]:
    """Some lists at a time, given how many values each of their items has."""
    num_rows = max(1, _MAX_VALUES // (lists.shape[1] * width))
    return (lists[at : at + num_rows] for at in range(0, len(lists), num_rows))


def popularity_lift(recommended: Floats, history_popularity: float) -> float:
    """How much more popular the recommended items are than those of the histories: 0 as popular, 1 twice as popular.

    Args:
        recommended: the mean train count of the items of each list, from `list_means`.
        history_popularity: the mean over the users of the mean train count of the items of their history.

    Raises:
        ValueError: the items of the histories have no train event.

    Example:
        >>> popularity_lift(np.array([6.0, 3.0]), 3.0)
        0.5

    Source: the lift of the group average popularity, Abdollahpouri et al. (RecSys 2020; RMSE workshop 2019), with all
    users in one group. That popular items are overrated by offline evaluation as well: Steck (RecSys 2011).
    """
    if history_popularity <= 0:
        raise ValueError(f"history_popularity is {history_popularity}, expected a positive mean train count")
    return float(recommended.mean()) / history_popularity - 1


def intra_list_distances(lists: Lists, item_vectors: NDArray[np.floating[Any]]) -> Floats:
    """The mean distance, 1 - cosine, over the pairs of items of each list, for the lists that have a pair.

    A vector of length 0 has cosine 0 with all others.

    Args:
        lists: (U, k).
        item_vectors: (V+1, D); that of the padding item is not read.

    Example:
        >>> vectors = np.array([[0, 0], [1, 0], [0, 2], [3, 0]])
        >>> intra_list_distances(np.array([[1, 3, 0], [1, 2, 3], [2, 0, 0]]), vectors).tolist()  # 0; (1 + 0 + 1) / 3
        [0.0, 0.6666666666666667]

    Source: intra-list similarity, Ziegler et al. (WWW 2005); as a distance, Vargas and Castells (RecSys 2011).
    """
    pairs = lists[(lists > 0).sum(axis=1) > 1]
    distances = [_distances(part, item_vectors) for part in _split(pairs, item_vectors.shape[1])]
    return np.concatenate([np.empty(0), *distances])


def _distances(lists: Lists, item_vectors: NDArray[np.floating[Any]]) -> Floats:
    inside = lists > 0
    vectors = item_vectors[lists].astype(np.float64)
    norms = np.linalg.norm(vectors, axis=2, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=inside[:, :, None] & (norms > 0))
    # The squared sum of unit vectors holds each pair's cosine twice, and their own squares once.
    cosines = ((units.sum(axis=1) ** 2).sum(axis=1) - (units**2).sum(axis=(1, 2))) / 2
    num = inside.sum(axis=1)
    return np.asarray(1 - cosines / (num * (num - 1) / 2), dtype=np.float64)
