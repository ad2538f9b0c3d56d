"""Leave-one-out samples and batches: nothing held out leaks, everything in the train split is used."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data.batching import by_length, collate, shuffled
from slmrec.data.dataset import Dataset
from slmrec.errors import DataError

SIZES = st.lists(st.integers(3, 14), min_size=1, max_size=6)


def dataset(sizes: list[int]) -> Dataset:
    """Every event is an item of its own, so that a leak has a name."""
    total = sum(sizes)
    ids = pa.array(range(1, total + 1))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Dataset(np.arange(1, total + 1), offsets, pa.array(range(len(sizes))), ids, None, "x")


@settings(deadline=None)  # the first call also imports what it needs
@given(SIZES, st.sampled_from(["last_position", "every_position", "every_prefix"]), st.integers(1, 6))
def test_held_out_items_are_in_no_training_sample(sizes: list[int], supervision: str, max_history: int) -> None:
    data = dataset(sizes)
    last = data.offsets[1:]
    held_out = {int(data.flat[end - back]) for end in last for back in (1, 2)}
    samples = data.train(supervision, max_history)
    for start, end, user in zip(samples.starts, samples.ends, samples.users, strict=True):
        assert 1 <= end - start <= max_history
        assert data.offsets[user] <= start
        assert not held_out & set(data.flat[start : end + 1].tolist())


@given(SIZES, st.integers(1, 6))
def test_every_training_transition_is_a_target_once(sizes: list[int], max_history: int) -> None:
    data = dataset(sizes)
    expected = sorted(
        int(item)
        for start, end in zip(data.offsets, data.offsets[1:], strict=False)
        for item in data.flat[start + 1 : end - 2]
    )
    prefixes = data.train("every_prefix", max_history)
    assert sorted(data.flat[prefixes.ends].tolist()) == expected
    windows = data.train("every_position", max_history)
    spans = zip(windows.starts, windows.ends, strict=True)
    assert sorted(int(item) for start, end in spans for item in data.flat[start + 1 : end + 1]) == expected


def test_one_sample_a_user_at_the_last_position() -> None:
    data = dataset([3, 4, 6])
    samples = data.train("last_position", 50)
    assert samples.users.tolist() == [1, 2]  # the first user's only training item has no predecessor
    assert [data.flat[s:e].tolist() for s, e in zip(samples.starts, samples.ends, strict=True)] == [[4], [8, 9, 10]]
    assert data.flat[samples.ends].tolist() == [5, 11]


def test_held_out_targets() -> None:
    data = dataset([3, 4])
    assert data.flat[data.held_out("valid").ends].tolist() == [2, 6]
    assert data.flat[data.held_out("test").ends].tolist() == [3, 7]
    assert data.held_out("test").lengths.tolist() == [2, 3]


def test_train_counts_leave_the_held_out_events_out() -> None:
    data = dataset([3, 4])
    assert data.train_counts().tolist() == [0, 1, 0, 0, 1, 1, 0, 0]


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.json is missing.*run prepare"):
        Dataset.load(tmp_path)


def test_collate_keeps_the_newest_and_pads_on_the_right() -> None:
    samples = dataset([8, 4]).held_out("test")
    batch = collate(samples, np.array([0, 1]), 4)
    assert batch.items.tolist() == [[4, 5, 6, 7], [9, 10, 11, 0]]
    assert (batch.lengths.tolist(), batch.targets.tolist()) == ([4, 3], [8, 12])
    every = collate(samples, np.array([1, 0]), 4, every_position=True)
    assert every.targets.tolist() == [10, 11, 12, 5, 6, 7, 8]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    batches = shuffled(np.array(lengths), batch_size, 7, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    again = shuffled(np.array(lengths), batch_size, 7, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_epochs_and_seeds_differ_and_batches_are_alike_in_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 2000)
    first = [rows.tolist() for rows in shuffled(lengths, 20, 0, 0)]
    assert first != [rows.tolist() for rows in shuffled(lengths, 20, 0, 1)]
    assert first != [rows.tolist() for rows in shuffled(lengths, 20, 1, 0)]
    padded = sum(len(rows) * lengths[rows].max() for rows in first)
    assert padded < 1.1 * lengths.sum()


def test_inference_batches_cover_all_rows_shortest_first() -> None:
    samples = dataset([9, 3, 5, 4]).held_out("test")
    found = [(rows.tolist(), batch.items.shape[1]) for rows, batch in by_length(samples, 2, 50)]
    assert found == [([1, 3], 3), ([2, 0], 8)]
