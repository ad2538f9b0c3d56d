"""Metrics of top lists beyond accuracy, as pure functions: coverage, novelty, inequality, diversity, popularity lift.

A list is a row of an array (U, k) of items 1..V, padded with 0 where fewer than k items can be recommended. The order
within a list does not matter. Metrics of single lists are averaged over the lists with at least one item (metrics of
pairs: two items).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lists = NDArray[np.integer[Any]]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MAX_VALUES = 2**20
"""Maximum number of float64 values in memory at once (8 MiB)."""


def list_metrics(
    lists: Lists, train_counts: Ints, history_popularity: float, item_vectors: NDArray[np.floating[Any]] | None
) -> dict[str, float]:
    """Return all metrics of this module: coverage@k, novelty@k, gini@k, ild@k and popularity_lift@k.

    Undefined metrics are absent: all but coverage if all lists are empty, `ild` without item vectors or without a list
    of two items, `popularity_lift` if no history contains an item of the train split.

    Args:
        lists: (U, k) top lists of one model.
        train_counts: (V+1,) number of events of each item in the train split.
        history_popularity: Mean of `list_means(histories, train_counts)` over the users.
        item_vectors: (V+1, D) item vectors, the same for all models that are compared.

    Raises:
        ValueError: No item occurs in the train split.

    Example:
        >>> lists, counts = np.array([[1, 2], [1, 3]]), np.array([0, 6, 3, 1])
        >>> metrics = list_metrics(lists, counts, history_popularity=4.0, item_vectors=None)
        >>> sorted(metrics), metrics["coverage@2"]
        (['coverage@2', 'gini@2', 'novelty@2', 'popularity_lift@2'], 1.0)
    """
    counts = recommendation_counts(lists, len(train_counts) - 1)
    metrics = {"coverage": coverage(counts)}
    if counts.any():
        metrics["novelty"] = float(list_means(lists, self_information(train_counts)).mean())
        metrics["gini"] = gini(counts)
        distances = np.empty(0) if item_vectors is None else intra_list_distances(lists, item_vectors)
        if len(distances):
            metrics["ild"] = float(distances.mean())
        if history_popularity > 0:
            metrics["popularity_lift"] = popularity_lift(list_means(lists, train_counts), history_popularity)
    return {f"{name}@{lists.shape[1]}": value for name, value in metrics.items()}


def recommendation_counts(lists: Lists, num_items: int) -> Ints:
    """Return the number of lists (V+1,) that contain each item; it is 0 for the padding item.

    Example:
        >>> recommendation_counts(np.array([[3, 1], [3, 0]]), num_items=4).tolist()
        [0, 1, 0, 2, 0]
    """
    counts = np.bincount(lists.ravel(), minlength=num_items + 1).astype(np.int64)
    counts[0] = 0
    return counts


def coverage(counts: Ints) -> float:
    """Return the share of the catalogue that is recommended to at least one user.

    Args:
        counts: (V+1,) output of `recommendation_counts`.

    Example:
        >>> coverage(np.array([0, 1, 0, 2, 0]))
        0.5

    Source: aggregate diversity, Adomavicius and Kwon (TKDE 2012); catalogue coverage, Ge et al. (RecSys 2010).
    """
    return float((counts[1:] > 0).mean())


def gini(counts: Ints) -> float:
    """Return the Gini coefficient of the recommendation counts: 0 if all are equal, 1 - 1/V if one item has all.

    With the counts c in ascending order it is the sum over j = 1..V of (2j - V - 1) c_j, divided by V times their sum.
    For lists of k different items the maximum is 1 - k/V.

    Args:
        counts: (V+1,) output of `recommendation_counts`.

    Raises:
        ValueError: All lists are empty.

    Example:
        >>> gini(np.array([0, 1, 0, 3, 0]))  # (1 * 1 + 3 * 3) / (4 * 4)
        0.625

    Source: Gini (1912); for recommendations Fleder and Hosanagar (Management Science 2009). Castells, Hurley and Vargas
    (Recommender Systems Handbook 2015) divide by V - 1 in place of V.
    """
    if not counts.any():
        raise ValueError("all lists are empty: the Gini coefficient is not defined")
    ascending = np.sort(counts[1:])
    num_items = len(ascending)
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ ascending) / (num_items * float(ascending.sum()))


def self_information(train_counts: Ints) -> Floats:
    """Return the self-information (V+1,) of each item in bits: -log2 of its share of the train events.

    An item without a train event would have infinite self-information; it gets that of an item with one event. The
    padding item has 0.

    Args:
        train_counts: (V+1,) number of events of each item in the train split.

    Raises:
        ValueError: No item occurs in the train split.

    Example:
        >>> self_information(np.array([0, 4, 2, 1, 1, 0])).tolist()
        [0.0, 1.0, 2.0, 3.0, 3.0, 3.0]

    Source: novelty as mean self-information, Zhou et al. (PNAS 2010), Vargas and Castells (RecSys 2011), who take the
    share of users in place of events.
    """
    if not train_counts[1:].any():
        raise ValueError("no train events: self-information is not defined")
    total = train_counts[1:].sum()
    information = np.log2(total) - np.log2(np.maximum(train_counts, 1))
    information[0] = 0
    return np.asarray(information, dtype=np.float64)


def list_means(lists: Lists, values: Ints | Floats) -> Floats:
    """Return the mean value of the items of each list, without empty lists.

    Args:
        lists: (U, k) top lists.
        values: (V+1,) value of each item; that of the padding item is not used.

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
    """Split lists into parts, given the number of values of each of their items."""
    num_rows = max(1, _MAX_VALUES // (lists.shape[1] * width))
    return (lists[at : at + num_rows] for at in range(0, len(lists), num_rows))


def popularity_lift(recommended: Floats, history_popularity: float) -> float:
    """Return the relative increase in popularity from histories to top lists: 0 for equal, 1 for twice as popular.

    Args:
        recommended: Mean train count of the items of each list, from `list_means`.
        history_popularity: Mean over the users of the mean train count of the items of their history.

    Raises:
        ValueError: The items of the histories have no train event.

    Example:
        >>> popularity_lift(np.array([6.0, 3.0]), 3.0)
        0.5

    Source: the lift of the group average popularity, Abdollahpouri et al. (RecSys 2020; RMSE workshop 2019), with all
    users in one group. Offline evaluation favours popular items as well: Steck (RecSys 2011).
    """
    if history_popularity <= 0:
        raise ValueError(f"history_popularity is {history_popularity}, expected a positive mean train count")
    return float(recommended.mean()) / history_popularity - 1


def intra_list_distances(lists: Lists, item_vectors: NDArray[np.floating[Any]]) -> Floats:
    """Return the mean distance, 1 - cosine, over the pairs of items of each list with at least two items.

    A vector of length 0 has cosine 0 with all others.

    Args:
        lists: (U, k) top lists.
        item_vectors: (V+1, D) item vectors; that of the padding item is not used.

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
    # the squared sum of unit vectors contains the cosine of each pair twice, and each square once
    cosines = ((units.sum(axis=1) ** 2).sum(axis=1) - (units**2).sum(axis=(1, 2))) / 2
    num = inside.sum(axis=1)
    return np.asarray(1 - cosines / (num * (num - 1) / 2), dtype=np.float64)
