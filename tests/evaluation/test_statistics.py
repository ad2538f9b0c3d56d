"""Intervals, tests and corrections: hand-worked values, naive versions, and what they promise, by simulation."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.evaluation import statistics
from slmrec.evaluation.statistics import bootstrap_interval, compare_means, compare_ratio, holm, sign_flip_test

SMALL = st.lists(st.integers(-4, 4), min_size=1, max_size=8)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=9)


def exact_sign_flip(differences: list[int]) -> float:
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips(len(differences))]
    return sum(found >= abs(sum(differences)) for found in sums) / len(sums)


def flips(number: int) -> list[tuple[int, ...]]:
    return list(product((-1, 1), repeat=number))


def naive_holm(p_values: list[float]) -> list[float]:
    def corrected(p: float) -> float:
        return max((sum(other >= q for other in p_values)) * q for q in p_values if q <= p)

    return [min(1.0, corrected(p)) for p in p_values]


def test_sign_flips_by_hand() -> None:
    # Three equal differences: of the eight ways to give signs, +++ and --- are as far from 0.
    assert sign_flip_test(np.array([1.0, 1.0, 1.0])) == pytest.approx(2 / 8, abs=0.015)
    # 0.1 + 0.2 - 0.3 is not quite 0 in floating point; all sums are as far from it as that.
    assert sign_flip_test(np.array([0.1, 0.2, -0.3])) == 1.0
    assert sign_flip_test(np.full(40, 0.25)) == 1 / 10_001  # the smallest there is


@settings(max_examples=30, deadline=None)
@given(SMALL)
def test_sign_flips_are_those_of_all_signs(differences: list[int]) -> None:
    values = np.array(differences, np.float64)
    found = sign_flip_test(values)
    assert found == pytest.approx(exact_sign_flip(differences), abs=0.025)
    assert sign_flip_test(-values) == found
    assert sign_flip_test(np.concatenate([values, np.zeros(50)])) == found  # users without a difference tell nothing
    assert sign_flip_test(values / 7) == pytest.approx(found, abs=1e-12)


def test_the_interval_by_hand() -> None:
    # Of two users, a quarter of the resamples has the second one twice, a quarter never.
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), confidence=0.4) == (0.5, 0.5)
    assert bootstrap_interval(np.full(9, 0.25)) == (0.25, 0.25)


def test_the_interval_is_that_of_a_loop() -> None:
    differences = np.random.default_rng(3).exponential(size=60)
    generator = np.random.default_rng(4)
    means = [generator.choice(differences, 60).mean() for _ in range(4_000)]
    found = bootstrap_interval(differences, num_resamples=4_000)
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    low, high = bootstrap_interval(2 * differences - 1, num_resamples=4_000)
    assert (low, high) == pytest.approx((2 * found[0] - 1, 2 * found[1] - 1))


def test_nineteen_of_twenty_intervals_hold_the_mean_and_one_of_twenty_tests_errs() -> None:
    generator = np.random.default_rng(5)
    held = erred = 0
    for seed in range(300):
        differences = generator.choice([-0.4, 0.0, 0.0, 0.2, 0.2], size=150)  # skewed, of mean 0
        low, high = bootstrap_interval(differences, seed, num_resamples=400)
        held += low <= 0 <= high
        erred += sign_flip_test(differences, seed, num_flips=400) <= 0.05
    assert 270 <= held <= 296
    assert 4 <= erred <= 30


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_draws_come_in_blocks_that_cover_all(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK", block)
    seen = np.zeros((13, 30), int)
    for rows, users in statistics._tiles(13, 30):
        seen[rows, users] += 1
        assert seen[rows, users].size <= block
    assert (seen == 1).all()
    differences = np.random.default_rng(0).normal(0.5, size=30)
    low, high = bootstrap_interval(differences, num_resamples=300)
    assert 0 < low < differences.mean() < high < 1
    assert sign_flip_test(differences, num_flips=300) < 0.1


def test_holm_by_hand() -> None:
    # 0.01 * 4; 0.02 * 3; 0.03 * 2 = 0.06; 0.9 * 1
    assert holm([0.9, 0.02, 0.01, 0.03]) == pytest.approx([0.9, 0.06, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(P_VALUES)
def test_holm_never_makes_smaller_and_keeps_the_order(p_values: list[float]) -> None:
    found = holm(p_values)
    assert all(p <= corrected <= 1 for p, corrected in zip(p_values, found, strict=True))
    assert [found[at] for at in np.argsort(p_values)] == sorted(found)
    assert found == pytest.approx(naive_holm(p_values))


def test_a_comparison() -> None:
    a = np.array([0.0, 0.5, 1.0, 0.5] * 50)
    found = compare_means(a, a + np.tile([0.1, 0.0], 100))
    assert (found.num_users, found.mean_a, found.mean_b) == (200, 0.5, pytest.approx(0.55))
    assert found.difference == pytest.approx(0.05) and found.relative == pytest.approx(0.1)
    assert found.low < 0.05 < found.high and found.p_value < 0.001
    assert compare_means(np.zeros(3), np.ones(3)).relative is None
    assert compare_means(a, a + np.tile([0.1, 0.0], 100)) == found
    same = compare_means(a, a)
    assert (same.low, same.high, same.p_value) == (0, 0, 1)


@pytest.mark.parametrize(("a", "b"), [(3, 2), (0, 0)])
def test_values_of_other_users_are_refused(a: int, b: int) -> None:
    with pytest.raises(
        ValueError, match=rf"got values of shapes \({a},\) and \({b},\), expected one value of each user"
    ):
        compare_means(np.zeros(a), np.zeros(b))


def test_ratios_of_means() -> None:
    generator = np.random.default_rng(0)
    a = generator.random(300)
    same = compare_ratio(a, 3 * a)
    assert (same.value, same.low, same.high) == pytest.approx((3, 3, 3))
    noisy = compare_ratio(a, a + generator.normal(0, 0.5, 300))
    assert noisy.value is not None and noisy.low is not None and noisy.high is not None
    assert noisy.low < noisy.value < noisy.high and noisy.low < 1 < noisy.high


def test_ratios_to_zero_have_no_bound() -> None:
    # Of two users, a quarter of the resamples never has the one whose value is above 0.
    found = compare_ratio(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    assert (found.value, found.low, found.high) == (2, 1, None)
    assert compare_ratio(np.zeros(3), np.ones(3)).value is None
    with pytest.raises(ValueError, match="shapes"):
        compare_ratio(np.zeros(3), np.ones(2))
