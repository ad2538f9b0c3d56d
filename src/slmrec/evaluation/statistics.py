"""Paired comparison of two models over the same users: bootstrap interval, randomisation test, Holm's correction.

All functions take a value of each user and resample users. The models are fixed: a model that was trained with another
seed is another model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2_000
"""Number of bootstrap resamples of an interval."""
NUM_SIGN_FLIPS = 10_000
"""Number of random sign vectors of a test; p-values are multiples of 1/10,001."""
CONFIDENCE = 0.95
"""Confidence level of intervals."""
BLOCK = 2**19
"""Maximum number of draws in memory at once, a few megabytes."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Means of two models over the same users, and their difference."""

    num_users: int
    mean_a: float
    mean_b: float
    difference: float
    """mean_b - mean_a."""
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end of the interval of the difference."""
    p_value: float
    """Two-sided p-value of the hypothesis that the two models are exchangeable."""

    @property
    def relative(self) -> float | None:
        """Difference as a share of mean_a; None if mean_a is 0."""
        return self.difference / self.mean_a if self.mean_a else None


def compare_means(a: Floats, b: Floats, seed: int = 0) -> Comparison:
    """Compare the means of two models over the same users.

    Args:
        a: (num_users,) metric of each user for the first model.
        b: (num_users,) metric of each user for the second model, in the same order of users.
        seed: Seed of the resamples and of the signs.

    Raises:
        ValueError: The shapes differ, or there is no user.

    Example:
        >>> result = compare_means(np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0]))
        >>> result.mean_a, result.mean_b, result.difference, result.relative
        (0.5, 1.0, 0.5, 1.0)
    """
    _check_shapes(a, b)
    differences = b - a
    low, high = bootstrap_interval(differences, seed)
    means = float(a.mean()), float(b.mean())
    return Comparison(len(a), *means, means[1] - means[0], low, high, sign_flip_test(differences, seed))


def bootstrap_interval(
    differences: Floats, seed: int = 0, *, num_resamples: int = NUM_RESAMPLES, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean.

    Users are resampled with replacement; for paired data, pass the differences. With few users (some tens) the interval
    is too narrow.

    Args:
        differences: (num_users,) value of each user.
        seed: Seed of the resamples.
        num_resamples: Number of resamples.
        confidence: Share of the resampled means inside the interval.

    Source: Efron, Bootstrap methods (Annals of Statistics, 1979); the percentile interval.

    Example:
        >>> low, high = bootstrap_interval(np.linspace(-1, 2, 200), num_resamples=500)
        >>> low < 0.5 < high
        True
    """
    (sums,) = _resampled_sums((differences,), seed, num_resamples)
    low, high = np.quantile(sums / len(differences), _tails(confidence))
    return float(low), float(high)


@dataclass(frozen=True)
class Ratio:
    """Ratio of the means of two models over the same users, and its interval."""

    value: float | None
    """mean_b / mean_a; None if mean_a is 0."""
    low: float | None
    """Lower end of the interval; None if mean_a is 0."""
    high: float | None
    """Upper end of the interval; None if it is unbounded, since mean_a is 0 in too many resamples."""


def compare_ratio(a: Floats, b: Floats, seed: int = 0) -> Ratio:
    """Return the ratio of the means of two models, with a percentile bootstrap interval over the users.

    Args:
        a: (num_users,) metric of each user for the first model.
        b: (num_users,) metric of each user for the second model, in the same order of users.
        seed: Seed of the resamples.

    Raises:
        ValueError: The shapes differ, or there is no user.

    Example:
        >>> compare_ratio(np.array([0.5, 0.5]), np.array([1.0, 1.0]))
        Ratio(value=2.0, low=2.0, high=2.0)
    """
    _check_shapes(a, b)
    if not a.sum():
        return Ratio(None, None, None)
    sums_a, sums_b = _resampled_sums((a, b), seed, NUM_RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(sums_a > 0, sums_b / sums_a, np.inf)
    # `higher`: interpolation between a number and infinity is not defined
    low, high = np.quantile(ratios, _tails(CONFIDENCE), method="higher")
    ends = [float(end) if np.isfinite(end) else None for end in (low, high)]
    return Ratio(float(b.sum() / a.sum()), ends[0], ends[1])


def sign_flip_test(differences: Floats, seed: int = 0, *, num_flips: int = NUM_SIGN_FLIPS) -> float:
    """Return the two-sided p-value of a paired randomisation test of the mean difference.

    Under the null hypothesis the two values of a user are exchangeable. The test draws the sign of each difference at
    random many times; the p-value is the share of the draws whose mean is at least as far from 0 as the observed one,
    which counts as one draw, so that the p-value is never 0. The test concerns the mean that is reported and assumes no
    distribution. Wilcoxon's test would use ranks of differences instead and drop users without a difference, who are
    the majority under a metric with a cut-off; a t-test assumes a normal distribution of the mean.

    Args:
        differences: (num_users,) difference of each user.
        seed: Seed of the signs.
        num_flips: Number of sign vectors.

    Source: Smucker, Allan and Carterette, A comparison of statistical significance tests for information retrieval
    evaluation (CIKM 2007).

    Example:
        >>> sign_flip_test(np.zeros(5))
        1.0
    """
    differing = differences[differences != 0]
    observed, rounding = abs(differing.sum()), 1e-9 * np.abs(differing).sum()
    generator = np.random.default_rng(seed)
    sums = np.full(num_flips, -differing.sum())
    for rows, users in _tiles(num_flips, len(differing)):
        width = users.stop - users.start
        octets = generator.integers(256, size=(rows.stop - rows.start, -(-width // 8)), dtype=np.uint8)
        kept = np.unpackbits(octets, axis=1, count=width)
        sums[rows] += kept.astype(np.float64) @ (2 * differing[users])
    return float((1 + np.sum(np.abs(sums) >= observed - rounding)) / (1 + num_flips))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of a family of tests by Holm's method, which controls the family-wise error rate.

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on; a corrected value is never smaller than
    its predecessor or larger than 1. The method holds for dependent tests too.

    Args:
        p_values: P-values of the tests.

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


def _check_shapes(a: Floats, b: Floats) -> None:
    if a.shape != b.shape or not len(a):
        raise ValueError(f"got values of shapes {a.shape} and {b.shape}, expected one value of each user")


def _tails(confidence: float) -> tuple[float, float]:
    """Return the quantiles between which an interval lies."""
    outside = (1 - confidence) / 2
    return outside, 1 - outside


def _resampled_sums(columns: Sequence[Floats], seed: int, num_resamples: int) -> list[Floats]:
    """Return the sums (num_resamples,) of each column of values over the same resamples of the users."""
    generator, num_users = np.random.default_rng(seed), len(columns[0])
    sums = [np.zeros(num_resamples) for _ in columns]
    for rows, users in _tiles(num_resamples, num_users):
        shape = rows.stop - rows.start, users.stop - users.start
        drawn = generator.integers(num_users, size=shape, dtype=np.int32)
        for own, column in zip(sums, columns, strict=True):
            own[rows] += column[drawn].sum(axis=1)
    return sums


def _tiles(num_rows: int, num_users: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of rows and users that split a table of draws into parts of at most `BLOCK` numbers."""
    width = min(max(num_users, 1), BLOCK)
    height = BLOCK // width
    for row in range(0, num_rows, height):
        for user in range(0, num_users, width):
            yield slice(row, min(row + height, num_rows)), slice(user, min(user + width, num_users))
