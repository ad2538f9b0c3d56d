"""Samples by leave-one-out and by time: nothing held out leaks, everything in the train split is used."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data import dataset as module
from slmrec.data.batching import collate, shuffled
from slmrec.data.dataset import Dataset, Samples
from slmrec.data.histories import write_histories
from slmrec.errors import DataError

SUPERVISIONS = ("last_position", "every_position", "every_prefix")
SIZES = st.lists(st.integers(0, 14), min_size=1, max_size=40)
CUTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)
"""Of each user: events before validation, in it, and in test."""


def dataset(sizes: list[int], cuts: list[tuple[int, int]] | None = None) -> Dataset:
    """Every event is an item of its own, so that a leak has a name."""
    total = sum(sizes)
    offsets = np.cumsum([0, *sizes])
    users, items = pa.table({"user_id": range(len(sizes))}), pa.table({"item_id": range(1, total + 1)})
    return Dataset(
        np.arange(1, total + 1), offsets, users, items, "x", None if cuts is None else np.array(cuts, np.int32)
    )


def by_time(parts: list[tuple[int, int, int]]) -> Dataset:
    return dataset([sum(part) for part in parts], [(part[0], part[0] + part[1]) for part in parts])


def spans(samples: Samples) -> list[tuple[int, int, int]]:
    return list(zip(*(part.tolist() for part in samples.spans(np.arange(len(samples)))), strict=True))


def train_ends(data: Dataset) -> list[tuple[int, int]]:
    """Where the training events of each user start and end."""
    pairs = zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True)
    if data.cuts is None:
        return [(first, max(first, last - 2)) for first, last in pairs]
    return [(first, first + int(cut)) for (first, _), cut in zip(pairs, data.cuts[:, 0], strict=True)]


def naive_train(data: Dataset, supervision: str, max_history: int) -> list[tuple[int, int, int]]:
    found = []
    for user, (first, end) in enumerate(train_ends(data)):
        targets = list(range(end - 1, first, -1))  # newest first
        step = {"last_position": len(targets) or 1, "every_position": max_history, "every_prefix": 1}[supervision]
        found += [(max(first, target - max_history), target, user) for target in targets[::step]]
    return found


DATA = st.one_of(SIZES.map(dataset), CUTS.map(by_time))


@settings(deadline=None)
@given(DATA, st.sampled_from(SUPERVISIONS), st.integers(1, 6))
def test_training_samples_are_what_loops_give(data: Dataset, supervision: str, max_history: int) -> None:
    expected = naive_train(data, supervision, max_history)
    samples = data.train(supervision, max_history)
    assert spans(samples) == expected
    order = np.random.default_rng(0).permutation(len(expected))
    assert spans(samples.take(order)) == [expected[row] for row in order]
    assert samples.users().tolist() == [user for *_, user in expected]
    assert samples.clipped_lengths(3).tolist() == [min(3, end - start) for start, end, _ in expected]


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_many_users_are_numbered_chunk_by_chunk(supervision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 48)
    monkeypatch.setattr(module, "MANY_ROWS", 10)
    data = dataset(np.random.default_rng(0).integers(0, 9, 500).tolist())
    samples = data.train(supervision, 4)
    assert spans(samples) == naive_train(data, supervision, 4)
    assert samples.users().tolist() == [user for *_, user in naive_train(data, supervision, 4)]
    assert data.train_counts().sum() == sum(end - first for first, end in train_ends(data))


@settings(deadline=None)  # the first call also imports what it needs
@given(DATA, st.sampled_from(SUPERVISIONS), st.integers(1, 6))
def test_held_out_items_are_in_no_training_sample(data: Dataset, supervision: str, max_history: int) -> None:
    allowed = [set(data.flat[first:end].tolist()) for first, end in train_ends(data)]
    for start, end, user in spans(data.train(supervision, max_history)):
        assert 1 <= end - start <= max_history
        assert set(data.flat[start : end + 1].tolist()) <= allowed[user]


@given(DATA, st.integers(1, 6))
def test_every_training_transition_is_a_target_once(data: Dataset, max_history: int) -> None:
    expected = sorted(int(item) for first, end in train_ends(data) for item in data.flat[first + 1 : end])
    prefixes = spans(data.train("every_prefix", max_history))
    assert sorted(int(data.flat[end]) for _, end, _ in prefixes) == expected
    windows = spans(data.train("every_position", max_history))
    assert sorted(int(item) for start, end, _ in windows for item in data.flat[start + 1 : end + 1]) == expected


def test_one_sample_a_user_at_the_last_position() -> None:
    data = dataset([3, 4, 6])
    found = spans(data.train("last_position", 50))
    assert [user for *_, user in found] == [1, 2]  # the first user's only training item has no predecessor
    assert [data.flat[start:end].tolist() for start, end, _ in found] == [[4], [8, 9, 10]]
    assert [int(data.flat[end]) for _, end, _ in found] == [5, 11]


def test_held_out_targets() -> None:
    data = dataset([3, 4])
    assert [int(data.flat[end]) for _, end, _ in spans(data.held_out("valid"))] == [2, 6]
    assert [int(data.flat[end]) for _, end, _ in spans(data.held_out("test"))] == [3, 7]
    assert data.held_out("test").lengths(np.array([1, 0])).tolist() == [3, 2]
    assert data.split_rule == "leave_one_out"


def test_held_out_by_time_are_the_users_with_a_target_and_a_history() -> None:
    valid_and_test, valid_alone, test_alone, late = (2, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)
    data = by_time([valid_and_test, valid_alone, test_alone, (0, 0, 3), (3, 0, 0), (0, 0, 0), late])
    assert data.split_rule == "temporal"
    assert spans(data.held_out("valid")) == [(0, 2, 0), (5, 6, 1)]
    # The last user has no event before validation, but two before test.
    assert spans(data.held_out("test")) == [(0, 3, 0), (8, 10, 2), (17, 19, 6)]
    assert data.held_out("test").users().tolist() == [0, 2, 6]


@given(CUTS)
def test_held_out_by_time_is_the_first_event_of_the_period(parts: list[tuple[int, int, int]]) -> None:
    data = by_time(parts)
    for split, number in (("valid", 1), ("test", 2)):
        expected, first = [], 0
        for user, part in enumerate(parts):
            if sum(part[:number]) and part[number]:
                expected.append((first, first + sum(part[:number]), user))
            first += sum(part)
        if expected:
            assert spans(data.held_out(split)) == expected  # type: ignore[arg-type]


def test_a_split_without_users_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"none of the 2 users has an event in the test split \(temporal\).*other times"
    ):
        by_time([(2, 1, 0), (0, 0, 3)]).held_out("test")


def test_train_counts_leave_the_held_out_events_out() -> None:
    assert dataset([3, 4]).train_counts().tolist() == [0, 1, 0, 0, 1, 1, 0, 0]
    assert by_time([(2, 1, 1), (0, 1, 0), (1, 0, 0)]).train_counts().tolist() == [0, 1, 1, 0, 0, 0, 1]
    owners, items = zip(*by_time([(2, 1, 1), (0, 1, 0), (1, 0, 0)]).train_events(), strict=True)
    assert (owners[0].tolist(), items[0].tolist()) == ([0, 0, 2], [1, 2, 6])


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.json is missing.*run prepare"):
        Dataset.load(tmp_path)


def prepared(folder: Path, num_users: int, num_items: int = 1000) -> Path:
    """A folder as prepare leaves it, but for the histories; users have 4 to 16 events."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 17, num_users)
    columns = {
        "user": np.repeat(np.arange(1, num_users + 1), lengths),
        "item": generator.integers(1, num_items + 1, lengths.sum()),
        "timestamp": pa.nulls(lengths.sum(), pa.int64()),
        "position": np.arange(lengths.sum()),
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    pq.write_table(pa.table({"user_id": [f"u{user}" for user in range(num_users)]}), folder / "users.parquet")
    pq.write_table(pa.table({"item_id": [f"i{item}" for item in range(num_items)]}), folder / "items.parquet")
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": "x"}), encoding="utf-8")
    return folder


def test_ids_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path, 50)
    reads = []
    read_table = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda *a, **k: reads.append(k["columns"]) or read_table(*a, **k))
    data = Dataset.load(folder)
    assert (data.num_users, data.num_items, data.titles, data.fingerprint) == (50, 1000, None, "x")
    assert reads == []
    assert data.user_ids[49].as_py() == "u49" and data.item_ids[0].as_py() == "i0"
    assert len(data.user_ids) == 50 and reads == [["user_id"], ["item_id"]]


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_a_first_batch_takes_no_memory_for_every_user(
    tmp_path: Path, supervision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2**14)
    small, large = (peak_of_a_first_batch(tmp_path / str(num), num, supervision) for num in (100_000, 200_000))
    assert large - small < 2 * 100_000  # bytes a user; whole arrays of users and samples would be 168 to 477
    assert large < 8 * 200_000


def peak_of_a_first_batch(folder: Path, num_users: int, supervision: str) -> int:
    """Bytes that Python and numpy held at most."""
    folder.mkdir()
    write_histories(prepared(folder, num_users))
    for traced in (False, True):  # what is imported and cached the first time counts for nothing
        if traced:
            tracemalloc.start()
        samples = Dataset.load(folder).train(supervision, 50)
        collate(samples, next(shuffled(samples, 16, 50, 0, 0)), 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
