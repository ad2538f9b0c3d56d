import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.evaluation import diversity
from slmrec.evaluation.diversity import (
    coverage,
    gini,
    intra_list_distances,
    list_means,
    list_metrics,
    popularity_lift,
    recommendation_counts,
    self_information,
)

NUM_ITEMS = 6
# Train counts of 1..6: shares 1/2, 1/4, 1/8, 1/8, none, none.
COUNTS = np.array([0, 8, 4, 2, 2, 0, 0])
VECTORS = np.array([[9, 9], [1, 0], [0, 1], [2, 0], [-1, 0], [0, 0], [1, 1]], dtype=np.float32)
KEYS = {"coverage@2", "novelty@2", "gini@2", "ild@2", "popularity_lift@2"}


@st.composite
def top_lists(draw, k=3):
    """Lists of different items, some short, some empty."""
    items = st.lists(st.integers(1, NUM_ITEMS), max_size=k, unique=True)
    rows = draw(st.lists(items, min_size=1, max_size=6).filter(any))
    return np.array([row + [0] * (k - len(row)) for row in rows], dtype=np.int32)


def test_all_metrics_are_those_worked_out_by_hand():
    lists = np.array([[1, 2], [1, 5], [4, 0], [0, 0]])
    metrics = list_metrics(lists, COUNTS, 4.0, VECTORS)
    assert metrics == pytest.approx(
        {
            "coverage@2": 4 / 6,  # 1, 2, 4, 5
            "novelty@2": ((1 + 2) / 2 + (1 + 4) / 2 + 3) / 3,  # 5 counts as if it had one of the 16 events
            "gini@2": (-5 * 0 - 3 * 0 - 1 * 1 + 1 * 1 + 3 * 1 + 5 * 2) / (6 * 5),
            "ild@2": (1 + 1) / 2,  # orthogonal; 5 has no direction, so cosine 0
            "popularity_lift@2": ((8 + 4) / 2 + (8 + 0) / 2 + 2) / 3 / 4.0 - 1,
        }
    )
    assert all(type(value) is float for value in metrics.values())


def test_opposite_equal_and_short_lists():
    lists = np.array([[1, 3, 0], [1, 4, 0], [1, 3, 4], [6, 0, 0], [0, 0, 0]])
    # equal directions, opposite ones, pairs 0 + 2 + 2; then no pair
    assert intra_list_distances(lists, VECTORS) == pytest.approx([0, 2, 4 / 3])


def test_metric_that_is_not_defined_is_absent():
    lists = np.array([[1, 2]])
    assert list_metrics(lists, COUNTS, 1.0, None).keys() == KEYS - {"ild@2"}
    assert list_metrics(lists, COUNTS, 0.0, VECTORS).keys() == KEYS - {"popularity_lift@2"}
    assert list_metrics(np.array([[1, 0]]), COUNTS, 1.0, VECTORS).keys() == KEYS - {"ild@2"}
    assert list_metrics(np.array([[0, 0]]), COUNTS, 1.0, VECTORS) == {"coverage@2": 0.0}


def test_what_is_not_defined_raises_where_it_is_asked_for():
    with pytest.raises(ValueError, match="all lists are empty"):
        gini(np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="no train events"):
        self_information(np.array([7, 0, 0]))  # padding is no event
    with pytest.raises(ValueError, match=r"history_popularity is 0.0, expected a positive"):
        popularity_lift(np.ones(2), 0.0)


def test_item_without_an_event_is_as_little_known_as_one_with_one():
    assert self_information(np.array([0, 1, 0, 15])).tolist() == [0, 4, 4, pytest.approx(math.log2(16 / 15))]


def test_popularity_of_padding_and_of_empty_lists_is_not_read():
    assert list_means(np.array([[0, 0], [0, 1]]), np.array([99, 5])).tolist() == [5]
    assert list_means(np.zeros((2, 3), dtype=np.int32), np.array([99, 5])).tolist() == []


def test_many_lists_are_measured_some_at_a_time(monkeypatch):
    generator = np.random.default_rng(0)
    lists = np.stack([generator.permutation(NUM_ITEMS)[:3] + 1 for _ in range(17)])
    expected = list_metrics(lists, COUNTS, 1.0, VECTORS)
    monkeypatch.setattr(diversity, "_MAX_VALUES", 24)
    assert list_metrics(lists, COUNTS, 1.0, VECTORS) == expected


@settings(deadline=None)
@given(top_lists(), st.lists(st.integers(0, 9), min_size=NUM_ITEMS, max_size=NUM_ITEMS).filter(any))
def test_metrics_agree_with_naive_ones_and_keep_their_bounds(lists, item_counts):
    counts, rows = np.array([0, *item_counts]), [[item for item in row if item] for row in lists.tolist()]
    metrics = list_metrics(lists, counts, 2.0, VECTORS)
    given_to = [sum(item in row for row in rows) for item in range(1, NUM_ITEMS + 1)]
    differences = sum(abs(a - b) for a in given_to for b in given_to)
    known = [[-math.log2(max(counts[item], 1) / sum(item_counts)) for item in row] for row in rows if row]
    popular = [[counts[item] for item in row] for row in rows if row]
    far = [[1 - cosine(a, b) for at, a in enumerate(row) for b in row[at + 1 :]] for row in rows if len(row) > 1]
    expected = {
        "coverage@3": np.mean([number > 0 for number in given_to]),
        "novelty@3": np.mean([np.mean(row) for row in known]),
        "gini@3": differences / (2 * NUM_ITEMS * sum(given_to)),  # half the relative mean difference
        "popularity_lift@3": np.mean([np.mean(row) for row in popular]) / 2.0 - 1,
    }
    assert metrics == pytest.approx(expected | ({"ild@3": np.mean([np.mean(row) for row in far])} if far else {}))
    assert 1 / NUM_ITEMS <= metrics["coverage@3"] <= 1
    assert 0 <= metrics["novelty@3"] <= math.log2(sum(item_counts))
    assert -1e-12 <= metrics["gini@3"] <= 1 - 1 / NUM_ITEMS
    assert -1e-12 <= metrics.get("ild@3", 0) <= 2 + 1e-12
    assert metrics["popularity_lift@3"] >= -1


def cosine(a, b):
    lengths = np.linalg.norm(VECTORS[a]) * np.linalg.norm(VECTORS[b])
    return VECTORS[a] @ VECTORS[b] / lengths if lengths else 0.0


@settings(deadline=None)
@given(top_lists(), st.randoms(use_true_random=False))
def test_metrics_do_not_care_about_orders_scales_and_names(lists, random):
    expected = pytest.approx(list_metrics(lists, COUNTS, 2.0, VECTORS))
    rows = [random.sample(row, len(row)) for row in random.sample(lists.tolist(), len(lists))]
    assert list_metrics(np.array(rows), COUNTS, 2.0, VECTORS) == expected
    assert list_metrics(np.concatenate([lists, lists]), COUNTS, 2.0, VECTORS) == expected
    assert list_metrics(np.pad(lists, ((0, 1), (0, 0))), COUNTS, 2.0, VECTORS) == expected  # a user with no list
    assert list_metrics(lists, COUNTS, 2.0, VECTORS * np.float32(0.25)) == expected
    names = np.array([0, *random.sample(range(1, NUM_ITEMS + 1), NUM_ITEMS)])
    counts, vectors = np.empty_like(COUNTS), np.empty_like(VECTORS)
    counts[names], vectors[names] = COUNTS, VECTORS
    assert list_metrics(names[lists], counts, 2.0, vectors) == expected


def test_coverage_and_gini_at_their_ends():
    same, spread = np.array([[1, 2], [1, 2], [1, 2]]), np.array([[1, 2], [3, 4], [5, 6]])
    assert coverage(recommendation_counts(same, NUM_ITEMS)) == 2 / NUM_ITEMS
    assert gini(recommendation_counts(same, NUM_ITEMS)) == pytest.approx(1 - 2 / NUM_ITEMS)
    assert coverage(recommendation_counts(spread, NUM_ITEMS)) == 1
    assert gini(recommendation_counts(spread, NUM_ITEMS)) == 0
