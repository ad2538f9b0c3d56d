"""One ranker: exclusions, candidates, removed items and score bonuses for many users at once."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from artefacts import NUM_ITEMS, sasrec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from slmrec.inference.catalogue import Catalogue
from slmrec.inference.freeze import freeze
from slmrec.inference.ranking import Ranker, RankRequest, stack_encoded
from slmrec.models.baselines import Cooccurrence, CooccurrenceConfig, Popularity, PopularityConfig
from slmrec.models.folder import Vocabulary
from slmrec.models.loader import Model
from slmrec.types import Encoded, ItemBonus

REMOVED = {4, 17}


def popularity() -> Model:
    model = Popularity(PopularityConfig(NUM_ITEMS))
    model.counts.copy_(torch.arange(NUM_ITEMS + 1)[:, None].float())
    return model.eval()


def cooccurrence() -> Model:
    """Return a model in which item i occurs with item i + 1 and with item i + 2."""
    starts = 2 * torch.arange(NUM_ITEMS + 2) - 2
    model = Cooccurrence(CooccurrenceConfig(NUM_ITEMS, 2 * NUM_ITEMS))
    model.offsets.copy_(starts.clamp(min=0))
    items = torch.arange(1, NUM_ITEMS + 1)
    model.neighbours.copy_(torch.stack([items % NUM_ITEMS + 1, (items + 1) % NUM_ITEMS + 1], dim=1).flatten())
    model.counts.copy_(torch.tensor([7.0, 3.0]).repeat(NUM_ITEMS))
    model.popularity.copy_((torch.arange(NUM_ITEMS + 1) / (2 * NUM_ITEMS))[:, None])
    return model.eval()


MODELS = {"sasrec": sasrec, "popularity": popularity, "cooccurrence": cooccurrence}


@pytest.fixture(scope="module", params=MODELS)
def ranker(request: pytest.FixtureRequest) -> Ranker:
    removed = pa.array([item in REMOVED for item in range(1, NUM_ITEMS + 1)])
    counts = pa.array(range(1, NUM_ITEMS + 1))
    vocabulary = Vocabulary(pa.array([f"i{n}" for n in range(NUM_ITEMS)]), None, counts, removed)
    return Ranker(freeze(MODELS[request.param]()), Catalogue(vocabulary))


def expected_scores(ranker: Ranker, history: list[int]) -> Tensor:
    """Return (V+1,) all scores of one user, computed the plain way."""
    if not history:
        return torch.arange(NUM_ITEMS + 1).float()
    encoded = ranker.encode([history])
    scores = (encoded.users @ ranker.model.item_vectors().T)[0]
    if encoded.bonus is not None:
        for item, score in zip(encoded.bonus.items[0].tolist(), encoded.bonus.scores[0].tolist(), strict=True):
            scores[item] += score
    return scores


items = st.integers(1, NUM_ITEMS)
users = st.tuples(
    st.lists(items, max_size=8),
    st.lists(items, max_size=8),
    st.none() | st.lists(items, max_size=6),
    st.integers(1, 50),
)


@given(st.lists(users, min_size=1, max_size=5), st.lists(items, max_size=5), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_user_gets_the_best_allowed_items(
    ranker: Ranker,
    users: list[tuple[list[int], list[int], list[int] | None, int]],
    excluded_for_all: list[int],
    one_by_one: bool,
) -> None:
    requests = [RankRequest(k, excluded, candidates) for _, excluded, candidates, k in users]
    if one_by_one:
        excluded_for_all = []
        encoded = [ranker.encode([history]) if history else None for history, *_ in users]
        ranked = ranker.rank_users(requests, encoded)
    else:
        users = [([1, 2], *rest) for _, *rest in users]  # type: ignore[misc]
        ranked = ranker.rank(requests, ranker.encode([history for history, *_ in users]), excluded=excluded_for_all)
    for (history, excluded, candidates, k), found in zip(users, ranked, strict=True):
        scores = expected_scores(ranker, history)
        allowed = set(range(1, NUM_ITEMS + 1)) if candidates is None else set(candidates)
        allowed -= {*excluded, *excluded_for_all, *REMOVED}
        assert len(found) == min(k, len(allowed)) and {item for item, _ in found} <= allowed
        best = sorted((scores[item].item() for item in allowed), reverse=True)[:k]
        assert [score for _, score in found] == pytest.approx(best, rel=1e-5, abs=1e-5)
        for item, score in found:
            assert score == pytest.approx(scores[item].item(), rel=1e-5, abs=1e-5)


def test_scores_include_the_bonus(ranker: Ranker) -> None:
    histories = [[1, 2], [9]]
    encoded = ranker.encode(histories)
    expected = torch.stack([expected_scores(ranker, history) for history in histories])
    torch.testing.assert_close(ranker.score(encoded), expected[:, 1:])
    torch.testing.assert_close(ranker.score(encoded, [3, 10, 3]), expected[:, [3, 10, 3]])


def test_requests_that_share_candidates_are_ranked_together(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    rank_alike = Ranker._rank_alike
    monkeypatch.setattr(Ranker, "_rank_alike", lambda own, *given: calls.append(1) or rank_alike(own, *given))
    candidates = [1, 2, 3]
    requests = [RankRequest(2, [], candidates), RankRequest(2), RankRequest(1, [], candidates)]
    assert [len(found) for found in ranker.rank(requests, ranker.encode([[5], [6], [7]]))] == [2, 2, 1]
    assert len(calls) == 2
    assert ranker.rank([], None) == []


def test_users_with_different_numbers_of_bonus_items_are_stacked() -> None:
    parts = [
        Encoded(torch.ones(1, 2), bonus=ItemBonus(torch.tensor([[3, 4]]), torch.tensor([[1.0, 2.0]]))),
        Encoded(torch.zeros(1, 2), bonus=ItemBonus(torch.tensor([[5]]), torch.tensor([[6.0]]))),
    ]
    stacked = stack_encoded(parts)
    assert stacked.users.tolist() == [[1, 1], [0, 0]]
    assert stacked.bonus is not None
    assert stacked.bonus.items.tolist() == [[3, 4], [5, 0]] and stacked.bonus.scores.tolist() == [[1, 2], [6, 0]]
    assert stack_encoded([Encoded(torch.ones(1, 2))]).bonus is None


def test_a_result_is_iterated_as_pairs() -> None:
    ranker = Ranker(freeze(popularity()), Catalogue(Vocabulary(pa.array(range(40)), None, pa.array([1] * 40))))
    [found] = ranker.rank([RankRequest(2)], ranker.encode([[1]]))
    assert list(found) == [(40, 40.0), (39, 39.0)] and found.items.dtype == np.int64
