"""Whether one model is better than another, user by user: an interval, a test, and a correction for many tests.

Knows neither data nor models: two models have a value each for the same users, and all that counts is the difference of
each user. The users are what is drawn at random; a model that was trained with another seed is another model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2_000
"""Of the users, for an interval."""
NUM_SIGN_FLIPS = 10_000
"""For a test: p-values are multiples of 1/10,001, and none is smaller."""
CONFIDENCE = 0.95
BLOCK = 2**19
"""Numbers drawn at once: a few megabytes, however many users there are."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two models over the same users."""

    num_users: int
    mean_a: float
    mean_b: float
    difference: float
    """mean_b - mean_a."""
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end."""
    p_value: float
    """Of the hypothesis that it does not matter which of the two a user gets."""

    @property
    def relative(self) -> float | None:
        """The difference as a share of mean_a; None if that is 0."""
        return self.difference / self.mean_a if self.mean_a else None


def compare_means(a: Floats, b: Floats, seed: int = 0) -> Comparison:
    """The means of two models, their difference with its interval, and a p-value.

    Args:
        a: (num_users,) a metric of each user for one model.
        b: (num_users,) the same for the other model, the users in the same order.
        seed: of all that is drawn.

    Raises:
        ValueError: the shapes differ, or there is no user.

    Example:
        >>> found = compare_means(np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0]))
        >>> found.mean_a, found.mean_b, found.difference, found.relative
        (0.5, 1.0, 0.5, 1.0)
    """
    if a.shape != b.shape or not len(a):
        raise ValueError(f"values of {a.shape} and {b.shape} users: expected those of the same users, at least one")
    differences = b - a
    low, high = bootstrap_interval(differences, seed)
    means = float(a.mean()), float(b.mean())
    return Comparison(len(a), *means, means[1] - means[0], low, high, sign_flip_test(differences, seed))


def bootstrap_interval(
    differences: Floats, seed: int = 0, *, num_resamples: int = NUM_RESAMPLES, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """An interval of the mean difference: users are drawn anew with replacement, both values of a user together.

    The ends are percentiles of the means of the resamples. With few users (some tens) it is too narrow.

    Args:
        differences: (num_users,).
        seed: of the resamples.
        num_resamples: how often the users are drawn.
        confidence: the share of the means between the ends.

    Source: Efron, Bootstrap methods (Annals of Statistics, 1979); the percentile interval.
    """
    generator = np.random.default_rng(seed)
    sums = np.zeros(num_resamples)
    for rows, users in _tiles(num_resamples, len(differences)):
        shape = rows.stop - rows.start, users.stop - users.start
        sums[rows] += differences[generator.integers(len(differences), size=shape, dtype=np.int32)].sum(axis=1)
    outside = (1 - confidence) / 2
    low, high = np.quantile(sums / len(differences), (outside, 1 - outside))
    return float(low), float(high)


def sign_flip_test(differences: Floats, seed: int = 0, *, num_flips: int = NUM_SIGN_FLIPS) -> float:
    """The two-sided p-value of a paired randomisation test of the mean difference.

    If the two models were alike, each user's values could as well have been given the other way round. So the sign of
    each difference is drawn at random many times, and the p-value is the share of the draws whose mean is at least as
    far from 0 as the one found (the found one counts as a draw, so that it is never 0). It tests the very mean that is
    reported, and assumes nothing of its distribution: Wilcoxon's test would test ranks of differences instead, and
    leaves out the users without a difference, who are most of them under a metric with a cut-off; a t-test leans on a
    normal distribution, which values of 0 to 10 possible ranks are far from.

    Args:
        differences: (num_users,).
        seed: of the signs.
        num_flips: how often all signs are drawn.

    Source: Smucker, Allan and Carterette, A comparison of statistical significance tests for information retrieval
    evaluation (CIKM 2007).

    Example:
        >>> sign_flip_test(np.zeros(5))
        1.0
    """
    differing = differences[differences != 0]
    found, rounding = abs(differing.sum()), 1e-9 * np.abs(differing).sum()
    generator = np.random.default_rng(seed)
    sums = np.full(num_flips, -differing.sum())
    for rows, users in _tiles(num_flips, len(differing)):
        width = users.stop - users.start
        octets = generator.integers(256, size=(rows.stop - rows.start, -(-width // 8)), dtype=np.uint8)
        kept = np.unpackbits(octets, axis=1, count=width)
        sums[rows] += kept.astype(np.float64) @ (2 * differing[users])
    return float((1 + np.sum(np.abs(sums) >= found - rounding)) / (1 + num_flips))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected: those below 0.05 contain a false one at most once in 20 families.

    Holds whatever the tests have to do with each other. The smallest of m p-values is multiplied by m, the next by
    m - 1, and so on; none becomes smaller than one before it, or larger than 1.

    Source: Holm, A simple sequentially rejective multiple test procedure (Scandinavian Journal of Statistics, 1979).

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return [float(value) for value in np.minimum(corrected, 1)]


def _tiles(num_rows: int, num_users: int) -> Iterator[tuple[slice, slice]]:
    """A table of draws in parts of at most `BLOCK` numbers."""
    width = min(max(num_users, 1), BLOCK)
    height = BLOCK // width
    for row in range(0, num_rows, height):
        for user in range(0, num_users, width):
            yield slice(row, min(row + height, num_rows)), slice(user, min(user + width, num_users))
