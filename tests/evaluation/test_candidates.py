"""Sampled negatives, and metrics that the number of candidates decides."""

import numpy as np
import pytest
from test_rank import dataset_of, random_dataset

from slmrec.data.dataset import Samples
from slmrec.errors import DataError
from slmrec.evaluation.candidates import check_negatives, constant_metrics, draw_negatives

HITS = ["hit@1", "hit@5", "hit@10", "hit@20"]


def test_same_seed_same_negatives():
    dataset = random_dataset(20, 50)
    assert draw_negatives(dataset, 9, seed=4).tolist() == draw_negatives(dataset, 9, seed=4).tolist()
    assert draw_negatives(dataset, 9, seed=4).tolist() != draw_negatives(dataset, 9, seed=5).tolist()


def test_every_free_item_is_drawn_equally_often():
    num_users = 4000
    dataset = dataset_of([[1, 5, 10]] * num_users, 10)
    counts = np.bincount(draw_negatives(dataset, 2, seed=0).ravel(), minlength=11)
    assert counts[[0, 1, 5, 10]].tolist() == [0, 0, 0, 0]
    free = counts[[2, 3, 4, 6, 7, 8, 9]]
    assert np.abs(free - num_users * 2 / 7).max() < 5 * np.sqrt(num_users * 2 / 7)


def test_all_free_items_can_be_asked_for():
    dataset = dataset_of([[2, 4, 2], [1, 2, 3, 5, 6, 7, 8]], 10)
    assert [sorted(drawn) for drawn in draw_negatives(dataset_of([[2, 4, 2]], 6), 4, seed=0).tolist()] == [[1, 3, 5, 6]]
    match = r"sampled_4, but user 'u1' has only 3 of the 10 items.*choose sampled_N with a smaller N"
    with pytest.raises(DataError, match=match):
        draw_negatives(dataset, 4, seed=0)
    with pytest.raises(DataError, match=match):
        check_negatives(dataset, 4, np.arange(2))
    check_negatives(dataset, 4, np.arange(1))
    with pytest.raises(DataError, match=r"evaluate\.num_negatives is 5 .*has 10 items.*such as sampled_4"):
        check_negatives(dataset, 5, np.arange(1))


@pytest.mark.parametrize(
    ("protocol", "num_items", "expected"),
    [
        ("full", 21, []),
        ("full", 20, ["hit@20"]),
        ("full", 5, HITS[1:]),
        ("full", 1, [*HITS, "ndcg@5", "ndcg@10", "ndcg@20", "mrr"]),
        ("sampled_9", 1000, HITS[2:]),
        ("sampled_20", 1000, []),
        ("full_history_excluded", 22, []),  # user 0 has seen one item, user 1 its target and another item
        ("full_history_excluded", 21, ["hit@20"]),
        ("full_history_excluded", 11, HITS[2:]),
    ],
)
def test_metrics_that_are_1_for_every_model(protocol, num_items, expected):
    samples = Samples.of(np.array([1, 2, 3, 4, 3]), np.array([0, 2]), np.array([1, 4]), np.array([0, 1]))
    assert constant_metrics(protocol, samples, num_items) == expected
