"""Batches against the same thing written with loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slmrec.data.batching import by_length, collate
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
    assert batch.items.tolist() == [items + [0] * (width - len(items)) for items in inputs]
    assert batch.lengths.tolist() == [len(items) for items in inputs]
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
