"""Slices of users: the bounds, empty slices, and means with intervals."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from slmrec.evaluation.statistics import bootstrap_interval
from slmrec.studies.evaluated import Evaluated
from slmrec.studies.slices import SLICES, cut, slice_means, slices_of


def evaluated(counts: list[int], lengths: list[int]) -> Evaluated:
    columns = {"history_length": lengths, "target_count": counts, "rank": [0] * len(counts)}
    rows = pa.table({"user_id": list(range(len(counts))), **columns})
    return Evaluated(Path("run"), "student", "full", "valid", {}, rows)


@pytest.mark.parametrize(
    ("by", "value", "name"),
    [
        ("target_count", 0, "0 (never trained on)"),
        ("target_count", 1, "1-4 (rare)"),
        ("target_count", 4, "1-4 (rare)"),
        ("target_count", 5, "5-20"),
        ("target_count", 20, "5-20"),
        ("target_count", 21, "more than 20"),
        ("history_length", 1, "1-5 (short)"),
        ("history_length", 5, "1-5 (short)"),
        ("history_length", 6, "6-20"),
        ("history_length", 100, "21-100"),
        ("history_length", 10**6, "more than 100"),
    ],
)
def test_values_at_the_bounds(by: str, value: int, name: str) -> None:
    [only] = cut(np.array([value]), SLICES[by])
    assert (only.name, only.users.tolist()) == (name, [True])


def test_slices_part_the_users() -> None:
    one = evaluated([0, 3, 7, 50, 4], [1, 2, 8, 200, 30])
    for slices in slices_of(one).values():
        assert np.sum([own.users for own in slices], axis=0).tolist() == [1] * 5
    names = {by: [own.name for own in slices] for by, slices in slices_of(one).items()}
    assert names["target_count"] == ["0 (never trained on)", "1-4 (rare)", "5-20", "more than 20"]
    assert names["history_length"] == ["1-5 (short)", "6-20", "21-100", "more than 100"]


def test_means_are_those_of_the_users_of_a_slice() -> None:
    values = np.array([0.5, 0.0, 1.0, 0.25])
    rare, often = slice_means(evaluated([2, 3, 9, 9], [4] * 4), values)["target_count"]
    assert (rare.num_users, rare.mean) == (2, 0.25) and (often.num_users, often.mean) == (2, 0.625)
    assert (often.low, often.high) == bootstrap_interval(values[2:])
