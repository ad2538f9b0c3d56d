import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmrec.errors import TrainingError
from slmrec.evaluation.metrics import ranking_metrics, ranks_of_targets, tie_draws, user_metrics


def naive_rank(scores, target, draw):
    others = [score for column, score in enumerate(scores) if column != target]
    better = sum(score > scores[target] for score in others)
    tied = sum(score == scores[target] for score in others)
    return better + min(math.floor(draw * (1 + tied)), tied)


@st.composite
def ranking_problems(draw):
    num_users, num_candidates = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    values = st.sampled_from([-math.inf, -1.5, 0.0, 0.25, 3.0])
    rows = draw(
        st.lists(
            st.lists(values, min_size=num_candidates, max_size=num_candidates), min_size=num_users, max_size=num_users
        )
    )
    targets = [draw(st.integers(0, num_candidates - 1)) for _ in rows]
    draws = [draw(st.floats(0, 1, exclude_max=True)) for _ in rows]
    for row, target in zip(rows, targets, strict=True):
        row[target] = draw(st.sampled_from([-1.5, 0.0, 0.25]))
    return rows, targets, draws


def test_ranks_are_those_worked_out_by_hand():
    scores = torch.tensor([[9.0, 7.0, 8.0, 1.0], [2.0, 5.0, 5.0, 5.0], [2.0, 5.0, 5.0, 5.0], [0.0, 1.0, 2.0, 3.0]])
    ranks = ranks_of_targets(scores, torch.tensor([2, 1, 1, 0]), np.array([0.9, 0.3, 0.7, 0.1]))
    # one better; three tied, floor(0.9) = 0 and floor(2.1) = 2; three better
    assert ranks.tolist() == [1, 0, 2, 3]
    assert ranks.dtype == np.int64


@given(ranking_problems())
def test_ranks_agree_with_a_naive_count(problem):
    rows, targets, draws = problem
    ranks = ranks_of_targets(torch.tensor(rows), torch.tensor(targets), np.array(draws))
    assert ranks.tolist() == [naive_rank(*user) for user in zip(rows, targets, draws, strict=True)]


def test_draw_next_to_one_stays_among_the_ties():
    ranks = ranks_of_targets(torch.zeros(1, 10_000), torch.tensor([0]), np.array([np.nextafter(1, 0)]))
    assert ranks.tolist() == [9_999]


def test_tie_draws_are_one_per_stratum_in_an_order_that_the_seed_decides():
    draws = tie_draws(10, seed=1)
    assert sorted(draws.tolist()) == pytest.approx([0.05 + 0.1 * stratum for stratum in range(10)])
    assert draws.tolist() == tie_draws(10, seed=1).tolist()
    assert draws.tolist() != tie_draws(10, seed=2).tolist()


@pytest.mark.parametrize("column", [0, 3, 49])
@pytest.mark.parametrize("num_users", [7, 100, 1000])
def test_constant_scorer_gets_k_of_the_candidates_wherever_the_target_stands(column, num_users):
    targets = torch.full((num_users,), column)
    ranks = ranks_of_targets(torch.zeros(num_users, 50), targets, tie_draws(num_users, seed=0))
    metrics = ranking_metrics(ranks)
    for k in (1, 5, 10, 20):
        assert metrics[f"hit@{k}"] == pytest.approx(k / 50, abs=1 / num_users)


def test_nan_names_the_users_it_was_given():
    scores = torch.zeros(3, 4)
    scores[1, 3] = scores[2, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"users \(counted from 0\) 70, 80: got NaN.*learning_rate"):
        ranks_of_targets(scores, torch.tensor([0, 0, 0]), np.zeros(3), np.array([60, 70, 80]))


def test_nan_names_rows_by_default_and_counts_when_there_are_many():
    with pytest.raises(TrainingError, match=r"0, 1, 2, 3, 4 and 7 more: got NaN"):
        ranks_of_targets(torch.full((12, 2), torch.nan), torch.zeros(12, dtype=torch.long), np.zeros(12))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_score_of_a_target_raises(value):
    with pytest.raises(TrainingError, match=r"\) 0: got NaN, or an infinite score of the target"):
        ranks_of_targets(torch.tensor([[value, 1.0]]), torch.tensor([0]), np.zeros(1))


def test_metrics_are_those_worked_out_by_hand():
    metrics = ranking_metrics(np.array([0, 2, 7, 30]))
    assert metrics == pytest.approx(
        {
            "hit@1": 1 / 4,
            "hit@5": 2 / 4,
            "hit@10": 3 / 4,
            "hit@20": 3 / 4,
            "ndcg@5": (1 + 1 / math.log2(4)) / 4,
            "ndcg@10": (1 + 1 / math.log2(4) + 1 / math.log2(9)) / 4,
            "ndcg@20": (1 + 1 / math.log2(4) + 1 / math.log2(9)) / 4,
            "mrr": (1 + 1 / 3 + 1 / 8 + 1 / 31) / 4,
        }
    )
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(("rank", "hit", "ndcg"), [(9, 1.0, 1 / math.log2(11)), (10, 0.0, 0.0)])
def test_cutoff_keeps_the_kth_place_and_no_more(rank, hit, ndcg):
    metrics = ranking_metrics(np.array([rank]))
    assert (metrics["hit@10"], metrics["ndcg@10"]) == pytest.approx((hit, ndcg))


@given(st.lists(st.integers(0, 100), min_size=1))
def test_metrics_are_means_of_users_between_0_and_1_and_grow_with_k(ranks):
    metrics, users = ranking_metrics(np.array(ranks)), user_metrics(np.array(ranks))
    assert metrics == {name: pytest.approx(values.mean()) for name, values in users.items()}
    assert all(0 <= value <= 1 for value in metrics.values())
    assert metrics["hit@1"] <= metrics["hit@5"] <= metrics["hit@10"] <= metrics["hit@20"]
    assert metrics["ndcg@5"] <= metrics["ndcg@10"] <= metrics["ndcg@20"] <= metrics["hit@20"]


def test_no_users_is_an_error_and_not_a_nan():
    with pytest.raises(ValueError, match="no ranks"):
        ranking_metrics(np.array([], dtype=np.int64))
