import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmrec.data.dataset import Dataset
from slmrec.evaluation.rank import evaluate_scorer
from slmrec.models.baselines import LastItemCooccurrence, Popularity
from slmrec.types import Batch, Histories


def dataset_of(histories, num_items):
    return Dataset(
        flat=np.concatenate(histories).astype(np.int64),
        offsets=np.cumsum([0, *map(len, histories)]),
        users=pa.table({"user_id": [f"u{user}" for user in range(len(histories))]}),
        items=pa.table({"item_id": [f"i{item}" for item in range(1, num_items + 1)]}),
        fingerprint="test",
    )


def batch_of(*histories):
    items = torch.zeros(len(histories), max(map(len, histories)), dtype=torch.long)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    lengths = torch.tensor([len(history) for history in histories])
    return Batch(Histories(items, lengths), torch.ones(len(histories), dtype=torch.long), False)


def scores_of(scorer, batch):
    return scorer.score(scorer.read(batch))


# Train: {1, 2, 3}, {1, 2}, {2, 4}, {3}; the two events after them are held out.
HISTORIES = [[1, 2, 3, 5, 5], [1, 2, 5, 5], [2, 4, 2, 5, 1], [3, 5, 1]]


def test_popularity_is_the_train_count():
    scorer = Popularity(dataset_of(HISTORIES, 5).train_counts())
    scores = scores_of(scorer, batch_of([1], [4, 5]))
    assert scores.tolist() == [[-torch.inf, 2, 4, 2, 1, 0]] * 2
    assert scores.dtype == torch.float32
    assert scorer.num_items == 5


def test_popularity_hands_out_scores_of_its_own():
    scorer = Popularity(np.array([0, 2, 1]))
    scores_of(scorer, batch_of([1])).zero_()
    assert scores_of(scorer, batch_of([1])).tolist() == [[-torch.inf, 2, 1]]


def test_cooccurrence_is_that_worked_out_by_hand():
    scorer = LastItemCooccurrence(dataset_of(HISTORIES, 5))
    scores = scores_of(scorer, batch_of([4, 3, 1], [2], [1, 5]))
    shares = np.array([2, 4, 2, 1, 0]) / 8  # popularity, at most 1/2
    # with 1: 2 twice, 3 once; with 2: 1 twice, 3 once, 4 once; 5 occurs in no train history
    expected = np.array([[0, 2, 1, 0, 0], [2, 0, 1, 1, 0], [0, 0, 0, 0, 0]]) + shares
    assert scores[:, 1:].numpy() == pytest.approx(expected)
    assert scores[:, 0].isneginf().all()
    assert scores.dtype == torch.float32
    assert scorer.num_items == 5


def test_cooccurrence_breaks_ties_by_popularity_and_never_passes_a_count():
    # With 1: 2 and 3 once each, and 3 is the more popular; 4, which is never with 1, is the most popular.
    histories = [[1, 2, 5, 5], [1, 3, 5, 5], [3, 4, 5, 5], *[[4, 5, 5]] * 50]
    scores = scores_of(LastItemCooccurrence(dataset_of(histories, 5)), batch_of([1]))[0]
    assert scores[3] > scores[2] > scores[4]


@given(st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=8), min_size=1, max_size=8))
def test_cooccurrence_agrees_with_a_naive_count(histories):
    scores = scores_of(LastItemCooccurrence(dataset_of(histories, 6)), batch_of(*([last] for last in range(1, 7))))
    baskets = [set(history[:-2]) for history in histories]
    for last in range(1, 7):
        for item in range(1, 7):
            together = sum({last, item} <= basket for basket in baskets) if item != last else 0
            assert int(scores[last - 1, item]) == together


def test_held_out_events_do_not_count():
    changed = [[*history[:-2], 4, 3] for history in HISTORIES]
    batch = batch_of([1], [2], [3])
    for scores in (
        [scores_of(LastItemCooccurrence(dataset_of(data, 5)), batch) for data in (HISTORIES, changed)],
        [scores_of(Popularity(dataset_of(data, 5).train_counts()), batch) for data in (HISTORIES, changed)],
    ):
        assert torch.equal(*scores)


def test_batch_of_one_equals_batch_of_many():
    scorer = LastItemCooccurrence(dataset_of(HISTORIES, 5))
    together = scores_of(scorer, batch_of([1], [3, 2], [4]))
    assert torch.equal(together, torch.cat([scores_of(scorer, batch_of(history)) for history in ([1], [3, 2], [4])]))


def test_baselines_can_be_evaluated():
    dataset = dataset_of(HISTORIES, 5)
    samples = dataset.held_out("valid")
    # Targets 5, 5, 5, 5 and the least popular item: last among 5.
    ranks = evaluate_scorer(Popularity(dataset.train_counts()), samples, batch_size=3, protocols=("full",))
    assert ranks["full"].tolist() == [4, 4, 4, 4]
    ranks = evaluate_scorer(LastItemCooccurrence(dataset), samples, batch_size=3, protocols=("full",))
    assert ranks["full"].tolist() == [4, 4, 4, 4]
