"""Batches against the same thing written with loops."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data.batching import by_length, collate, shuffled
from slmrec.data.dataset import Samples

HISTORIES = st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=12), min_size=1, max_size=8)


def samples_of(histories: list[list[int]]) -> Samples:
    """Each history without its last item, which comes next."""
    ends = np.cumsum([len(history) for history in histories]) - 1
    starts = ends - np.array([len(history) - 1 for history in histories])
    return Samples.of(np.concatenate(histories), starts, ends, np.arange(len(histories)))


@given(HISTORIES, st.integers(1, 6), st.booleans(), st.data())
def test_collate_is_what_loops_give(
    histories: list[list[int]], max_history: int, every_position: bool, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=9))
    batch = collate(samples_of(histories), np.array(rows), max_history, every_position)
    inputs = [histories[row][:-1][-max_history:] for row in rows]
    nexts = [histories[row][1:][-max_history:] for row in rows]
    width = max(map(len, inputs))
    assert batch.histories.items.tolist() == [items + [0] * (width - len(items)) for items in inputs]
    assert batch.histories.lengths.tolist() == [len(items) for items in inputs]
    assert batch.targets.tolist() == [item for items in nexts for item in (items if every_position else items[-1:])]
    assert batch.every_position is every_position


@given(HISTORIES, st.integers(1, 5), st.integers(1, 6))
def test_inference_batches_hold_every_row_once_and_their_own_rows(
    histories: list[list[int]], batch_size: int, max_history: int
) -> None:
    samples = samples_of(histories)
    found = list(by_length(samples, batch_size, max_history))
    assert sorted(row for rows, _ in found for row in rows.tolist()) == list(range(len(histories)))
    for rows, batch in found:
        assert len(rows) <= batch_size
        assert batch.targets.tolist() == [histories[row][-1] for row in rows]


def of_lengths(lengths: list[int]) -> Samples:
    ends = np.cumsum(lengths)
    return Samples.of(np.ones(ends[-1] + 1, np.int32), ends - lengths, ends, np.arange(len(lengths)))


def test_collate_keeps_the_newest_and_pads_on_the_right() -> None:
    samples = samples_of([[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12]])
    batch = collate(samples, np.array([0, 1]), 4)
    assert batch.histories.items.tolist() == [[4, 5, 6, 7], [9, 10, 11, 0]]
    assert (batch.histories.lengths.tolist(), batch.targets.tolist()) == ([4, 3], [8, 12])
    every = collate(samples, np.array([1, 0]), 4, every_position=True)
    assert every.targets.tolist() == [10, 11, 12, 5, 6, 7, 8]


def test_collate_reads_narrow_items_as_int64() -> None:
    batch = collate(of_lengths([2, 3]), np.array([1, 0]), 5, every_position=True)
    assert (batch.histories.items.dtype, batch.targets.dtype, batch.histories.lengths.dtype) == (torch.int64,) * 3


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=700), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    samples = of_lengths(lengths)
    batches = list(shuffled(samples, batch_size, 20, 7, epoch))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert sorted(map(len, batches))[1:] == [batch_size] * (-(-len(lengths) // batch_size) - 1)  # one may be shorter
    again = shuffled(samples, batch_size, 20, 7, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_epochs_and_seeds_differ_and_batches_are_alike_in_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 2000)
    samples = of_lengths(lengths.tolist())
    first = [rows.tolist() for rows in shuffled(samples, 20, 50, 0, 0)]
    assert first != [rows.tolist() for rows in shuffled(samples, 20, 50, 0, 1)]
    assert first != [rows.tolist() for rows in shuffled(samples, 20, 50, 1, 0)]
    padded = sum(len(rows) * lengths[rows].max() for rows in first)
    assert padded < 1.1 * lengths.sum()
    longest = [lengths[rows].max() for rows in first[:50]]
    assert abs(np.corrcoef(longest, np.arange(50))[0, 1]) < 0.4  # the batches of a pool are shuffled too


def test_only_a_pool_of_rows_is_looked_at_for_a_batch() -> None:
    asked: list[int] = []
    plain = of_lengths([3] * 5000)
    samples = Samples(plain.flat, plain.num, lambda rows: asked.append(len(rows)) or plain.spans(rows))
    next(shuffled(samples, 10, 50, 0, 0))
    assert asked == [500]


def test_inference_batches_cover_all_rows_shortest_first() -> None:
    found = [
        (rows.tolist(), batch.histories.items.shape[1]) for rows, batch in by_length(of_lengths([8, 2, 4, 3]), 2, 50)
    ]
    assert found == [([1, 3], 3), ([2, 0], 8)]
