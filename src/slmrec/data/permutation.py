"""A pseudo-random permutation whose values are computed on demand and never stored."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6
"""Four rounds of random functions make a Feistel network a strong pseudo-random permutation; two more cost little."""

Words = NDArray[np.uint64]
_30, _27, _31 = np.array([30, 27, 31], np.uint64)
_FIRST, _SECOND = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


def permuted(positions: NDArray[np.int64], num: int, keys: Words) -> NDArray[np.int64]:
    """Return the values of a permutation of range(num) at some positions.

    The permutation is a Feistel network over a rectangle with slightly more than `num` cells; values outside the range
    are permuted again until they are inside (cycle walking).

    Args:
        positions: positions in 0..num-1.
        num: the size of the permutation, at least 1.
        keys: (NUM_ROUNDS,) random words that determine the permutation.

    Example:
        >>> keys = np.random.default_rng(0).integers(0, 2**64, NUM_ROUNDS, np.uint64)
        >>> sorted(permuted(np.arange(5), 5, keys).tolist())
        [0, 1, 2, 3, 4]
    """
    width = math.isqrt(num - 1) + 1
    height = -(-num // width)
    values = _rounds(positions.astype(np.uint64), width, height, keys)
    while len(outside := np.flatnonzero(values >= num)):
        values[outside] = _rounds(values[outside], width, height, keys)
    return values.astype(np.int64)


def _rounds(cells: Words, width: int, height: int, keys: Words) -> Words:
    row, column = np.divmod(cells, np.uint64(width))
    for number, key in enumerate(keys):
        if number % 2:
            row = (row + _hash(column, key) % height) % height
        else:
            column = (column + _hash(row, key) % width) % width
    return row * np.uint64(width) + column


def _hash(values: Words, key: Any) -> Words:
    """Apply the finaliser of SplitMix64."""
    values = values + key
    values = (values ^ (values >> _30)) * _FIRST
    values = (values ^ (values >> _27)) * _SECOND
    mixed: Words = values ^ (values >> _31)
    return mixed
