"""Times of events in batches: those of the log, in any unit, also after the data are prepared again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from slmrec import prepare
from slmrec.data.batching import by_length, collate
from slmrec.data.dataset import Dataset
from slmrec.errors import DataError


def log(factor: int) -> pa.Table:
    """Two users of 4 and 5 events, in milliseconds."""
    users = ["u"] * 4 + ["v"] * 5
    times = [factor * (1_600_000_000_000 + 1_500 * number) for number in range(9)]
    return pa.table({"user_id": users, "item_id": list("abcdabcde"), "timestamp": times})


def test_batches_carry_the_times_of_their_items(tmp_path: Path) -> None:
    for factor in (1, 3):  # the second log replaces the first one
        dataset = Dataset.load(prepare(log(factor), tmp_path / "shop"))
        assert dataset.times is not None and dataset.times.unit == "ms"
        start, step = factor * 1_600_000_000_000, factor * 1_500
        (_, batch), *_ = by_length(dataset.held_out("test"), 8, 3, timestamp_unit="ms")
        own = [[start + step * number for number in range(first, first + 3)] for first in (0, 5)]
        assert batch.histories.times.tolist() == own
        samples = dataset.train("every_position", 50).take(np.array([1, 0]))
        found = collate(samples, np.array([0, 1]), 50, every_position=True, timestamp_unit="s").histories
        assert found.times.tolist() == [[(start + step * n) // 1_000 for n in (4, 5)], [start // 1_000, 0]]
        assert collate(samples, np.array([0]), 50).histories.times is None


def test_a_log_without_times_has_none(tmp_path: Path) -> None:
    dataset = Dataset.load(prepare(log(1).drop_columns("timestamp"), tmp_path / "shop", order="file"))
    assert dataset.times is None
    with pytest.raises(DataError, match="the model reads the times of events, but the data set has none"):
        collate(dataset.held_out("test"), np.array([0]), 50, timestamp_unit="s")
