"""Every number once, whatever the size; as mixed as a shuffled list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmrec.data.permutation import NUM_ROUNDS, permuted


def keys(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, NUM_ROUNDS, np.uint64)


@given(st.integers(1, 3000), st.integers(0, 99))
def test_every_number_once(num: int, seed: int) -> None:
    assert sorted(permuted(np.arange(num), num, keys(seed)).tolist()) == list(range(num))


@given(st.integers(1, 2**62), st.integers(0, 99), st.data())
def test_large_permutations_are_computed_anywhere(num: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, num - 1), min_size=1, max_size=20, unique=True))
    found = permuted(np.array(positions), num, keys(seed)).tolist()
    assert len(set(found)) == len(positions) and all(0 <= row < num for row in found)
    assert [permuted(np.array([position]), num, keys(seed))[0] for position in positions] == found


@pytest.mark.parametrize("num", [10_007, 65_536, 100_000])
def test_rows_are_well_mixed(num: int) -> None:
    """Statistics of 20 permutations that a shuffled list keeps all but once in some thousand times."""
    for seed in range(20):
        rows = permuted(np.arange(num), num, keys(seed))
        assert abs(np.corrcoef(np.arange(num), rows)[0, 1]) < 4.5 / np.sqrt(num)
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 4.5 / np.sqrt(num)
        cells = np.bincount(np.arange(num) * 16 // num * 16 + rows * 16 // num, minlength=256)
        chi_square = ((cells - num / 256) ** 2 / (num / 256)).sum()
        assert abs(chi_square - 225) < 5 * np.sqrt(2 * 225)  # 15 * 15 degrees of freedom
        assert (rows == np.arange(num)).sum() < 10


def test_the_permutations_of_few_are_all_drawn_about_equally_often() -> None:
    found = [tuple(permuted(np.arange(4), 4, keys(seed)).tolist()) for seed in range(4800)]
    counts = [found.count(order) for order in set(found)]
    assert len(counts) == 24
    assert min(counts) > 100 and max(counts) < 300  # 200 expected of each


def test_keys_decide() -> None:
    one, other = (permuted(np.arange(50), 50, keys(seed)).tolist() for seed in (0, 1))
    assert one != other
